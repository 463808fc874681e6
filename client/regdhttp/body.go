package regdhttp

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
)

// maxDrain is how much of a response that is given up is read so that its connection can be used again.
const maxDrain = 2 << 10

// discard gives a response up.
func discard(resp *http.Response) {
	if resp.ContentLength <= maxDrain {
		_, _ = io.CopyN(io.Discard, resp.Body, maxDrain+1) // If that fails the connection is gone, and nothing else.
	}
	_ = resp.Body.Close()
}

// watchBody calls done when the body ends, is closed, or is forgotten by a caller whose context ends.
func watchBody(resp *http.Response, done func(error)) {
	if resp.Body == nil || resp.Body == http.NoBody {
		done(nil)
		return
	}
	b := &body{ReadCloser: resp.Body, done: done}
	if ctx := resp.Request.Context(); ctx.Done() != nil {
		b.stop = context.AfterFunc(ctx, func() { b.report(context.Cause(ctx)) })
	}
	resp.Body = b
	if w, ok := b.ReadCloser.(io.Writer); ok { // 101 Switching Protocols
		resp.Body = struct {
			*body
			io.Writer
		}{b, w}
	}
}

// body is a response's, and tells of its end.
type body struct {
	io.ReadCloser
	done func(error)
	stop func() bool // nil: the context never ends
	once sync.Once
}

// Read reads, and reports an end.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.end(nil)
	} else if err != nil {
		b.end(err)
	}
	return n, err
}

// Close closes, and reports.
func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.end(nil)
	return err
}

// end reports, and forgets the context.
func (b *body) end(err error) {
	b.report(err)
	if b.stop != nil {
		b.stop()
	}
}

// report reports once.
func (b *body) report(err error) {
	b.once.Do(func() { b.done(err) })
}
