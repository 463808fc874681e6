package regdhttp

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"
)

// IsFailure is the default of WithFailure: an error, and status codes from 500 on but 501 Not Implemented, which is true of
// all instances.
func IsFailure(resp *http.Response, err error) bool {
	return err != nil || resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented
}

// IsIdempotent is the default of WithIdempotent, and the rule of net/http: methods GET, HEAD, OPTIONS and TRACE, and requests
// with a header Idempotency-Key or X-Idempotency-Key, also one without values, which isn't sent.
func IsIdempotent(req *http.Request) bool {
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	_, key := req.Header["Idempotency-Key"]
	_, xkey := req.Header["X-Idempotency-Key"]
	return key || xkey
}

// repeatable tells whether the body can be sent again.
func repeatable(req *http.Request) bool {
	return req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
}

// unsent tells whether an error of the inner transport says that no connection came about, so that no instance has seen
// anything of the request. The transport repeats a request on another connection by itself only if that is harmless, so
// this holds even if there was one before.
func unsent(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && (op.Op == "dial" || op.Op == "proxyconnect") {
		return true
	}
	_, refused := errors.AsType[*tls.CertificateVerificationError](err)
	return refused
}

// retry tells whether the outcome of an attempt calls for another one, and after which pause.
func (c *config) retry(req *http.Request, resp *http.Response, err error) (pause time.Duration, ok bool) {
	switch {
	case req.Context().Err() != nil || !repeatable(req):
		return 0, false
	case err != nil:
		return 0, unsent(err) || c.idempotent(req)
	}
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		pause = retryAfter(resp.Header.Get("Retry-After"), time.Now())
		return pause, pause <= c.maxPause && c.idempotent(req)
	default:
		return 0, false
	}
}

// retryAfter reads the header of RFC 9110, section 10.2.3: seconds or a date. What can't be read counts for nothing.
func retryAfter(value string, now time.Time) time.Duration {
	if value == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}

// fits tells whether there is anything left of the context's time after a pause.
func fits(ctx context.Context, pause time.Duration) bool {
	deadline, ok := ctx.Deadline()
	return !ok || time.Until(deadline) > pause
}

// wait pauses.
func wait(ctx context.Context, pause time.Duration) error {
	if pause == 0 {
		return nil
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
