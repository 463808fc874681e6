package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Ops serves the HTTP endpoints for operations:
//
//	/livez         200 unless the node is broken for good; never depends on a leader, a quorum or load
//	/readyz        200 while the node can serve; ?verbose lists the checks, ?exclude=NAME leaves one out
//	/startupz      200 once the node has been ready for the first time
//	/metrics       metrics in the Prometheus format
//	/debug/pprof/  profiles of the process
//	/              this list
//
// It can answer before the node is open: NewOps needs none, Attach hands it in. All else is 404.
//
// With access control on, metrics take the permission to observe and profiles that to operate, of an identity that is shown as
// for RPCs: "Authorization: Bearer TOKEN". With access control off, what is for operators is for this machine alone. Probes are for all.
type Ops struct {
	mux     *http.ServeMux
	node    atomic.Pointer[Node]
	started atomic.Bool
}

// NewOps returns the handler; gatherer supplies the metrics, and what it can't is logged.
func NewOps(gatherer prometheus.Gatherer, log *slog.Logger) *Ops {
	o := &Ops{mux: http.NewServeMux()}
	for _, r := range o.routes(gatherer, log) {
		o.Handle(r.pattern, r.action, r.serve)
	}
	return o
}

// Handle adds a route, such as one of a front door: a pattern of [http.ServeMux], the permission that it takes (0: none), and
// what serves it. To discover or register anything at all will do; [Credential] tells the handler who asks, so that it can look
// closer. It panics when the pattern is taken.
func (o *Ops) Handle(pattern string, action registryv1.Action, serve http.HandlerFunc) {
	o.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if ctx, ok := o.allow(w, r, action); ok {
			serve(w, r.WithContext(ctx)) //nolint:contextcheck // It is the request's, and knows who asks.
		}
	})
}

// opsRoute is what Handle takes.
type opsRoute struct {
	pattern string
	action  registryv1.Action
	serve   http.HandlerFunc
}

func (o *Ops) routes(gatherer prometheus.Gatherer, log *slog.Logger) []opsRoute {
	const anybody, observer, operator = 0, registryv1.Action_ACTION_OBSERVE, registryv1.Action_ACTION_OPERATE
	return []opsRoute{
		{"GET /{$}", anybody, o.index},
		{"GET /livez", anybody, o.livez},
		{"GET /readyz", anybody, o.readyz},
		{"GET /startupz", anybody, o.startupz},
		{"GET /metrics", observer, promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{
			ErrorHandling: promhttp.ContinueOnError, EnableOpenMetrics: true, MaxRequestsInFlight: 4, Timeout: 10 * time.Second,
			ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		}).ServeHTTP},
		{"GET /debug/pprof/", operator, pprof.Index},
		{"GET /debug/pprof/cmdline", operator, pprof.Cmdline},
		{"GET /debug/pprof/profile", operator, pprof.Profile},
		{"GET /debug/pprof/symbol", operator, pprof.Symbol},
		{"GET /debug/pprof/trace", operator, pprof.Trace},
	}
}

// allow tells whether a request may go on, and answers it if not. The context that it returns knows who asks.
func (o *Ops) allow(w http.ResponseWriter, r *http.Request, action registryv1.Action) (context.Context, bool) {
	ctx := r.Context()
	if action == 0 {
		return ctx, true
	}
	node := o.node.Load()
	if node == nil || !(*node).Feed().State().Enforced() {
		if action == registryv1.Action_ACTION_OPERATE && !local(r) {
			http.Error(w, "this is for this machine alone while access control is off", http.StatusForbidden)
			return ctx, false
		}
		return ctx, true
	}
	g, err := guard{*node}, error(nil)
	if shown := r.Header.Get("Authorization"); shown != "" {
		ctx, err = g.identify(ctx, shown)
	}
	if err == nil {
		somewhere := action == registryv1.Action_ACTION_DISCOVER || action == registryv1.Action_ACTION_REGISTER
		err = g.authorize(ctx, need{action: action, somewhere: somewhere})
	}
	switch {
	case err == nil:
		return ctx, true
	case errors.Is(err, ErrUnauthenticated):
		w.Header().Set("WWW-Authenticate", `Bearer realm="regd"`)
		http.Error(w, err.Error(), http.StatusUnauthorized)
	case errors.Is(err, fsm.ErrDenied):
		http.Error(w, err.Error(), http.StatusForbidden)
	default:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
	return ctx, false
}

// local tells whether a request comes from this machine.
func local(r *http.Request) bool {
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && addr.Addr().Unmap().IsLoopback()
}

// Attach hands in the node once it is open. Before that the handler says that the node is starting.
func (o *Ops) Attach(node Node) { o.node.Store(&node) }

// ServeHTTP answers one request.
func (o *Ops) ServeHTTP(w http.ResponseWriter, r *http.Request) { o.mux.ServeHTTP(w, r) }

// opsCheck is one part of an answer. nil: all is well.
type opsCheck struct {
	name string
	err  error
}

func (o *Ops) index(w http.ResponseWriter, _ *http.Request) {
	_, _ = fmt.Fprintln(w, "regd: /livez /readyz?verbose /startupz /metrics /debug/pprof/")
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
	if info.Stopping {
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
