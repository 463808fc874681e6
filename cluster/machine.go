package cluster

import (
	"bufio"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
)

// machine is what Raft drives: it owns the current State and publishes each next one. It is the only raft.FSM.
//
// Raft calls Apply, Snapshot and Restore from one goroutine.
type machine struct {
	feed    *feed.Feed
	applied func(index, term uint64, data []byte)
	fatal   func(error)
	// broken is the error after which nothing is applied any more.
	broken error
	// since is when the Apply under way began, in nanoseconds since start; 0 when none is.
	since atomic.Int64
	start time.Time
	// behind is how much of the log, in bytes, was applied since the last snapshot.
	behind atomic.Int64
	// took is how long each Apply lasted.
	took prometheus.Histogram
}

func newMachine(f *feed.Feed, applied func(index, term uint64, data []byte), fatal func(error)) *machine {
	return &machine{feed: f, applied: applied, fatal: fatal, start: time.Now(), took: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "regd_apply_seconds",
		Help:    "Time in which this node applied a log entry, of up to 512 commands, once it was committed.",
		Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .0075, .01, .025, .05, .1, .25, 1},
	})}
}

// applied is what Apply returns, and when that began and ended: it began once the entry was committed.
type applied struct {
	fsm.Result

	began, ended time.Time
}

// Apply applies one committed entry. It returns an applied, or an error when the entry can't be applied by this
// version: then the node applies nothing more and is brought to an end, as skipping would make it differ from the rest.
func (m *machine) Apply(l *raft.Log) any {
	if m.broken != nil {
		return m.broken
	}
	begun := time.Since(m.start)
	m.since.Store(int64(begun) + 1)
	defer m.since.Store(0)
	next, result, err := m.feed.State().Apply(fsm.Entry{Index: l.Index, Term: l.Term, Data: l.Data})
	if err != nil {
		m.broken = tooOldToApply(fmt.Errorf("apply log entry %d of term %d: %w", l.Index, l.Term, err))
		m.fatal(m.broken)
		return m.broken
	}
	m.feed.Publish(next, result.Events)
	m.applied(l.Index, l.Term, l.Data)
	m.behind.Add(int64(len(l.Data)))
	ended := time.Since(m.start)
	m.took.Observe((ended - begun).Seconds())
	return applied{result, m.start.Add(begun), m.start.Add(ended)}
}

// stuck tells how long the Apply under way has lasted, 0 when none is.
func (m *machine) stuck() time.Duration {
	since := m.since.Load()
	if since == 0 {
		return 0
	}
	return time.Since(m.start) - time.Duration(since-1)
}

// Snapshot keeps the current State: it is a value, so that costs nothing and writers never wait.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if m.broken != nil {
		return nil, m.broken
	}
	m.behind.Store(0)
	return snapshot{m.feed.State()}, nil
}

const (
	// minBehind and maxBehind bound how much of the log, in bytes, the last snapshot may be behind. A restarted node
	// applies that again, some 10 MB/s; but the less it is, the more snapshots are written.
	minBehind = 8 << 20
	maxBehind = 64 << 20
	// behindEach is the bound for each instance and session: about a quarter of what they take in a snapshot.
	behindEach = 64
)

// overdue tells whether the last snapshot is too far behind.
func (m *machine) overdue() bool {
	n := m.feed.State().Counts()
	most := behindEach * int64(n.Instances+n.Sessions)
	return m.behind.Load() > min(max(most, minBehind), maxBehind)
}

// Restore makes the State of a snapshot the current one.
func (m *machine) Restore(r io.ReadCloser) error {
	defer r.Close()
	st, err := fsm.ReadSnapshot(bufio.NewReaderSize(r, 1<<20))
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	m.feed.Reset(st)
	m.behind.Store(0)
	return nil
}

// snapshot is a State that is being written out.
type snapshot struct{ state *fsm.State }

// snapshotPause is slept after each block of a snapshot: on few cores the scheduler, not a lock, is what would delay
// Apply, and a real sleep is what keeps it from doing so. The log is mostly on the same disk: at 50 MB a second there is
// room for its syncs.
const snapshotPause = 5 * time.Millisecond

// Persist writes the snapshot to the sink.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.state.WriteSnapshot(sink, func() { time.Sleep(snapshotPause) }); err != nil {
		_ = sink.Cancel() // The first error is the one that matters.
		return fmt.Errorf("write snapshot: %w", err)
	}
	return sink.Close()
}

// Release has nothing to do: the garbage collector frees the State.
func (s snapshot) Release() {}
