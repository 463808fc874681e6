package consul

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/api/watch"
)

// plan runs a watch plan until the test ends, and keeps in short what it was told.
func plan(t *testing.T, client *api.Client, params map[string]any) *told {
	t.Helper()
	p, err := watch.Parse(params)
	if err != nil {
		t.Fatal(err)
	}
	seen := &told{}
	p.Handler = seen.take
	done := make(chan error, 1)
	go func() { done <- p.RunWithClientAndHclog(client, nil) }()
	t.Cleanup(func() {
		p.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return seen
}

// told is what a watch plan of keys was told last.
type told struct {
	mu   sync.Mutex
	last string
}

func (s *told) take(_ uint64, raw any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch v := raw.(type) {
	case *api.KVPair:
		if s.last = "none"; v != nil {
			s.last = string(v.Value)
		}
	case api.KVPairs:
		var keys []string
		for _, p := range v {
			keys = append(keys, p.Key)
		}
		s.last = strings.Join(keys, " ")
	case nil:
		s.last = "none"
	}
}

func (s *told) sees(t *testing.T, want string) {
	t.Helper()
	eventually(t, "the plan sees "+want, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.last != want {
			return fmt.Errorf("it sees %q", s.last)
		}
		return nil
	})
}

// TestKV is what programs do with keys, each step at another node.
func TestKV(t *testing.T) {
	c := startCluster(t)
	one, two, three := c.nodes[0].client(t).KV(), c.nodes[1].client(t).KV(), c.nodes[2].client(t).KV()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	key := plan(t, c.nodes[1].client(t), map[string]any{"type": "key", "key": "app/name"})
	prefix := plan(t, c.nodes[2].client(t), map[string]any{"type": "keyprefix", "prefix": "app/"})

	if p, meta, err := one.Get("app/name", nil); err != nil || p != nil || meta.LastIndex == 0 {
		t.Fatalf("a key that is not there: %+v, %+v, %v", p, meta, err)
	}
	_, err := one.Put(&api.KVPair{Key: "app/name", Value: []byte("shop"), Flags: 1<<64 - 1}, nil)
	must(err)
	key.sees(t, "shop")
	prefix.sees(t, "app/name")
	p, _, err := two.Get("app/name", nil)
	must(err)
	if string(p.Value) != "shop" || p.Flags != 1<<64-1 || p.Session != "" || p.CreateIndex == 0 || p.CreateIndex != p.ModifyIndex {
		t.Errorf("the pair: %+v", p)
	}
	next := *p
	next.Value = []byte("store")
	ok, _, err := three.CAS(&next, nil)
	must(err)
	again, _, err := three.CAS(&next, nil)
	must(err)
	if !ok || again {
		t.Errorf("compare and set: %t, and with the index of before %t", ok, again)
	}
	key.sees(t, "store")
	odd := "app/a b?c%/ü/x"
	_, err = one.Put(&api.KVPair{Key: odd, Value: []byte{0, 255, '\n'}}, nil)
	must(err)
	p, _, err = two.Get(odd, &api.QueryOptions{RequireConsistent: true})
	must(err)
	if p == nil || p.Key != odd || string(p.Value) != "\x00\xff\n" {
		t.Errorf("an odd key: %+v", p)
	}
	prefix.sees(t, odd+" app/name")
	names, _, err := three.Keys("app/", "/", nil)
	must(err)
	if !slices.Equal(names, []string{"app/a b?c%/", "app/name"}) {
		t.Errorf("names: %q", names)
	}
	if _, err = one.Put(&api.KVPair{Key: "large", Value: make([]byte, 512<<10+1)}, nil); err == nil || !strings.Contains(err.Error(), "413") {
		t.Errorf("a value that is too large: %v", err)
	}
	_, err = one.Put(&api.KVPair{Key: "large", Value: make([]byte, 512<<10)}, nil)
	must(err)
	list, _, err := two.List("", nil)
	must(err)
	if len(list) != 3 || len(list[2].Value) != 512<<10 {
		t.Errorf("%d pairs", len(list))
	}

	ok, answer, _, err := two.Txn(api.KVTxnOps{
		{Verb: api.KVGet, Key: "app/name"},
		{Verb: api.KVSet, Key: "app/name", Value: []byte("new")},
		{Verb: api.KVGet, Key: "app/name"},
		{Verb: api.KVDelete, Key: "large"},
		{Verb: api.KVCheckNotExists, Key: "none"},
	}, nil)
	must(err)
	if !ok || len(answer.Results) != 3 || string(answer.Results[0].Value) != "store" || answer.Results[1].Value != nil || string(answer.Results[2].Value) != "new" {
		t.Errorf("a transaction: %t, %+v", ok, answer)
	}
	key.sees(t, "new")
	ok, answer, _, err = three.Txn(api.KVTxnOps{{Verb: api.KVDeleteTree, Key: "app/n"}, {Verb: api.KVCAS, Key: "app/other", Index: 1}}, nil)
	must(err)
	if ok || len(answer.Errors) != 1 || answer.Errors[0].OpIndex != 1 || !strings.Contains(answer.Errors[0].What, "stale") {
		t.Errorf("a transaction that fails: %t, %+v", ok, answer)
	}
	ok, all, _, err := c.nodes[0].client(t).Txn().Txn(api.TxnOps{{KV: &api.KVTxnOp{Verb: api.KVGetTree, Key: "app/"}}}, nil)
	must(err)
	if !ok || len(all.Results) != 2 {
		t.Errorf("a transaction that reads: %t, %+v", ok, all)
	}
	_, err = one.DeleteTree("app/", nil)
	must(err)
	key.sees(t, "none")
	prefix.sees(t, "")
}

// TestLock: an owner that dies leaves the lock to who waits for it, once its session's time and the lock delay are over.
func TestLock(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	one, two := c.nodes[0].client(t), c.nodes[1].client(t)
	contender := func(client *api.Client, value string) *api.Lock {
		t.Helper()
		l, err := client.LockOpts(&api.LockOptions{
			Key: "lock", Value: []byte(value), SessionOpts: &api.SessionEntry{TTL: "10s", LockDelay: 2 * time.Second}, MonitorRetries: 5,
		})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	take := func(l *api.Lock) <-chan struct{} { // Nil if it was not taken.
		stop := make(chan struct{})
		timer := time.AfterFunc(45*time.Second, func() { close(stop) })
		defer timer.Stop()
		lost, err := l.Lock(stop)
		if err != nil || lost == nil {
			t.Errorf("the lock was not taken: %v", err)
		}
		return lost
	}
	first, second := contender(one, "one"), contender(two, "two")
	if take(first) == nil {
		return
	}
	held := make(chan (<-chan struct{}), 1)
	go func() { held <- take(second) }()
	select {
	case <-held:
		t.Fatal("both have the lock")
	case <-time.After(time.Second):
	}
	if err := first.Unlock(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	lost := <-held
	if lost == nil {
		return
	}
	t.Logf("after an unlock the next owner has the lock in %v", time.Since(began))
	if err := second.Unlock(); err != nil {
		t.Fatal(err)
	}
	<-lost

	// An owner that nobody renews.
	id, _, err := one.Session().CreateNoChecks(&api.SessionEntry{Name: "dies", TTL: "10s", LockDelay: 2 * time.Second}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ok, _, err := one.KV().Acquire(&api.KVPair{Key: "lock", Value: []byte("dies"), Session: id, Flags: api.LockFlagValue}, nil)
	if err != nil || !ok {
		t.Fatalf("acquire: %t, %v", ok, err)
	}
	began = time.Now()
	if lost = take(second); lost == nil {
		return
	}
	took := time.Since(began)
	t.Logf("a dead owner with a TTL of 10 s and a lock delay of 2 s gave the lock up after %v", took)
	if took < 12*time.Second || took > 22*time.Second+time.Second {
		t.Errorf("it took %v, want 12 s to 22 s", took)
	}
	if _, _, err = one.Session().Renew(id, nil); err != nil {
		t.Fatal(err)
	}
	if entry, _, infoErr := two.Session().Info(id, nil); infoErr != nil || entry != nil {
		t.Errorf("the session of the dead: %+v, %v", entry, infoErr)
	}
	// Its session is destroyed: the owner hears of it.
	sessions, _, err := one.Session().List(nil)
	if err != nil || len(sessions) != 1 {
		t.Fatalf("sessions: %+v, %v", sessions, err)
	}
	if _, err = one.Session().Destroy(sessions[0].ID, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-lost:
	case <-time.After(10 * time.Second):
		t.Error("the owner did not hear that it has lost the lock")
	}
}

// TestSemaphore: never are there more than two of three, and the third comes in when one leaves.
func TestSemaphore(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	var all []*api.Semaphore
	for _, n := range c.nodes {
		s, err := n.client(t).SemaphorePrefix("sem/", 2)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	for _, s := range all[:2] {
		if lost, err := s.Acquire(nil); err != nil || lost == nil {
			t.Fatalf("acquire: %v", err)
		}
	}
	third := make(chan error, 1)
	go func() {
		_, err := all[2].Acquire(nil)
		third <- err
	}()
	select {
	case err := <-third:
		t.Fatalf("there are three of two: %v", err)
	case <-time.After(2 * time.Second):
	}
	if err := all[0].Release(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-third:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the third does not come in")
	}
	for _, s := range all[1:] {
		if err := s.Release(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLeaderDiesWhileLocked: locks and sessions outlive the leader; who holds one is not told that it is lost.
func TestLeaderDiesWhileLocked(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	leader, followers := c.leader(t)
	l, err := followers[0].client(t).LockOpts(&api.LockOptions{Key: "lock", SessionTTL: "10s", MonitorRetries: 10, MonitorRetryTime: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	lost, err := l.Lock(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := plan(t, followers[1].client(t), map[string]any{"type": "key", "key": "k"})
	leader.kill()
	eventually(t, "a write after the leader's death", func() error {
		_, putErr := followers[1].client(t).KV().Put(&api.KVPair{Key: "k", Value: []byte("after")}, nil)
		return putErr
	})
	key.sees(t, "after")
	select {
	case <-lost:
		t.Error("the owner was told that it has lost the lock")
	case <-time.After(12 * time.Second): // Longer than the session lives unless it is renewed.
	}
	if err = l.Unlock(); err != nil {
		t.Error(err)
	}
}
