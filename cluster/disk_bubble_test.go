package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
)

// freezer is a disk that can be frozen: what is written meanwhile hangs until the thaw.
type freezer struct {
	cluster.Disk

	appends, terms valve

	mu    sync.Mutex
	since time.Time // when the append that hangs began; zero: none does
}

// freeze freezes the disk until thaw is called.
func (f *freezer) freeze() (thaw func()) {
	appends, terms := f.appends.shut(), f.terms.shut()
	return func() {
		f.appends.open()
		f.terms.open()
		appends()
		terms()
	}
}

// valve is what a kind of write passes.
type valve struct {
	mu      sync.Mutex
	closed  chan struct{} // nil: open
	waiting int
}

// shut makes all writes from now on wait for release.
func (v *valve) shut() (release func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = make(chan struct{})
	closed := v.closed
	return sync.OnceFunc(func() { close(closed) })
}

// open lets pass what is written from now on. What waits goes on waiting.
func (v *valve) open() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = nil
}

func (v *valve) pass() {
	v.mu.Lock()
	closed := v.closed
	v.mu.Unlock()
	if closed == nil {
		return
	}
	v.wait(1)
	defer v.wait(-1)
	<-closed
}

func (v *valve) wait(more int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.waiting += more
}

// holds tells whether a write waits.
func (v *valve) holds() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.waiting > 0
}

// AppendStall implements cluster.Disk.
func (f *freezer) AppendStall() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.since.IsZero() {
		return f.Disk.AppendStall()
	}
	return time.Since(f.since)
}

// Logs implements cluster.Disk.
func (f *freezer) Logs() raft.LogStore { return frozenLogs{f.Disk.Logs(), f} }

// Stable implements cluster.Disk.
func (f *freezer) Stable() raft.StableStore { return frozenStable{f.Disk.Stable(), f} }

type frozenLogs struct {
	raft.LogStore

	disk *freezer
}

// StoreLog implements raft.LogStore.
func (l frozenLogs) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs implements raft.LogStore.
func (l frozenLogs) StoreLogs(entries []*raft.Log) error {
	l.disk.began(time.Now())
	defer l.disk.began(time.Time{})
	l.disk.appends.pass()
	return l.LogStore.StoreLogs(entries)
}

func (f *freezer) began(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.since = at
}

type frozenStable struct {
	raft.StableStore

	disk *freezer
}

// Set implements raft.StableStore.
func (s frozenStable) Set(key, value []byte) error {
	s.disk.terms.pass()
	return s.StableStore.Set(key, value)
}

// SetUint64 implements raft.StableStore.
func (s frozenStable) SetUint64(key []byte, value uint64) error {
	s.disk.terms.pass()
	return s.StableStore.SetUint64(key, value)
}

// freezers gives each node a disk that can be frozen, by the name of the node.
func freezers() (map[string]*freezer, clustertest.Option) {
	disks := map[string]*freezer{}
	return disks, func(cfg *cluster.Config) {
		f := &freezer{}
		disks[cfg.Name] = f
		cluster.WithDisk(cfg, func(d cluster.Disk) cluster.Disk {
			f.Disk = d
			return f
		})
	}
}

// The disk stalls for long enough that the node abdicates, and thaws before the others have elected another: Raft leads
// on, in the same term.
func TestAfterADiskStallNoTermIsLedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disks, option := freezers()
		led := map[string]int{} // how often, by node and term
		var mu sync.Mutex       // guards led
		c := clustertest.New(t, 3, option, func(cfg *cluster.Config) {
			name := cfg.Name
			cfg.Lead = func(ctx context.Context, term uint64) {
				mu.Lock()
				led[fmt.Sprintf("%s in term %d", name, term)]++
				mu.Unlock()
				<-ctx.Done()
			}
		})
		for range 5 {
			c.Ready()
			old := c.Leader()
			term := old.Raft().CurrentTerm()
			thaw := disks[old.Info().Name].freeze()
			written := make(chan error, 1)
			go func() {
				_, err := old.Propose(within(t, 10*time.Second), clustertest.Register("web", "a"))
				written <- err
			}()
			c.Wait("the leader to abdicate", func() bool { return !old.Info().Leading })
			thaw()
			time.Sleep(cluster.DefaultHeartbeatTimeout / 50)
			if r := old.Raft(); r.State() != raft.Leader || r.CurrentTerm() != term {
				t.Fatalf("Raft is %v in term %d; this test is of a thaw while it still leads in term %d", r.State(), r.CurrentTerm(), term)
			}
			if err := <-written; err != nil && !errors.Is(err, cluster.ErrUnknownOutcome) {
				t.Errorf("the write during the stall: %v", err)
			}
			time.Sleep(2 * cluster.DefaultHeartbeatTimeout)
			mu.Lock()
			for what, times := range led {
				if times != 1 {
					t.Errorf("%s: Config.Lead ran %d times", what, times)
				}
			}
			mu.Unlock()
			c.Wait("a leader in a later term", func() bool { return c.Leader().Raft().CurrentTerm() > term })
			c.Put(c.Follower(), "web", "b")
		}
	})
}

// The append that hangs is of a promotion, for which raft-autopilot waits.
func TestALeaderWhoseDiskStallsInAPromotionAbdicates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disks, option := freezers()
		c := clustertest.New(t, 3, option)
		c.Ready()
		c.Add("n4", option, func(cfg *cluster.Config) { cfg.Join = []string{"n1:7401"} })
		c.Ready()
		old := c.Leader()
		disk := disks[old.Info().Name]
		defer disk.freeze()()
		c.Wait("the promotion to hang", disk.appends.holds)
		begun := time.Now()
		c.Wait("the leader to abdicate", func() bool { return !old.Info().Leading })
		if took := time.Since(begun); took > 3*cluster.DefaultHeartbeatTimeout {
			t.Errorf("the leader abdicated after %v", took)
		}
		c.Put(c.Leader(old.Info().Name), "web", "a")
	})
}

func TestAChangeOfTheMembershipEndsWithItsCallersTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disks, option := freezers()
		c := clustertest.New(t, 3, option)
		c.Ready()
		old, gone := c.Leader(), c.Follower()
		thaw := disks[old.Info().Name].freeze()
		ended := make(chan error, 1)
		go func() { ended <- old.Remove(within(t, 5*time.Second), gone.Info().Name, false) }()
		time.Sleep(6 * time.Second)
		select {
		case err := <-ended:
			if !errors.Is(err, cluster.ErrUnknownOutcome) {
				t.Errorf("a removal that hangs on the disk = %v, want ErrUnknownOutcome", err)
			}
		default:
			t.Error("a removal still hangs a second after its caller's time")
		}
		thaw()
		c.Put(c.Leader(), "web", "a") // With the member or without it.
	})
}

// The followers write an entry while the leader still does, but it is acknowledged only when the leader has it, too.
func TestFollowersDoNotWaitForTheDiskOfTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disks, option := freezers()
		c := clustertest.New(t, 3, option)
		c.Ready()
		leader := c.Leader()
		if _, err := leader.Propose(within(t, time.Second), clustertest.Register("web", "a")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(cluster.DefaultHeartbeatTimeout) // The followers have all, and the leader knows.
		before := leader.Raft().LastIndex()
		thaw := disks[leader.Info().Name].freeze()
		written := make(chan error, 1)
		go func() {
			_, err := leader.Propose(within(t, time.Second), clustertest.Register("web", "b"))
			written <- err
		}()
		time.Sleep(10 * time.Millisecond)
		for _, name := range c.Names() {
			want := before + 1
			if name == leader.Info().Name {
				want = before
			}
			if got := c.Node(name).Raft().LastIndex(); got != want {
				t.Errorf("%s has entries up to %d, want %d", name, got, want)
			}
		}
		select {
		case err := <-written:
			t.Errorf("the write ended before the leader had it: %v", err)
		default:
		}
		thaw()
		if err := <-written; err != nil {
			t.Error(err)
		}
	})
}
