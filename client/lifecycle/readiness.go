package lifecycle

import (
	"io"
	"net/http"
	"sync/atomic"
)

// Readiness tells a kubelet or a load balancer whether the process serves: status 200, or 503 before that and from the
// moment it is asked to stop. Run keeps it. The zero value is not ready. It is safe for concurrent use.
type Readiness struct {
	ready atomic.Bool
}

// Ready tells whether the process serves.
func (r *Readiness) Ready() bool { return r.ready.Load() }

// ServeHTTP implements http.Handler.
func (r *Readiness) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !r.Ready() {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "not ready\n") // Who asked may be gone.
		return
	}
	_, _ = io.WriteString(w, "ready\n")
}
