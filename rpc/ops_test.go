package rpc

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/regd-io/regd/cluster"
)

func opsGet(tb testing.TB, o *Ops, target string) (int, string) {
	tb.Helper()
	w := httptest.NewRecorder()
	o.ServeHTTP(w, httptest.NewRequestWithContext(tb.Context(), http.MethodGet, target, nil))
	return w.Code, w.Body.String()
}

func TestOpsAnswersBeforeTheNodeIsOpen(t *testing.T) {
	o := NewOps(prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	for target, want := range map[string]int{"/livez": 200, "/readyz": 503, "/startupz": 503, "/metrics": 200, "/": 200, "/nothing": 404} {
		if code, body := opsGet(t, o, target); code != want {
			t.Errorf("%s: %d %q, want %d", target, code, body, want)
		}
	}
	if _, body := opsGet(t, o, "/readyz"); !strings.Contains(body, "starting") {
		t.Errorf("/readyz says %q, not why", body)
	}
}

func TestOpsFollowsTheNode(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*fakeNode)
		target  string
		code    int
		mention string
	}{
		{"well", func(*fakeNode) {}, "/readyz", 200, "ok\n"},
		{"well, in detail", func(*fakeNode) {}, "/readyz?verbose", 200, "[+]leader ok\n"},
		{"no leader", func(n *fakeNode) { n.ready = cluster.ErrNoLeader }, "/readyz", 503, "[-]leader: "},
		{"no leader in Info", func(n *fakeNode) { n.info.LeaderID = "" }, "/readyz", 503, "[-]leader: "},
		{"no leader, in detail", func(n *fakeNode) { n.ready = cluster.ErrNoLeader }, "/readyz?verbose", 503, "[+]member ok\n"},
		{"no leader, excluded", func(n *fakeNode) { n.info.LeaderID, n.ready = "", cluster.ErrNoLeader }, "/readyz?exclude=leader", 200, "ok\n"},
		{"another one excluded", func(n *fakeNode) { n.ready = cluster.ErrNoLeader }, "/readyz?exclude=state", 503, "[-]leader: "},
		{"behind", func(n *fakeNode) { n.ready = cluster.ErrTooStale }, "/readyz", 503, "[-]state: "},
		{"stopping", func(n *fakeNode) { n.info.Stopping = true }, "/readyz", 503, "[-]serving: "},
		{"about to stop", func(n *fakeNode) { n.ready = cluster.ErrClosed }, "/readyz", 503, "[-]serving: the node is stopping\n"},
		{"about to stop, excluded", func(n *fakeNode) { n.ready = cluster.ErrClosed }, "/readyz?exclude=serving", 200, "ok\n"},
		{"stopping is no reason to kill", func(n *fakeNode) { n.ready = cluster.ErrClosed }, "/livez", 200, "ok\n"},
		{"removed", func(n *fakeNode) { n.info.Removed = true }, "/readyz", 503, "[-]member: "},
		{"starting", func(n *fakeNode) { n.ready = cluster.ErrStarting }, "/startupz", 503, "[-]started: "},
		{"no leader is no reason to restart", func(n *fakeNode) { n.info.LeaderID, n.ready = "", cluster.ErrNoLeader }, "/livez", 200, "ok\n"},
		{"broken", func(n *fakeNode) { n.live = errors.New("stuck") }, "/livez", 503, "[-]node: stuck"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			node := newFakeNode(t)
			node.set(func() { tt.change(node) })
			o := NewOps(prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
			o.Attach(node)
			code, body := opsGet(t, o, tt.target)
			if code != tt.code || !strings.Contains(body, tt.mention) {
				t.Errorf("%s: %d %q, want %d with %q", tt.target, code, body, tt.code, tt.mention)
			}
		})
	}
}

func TestStartupIsOverOnce(t *testing.T) {
	node := newFakeNode(t)
	o := NewOps(prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	o.Attach(node)
	if code, body := opsGet(t, o, "/startupz"); code != 200 {
		t.Fatalf("%d %q", code, body)
	}
	node.set(func() { node.ready = cluster.ErrNoLeader })
	if code, body := opsGet(t, o, "/startupz"); code != 200 {
		t.Errorf("after the start: %d %q", code, body)
	}
}

func TestOpsServesMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "regd_test", Help: "A test."})
	g.Set(42)
	reg.MustRegister(g)
	if code, body := opsGet(t, NewOps(reg, slog.New(slog.DiscardHandler)), "/metrics"); code != 200 || !strings.Contains(body, "regd_test 42") {
		t.Errorf("%d %q", code, body)
	}
}

func TestOpsOnlyReads(t *testing.T) {
	w := httptest.NewRecorder()
	NewOps(prometheus.NewRegistry(), slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/livez", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST /livez: %d", w.Code)
	}
}

// askFrom sends a request from an address, with an authorization header unless it is empty.
func askFrom(tb testing.TB, o *Ops, target, from, authorization string) (int, string) {
	tb.Helper()
	req := httptest.NewRequestWithContext(tb.Context(), http.MethodGet, target, nil)
	req.RemoteAddr = from
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	o.ServeHTTP(w, req)
	return w.Code, w.Body.String()
}

// Every route has a rule: what is not for everybody is refused without a token, and with one of another role.
func TestOpsAsksWhoMay(t *testing.T) {
	const near, far = "127.0.0.1:5000", "192.0.2.1:5000"
	node := newFakeNode(t)
	o := NewOps(prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	o.Attach(node)
	forAll := []string{"GET /{$}", "GET /livez", "GET /readyz", "GET /startupz"}
	for _, r := range o.routes(prometheus.NewRegistry(), slog.New(slog.DiscardHandler)) {
		if (r.action == 0) != slices.Contains(forAll, r.pattern) {
			t.Errorf("%s takes %v", r.pattern, r.action)
		}
	}
	for _, tt := range []struct {
		from, target string
		want         int
	}{{near, "/metrics", 200}, {far, "/metrics", 200}, {near, "/debug/pprof/cmdline", 200}, {far, "/debug/pprof/cmdline", 403}} {
		if code, body := askFrom(t, o, tt.target, tt.from, ""); code != tt.want {
			t.Errorf("access control off: %s from %s: %d %s, want %d", tt.target, tt.from, code, body, tt.want)
		}
	}
	node.enforce(t)
	node.identity(t, "prometheus", rule("", observeIt))
	node.identity(t, "on-call", rule("", operateIt))
	bearer := func(id string) string { return "Bearer regd_" + id + "_" + secretOf(id) }
	for _, tt := range []struct {
		who, authorization       string
		probes, metrics, profile int
	}{
		{"nobody", "", 200, 403, 403},
		{"a wrong token", "Bearer regd_root_wrong", 200, 401, 401},
		{"who observes", bearer("prometheus"), 200, 200, 403},
		{"who operates", bearer("on-call"), 200, 200, 200},
	} {
		for target, want := range map[string]int{"/livez": tt.probes, "/metrics": tt.metrics, "/debug/pprof/cmdline": tt.profile} {
			if code, body := askFrom(t, o, target, near, tt.authorization); code != want {
				t.Errorf("%s at %s: %d %s, want %d", tt.who, target, code, body, want)
			}
		}
	}
	node.set(func() { node.onView = func(context.Context, cluster.Freshness) error { return cluster.ErrNoLeader } })
	if code, _ := askFrom(t, o, "/metrics", near, bearer("prometheus")); code != 200 {
		t.Errorf("metrics without a leader: %d, want them: they are needed most then", code)
	}
	if code, _ := askFrom(t, o, "/metrics", near, bearer("unknown")); code != 503 {
		t.Errorf("an unknown token without a leader: %d, want 503: it may be new", code)
	}
}
