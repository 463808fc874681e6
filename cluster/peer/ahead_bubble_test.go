package peer_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"

	"github.com/regd-io/regd/cluster/peer"
	"github.com/regd-io/regd/cluster/peer/peertest"
)

// follower answers entries in Raft's place and knows which have come.
type follower struct {
	mu     sync.Mutex
	came   []uint64
	answer raft.AppendEntriesResponse
}

func (f *follower) respond(cmd any) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range cmd.(*raft.AppendEntriesRequest).Entries {
		f.came = append(f.came, e.Index)
	}
	answer := f.answer
	return &answer
}

func (f *follower) answers(success bool, last uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = raft.AppendEntriesResponse{Term: 3, Success: success, LastLog: last}
}

// indexes returns those of the entries that have come since the last call.
func (f *follower) indexes() []uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	came := f.came
	f.came = nil
	return came
}

func entry(index, term uint64) *raft.Log {
	return &raft.Log{Index: index, Term: term, Data: []byte("x")}
}

// appending is the request with which a leader of term 3 appends to what ends with an entry of term 3.
func appending(indexes ...uint64) *raft.AppendEntriesRequest {
	req := &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: indexes[0] - 1, PrevLogTerm: 3}
	for _, i := range indexes {
		req.Entries = append(req.Entries, entry(i, 3))
	}
	return req
}

func TestEntriesAreSentAheadOnce(t *testing.T) {
	for _, tc := range []struct {
		name  string
		ahead []*raft.Log
		// between happens after the entries were sent ahead.
		between func(a *peer.Transport, b *follower)
		then    *raft.AppendEntriesRequest
		// early and late are the entries that come before and with the request.
		early, late []uint64
	}{
		{"the same", []*raft.Log{entry(6, 3)}, nil, appending(6), []uint64{6}, nil},
		{"several", []*raft.Log{entry(6, 3), entry(7, 3)}, nil, appending(6, 7), []uint64{6, 7}, nil},
		{"more by now", []*raft.Log{entry(6, 3)}, nil, appending(6, 7), []uint64{6}, []uint64{6, 7}},
		{"a gap", []*raft.Log{entry(7, 3)}, nil, appending(6, 7), nil, []uint64{6, 7}},
		{"another term", []*raft.Log{entry(6, 4)}, nil, appending(6), nil, []uint64{6}},
		{"nothing", nil, nil, appending(6), nil, []uint64{6}},
		{"a heartbeat between", []*raft.Log{entry(6, 3)}, func(a *peer.Transport, _ *follower) {
			_ = a.AppendEntries("b", "b:7401", &raft.AppendEntriesRequest{Term: 3}, &raft.AppendEntriesResponse{})
		}, appending(6), []uint64{6}, nil},
		{"an old answer", []*raft.Log{entry(6, 3)}, func(*peer.Transport, *follower) {
			time.Sleep(time.Second + 1)
		}, appending(6), []uint64{6}, []uint64{6}},
		{"more while one is unused", []*raft.Log{entry(6, 3)}, func(a *peer.Transport, _ *follower) {
			a.SendAhead([]*raft.Log{entry(7, 3)}, 5) // The follower is known to have what is before 6.
		}, appending(6), []uint64{6}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := peertest.NewNet()
				a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{AheadFor: time.Second})
				defer a.Close()
				b, peerB := &follower{}, peer.NewTransport(listen(t, n, "b", "c1"), peer.TransportConfig{})
				defer peerB.Close()
				respond(t, peerB, b.respond)
				b.answers(true, 5)
				var resp raft.AppendEntriesResponse
				if err := a.AppendEntries("b", "b:7401", appending(5), &resp); err != nil {
					t.Fatal(err)
				}
				b.indexes()

				b.answers(true, 6)
				a.SendAhead(tc.ahead, 5)
				synctest.Wait()
				if diff := cmp.Diff(tc.early, b.indexes()); diff != "" {
					t.Errorf("sent ahead (-want +got):\n%s", diff)
				}
				if tc.between != nil {
					tc.between(a, b)
				}
				if err := a.AppendEntries("b", "b:7401", tc.then, &resp); err != nil || !resp.Success || resp.LastLog != 6 {
					t.Errorf("%+v, %v", resp, err)
				}
				if diff := cmp.Diff(tc.late, b.indexes()); diff != "" {
					t.Errorf("sent after all (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// A refusal is an answer, too; it is used once, and nothing is sent ahead until the follower has taken something.
func TestRefusalOfWhatWasSentAheadIsNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{AheadFor: time.Second})
		defer a.Close()
		b, peerB := &follower{}, peer.NewTransport(listen(t, n, "b", "c1"), peer.TransportConfig{})
		defer peerB.Close()
		respond(t, peerB, b.respond)
		for _, step := range []struct {
			success bool // what the follower answers
			ahead   uint64
			then    *raft.AppendEntriesRequest
			come    []uint64
		}{
			{true, 0, appending(5), []uint64{5}},
			{false, 6, appending(6), []uint64{6}},
			{true, 6, appending(6), []uint64{6}},
			{true, 7, appending(7), []uint64{7}},
		} {
			b.answers(step.success, 5)
			if step.ahead > 0 {
				a.SendAhead([]*raft.Log{entry(step.ahead, 3)}, 5)
			}
			var resp raft.AppendEntriesResponse
			if err := a.AppendEntries("b", "b:7401", step.then, &resp); err != nil || resp.Success != step.success {
				t.Errorf("%v: %+v, %v", step, resp, err)
			}
			if diff := cmp.Diff(step.come, b.indexes()); diff != "" {
				t.Errorf("%v (-want +got):\n%s", step, diff)
			}
		}
	})
}

func TestClosingEndsWhatIsSentAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{AheadFor: time.Second, Timeout: time.Hour})
		b := peer.NewTransport(listen(t, n, "b", "c1"), peer.TransportConfig{})
		defer b.Close()
		respond(t, b, func(cmd any) any {
			if cmd.(*raft.AppendEntriesRequest).PrevLogEntry == 5 {
				return nil // It never answers.
			}
			return &raft.AppendEntriesResponse{Success: true}
		})
		var resp raft.AppendEntriesResponse
		if err := a.AppendEntries("b", "b:7401", appending(5), &resp); err != nil {
			t.Fatal(err)
		}
		a.SendAhead([]*raft.Log{entry(6, 3)}, 5)
		waited := make(chan error, 1)
		go func() { waited <- a.AppendEntries("b", "b:7401", appending(6), &resp) }()
		synctest.Wait()
		began := time.Now()
		if err := a.Close(); err != nil || time.Since(began) > time.Second {
			t.Errorf("closed after %v: %v", time.Since(began), err)
		}
		if err := <-waited; err == nil {
			t.Error("the request succeeded")
		}
		a.SendAhead([]*raft.Log{entry(6, 3)}, 5) // It does nothing.
	})
}

// slowLogs is the log of a Raft node whose appends take a time, and fail while there is an error.
type slowLogs struct {
	*raft.InmemStore
	takes time.Duration

	mu    sync.Mutex
	ahead func([]*raft.Log)
	err   error
}

func (s *slowLogs) set(ahead func([]*raft.Log), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead, s.err = ahead, err
}

func (s *slowLogs) StoreLogs(entries []*raft.Log) error {
	s.mu.Lock()
	ahead, err := s.ahead, s.err
	s.mu.Unlock()
	if ahead != nil {
		ahead(entries)
	}
	time.Sleep(s.takes)
	if err != nil {
		return err
	}
	return s.InmemStore.StoreLogs(entries)
}

// slowCluster is three members whose appends take a time.
func slowCluster(t *testing.T, takes time.Duration) ([]*member, map[string]*slowLogs) {
	n := peertest.NewNet()
	var ms []*member
	logs := map[string]*slowLogs{}
	for _, name := range names {
		logs[name] = &slowLogs{InmemStore: raft.NewInmemStore(), takes: takes}
		m := start(t, n, name, logs[name], peer.TransportConfig{AheadFor: 250 * time.Millisecond})
		logs[name].set(func(entries []*raft.Log) { m.transport.SendAhead(entries, m.raft.CommitIndex()) }, nil)
		ms = append(ms, m)
	}
	return ms, logs
}

func TestAWriteTakesAsLongAsTheSlowerDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 40 * time.Millisecond
		ms, _ := slowCluster(t, takes)
		l := leader(t, 10*time.Second, ms...)
		for range 3 { // Until the followers have all.
			if err := l.raft.Barrier(time.Second).Error(); err != nil {
				t.Fatal(err)
			}
		}
		for range 20 {
			began := time.Now()
			if err := l.raft.Apply([]byte("x"), time.Second).Error(); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(began); d < takes || d > takes*3/2 {
				t.Fatalf("a write took %v of virtual time, an append takes %v", d, takes)
			}
		}
	})
}

// What a leader has sent and could not write itself is applied by all or by none, and by its next incarnation too.
func TestAWriteThatTheLeaderCouldNotStoreIsOneForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ms, logs := slowCluster(t, time.Millisecond)
		full := errors.New("disk full")
		for range 10 {
			l := leader(t, 10*time.Second, ms...)
			if err := l.raft.Apply([]byte("good"), time.Second).Error(); err != nil {
				t.Fatal(err)
			}
			ahead := func(entries []*raft.Log) { l.transport.SendAhead(entries, l.raft.CommitIndex()) }
			logs[l.name].set(ahead, full)
			if err := l.raft.Apply([]byte("doubtful"), time.Second).Error(); err == nil {
				t.Fatal("it was acknowledged")
			}
			logs[l.name].set(ahead, nil)
			time.Sleep(3 * time.Second)
			want := ms[0].log.list()
			for _, m := range ms[1:] {
				if diff := cmp.Diff(want, m.log.list()); diff != "" {
					t.Fatalf("%s differs from %s:\n%s", m.name, ms[0].name, diff)
				}
			}
		}
		if !slices.Contains(ms[0].log.list(), "doubtful") {
			t.Error("nothing was ever sent ahead")
		}
	})
}

// The request that Raft makes after all may say more of what is committed than what was sent ahead did.
func TestWhoGotEntriesAheadIsToldOfTheirCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{AheadFor: time.Second})
		defer a.Close()
		b := peer.NewTransport(listen(t, n, "b", "c1"), peer.TransportConfig{})
		defer b.Close()
		var heard []uint64 // commit indexes
		respond(t, b, func(cmd any) any {
			heard = append(heard, cmd.(*raft.AppendEntriesRequest).LeaderCommitIndex)
			return &raft.AppendEntriesResponse{Success: true}
		})
		var resp raft.AppendEntriesResponse
		if err := a.AppendEntries("b", "b:7401", appending(5), &resp); err != nil {
			t.Fatal(err)
		}
		a.SendAhead([]*raft.Log{entry(6, 3)}, 5)
		later := appending(6)
		later.LeaderCommitIndex = 6
		if err := a.AppendEntries("b", "b:7401", later, &resp); err != nil {
			t.Fatal(err)
		}
		a.Committed(6)
		synctest.Wait()
		if want := []uint64{0, 5, 6}; !cmp.Equal(heard, want) {
			t.Errorf("the follower heard of commits %v, want %v", heard, want)
		}
	})
}

// A follower that is slower than the majority has the last entry only after the pause has begun.
func TestWhoGetsTheEntryAfterItsCommitIsToldThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a := peer.NewTransport(listen(t, n, "a", "c1"), peer.TransportConfig{})
		defer a.Close()
		b := peer.NewTransport(listen(t, n, "b", "c1"), peer.TransportConfig{})
		defer b.Close()
		var heard []uint64 // commit indexes
		respond(t, b, func(cmd any) any {
			heard = append(heard, cmd.(*raft.AppendEntriesRequest).LeaderCommitIndex)
			return &raft.AppendEntriesResponse{Success: true}
		})
		a.Committed(6) // Nobody has it yet.
		for _, index := range []uint64{5, 6, 7} {
			var resp raft.AppendEntriesResponse
			if err := a.AppendEntries("b", "b:7401", appending(index), &resp); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if want := []uint64{0, 0, 6, 0}; !cmp.Equal(heard, want) {
			t.Errorf("the follower heard of commits %v, want %v", heard, want)
		}
	})
}
