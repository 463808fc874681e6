package health

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

const (
	// maxBody is how much of an answer is looked at, in bytes.
	maxBody = 4 << 10
	// maxAnswerHeader bounds the header of an answer, in bytes.
	maxAnswerHeader = 64 << 10
	// userAgent tells the probed service who asks.
	userAgent = "regd-check"
)

// errNotHTTP stands for all errors in an answer. Their own texts quote it, and a check can be pointed at what is not meant
// for those who may read the registry.
var errNotHTTP = errors.New("the answer is not valid HTTP")

// tlsKey is the context key under which a request carries the TLS configuration of its check, so that one transport
// serves all of them.
type tlsKey struct{}

// httpClient keeps no connection, follows no redirect and knows no proxy.
func (ps *probes) httpClient() *http.Client {
	dialTLS := func(ctx context.Context, network, address string) (net.Conn, error) {
		cfg, _ := ctx.Value(tlsKey{}).(*tls.Config)
		return (&tls.Dialer{NetDialer: ps.dialer, Config: cfg}).DialContext(ctx, network, address)
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  nil,
			DialContext:            ps.dialer.DialContext,
			DialTLSContext:         dialTLS,
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxAnswerHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// http asks once. A redirect is an answer like any other, judged by its status.
func (ps *probes) http(ctx context.Context, p *plan, check *registryv1.HTTPCheck) result {
	ctx = context.WithValue(ctx, tlsKey{}, ps.tlsConfig(check.GetTls(), p.host))
	var answered atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotFirstResponseByte: func() { answered.Store(true) }})
	method := check.GetMethod()
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, p.target, http.NoBody)
	if err != nil {
		return critical(err.Error())
	}
	req.Header.Set("User-Agent", userAgent)
	for name, value := range check.GetHeaders() {
		req.Header.Set(name, value)
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	resp, err := ps.client.Do(req)
	if err != nil && answered.Load() {
		err = errNotHTTP
	}
	if err != nil {
		return failure(ctx, p, withoutURL(err))
	}
	defer resp.Body.Close()
	return judgeHTTP(ctx, p, check, resp)
}

func judgeHTTP(ctx context.Context, p *plan, check *registryv1.HTTPCheck, resp *http.Response) result {
	low, high := check.GetStatusMin(), check.GetStatusMax()
	if low == 0 {
		low = http.StatusOK
	}
	if high == 0 {
		high = max(low, 299)
	}
	status := strings.TrimSpace(fmt.Sprintf("HTTP %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))) // Not all have a text.
	switch code := uint32(resp.StatusCode); {
	case code >= low && code <= high:
	case code == http.StatusTooManyRequests:
		return result{registryv1.CheckStatus_CHECK_STATUS_WARNING, status}
	default:
		return critical(status)
	}
	text := check.GetBodyContains()
	if text == "" {
		return passing(status)
	}
	found, err := contains(resp.Body, []byte(text))
	switch {
	case found:
		return passing(status)
	case err != nil:
		return failure(ctx, p, errors.New(status+", but the body breaks off")) // err may quote what it ends with.
	default:
		return critical(status + ", but the body lacks the expected text")
	}
}

// contains reads body until it holds text, ends or gets too long, so that a body without end does no harm.
func contains(body io.Reader, text []byte) (bool, error) {
	seen := make([]byte, 0, maxBody)
	for len(seen) < maxBody {
		n, err := body.Read(seen[len(seen):maxBody])
		seen = seen[:len(seen)+n]
		if bytes.Contains(seen, text) {
			return true, nil
		}
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// withoutURL drops method and URL from an error: the definition of the check has them, and they may hold a secret.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
