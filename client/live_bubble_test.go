package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/health"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"
)

// liveCluster is a real cluster in one process: raft, state machine, health and API, on in-memory networks.
type liveCluster struct {
	*clustertest.Cluster
	t *testing.T

	mu   sync.Mutex // guards the fields below
	apis map[string]*liveAPI
}

// liveAPI is the API of one node.
type liveAPI struct {
	lis    *bufconn.Listener
	server *rpc.Server
	served chan error
}

// newLiveCluster starts n nodes and waits until they are ready.
func newLiveCluster(t *testing.T, n int) *liveCluster {
	t.Helper()
	l := &liveCluster{t: t, apis: make(map[string]*liveAPI)}
	monitors := make([]*hooks, 0, n)
	l.Cluster = clustertest.New(t, n, func(cfg *cluster.Config) {
		h := &hooks{made: make(chan struct{})}
		monitors = append(monitors, h)
		h.in(cfg)
	})
	names := l.Names()
	slices.Sort(names)
	for i, name := range names {
		l.serve(name, monitors[i])
	}
	t.Cleanup(func() {
		for _, name := range names {
			l.unserve(name)
		}
	})
	l.Ready()
	return l
}

// hooks connects a node with its monitor, which can only be made after the node.
type hooks struct {
	made    chan struct{}
	monitor *health.Monitor
}

func (h *hooks) in(cfg *cluster.Config) {
	cfg.Lead = func(ctx context.Context, term uint64) {
		<-h.made
		h.monitor.Lead(ctx, term)
	}
	cfg.Renew = func(term uint64, taken time.Time, renewals []*peerv1.Renewals) ([]*peerv1.Renewals, error) {
		<-h.made
		return h.monitor.Renew(term, taken, renewals)
	}
}

// serve starts the monitor and the API of a node that runs.
func (l *liveCluster) serve(name string, h *hooks) {
	l.t.Helper()
	node := l.Node(name)
	cfg := health.DefaultConfig()
	cfg.Logger = slog.New(slog.DiscardHandler)
	cfg.Unapplied = func(err error) bool { return !errors.Is(err, cluster.ErrUnknownOutcome) }
	var err error
	if h.monitor, err = health.New(cfg, node.Feed(), node); err != nil {
		l.t.Fatal(err)
	}
	close(h.made)
	api := &liveAPI{lis: bufconn.Listen(1 << 20), served: make(chan error, 1)}
	if api.server, err = rpc.NewServer(rpc.Config{}, node); err != nil {
		l.t.Fatal(err)
	}
	go func() { api.served <- api.server.Serve(api.lis) }()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.apis[name] = api
}

// unserve ends the API of a node, after what is under way.
func (l *liveCluster) unserve(name string) {
	l.mu.Lock()
	api := l.apis[name]
	delete(l.apis, name)
	l.mu.Unlock()
	if api == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = api.server.Shutdown(ctx) // cuts off what is left
	if err := <-api.served; err != nil {
		l.t.Errorf("serve at %s: %v", name, err)
	}
}

// kill stops a node.
func (l *liveCluster) kill(name string) {
	l.unserve(name)
	l.Stop(name)
}

// revive starts a node again.
func (l *liveCluster) revive(name string) {
	h := &hooks{made: make(chan struct{})}
	l.Reconfigure(name, h.in)
	l.Start(name)
	l.serve(name, h)
}

// client makes a client whose network can be cut.
func (l *liveCluster) client(opts ...client.Option) (*client.Client, *link) {
	l.t.Helper()
	link := &link{l: l}
	c, err := client.New([]string{"n1:7400", "n2:7400", "n3:7400"}, append([]client.Option{
		// A second of a live cluster costs more than one of a scripted one: short sessions.
		client.WithDialOptions(grpc.WithContextDialer(link.dial)), client.WithSessionTTL(4 * time.Second),
	}, opts...)...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = c.Close() })
	return c, link
}

// link is the network of one client.
type link struct {
	l *liveCluster

	mu    sync.Mutex // guards the fields below
	down  bool
	conns []net.Conn
}

func (k *link) dial(ctx context.Context, address string) (net.Conn, error) {
	name, _, _ := net.SplitHostPort(address)
	k.l.mu.Lock()
	api := k.l.apis[name]
	k.l.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.down || api == nil {
		return nil, errors.New("connection refused")
	}
	conn, err := api.lis.DialContext(ctx)
	if err == nil {
		k.conns = append(k.conns, conn)
	}
	return conn, err
}

// cut breaks all connections and refuses new ones until mend.
func (k *link) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down = true
	for _, conn := range k.conns {
		_ = conn.Close()
	}
	k.conns = nil
}

func (k *link) mend() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down = false
}

// follower collects what a watch delivers, and fails on any gap, repeat or step back that can be seen.
type follower struct {
	t     *testing.T
	watch *client.Watch

	mu     sync.Mutex // guards the fields below
	synced uint64
	state  map[client.Key]uint64
}

func follow(t *testing.T, c *client.Client) *follower {
	t.Helper()
	f := &follower{t: t, watch: watch(t, c), state: make(map[client.Key]uint64)}
	go func() {
		var last uint64
		for change, err := range f.watch.All(t.Context()) {
			if err != nil {
				return
			}
			f.mu.Lock()
			if change.Revision < last {
				t.Errorf("revision %d after %d", change.Revision, last)
			}
			last = change.Revision
			_, known := f.state[change.Key]
			switch change.Kind {
			case client.ChangePut:
				if f.state[change.Key] == change.Instance.GetModifyRevision() {
					t.Errorf("%s at revision %d came twice", change.Key, change.Revision)
				}
				f.state[change.Key] = change.Instance.GetModifyRevision()
			case client.ChangeDelete:
				if !known {
					t.Errorf("delete of %s, which never came", change.Key)
				}
				delete(f.state, change.Key)
			case client.ChangeSynced:
				f.synced = change.Revision
			}
			f.mu.Unlock()
		}
	}()
	return f
}

// wantEqual waits until the watch shows what a linearizable list shows.
func (f *follower) wantEqual(c *client.Client) {
	f.t.Helper()
	result, err := c.Instances(f.t.Context(), client.Filter{Service: "web"})
	if err != nil {
		f.t.Fatal(err)
	}
	want := make(map[client.Key]uint64)
	for _, i := range result.Instances {
		want[client.Key{Namespace: i.GetNamespace(), Service: i.GetService(), ID: i.GetId()}] = i.GetModifyRevision()
	}
	for range 100 {
		f.mu.Lock()
		equal, synced := maps.Equal(f.state, want), f.synced
		f.mu.Unlock()
		if equal && synced >= result.ServiceRevision {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	f.t.Fatalf("watch has %v at %d, the list %v at %d", f.state, f.synced, want, result.Revision)
}

func TestLiveClientOutlivesTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLiveCluster(t, 3)
		c, _ := l.client()
		reg := register(t, c, "kept")
		w := follow(t, c)
		for round := range 2 {
			leader := l.Leader().Info().Name
			l.kill(leader)
			for i := range 5 {
				if _, err := c.RegisterDetached(t.Context(), web(fmt.Sprintf("i%d-%d", round, i))); err != nil {
					t.Fatal(err)
				}
			}
			wantState(t, reg, client.StateRegistered)
			w.wantEqual(c)
			time.Sleep(5 * time.Second)
			l.revive(leader)
			time.Sleep(5 * time.Second)
			wantState(t, reg, client.StateRegistered)
		}
		if got := reg.Incarnation(); got != 1 {
			t.Errorf("incarnation %d: the registration was made anew", got)
		}
		if err := reg.Deregister(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.wantEqual(c)
	})
}

func TestLiveRegistrationSurvivesTheRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLiveCluster(t, 3)
		c, _ := l.client()
		reg := register(t, c, "kept")
		w := follow(t, c)
		w.wantEqual(c)
		names := l.Names()
		for _, name := range names {
			l.kill(name)
		}
		time.Sleep(10 * time.Second)
		wantState(t, reg, client.StateLost)
		for _, name := range names {
			l.revive(name)
		}
		l.Ready()
		time.Sleep(10 * time.Second)
		wantState(t, reg, client.StateRegistered)
		w.wantEqual(c)
	})
}

func TestLiveExpiredInstanceComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLiveCluster(t, 3)
		a, cable := l.client()
		b, _ := l.client()
		reg := register(t, a, "kept")
		w := follow(t, b)
		cable.cut()
		time.Sleep(2 * time.Second) // under the TTL
		if _, err := b.Instance(t.Context(), reg.Key()); err != nil {
			t.Errorf("gone before its TTL: %v", err)
		}
		time.Sleep(3 * time.Second) // above it
		wantState(t, reg, client.StateLost)
		if _, err := b.Instance(t.Context(), reg.Key()); !errors.Is(err, client.ErrInstanceNotFound) {
			t.Errorf("still there after its TTL: %v", err)
		}
		w.wantEqual(b)
		cable.mend()
		time.Sleep(10 * time.Second)
		wantState(t, reg, client.StateRegistered)
		if reg.Incarnation() < 2 {
			t.Error("came back with the old incarnation")
		}
		w.wantEqual(b)
	})
}

func TestLiveLockNeverHasTwoOwners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLiveCluster(t, 3)
		a, cable := l.client()
		b, _ := l.client()
		var tokens []uint64
		for round := range 2 {
			held := lock(t, a, "job")
			next := make(chan *client.Lock, 1)
			go func() { next <- lock(t, b, "job") }()
			time.Sleep(5 * time.Second)
			cable.cut()
			if round > 0 {
				l.kill(l.Leader().Info().Name)
			}
			other := <-next
			if held.Context().Err() == nil {
				t.Fatal("two owners")
			}
			if err := held.Unlock(t.Context()); !errors.Is(err, client.ErrLockLost) {
				t.Errorf("Unlock: %v, want ErrLockLost", err)
			}
			tokens = append(tokens, held.Token(), other.Token())
			cable.mend()
			for _, name := range []string{"n1", "n2", "n3"} {
				if l.Node(name) == nil {
					l.revive(name)
				}
			}
			if err := other.Unlock(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		}
		if !slices.IsSorted(tokens) || len(slices.Compact(tokens)) != 4 {
			t.Errorf("tokens %v do not grow", tokens)
		}
	})
}

func TestLiveRestoreBringsRegistrationsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLiveCluster(t, 3)
		c, _ := l.client()
		old := register(t, c, "old")
		w := follow(t, c)
		var snapshot bytes.Buffer
		if _, err := c.Cluster().SaveSnapshot(t.Context(), &snapshot, nil); err != nil {
			t.Fatal(err)
		}
		late := register(t, c, "late")
		if err := old.Update(t.Context(), func(i *registryv1.Instance) { i.Weight = 7 }); err != nil {
			t.Fatal(err)
		}
		w.wantEqual(c)
		point := w.watch.ResumePoint()
		if _, err := c.Cluster().RestoreSnapshot(t.Context(), &snapshot, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		for _, reg := range []*client.Registration{old, late} {
			wantState(t, reg, client.StateRegistered)
			found, err := c.Instance(t.Context(), reg.Key())
			if err != nil || found.Instance.GetIncarnation() != reg.Incarnation() {
				t.Errorf("%s is %v, %v: want incarnation %d", reg.Key(), found.Instance, err, reg.Incarnation())
			}
		}
		if got := old.Instance().GetWeight(); got != 7 {
			t.Errorf("weight %d came back", got)
		}
		w.wantEqual(c)
		if now := w.watch.ResumePoint(); now.Epoch <= point.Epoch || now.Revision <= point.Revision {
			t.Errorf("resume point %+v after %+v", now, point)
		}
	})
}

func TestLiveOperatorsCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLiveCluster(t, 3)
		c, _ := l.client()
		register(t, c, "a")
		lock(t, c, "job")
		o := c.Cluster()
		time.Sleep(time.Second) // any node may tell the status, also one that lags
		if status, err := o.Status(t.Context()); err != nil || status.GetVoters() != 3 || status.GetInstances() != 1 || status.GetLocks() != 1 {
			t.Errorf("status %v, %v", status, err)
		}
		if members, err := o.Members(t.Context()); err != nil || len(members.GetMembers()) != 3 {
			t.Errorf("members %v, %v", members, err)
		}
		for _, s := range o.LocalStatuses(t.Context()) {
			if s.Err != nil {
				t.Errorf("%s: %v", s.Address, s.Err)
			}
		}
		if verified, err := o.Verify(t.Context()); err != nil || !verified.GetEqual() {
			t.Errorf("verify %v, %v", verified, err)
		}
		before := l.Leader().Info().Name
		if moved, err := o.TransferLeadership(t.Context(), ""); err != nil || moved.GetLeader() == before {
			t.Errorf("transfer from %s: %v, %v", before, moved, err)
		}
		if demoted, err := o.Demote(t.Context(), before); err != nil || !demoted.GetChanged() {
			t.Errorf("demote: %v, %v", demoted, err)
		}
		if promoted, err := o.Promote(t.Context(), before); err != nil || !promoted.GetChanged() {
			t.Errorf("promote: %v, %v", promoted, err)
		}
		if _, err := o.Remove(t.Context(), "n9", false); !errors.Is(err, client.ErrMemberNotFound) {
			t.Errorf("remove of nobody: %v", err)
		}
		if sessions, err := c.Sessions(t.Context()); err != nil || len(sessions.Sessions) != 1 {
			t.Errorf("sessions %v, %v", sessions, err)
		}
		if locks, err := c.Locks(t.Context(), ""); err != nil || len(locks.Locks) != 1 {
			t.Errorf("locks %v, %v", locks, err)
		}
		if found, err := c.GetLock(t.Context(), "", "job"); err != nil || found.Lock.GetSessionId() == "" {
			t.Errorf("lock %v, %v", found.Lock, err)
		}
		if leases, err := c.Leases(t.Context()); err != nil || len(leases.Leases) != 0 {
			t.Errorf("leases %v, %v", leases, err)
		}
		services, err := c.Services(t.Context(), client.ServiceFilter{Prefix: "w"}, client.Bounded(time.Second))
		if err != nil || len(services.Services) != 1 || services.Services[0].GetName() != "web" {
			t.Errorf("services %v, %v", services.Services, err)
		}
	})
}
