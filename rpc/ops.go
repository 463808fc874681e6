package rpc

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/regd-io/regd/cluster"
)

// Ops serves the HTTP endpoints for operations:
//
//	/livez     200 unless the node is broken for good; never depends on a leader, a quorum or load
//	/readyz    200 while the node can serve; ?verbose lists the checks, ?exclude=NAME leaves one out
//	/startupz  200 once the node has been ready for the first time
//	/metrics   metrics in the Prometheus format
//
// It can answer before the node is open: NewOps needs none, Attach hands it in. All else is 404. Nothing that it says is
// secret.
type Ops struct {
	mux     *http.ServeMux
	node    atomic.Pointer[Node]
	leaving atomic.Bool
	started atomic.Bool
}

// NewOps returns the handler; gatherer supplies the metrics.
func NewOps(gatherer prometheus.Gatherer) *Ops {
	o := &Ops{mux: http.NewServeMux()}
	o.mux.HandleFunc("GET /livez", o.livez)
	o.mux.HandleFunc("GET /readyz", o.readyz)
	o.mux.HandleFunc("GET /startupz", o.startupz)
	o.mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, EnableOpenMetrics: true,
	}))
	return o
}

// Attach hands in the node once it is open. Before that the handler says that the node is starting.
func (o *Ops) Attach(node Node) { o.node.Store(&node) }

// Leave makes the node not ready, before it begins to shut down.
func (o *Ops) Leave() { o.leaving.Store(true) }

// ServeHTTP answers one request.
func (o *Ops) ServeHTTP(w http.ResponseWriter, r *http.Request) { o.mux.ServeHTTP(w, r) }

// opsCheck is one part of an answer. nil: all is well.
type opsCheck struct {
	name string
	err  error
}

func (o *Ops) livez(w http.ResponseWriter, r *http.Request) {
	checks := []opsCheck{{name: "process"}}
	if node := o.node.Load(); node != nil {
		checks = append(checks, opsCheck{"node", (*node).Live()})
	}
	answer(w, r, checks)
}

func (o *Ops) readyz(w http.ResponseWriter, r *http.Request) { answer(w, r, o.readiness()) }

func (o *Ops) startupz(w http.ResponseWriter, r *http.Request) {
	checks := o.readiness()
	if !slices.ContainsFunc(checks, func(c opsCheck) bool { return c.err != nil }) {
		o.started.Store(true)
	}
	if o.started.Load() {
		checks = []opsCheck{{name: "started"}}
	}
	answer(w, r, checks)
}

// readiness takes Node.Ready apart, so that an operator sees which part is not well, and can leave one out.
func (o *Ops) readiness() []opsCheck {
	node := o.node.Load()
	if node == nil {
		return []opsCheck{{"started", cluster.ErrStarting}}
	}
	info, ready := (*node).Info(), (*node).Ready()
	checks := []opsCheck{{name: "started"}, {name: "member"}, {name: "serving"}, {name: "leader"}, {name: "state"}}
	set := func(name string, err error) {
		i := slices.IndexFunc(checks, func(c opsCheck) bool { return c.name == name })
		checks[i].err = err
	}
	if info.Removed {
		set("member", cluster.ErrRemoved)
	}
	if info.Stopping || o.leaving.Load() {
		set("serving", cluster.ErrClosed)
	}
	if info.LeaderID == "" {
		set("leader", cluster.ErrNoLeader)
	}
	switch {
	case ready == nil:
	case errors.Is(ready, cluster.ErrStarting):
		set("started", ready)
	case errors.Is(ready, cluster.ErrRemoved):
		set("member", ready)
	case errors.Is(ready, cluster.ErrClosed):
		set("serving", ready)
	case errors.Is(ready, cluster.ErrNoLeader):
		set("leader", ready)
	default:
		set("state", ready)
	}
	return checks
}

// answer sends 200 when all checks but the excluded are well, else 503. What fails is always named.
func answer(w http.ResponseWriter, r *http.Request, checks []opsCheck) {
	query := r.URL.Query()
	_, verbose := query["verbose"]
	var body strings.Builder
	code, word := http.StatusOK, "ok"
	for _, c := range checks {
		switch {
		case slices.Contains(query["exclude"], c.name):
			if verbose {
				fmt.Fprintf(&body, "[+]%s excluded\n", c.name)
			}
		case c.err != nil:
			code, word = http.StatusServiceUnavailable, "failed"
			fmt.Fprintf(&body, "[-]%s: %v\n", c.name, c.err)
		case verbose:
			fmt.Fprintf(&body, "[+]%s ok\n", c.name)
		}
	}
	if verbose || code == http.StatusOK {
		body.WriteString(word + "\n")
	}
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(body.String())) // A prober that has gone needs no answer.
}
