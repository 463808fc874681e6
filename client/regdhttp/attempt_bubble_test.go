package regdhttp_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/client/internal/registrytest"
	"github.com/regd-io/regd/client/regdhttp"
)

// hanging is an inner transport: some requests are never answered, the ones after them at once, with a body that takes its time.
type hanging struct {
	requests atomic.Int64
	body     time.Duration
}

func (h *hanging) RoundTrip(req *http.Request) (*http.Response, error) {
	if h.requests.Add(-1) >= 0 {
		<-req.Context().Done()
		return nil, context.Cause(req.Context())
	}
	r, w := io.Pipe()
	go func() {
		select {
		case <-time.After(h.body):
			_, _ = io.WriteString(w, "done")
			_ = w.Close()
		case <-req.Context().Done():
			_ = w.CloseWithError(context.Cause(req.Context()))
		}
	}()
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: r, Request: req, ContentLength: -1}, nil
}

// An instance that hangs costs the time of an attempt, not that of the request.
func TestAnInstanceThatHangsIsLeftForAnother(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, method string
		hang         int64
		attempt      time.Duration
		took         time.Duration
		want         error
	}{
		{"one hangs", http.MethodGet, 1, time.Second, 6 * time.Second, nil},
		{"all hang", http.MethodGet, 2, time.Second, 2 * time.Second, regdhttp.ErrAttemptTimeout},
		{"it may have been done", http.MethodPost, 2, time.Second, time.Second, regdhttp.ErrAttemptTimeout},
		{"no bound but the caller's", http.MethodGet, 2, time.Hour, 10 * time.Second, context.DeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r, inner := registrytest.New(t), &hanging{body: 5 * time.Second}
				r.Put(inst("a"))
				r.Put(inst("b"))
				tr := transport(t, r.Discovery(), regdhttp.WithTransport(inner), regdhttp.WithAttemptTimeout(tt.attempt))
				inner.requests.Store(tt.hang)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, tt.method, "http://payment.service/", http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				resp, err := tr.RoundTrip(req)
				var body []byte
				if err == nil {
					body, err = io.ReadAll(resp.Body)
					_ = resp.Body.Close()
				}
				if took := time.Since(began); !errors.Is(err, tt.want) || took != tt.took || tt.want == nil && string(body) != "done" {
					t.Errorf("%q, %v after %v, want %v after %v", body, err, took, tt.want, tt.took)
				}
				if timeout, ok := errors.AsType[net.Error](err); tt.want != nil && (!ok || !timeout.Timeout()) {
					t.Errorf("%v is no timeout", err)
				}
			})
		})
	}
}
