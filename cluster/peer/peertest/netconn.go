package peertest

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// streamBuffer is how many bytes a writer may be ahead of the reader: both sides' socket buffers.
const streamBuffer = 512 << 10

// stream is one direction of a connection. The Net's mutex guards it.
type stream struct {
	net   *Net
	route route

	chunks  []chunk // written and not yet read, in order
	arrived int     // how many of them the reader can see
	size    int     // bytes in chunks
	lastAt  time.Time
	eof     bool // the reader has seen the end

	reset        bool // the connection is broken
	readerClosed bool
	writerClosed bool
	readBy       time.Time // deadline of the reader; zero: none
	writeBy      time.Time // deadline of the writer

	changed chan struct{} // closed and replaced when anything above changed
}

// chunk is what one Write wrote, or the end of the stream.
type chunk struct {
	data []byte
	at   time.Time // when it arrives, if nothing is in its way
	end  bool
}

func newStream(n *Net, r route) *stream {
	return &stream{net: n, route: r, changed: make(chan struct{})}
}

func (s *stream) wakeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// arriveLocked lets arrive what is due, unless something is in its way.
func (s *stream) arriveLocked(now time.Time) {
	if s.net.blockedLocked(s.route) {
		return
	}
	for s.arrived < len(s.chunks) && !s.chunks[s.arrived].at.After(now) {
		s.arrived++
	}
}

// pushLocked sends a chunk on its way.
func (s *stream) pushLocked(c chunk) {
	c.at = time.Now().Add(s.net.link(s.route).delay)
	if c.at.Before(s.lastAt) {
		c.at = s.lastAt // a stream stays in order when the delay falls
	}
	s.lastAt = c.at
	s.chunks = append(s.chunks, c)
	s.size += len(c.data)
	s.wakeLocked()
}

func (s *stream) resetLocked() {
	s.reset = true
	s.chunks, s.arrived, s.size = nil, 0, 0
	s.wakeLocked()
}

// endedLocked reports whether the end of the stream has arrived.
func (s *stream) endedLocked(now time.Time) bool {
	s.arriveLocked(now)
	return s.eof || s.arrived > 0 && s.chunks[s.arrived-1].end
}

// readLocked reads what has arrived. done is false when the reader must wait, at most until the given time; zero: no
// limit.
func (s *stream) readLocked(b []byte) (n int, done bool, until time.Time, err error) {
	now := time.Now()
	s.arriveLocked(now)
	switch {
	case s.readerClosed:
		return 0, true, until, net.ErrClosed
	case expired(s.readBy, now):
		return 0, true, until, os.ErrDeadlineExceeded
	case s.reset:
		return 0, true, until, syscall.ECONNRESET
	case s.eof:
		return 0, true, until, io.EOF
	case len(b) == 0:
		return 0, true, until, nil
	}
	for s.arrived > 0 && n < len(b) && !s.chunks[0].end {
		c := &s.chunks[0]
		k := copy(b[n:], c.data)
		n += k
		s.size -= k
		if c.data = c.data[k:]; len(c.data) == 0 {
			s.dropLocked()
		}
	}
	if n > 0 {
		s.wakeLocked() // the writer has room
		return n, true, until, nil
	}
	if s.arrived > 0 {
		s.dropLocked()
		s.eof = true
		return 0, true, until, io.EOF
	}
	until = s.readBy
	if len(s.chunks) > 0 && !s.net.blockedLocked(s.route) {
		until = sooner(until, s.chunks[0].at)
	}
	return 0, false, until, nil
}

func (s *stream) dropLocked() {
	s.chunks[0] = chunk{}
	s.chunks = s.chunks[1:]
	s.arrived--
}

// writeLocked takes as many bytes as there is room for. answers is the stream in the other direction, which tells
// that the reader has gone.
func (s *stream) writeLocked(b []byte, answers *stream) (n int, done bool, until time.Time, err error) {
	now := time.Now()
	switch {
	case s.writerClosed:
		return 0, true, until, net.ErrClosed
	case expired(s.writeBy, now):
		return 0, true, until, os.ErrDeadlineExceeded
	case s.reset:
		return 0, true, until, syscall.ECONNRESET
	case answers.endedLocked(now):
		return 0, true, until, syscall.EPIPE
	}
	if n = min(len(b), streamBuffer-s.size); n > 0 {
		s.pushLocked(chunk{data: append([]byte(nil), b[:n]...)})
	}
	until = s.writeBy
	if len(answers.chunks) > 0 {
		if last := answers.chunks[len(answers.chunks)-1]; last.end && !s.net.blockedLocked(answers.route) {
			until = sooner(until, last.at)
		}
	}
	return n, n == len(b), until, nil
}

// wait waits until a stream changes or the time has come; zero: no time.
func wait(until time.Time, changed ...<-chan struct{}) {
	var due <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		due = t.C
	}
	var other <-chan struct{}
	if len(changed) > 1 {
		other = changed[1]
	}
	select {
	case <-changed[0]:
	case <-other:
	case <-due:
	}
}

func expired(by, now time.Time) bool { return !by.IsZero() && !by.After(now) }

// sooner returns the earlier time; zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// conn is one end of a connection. Its methods may be called by many goroutines at once, as net.Conn wants.
type conn struct {
	net           *Net
	local, remote address
	in, out       *stream
	closed        bool
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	for {
		c.net.mu.Lock()
		n, done, until, err := c.in.readLocked(b)
		changed := c.in.changed
		c.net.mu.Unlock()
		if done {
			return n, c.wrap("read", err)
		}
		wait(until, changed)
	}
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	for written := 0; ; {
		c.net.mu.Lock()
		n, done, until, err := c.out.writeLocked(b[written:], c.in)
		room, answers := c.out.changed, c.in.changed
		c.net.mu.Unlock()
		written += n
		if done {
			return written, c.wrap("write", err)
		}
		wait(until, room, answers)
	}
}

func (c *conn) wrap(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// Close implements net.Conn. What was written before still arrives.
func (c *conn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.closed {
		return c.wrap("close", net.ErrClosed)
	}
	c.closeLocked()
	return nil
}

func (c *conn) closeLocked() {
	c.closed = true
	c.out.pushLocked(chunk{end: true})
	c.out.writerClosed = true
	c.in.readerClosed = true
	c.in.wakeLocked()
	delete(c.net.conns, c)
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return c.deadline(func() { c.in.readBy, c.out.writeBy = t, t })
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	return c.deadline(func() { c.in.readBy = t })
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.deadline(func() { c.out.writeBy = t })
}

func (c *conn) deadline(set func()) error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.closed {
		return c.wrap("set deadline", net.ErrClosed)
	}
	set()
	c.in.wakeLocked()
	c.out.wakeLocked()
	return nil
}
