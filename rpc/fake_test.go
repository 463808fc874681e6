package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// fakeNode is a cluster of one without a log: a real state machine and a real feed, and hooks to make things go wrong.
type fakeNode struct {
	feed *feed.Feed

	mu       sync.Mutex // guards all below
	proposed []*raftlogv1.Command
	renewals []*peerv1.Renewals
	info     cluster.Info
	ready    error
	live     error

	// onPropose, onView and onRenew run before the call does anything; an error is the call's.
	onPropose func(context.Context, *raftlogv1.Command) error
	onView    func(context.Context, cluster.Freshness) error
	onRenew   func(context.Context, peerv1.RenewKind, []string) ([]string, error)
	operator  error // of all of Operator's methods

	delivered cluster.DeliveryFunc
	others    []*apiv1.NodeDelivery // what other members say of a delivery
}

func newFakeNode(tb testing.TB) *fakeNode {
	tb.Helper()
	n := &fakeNode{
		feed: feed.New(fsm.New(), feed.Limits{}),
		info: cluster.Info{
			ClusterID: "c1", NodeID: "id1", Name: "n1", LeaderID: "id1", LeaderName: "n1", LeaderAddress: "n1:7400", Leading: true,
		},
	}
	tb.Cleanup(n.feed.Close)
	n.mustApply(tb, &raftlogv1.Command{Kind: &raftlogv1.Command_InitCluster{
		InitCluster: &raftlogv1.InitCluster{ClusterId: "c1"},
	}})
	return n
}

// set changes the node under its lock.
func (n *fakeNode) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

func (n *fakeNode) View(ctx context.Context, fresh cluster.Freshness) (cluster.View, error) {
	n.mu.Lock()
	hook := n.onView
	n.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, fresh); err != nil {
			return cluster.View{}, err
		}
	}
	if fresh.Mode == cluster.ModeAtLeast {
		st, err := n.feed.WaitRevision(ctx, fresh.MinRevision)
		if err != nil {
			return cluster.View{}, fmt.Errorf("%w: %w", cluster.ErrTooStale, err)
		}
		return cluster.View{State: st, Mode: fresh.Mode, Staleness: -1}, nil
	}
	return cluster.View{State: n.feed.State(), Mode: fresh.Mode, Staleness: time.Millisecond}, nil
}

func (n *fakeNode) Propose(ctx context.Context, cmd *raftlogv1.Command) (fsm.Outcome, error) {
	n.mu.Lock()
	hook := n.onPropose
	n.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, cmd); err != nil {
			return fsm.Outcome{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return fsm.Outcome{}, err
	}
	if level := n.feed.State().FeatureLevel(); cmd.GetLevel() > level {
		return fsm.Outcome{}, fmt.Errorf("%w: level %d", cluster.ErrFeatureLevel, level)
	}
	return n.apply(cmd)
}

func (n *fakeNode) apply(cmd *raftlogv1.Command) (fsm.Outcome, error) {
	data, err := proto.Marshal(cmd)
	if err != nil {
		return fsm.Outcome{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	st := n.feed.State()
	next, result, err := st.Apply(fsm.Entry{
		Index: st.Index() + 1, Term: 1, Data: fsm.AppendEntry(nil, time.Now().UnixMilli(), [][]byte{data}),
	})
	if err != nil {
		return fsm.Outcome{}, err
	}
	n.proposed = append(n.proposed, cmd)
	n.feed.Publish(next, result.Events)
	return result.Outcomes[0], nil
}

// mustApply applies a command that is not refused.
func (n *fakeNode) mustApply(tb testing.TB, cmd *raftlogv1.Command) fsm.Outcome {
	tb.Helper()
	if n.feed.State().FeatureLevel() >= fsm.AccessLevel {
		cmd.Level = max(cmd.GetLevel(), fsm.AccessLevel) // Else it would count as that of a node which does not know of access control.
	}
	out, err := n.apply(cmd)
	if err = errors.Join(err, out.Err()); err != nil {
		tb.Fatalf("apply %v: %v", cmd, err)
	}
	return out
}

// proposals is the number of commands applied so far.
func (n *fakeNode) proposals() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.proposed)
}

// renewed returns the ids of all renewals of a kind so far.
func (n *fakeNode) renewed(kind peerv1.RenewKind) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ids []string
	for _, r := range n.renewals {
		if r.GetKind() == kind {
			ids = append(ids, r.GetIds()...)
		}
	}
	return ids
}

// Renew renews what is in the State.
func (n *fakeNode) Renew(ctx context.Context, kind peerv1.RenewKind, ids []string) ([]string, error) {
	n.mu.Lock()
	n.renewals = append(n.renewals, &peerv1.Renewals{Kind: kind, Ids: slices.Clone(ids)})
	hook := n.onRenew
	n.mu.Unlock()
	if hook != nil {
		return hook(ctx, kind, ids)
	}
	st := n.feed.State()
	var ended []string
	for _, id := range ids {
		if kind == peerv1.RenewKind_RENEW_KIND_SESSION && st.Session(id) == nil ||
			kind == peerv1.RenewKind_RENEW_KIND_LEASE && st.Lease(id) == nil {
			ended = append(ended, id)
		}
	}
	return ended, nil
}

func (n *fakeNode) ServeDelivery(fn cluster.DeliveryFunc) { n.set(func() { n.delivered = fn }) }

func (n *fakeNode) AwaitDelivery(ctx context.Context, req *peerv1.AwaitDeliveryRequest) []*apiv1.NodeDelivery {
	n.mu.Lock()
	fn, all := n.delivered, slices.Clone(n.others)
	n.mu.Unlock()
	told, err := fn(ctx, req)
	if err != nil {
		told = &apiv1.NodeDelivery{Problem: err.Error()}
	}
	told.Node = "n1"
	return append([]*apiv1.NodeDelivery{told}, all...)
}

func (n *fakeNode) Feed() *feed.Feed { return n.feed }

func (n *fakeNode) Info() cluster.Info {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.info
}

func (n *fakeNode) Ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready
}

func (n *fakeNode) Live() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.live
}

func (n *fakeNode) failing() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.operator
}

func (n *fakeNode) Status(context.Context, bool) (*apiv1.StatusResponse, error) {
	return &apiv1.StatusResponse{
		Voters: 1, Members: []*apiv1.MemberStatus{{Member: &registryv1.Member{Id: "id1", Name: "n1"}}},
	}, n.failing()
}

func (n *fakeNode) Join(_ context.Context, address string, nonVoter bool) (*registryv1.Member, bool, error) {
	return &registryv1.Member{Name: "n2", PeerAddress: address, NonVoter: nonVoter}, true, n.failing()
}

func (n *fakeNode) Remove(context.Context, string, bool) error    { return n.failing() }
func (n *fakeNode) Promote(context.Context, string) (bool, error) { return true, n.failing() }
func (n *fakeNode) Demote(context.Context, string) (bool, error)  { return true, n.failing() }
func (n *fakeNode) Verify(context.Context) (*apiv1.VerifyResponse, error) {
	return &apiv1.VerifyResponse{Equal: true}, n.failing()
}

func (n *fakeNode) TransferLeadership(_ context.Context, node string) (string, error) {
	return node, n.failing()
}

func (n *fakeNode) Restore(_ context.Context, st *fsm.State) error {
	if err := n.failing(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.feed.Reset(fsm.Rebase(st, n.feed.State()))
	return nil
}

// rig is a server for a fake node, and a connection to it.
type rig struct {
	node   *fakeNode
	server *Server
	conn   *grpc.ClientConn

	registry apiv1.RegistryServiceClient
	sessions apiv1.SessionServiceClient
	leases   apiv1.LeaseServiceClient
	locks    apiv1.LockServiceClient
	keys     apiv1.KVServiceClient
	cluster  apiv1.ClusterServiceClient
}

func newRig(tb testing.TB, configure ...func(*Config)) *rig {
	tb.Helper()
	var cfg Config
	for _, c := range configure {
		c(&cfg)
	}
	node := newFakeNode(tb)
	server, err := NewServer(cfg, node)
	if err != nil {
		tb.Fatalf("NewServer: %v", err)
	}
	lis := bufconn.Listen(256 << 10)
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///bufconn",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatalf("NewClient: %v", err)
	}
	tb.Cleanup(func() {
		_ = conn.Close()
		if err := server.Shutdown(context.Background()); err != nil {
			tb.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil {
			tb.Errorf("Serve: %v", err)
		}
	})
	return &rig{
		node: node, server: server, conn: conn,
		registry: apiv1.NewRegistryServiceClient(conn),
		sessions: apiv1.NewSessionServiceClient(conn),
		leases:   apiv1.NewLeaseServiceClient(conn),
		locks:    apiv1.NewLockServiceClient(conn),
		keys:     apiv1.NewKVServiceClient(conn),
		cluster:  apiv1.NewClusterServiceClient(conn),
	}
}

// logTo returns a logger that writes lines of text.
func logTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// lockedLog gathers lines that are written while others are read.
type lockedLog struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String returns what was written since the last Reset.
func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lockedLog) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Reset()
}

// instance is a minimal registration.
func instance(service, id string) *registryv1.Instance {
	return &registryv1.Instance{Service: service, Id: id, Address: "10.0.0.1"}
}

// register registers an instance.
func (r *rig) register(tb testing.TB, in *registryv1.Instance) *apiv1.RegisterResponse {
	tb.Helper()
	resp, err := r.registry.Register(context.Background(), &apiv1.RegisterRequest{Instance: in})
	if err != nil {
		tb.Fatalf("Register %v: %v", in, err)
	}
	return resp
}

// openSession opens a session and returns its id.
func (r *rig) openSession(tb testing.TB) string {
	tb.Helper()
	resp, err := r.sessions.Open(context.Background(), &apiv1.OpenRequest{})
	if err != nil {
		tb.Fatalf("Open: %v", err)
	}
	return resp.GetSession().GetId()
}
