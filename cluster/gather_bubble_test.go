package cluster

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// entryTime is how long an entry takes in these tests.
const entryTime = 4 * time.Millisecond

// entries is a Raft that takes a while for each entry, and notes of how many commands it was.
type entries struct {
	mu       sync.Mutex
	commands []int
}

func (e *entries) apply(data []byte) raft.ApplyFuture {
	var decoded raftlogv1.Entry
	if err := proto.Unmarshal(data, &decoded); err != nil {
		panic(err)
	}
	n := len(decoded.GetCommands())
	e.mu.Lock()
	defer e.mu.Unlock()
	e.commands = append(e.commands, n)
	return entry{index: uint64(len(e.commands)), commands: n}
}

// entry is the future of one.
type entry struct {
	raft.ApplyFuture

	index    uint64
	commands int
}

func (e entry) Error() error {
	time.Sleep(entryTime)
	return nil
}

func (e entry) Index() uint64 { return e.index }
func (e entry) Response() any {
	return applied{Result: fsm.Result{Outcomes: make([]fsm.Outcome, e.commands)}}
}

// proposing runs a test with a proposer. propose returns how long a command took.
func proposing(t *testing.T, test func(t *testing.T, e *entries, propose func() time.Duration)) {
	synctest.Test(t, func(t *testing.T) {
		e := &entries{}
		p := newProposer(1000, nil, e.apply, func(uint64) {})
		test(t, e, func() time.Duration {
			begun := time.Now()
			if _, err := p.propose(t.Context(), nil, nil); err != nil {
				t.Error(err)
			}
			return time.Since(begun)
		})
		p.finish()
		p.close()
	})
}

func TestALoneWriterNeverWaits(t *testing.T) {
	proposing(t, func(t *testing.T, _ *entries, propose func() time.Duration) {
		for range 100 {
			if took := propose(); took != entryTime {
				t.Errorf("a command took %v, and an entry takes %v", took, entryTime)
				return
			}
			time.Sleep(entryTime / 10)
		}
	})
}

// Writers who begin in two halves are one after a while, as an entry waits for whom the last one answered.
func TestWritersWhoComeBackShareAnEntry(t *testing.T) {
	proposing(t, func(t *testing.T, e *entries, propose func() time.Duration) {
		const writers, rounds = 16, 50
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				if i%2 == 0 {
					time.Sleep(entryTime / 2)
				}
				for range rounds {
					propose()
					time.Sleep(entryTime/8 + time.Duration(i)*10*time.Microsecond) // Not all at once.
				}
			})
		}
		wg.Wait()
		if n := len(e.commands); n > rounds+5 {
			t.Errorf("%d writers of %d commands made %d entries: %v", writers, rounds, n, e.commands)
		}
	})
}

// Whoever comes only once must not be made to wait for those who don't come again.
func TestWhoNeverComesBackIsSoonWaitedForNoMore(t *testing.T) {
	proposing(t, func(t *testing.T, _ *entries, propose func() time.Duration) {
		const callers = 4000
		var mu sync.Mutex
		var all time.Duration
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				took := propose()
				mu.Lock()
				defer mu.Unlock()
				all += took
			})
			time.Sleep(entryTime / 8)
		}
		wg.Wait()
		// It comes at any time of an entry, and is in the next.
		if mean, most := all/callers, entryTime*3/2+entryTime/10; mean > most {
			t.Errorf("a command took %v in the mean, want %v at most", mean, most)
		}
	})
}

// Callers who stay away for a time, and then write one thing after the other again, are waited for again.
func TestWhoComesBackAgainIsWaitedForAgain(t *testing.T) {
	proposing(t, func(t *testing.T, e *entries, propose func() time.Duration) {
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() { propose() })
			time.Sleep(entryTime / 8)
		}
		wg.Wait()
		before := len(e.commands)
		const writers, rounds = 16, 200
		for i := range writers {
			wg.Go(func() {
				time.Sleep(time.Duration(i%2) * entryTime / 2)
				for range rounds {
					propose()
					time.Sleep(entryTime / 8)
				}
			})
		}
		wg.Wait()
		if n := len(e.commands) - before; n > rounds+maxVain+5 {
			t.Errorf("%d writers of %d commands made %d entries: %v", writers, rounds, n, e.commands[before:])
		}
	})
}
