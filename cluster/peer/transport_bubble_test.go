package peer_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/regd-io/regd/cluster/peer"
	"github.com/regd-io/regd/cluster/peer/peertest"
)

// member is a Raft node on a peer port, with its stores in memory.
type member struct {
	name      string
	raft      *raft.Raft
	mux       *peer.Mux
	transport *peer.Transport
	gate      atomic.Pointer[error]
	log       applied
}

// applied is a raft.FSM that keeps what was applied.
type applied struct {
	mu      sync.Mutex
	entries []string
}

func (a *applied) Apply(l *raft.Log) any {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.entries = append(a.entries, string(l.Data))
	return nil
}

func (a *applied) list() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.entries)
}

func (a *applied) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("not in these tests") }
func (a *applied) Restore(io.ReadCloser) error         { return errors.New("not in these tests") }

var names = []string{"n1", "n2", "n3"}

// store is what a raft.InmemStore is, or what wraps one.
type store interface {
	raft.LogStore
	raft.StableStore
}

// start starts a member.
func start(
	t *testing.T, n *peertest.Net, name string, store store, cfg peer.TransportConfig, change ...func(*raft.Config),
) *member {
	t.Helper()
	m := &member{name: name}
	m.mux = listen(t, n, name, "c1")
	cfg.Timeout = time.Second
	cfg.Gate = func() error {
		if err := m.gate.Load(); err != nil {
			return *err
		}
		return nil
	}
	m.transport = peer.NewTransport(m.mux, cfg)
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(name)
	rc.Logger = hclog.NewNullLogger()
	rc.HeartbeatTimeout, rc.ElectionTimeout = 500*time.Millisecond, 500*time.Millisecond
	rc.LeaderLeaseTimeout, rc.CommitTimeout = 250*time.Millisecond, 10*time.Millisecond
	for _, f := range change {
		f(rc)
	}
	var servers []raft.Server
	for _, s := range names {
		servers = append(servers, raft.Server{ID: raft.ServerID(s), Address: raft.ServerAddress(s + ":7401")})
	}
	snapshots := raft.NewInmemSnapshotStore()
	if has, _ := raft.HasExistingState(store, store, snapshots); !has {
		err := raft.BootstrapCluster(rc, store, store, snapshots, m.transport, raft.Configuration{Servers: servers})
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if m.raft, err = raft.NewRaft(rc, &m.log, store, store, snapshots, m.transport); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.stop)
	return m
}

// stop ends the member, with its transport.
func (m *member) stop() {
	_ = m.raft.Shutdown().Error()
	m.mux.Close()
}

// cluster starts three members.
func cluster(t *testing.T, n *peertest.Net, cfg peer.TransportConfig) []*member {
	t.Helper()
	var ms []*member
	for _, name := range names {
		ms = append(ms, start(t, n, name, raft.NewInmemStore(), cfg))
	}
	return ms
}

// leader waits up to d for exactly one of the members to lead.
func leader(t *testing.T, d time.Duration, ms ...*member) *member {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var found []*member
		for _, m := range ms {
			if m.raft.State() == raft.Leader {
				found = append(found, m)
			}
		}
		if len(found) == 1 {
			return found[0]
		}
	}
	t.Fatalf("no leader within %v", d)
	return nil
}

func without(ms []*member, gone *member) []*member {
	return slices.DeleteFunc(slices.Clone(ms), func(m *member) bool { return m == gone })
}

// TestRaftOverThePeerPort elects, applies, loses its leader, goes on, and has it back.
func TestRaftOverThePeerPort(t *testing.T) {
	for _, inFlight := range []int{1, 2, 16} {
		t.Run(fmt.Sprintf("%d in flight", inFlight), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := peertest.NewNet()
				ms := cluster(t, n, peer.TransportConfig{MaxRPCsInFlight: inFlight})
				first := leader(t, 5*time.Second, ms...)
				var want []string
				apply := func(l *member, entry string) {
					t.Helper()
					want = append(want, entry)
					if err := l.raft.Apply([]byte(entry), time.Second).Error(); err != nil {
						t.Fatalf("apply %s: %v", entry, err)
					}
				}
				for i := range 100 {
					apply(first, fmt.Sprintf("a%d", i))
				}
				n.Isolate(first.name)
				lost := first.raft.Apply([]byte("lost"), time.Second)
				second := leader(t, 5*time.Second, without(ms, first)...)
				for i := range 100 {
					apply(second, fmt.Sprintf("b%d", i))
				}
				if err := lost.Error(); err == nil {
					t.Error("the isolated leader acknowledged a write")
				}
				n.Heal()
				apply(leader(t, 5*time.Second, ms...), "c")
				time.Sleep(5 * time.Second)
				for _, m := range ms {
					if got := m.log.list(); !slices.Equal(got, want) {
						t.Errorf("%s applied %d entries, want %d", m.name, len(got), len(want))
					}
				}
			})
		})
	}
}

func TestForeignNodeNeverReachesRaft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		ms := cluster(t, n, peer.TransportConfig{})
		l := leader(t, 5*time.Second, ms...)
		term := l.raft.CurrentTerm()
		foreign := peer.NewTransport(listen(t, n, "x", "c2"), peer.TransportConfig{})
		defer foreign.Close()
		for _, m := range ms {
			id, addr := raft.ServerID(m.name), raft.ServerAddress(m.name+":7401")
			req := &raft.RequestVoteRequest{RPCHeader: raft.RPCHeader{ID: []byte("n1")}, Term: term + 9, LeadershipTransfer: true}
			err := foreign.RequestVote(id, addr, req, &raft.RequestVoteResponse{})
			if !errors.Is(err, peer.ErrForeignCluster) {
				t.Errorf("%s: %v", m.name, err)
			}
		}
		time.Sleep(time.Second)
		if got := l.raft.CurrentTerm(); got != term || l.raft.State() != raft.Leader {
			t.Errorf("term went from %d to %d, the leader is now a %v", term, got, l.raft.State())
		}
	})
}

// TestClosedGateMakesFollowersElect also fails, now and then, when a node behind a closed gate may win: its log is as
// good as any, and it would step down and win again for as long as the gate is closed.
func TestClosedGateMakesFollowersElect(t *testing.T) {
	for _, inFlight := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d in flight", inFlight), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := peertest.NewNet()
				ms := cluster(t, n, peer.TransportConfig{MaxRPCsInFlight: inFlight})
				first := leader(t, 5*time.Second, ms...)
				if err := first.raft.Apply([]byte("x"), time.Second).Error(); err != nil {
					t.Fatal(err)
				}
				stalled := errors.New("disk stalled")
				first.gate.Store(&stalled)
				second := leader(t, 3*time.Second, without(ms, first)...)
				if first.transport.Gated() == 0 {
					t.Error("nothing was counted")
				}
				if err := second.raft.Apply([]byte("y"), time.Second).Error(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestClosedGateStopsAllThatLeadsAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		stalled := errors.New("disk stalled")
		a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{Gate: func() error { return stalled }})
		defer a.Close()
		b := peer.NewTransport(listen(t, n, "b", "c1"), peer.TransportConfig{})
		defer b.Close()
		respond(t, b, func(cmd any) any {
			if _, ok := cmd.(*raft.TimeoutNowRequest); !ok {
				t.Errorf("%T arrived", cmd)
			}
			return &raft.TimeoutNowResponse{}
		})
		_, pipelineErr := a.AppendEntriesPipeline("b", "b:7401")
		for _, tc := range []struct {
			name  string
			err   error
			stops bool
		}{
			{"heartbeat", a.AppendEntries("b", "b:7401", &raft.AppendEntriesRequest{Term: 1}, nil), true},
			{"entries", a.AppendEntries("b", "b:7401", &raft.AppendEntriesRequest{Entries: []*raft.Log{{}}}, nil), true},
			{"pipeline", pipelineErr, true},
			{"snapshot", a.InstallSnapshot("b", "b:7401", &raft.InstallSnapshotRequest{}, nil, nil), true},
			{"vote", a.RequestVote("b", "b:7401", &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{}), true},
			{"pre-vote", a.RequestPreVote("b", "b:7401", &raft.RequestPreVoteRequest{}, &raft.RequestPreVoteResponse{}), true},
			{"transfer", a.TimeoutNow("b", "b:7401", &raft.TimeoutNowRequest{}, &raft.TimeoutNowResponse{}), false},
		} {
			if stopped := errors.Is(tc.err, stalled); stopped != tc.stops || !stopped && tc.err != nil {
				t.Errorf("%s: %v", tc.name, tc.err)
			}
		}
		if got := a.Gated(); got != 6 {
			t.Errorf("counted %d", got)
		}
	})
}

// respond answers RPCs in Raft's place until the test ends.
func respond(tb testing.TB, tr *peer.Transport, answer func(cmd any) any) {
	tb.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case rpc := <-tr.Consumer():
				if resp := answer(rpc.Command); resp != nil {
					rpc.Respond(resp, nil)
				}
			case <-stop:
				return
			}
		}
	}()
	tb.Cleanup(func() { close(stop); <-done })
}

func TestOpenPipelineIsBehindTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		var gate atomic.Bool
		stalled := errors.New("disk stalled")
		a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{MaxRPCsInFlight: 2, Gate: func() error {
			if gate.Load() {
				return stalled
			}
			return nil
		}})
		defer a.Close()
		b := peer.NewTransport(listen(t, n, "b", "c1"), peer.TransportConfig{})
		defer b.Close()
		respond(t, b, func(any) any { return &raft.AppendEntriesResponse{Success: true} })
		p, err := a.AppendEntriesPipeline("b", "b:7401")
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if _, err = p.AppendEntries(&raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{}); err != nil {
			t.Fatal(err)
		}
		if f := <-p.Consumer(); f.Error() != nil || !f.Response().Success {
			t.Errorf("answer %+v, %v", f.Response(), f.Error())
		}
		gate.Store(true)
		_, err = p.AppendEntries(&raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{})
		if !errors.Is(err, stalled) {
			t.Errorf("through the closed gate: %v", err)
		}
	})
}

// TestPipelineWhoseDecoderHasGoneDoesNotHang is hashicorp/raft #612: nobody reads the answers any more, and the sender
// waits for room.
func TestPipelineWhoseDecoderHasGoneDoesNotHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{MaxRPCsInFlight: 2, Timeout: time.Second})
		defer a.Close()
		b := peer.NewTransport(listen(t, n, "b", "c1"), peer.TransportConfig{})
		defer b.Close()
		respond(t, b, func(any) any { return &raft.AppendEntriesResponse{Success: true} })
		p, err := a.AppendEntriesPipeline("b", "b:7401")
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		start := time.Now()
		for err == nil && time.Since(start) < time.Minute {
			_, err = p.AppendEntries(&raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{})
		}
		if !errors.Is(err, raft.ErrPipelineShutdown) || time.Since(start) > 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// warm opens a connection from a to b, so that a held answer is not the handshake's.
func warm(t *testing.T, a, b *peer.Transport) {
	t.Helper()
	done := make(chan error)
	go func() {
		done <- a.RequestPreVote("b", "b:7401", &raft.RequestPreVoteRequest{}, &raft.RequestPreVoteResponse{})
	}()
	rpc := <-b.Consumer()
	rpc.Respond(&raft.RequestPreVoteResponse{}, nil)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestHeartbeatsOfTheLeaderThatIsFollowedTakeTheFastPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{})
		defer a.Close()
		b := peer.NewTransport(listen(t, n, "b", "c1"), peer.TransportConfig{Following: func(term uint64) bool { return term == 1 }})
		defer b.Close()
		b.SetHeartbeatHandler(func(rpc raft.RPC) { rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil) })
		// Nobody reads b's Consumer, as when Raft's main loop waits for a disk.
		var resp raft.AppendEntriesResponse
		req := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{Addr: []byte("a:7401")}, Term: 1}
		if err := a.AppendEntries("b", "b:7401", req, &resp); err != nil || !resp.Success {
			t.Errorf("%+v, %v", resp, err)
		}
		// One of another term goes to the main loop.
		answered := make(chan error)
		go func() {
			req := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{Addr: []byte("a:7401")}, Term: 2}
			answered <- a.AppendEntries("b", "b:7401", req, &raft.AppendEntriesResponse{})
		}()
		rpc := <-b.Consumer()
		if beat, ok := rpc.Command.(*raft.AppendEntriesRequest); !ok || beat.Term != 2 {
			t.Errorf("Raft got %+v", rpc.Command)
		}
		rpc.Respond(&raft.AppendEntriesResponse{}, nil)
		if err := <-answered; err != nil {
			t.Error(err)
		}
	})
}

func TestCloseWaitsForHandlersAndLeavesNoneHanging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{})
		defer a.Close()
		b := peer.NewTransport(listen(t, n, "b", "c1"), peer.TransportConfig{Following: always})
		var handled atomic.Bool
		b.SetHeartbeatHandler(func(rpc raft.RPC) {
			time.Sleep(time.Second) // a slow disk
			handled.Store(true)
			rpc.Respond(&raft.AppendEntriesResponse{}, nil)
		})
		go func() {
			req := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{Addr: []byte("a:7401")}, Term: 1}
			_ = a.AppendEntries("b", "b:7401", req, &raft.AppendEntriesResponse{})
		}()
		go func() { // nobody takes this one
			_ = a.RequestVote("b", "b:7401", &raft.RequestVoteRequest{Term: 1}, &raft.RequestVoteResponse{})
		}()
		go func() { // this one is taken and never answered
			_ = a.RequestVote("b", "b:7401", &raft.RequestVoteRequest{Term: 1}, &raft.RequestVoteResponse{})
		}()
		<-b.Consumer() // and this is the one
		synctest.Wait()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if !handled.Load() {
			t.Error("a handler still ran")
		}
		if err := b.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
	}) // the bubble ends when all goroutines have, or fails
}

// provider finds addresses that Raft does not know.
type provider map[raft.ServerID]raft.ServerAddress

func (p provider) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if a, ok := p[id]; ok {
		return a, nil
	}
	return "", errors.New("unknown")
}

func TestAddressOfTheProviderComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{AddressProvider: provider{"b": "b:7401"}})
		defer a.Close()
		for _, name := range []string{"b", "c"} {
			tr := peer.NewTransport(listen(t, n, name, "c1"), peer.TransportConfig{})
			defer tr.Close()
			respond(t, tr, func(any) any { return &raft.TimeoutNowResponse{} })
		}
		for id, addr := range map[raft.ServerID]raft.ServerAddress{"b": "stale:1", "c": "c:7401"} {
			if err := a.TimeoutNow(id, addr, &raft.TimeoutNowRequest{}, &raft.TimeoutNowResponse{}); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
		err := a.TimeoutNow("d", "c:7401", &raft.TimeoutNowRequest{}, &raft.TimeoutNowResponse{})
		if !errors.Is(err, peer.ErrWrongNode) {
			t.Errorf("address at which another node is: %v", err)
		}
		if got := a.LocalAddr(); got != "a:7401" {
			t.Errorf("local address %q", got)
		}
	})
}
