package consul

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"
)

const (
	// defaultWait is how long a query waits for a change when it does not say.
	defaultWait = 5 * time.Minute
	// maxWait is the longest wait. It is cut to that, as Consul does.
	maxWait = 10 * time.Minute
	// jitterPart of a wait is added at most, so that those who began together do not end together.
	jitterPart = 16
	// maxTerms is how often a parameter may be given.
	maxTerms = 64
	// maxFilterBytes is the longest filter.
	maxFilterBytes = 4 << 10
)

// agent is the host from which a request comes, as Consul would have an agent there.
type agent struct {
	node    string // its name
	address string // under which it is reached
}

// request is a request with its parameters taken apart.
type request struct {
	*http.Request
	rest       string // of the path, behind the route's
	query      url.Values
	index      uint64 // wait until it has changed since; 0: don't
	wait       time.Duration
	hash       string // wait while the content has this hash
	mode       cluster.Mode
	cached     bool
	namespace  string
	near       string
	nodeMeta   map[string]string
	filter     *filter // nil: none
	agent      agent
	visit      *rpc.Visit
	credential string
	sure       bool // The State at hand is current: what it does not have is not there.
}

// readRequest takes a request apart. Its errors are the client's fault.
func (s *Server) readRequest(r *http.Request, rest string) (*request, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("Invalid query: %v", err)
	}
	a := &request{Request: r, rest: rest, query: q, hash: q.Get("hash"), near: q.Get("near")}
	for name, values := range q {
		if len(values) > maxTerms {
			return nil, badRequest("%s: is given %d times, the limit is %d", name, len(values), maxTerms)
		}
	}
	if dc := q.Get("dc"); dc != "" && dc != s.cfg.Datacenter {
		return nil, &failure{http.StatusInternalServerError, fmt.Sprintf("No path to datacenter: dc %q is not %q", dc, s.cfg.Datacenter)}
	}
	a.namespace = cmp.Or(q.Get("ns"), r.Header.Get("X-Consul-Namespace"), rpc.DefaultNamespace)
	if err = a.readBlocking(); err != nil {
		return nil, err
	}
	if err = a.readConsistency(); err != nil {
		return nil, err
	}
	if a.nodeMeta, err = pairs(q["node-meta"]); err != nil {
		return nil, err
	}
	if a.filter, err = newFilter(q.Get("filter")); err != nil {
		return nil, err
	}
	a.agent, err = s.agentOf(r)
	return a, err
}

func (a *request) readBlocking() error {
	a.wait = defaultWait
	if text := a.query.Get("index"); text != "" {
		index, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return badRequest("Invalid index: index %q: must be a whole number", text)
		}
		a.index = index
	}
	if text := a.query.Get("wait"); text != "" {
		wait, err := time.ParseDuration(text)
		if err != nil || wait < 0 {
			return badRequest("Invalid wait time: wait %q: must be a duration, such as 10s or 5m", text)
		}
		if wait > 0 {
			a.wait = min(wait, maxWait)
		}
	}
	return nil
}

// jitter returns the wait, and a bit more.
func (a *request) jitter() time.Duration {
	return a.wait + rand.N(a.wait/jitterPart+1) //nolint:gosec // Not a secret.
}

func (a *request) readConsistency() error {
	stale, consistent := a.on("stale"), a.on("consistent")
	a.cached = a.on("cached")
	switch {
	case stale && consistent:
		return badRequest("Cannot specify ?stale with ?consistent, conflicting semantics.")
	case a.cached && consistent:
		return badRequest("Cannot specify ?cached with ?consistent, conflicting semantics.")
	case stale, a.cached:
		a.mode = cluster.ModeStale
	default:
		a.mode = cluster.ModeLinearizable
	}
	return nil
}

// on tells whether a parameter is set. That it is there is enough, unless it says no.
func (a *request) on(name string) bool {
	values, ok := a.query[name]
	return ok && values[0] != "false" && values[0] != "0"
}

// boolean is a parameter that must say yes or no.
func (a *request) boolean(name string) (bool, error) {
	text := a.query.Get(name)
	if text == "" {
		return false, badRequest("Missing value for %s", name)
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		return false, badRequest("Invalid value for %s: %q: must be true or false", name, text)
	}
	return v, nil
}

// pairs reads key:value terms.
func pairs(terms []string) (map[string]string, error) {
	m := make(map[string]string, len(terms))
	for _, term := range terms {
		key, value, ok := strings.Cut(term, ":")
		if !ok || key == "" {
			return nil, badRequest("node-meta %q: must be key:value", term)
		}
		m[key] = value
	}
	return m, nil
}

// agentOf tells at whose agent a request is made: the host that it comes from, or the node that it names.
func (s *Server) agentOf(r *http.Request) (agent, error) {
	at := agent{node: s.cfg.Host, address: "127.0.0.1"}
	if m := s.me(); m != nil {
		at.address = hostOf(m.GetGrpcAddress())
	}
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && !peer.Addr().Unmap().IsLoopback() {
		ip := peer.Addr().Unmap().WithZone("").String()
		at = agent{node: ip, address: ip}
	}
	if name := r.Header.Get("X-Regd-Node"); name != "" {
		at.node = name
	}
	return at, validNode("X-Regd-Node", at.node)
}

// me is this node as the cluster knows it, nil if it does not yet.
func (s *Server) me() *registryv1.Member { return s.node.Feed().State().Member(s.node.Info().NodeID) }

// validNode checks the name of a node.
func validNode(field, name string) error {
	ok := name != "" && len(name) <= rpc.MaxInstanceIDLen
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._:-", c) >= 0)
	}
	if !ok {
		return badRequest("%s %q: must be 1 to %d characters of [A-Za-z0-9._:-]", field, cut(name), rpc.MaxInstanceIDLen)
	}
	return nil
}

// cut bounds what is repeated of a request.
func cut(s string) string {
	const most = 128
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// token is the one that a request shows, empty if none.
func token(r *http.Request, q url.Values) string {
	if t := r.Header.Get("X-Consul-Token"); t != "" {
		return t
	}
	if scheme, t, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "bearer") {
		return strings.TrimSpace(t)
	}
	return q.Get("token")
}

// sees tells whether the caller may see a service.
func (a *request) sees(st *fsm.State, namespace, service string) bool {
	return st.Allowed(a.credential, registryv1.Action_ACTION_DISCOVER, namespace, service)
}

// observes tells whether the caller may see how the cluster is.
func (a *request) observes(st *fsm.State) bool {
	return st.Allowed(a.credential, registryv1.Action_ACTION_OBSERVE, "", "")
}

// allow checks that the caller may do what it asks for.
func (s *Server) allow(ctx context.Context, a *request, action registryv1.Action, namespace, name string) error {
	word := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(action.String(), "ACTION_"), "_", "-"))
	if name != "" {
		word += " " + namespace + "/" + name
	}
	return s.permit(ctx, a, word, func(st *fsm.State) bool { return st.Allowed(a.credential, action, namespace, name) })
}

// permit checks that the caller may do something, in words. What this node does not know to be allowed, a current State may allow.
func (s *Server) permit(ctx context.Context, a *request, what string, allowed func(st *fsm.State) bool) error {
	if allowed(s.node.Feed().State()) {
		return nil
	}
	v, err := s.node.View(ctx, cluster.Freshness{Mode: cluster.ModeLinearizable})
	if err != nil {
		return err
	}
	if allowed(v.State) {
		return nil
	}
	return fmt.Errorf("%w: %s may not %s", fsm.ErrDenied, a.credential, what)
}
