package consul

import (
	"context"
	"errors"
	"flag"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"

	"google.golang.org/protobuf/types/known/durationpb"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// world is a node with a State and a feed, and nothing below.
type world struct {
	rpc.Operator // what this door does not ask for

	tb     testing.TB
	feed   *feed.Feed
	server *Server
	api    *rpc.Server

	mu      sync.Mutex
	st      *fsm.State
	err     error // of View and Propose
	age     time.Duration
	renewed []string
	removed string
	shown   *fsm.State // what View returns in place of the newest; nil: that
	// behind keeps what is applied from the feed.
	behind bool
	// before is called before a command is applied: what others do meanwhile.
	before func()
	// viewing is called before a State is returned.
	viewing func()
}

func (w *world) View(_ context.Context, fresh cluster.Freshness) (cluster.View, error) {
	if w.viewing != nil {
		w.viewing()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil && fresh.Mode != cluster.ModeStale {
		return cluster.View{}, w.err
	}
	if fresh.Mode == cluster.ModeAtLeast && w.st.Revision() < fresh.MinRevision {
		return cluster.View{}, cluster.ErrTooStale
	}
	st := w.st
	if w.shown != nil {
		st = w.shown
	}
	return cluster.View{State: st, Mode: fresh.Mode, Staleness: w.age}, nil
}

func (w *world) Propose(_ context.Context, cmd *raftlogv1.Command) (fsm.Outcome, error) {
	if w.before != nil {
		w.before()
	}
	return w.propose(cmd)
}

func (w *world) propose(cmd *raftlogv1.Command) (fsm.Outcome, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return fsm.Outcome{}, w.err
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(cmd)
	if err != nil {
		return fsm.Outcome{}, err
	}
	next, result, err := w.st.Apply(fsm.Entry{Index: w.st.Index() + 1, Term: 1, Data: fsm.AppendEntry(nil, 1_000_000, [][]byte{data})})
	if err != nil {
		return fsm.Outcome{}, err
	}
	w.st = next
	if !w.behind {
		w.feed.Publish(next, result.Events)
	}
	return result.Outcomes[0], nil
}

func (w *world) Renew(_ context.Context, _ peerv1.RenewKind, ids []string) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.renewed = append(w.renewed, ids...)
	return nil, w.err
}

func (w *world) AwaitDelivery(context.Context, *peerv1.AwaitDeliveryRequest) []*apiv1.NodeDelivery {
	return nil
}

func (w *world) ServeDelivery(cluster.DeliveryFunc) {}
func (w *world) Ready() error                       { return nil }
func (w *world) Live() error                        { return nil }

func (w *world) Feed() *feed.Feed { return w.feed }

func (w *world) Info() cluster.Info {
	w.mu.Lock()
	defer w.mu.Unlock()
	info := cluster.Info{ClusterID: "c", NodeID: "id-n1", Name: "n1", LeaderID: "id-n1", LeaderName: "n1", LeaderAddress: "n1.example:7400", Leading: true}
	if errors.Is(w.err, cluster.ErrNoLeader) {
		info.LeaderID, info.LeaderName, info.LeaderAddress, info.Leading = "", "", "", false
	}
	return info
}

func (w *world) Status(context.Context, bool) (*apiv1.StatusResponse, error) {
	st := &apiv1.StatusResponse{Quorum: 2, VotersReachable: 2, Voters: 3}
	for n, m := range w.state().Members() {
		s := &apiv1.MemberStatus{
			Member: m, Role: apiv1.Role_ROLE_FOLLOWER, Suffrage: apiv1.Suffrage_SUFFRAGE_VOTER, Reachable: n != 1,
			AppliedIndex: 7, Term: 2, Staleness: durationpb.New(20 * time.Millisecond),
		}
		if n == 0 {
			s.Role = apiv1.Role_ROLE_LEADER
		}
		st.Members = append(st.Members, s)
	}
	return st, nil
}

func (w *world) Remove(_ context.Context, node string, _ bool) error {
	w.removed = node
	return nil
}

func (w *world) TransferLeadership(context.Context, string) (string, error) { return "n2", nil }

// Restore replaces the State as a node does.
func (w *world) Restore(_ context.Context, st *fsm.State) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.st = fsm.Rebase(st, w.st)
	w.feed.Reset(w.st)
	return nil
}

func (w *world) state() *fsm.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.st
}

func (w *world) must(cmd *raftlogv1.Command) {
	w.tb.Helper()
	out, err := w.propose(cmd)
	if err = errors.Join(err, out.Err()); err != nil {
		w.tb.Fatalf("%v: %v", cmd, err)
	}
}

// register registers an instance as another door does.
func (w *world) register(in *registryv1.Instance) {
	w.tb.Helper()
	spec, err := rpc.Specification(in)
	if err != nil {
		w.tb.Fatal(err)
	}
	w.must(&raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: &raftlogv1.Register{Instance: spec}}})
}

// bareWorld is a node of a cluster of three where nothing is registered.
func bareWorld(tb testing.TB) *world {
	tb.Helper()
	return worldWith(tb, rpc.Config{})
}

// worldWith is a bareWorld that lets clients in as configured.
func worldWith(tb testing.TB, cfg rpc.Config) *world {
	tb.Helper()
	w := &world{tb: tb, st: fsm.New(), age: 20 * time.Millisecond}
	w.feed = feed.New(w.st, feed.Limits{})
	tb.Cleanup(w.feed.Close)
	for _, name := range []string{"n1", "n2", "n3"} {
		w.must(&raftlogv1.Command{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{Member: &registryv1.Member{
			Id: "id-" + name, Name: name, PeerAddress: name + ".example:7401", GrpcAddress: name + ".example:7400", Version: "v1.2.3",
		}}}})
	}
	var err error
	if w.api, err = rpc.NewServer(cfg, w); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = w.api.Shutdown(context.Background()) }) // It serves nobody.
	w.server = w.another()
	return w
}

// another returns one more server of the same node.
func (w *world) another() *Server {
	w.tb.Helper()
	s, err := newServer(Config{Host: "here", Door: w.api.Door("consul", "h2", "http/1.1")}, w)
	if err != nil {
		w.tb.Fatal(err)
	}
	w.tb.Cleanup(s.stop)
	return s
}

// newWorld has one of each kind that makes a difference, also what came by other doors.
func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := bareWorld(tb)
	w.register(&registryv1.Instance{
		Service: "api", Id: "a1", Address: "10.0.0.1", Weight: 250, Zone: "z1", Region: "r1", Tags: []string{"grpc"},
		Ports: []*registryv1.Port{{Name: "http", Number: 80}, {Name: "metrics", Number: 9100}}, Metadata: map[string]string{"team": "shop"},
		Checks: []*registryv1.Check{{Name: "live", Kind: &registryv1.Check_Http{Http: &registryv1.HTTPCheck{Path: "/live"}}}},
	})
	w.ok("PUT", "agent/service/register", `{"Name":"web","ID":"web-1","Port":8080,"Tags":["v1","a","primary"],"Meta":{"version":"1"},
		"Check":{"TTL":"10s","Notes":"beats"},"Weights":{"Passing":3,"Warning":0},"EnableTagOverride":true,
		"TaggedAddresses":{"wan":{"Address":"198.51.100.1","Port":80}}}`)
	w.ok("PUT", "agent/service/register", `{"name":"web","id":"web-2","address":"10.0.0.2","port":8080,"tags":["v2"],"checks":[
		{"name":"alive","http":"http://10.0.0.2:8080/health","interval":"10s","status":"passing","deregister_critical_service_after":"90m"},
		{"id":"mem","tcp":"10.0.0.2:8080","interval":"5s","timeout":"1s","status":"warning"}]}`)
	w.ok("PUT", "agent/check/pass/service:web-1", "")
	w.ok("PUT", "catalog/register", `{"Node":"ext","Address":"192.0.2.9","NodeMeta":{"external":"true"},
		"Service":{"Service":"db","Port":5432,"Tags":["primary"]},
		"Check":{"Node":"ext","CheckID":"service:db","Name":"db up","Status":"passing","ServiceID":"db"}}`)
	w.register(&registryv1.Instance{Namespace: "other", Service: "api", Id: "o1", Address: "10.1.0.1"})
	return w
}

// ask makes a request; it comes from this machine unless a header "From" says from where.
func (w *world) ask(method, path, body string, header ...string) *httptest.ResponseRecorder {
	w.tb.Helper()
	return w.askCtx(w.tb.Context(), method, path, body, header...)
}

func (w *world) askCtx(ctx context.Context, method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(ctx, method, "/v1/"+path, strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:1234"
	for i := 0; i < len(header); i += 2 {
		if header[i] == "From" {
			r.RemoteAddr = header[i+1] + ":1234"
			continue
		}
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	w.server.ServeHTTP(rec, r)
	return rec
}

// ok makes a request that must be answered with 200.
func (w *world) ok(method, path, body string, header ...string) *httptest.ResponseRecorder {
	w.tb.Helper()
	rec := w.ask(method, path, body, header...)
	if rec.Code != http.StatusOK {
		w.tb.Fatalf("%s %s: %d %s", method, path, rec.Code, rec.Body)
	}
	return rec
}

// metric is the sum of a metric of the API over all its labels.
func (w *world) metric(name string) (sum float64) {
	w.tb.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(w.api.Collectors()...)
	families, err := registry.Gather()
	if err != nil {
		w.tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}
