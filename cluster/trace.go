package cluster

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// Tracer is told how writes and linearizable reads of traced calls went on this node, as spans need it. It must be safe for
// concurrent use, and quick: Entry and Forward run where others wait.
//
// What many share has no one parent: an entry of the log serves up to 512 calls, each with a trace of its own.
type Tracer interface {
	// Context tells where the call of ctx stands in a trace, for the node that leads; nil when nobody records it.
	Context(ctx context.Context) *peerv1.TraceContext
	// Forward is called when a command of the call of ctx goes to the leader, a node by its name. The place that it returns goes
	// with it, nil for none. end is called once, with the error of the command.
	Forward(ctx context.Context, leader string) (place *peerv1.TraceContext, end func(error))
	// Entry is called by the leader for each entry of the log that holds commands of traced calls, when it is applied or has
	// failed.
	Entry(e TracedEntry)
	// Read is called when a linearizable read of the call of ctx has its State, or none.
	Read(ctx context.Context, r TracedRead)
}

// TracedEntry is how an entry went. Times that did not come, or are not known, are zero.
type TracedEntry struct {
	// Index of the entry. 0: it failed.
	Index uint64
	// Commands is the number of all commands in it, and Bytes their size.
	Commands, Bytes int
	// Taken is when its commands were taken out of the queue and handed to Raft.
	Taken time.Time
	// Storing and Stored are when the leader's own disk began to write it and had it, fsync included.
	Storing, Stored time.Time
	// Committed is when the leader began to apply it: a majority has it.
	Committed time.Time
	// Applied is when the leader's State held it.
	Applied time.Time
	// Proposals are its commands of traced calls.
	Proposals []*TracedProposal
	// Err is why the entry failed.
	Err error
}

// TracedProposal is a command of a traced call.
type TracedProposal struct {
	// Caller is where the call stands, or the forwarding of it by a follower.
	Caller *peerv1.TraceContext
	// Remote: a follower sent it.
	Remote bool
	// Queued is when it began to wait for an entry.
	Queued time.Time
}

// TracedRead is how a linearizable read went.
type TracedRead struct {
	// Began is when it began, Ended when it had its State or failed.
	Began, Ended time.Time
	// Confirmed is when Index was known: it is what the State must have reached, confirmed by a majority after Began. Zero: that
	// failed.
	Confirmed time.Time
	// Index is Raft's.
	Index uint64
	// Err is why there is no State.
	Err error
}

// tracing connects the parts of a node with its Tracer. nil: nobody traces.
type tracing struct {
	Tracer

	// appended are the entries that this node wrote last.
	appended atomic.Pointer[appended]
}

func newTracing(t Tracer) *tracing {
	if t == nil {
		return nil
	}
	return &tracing{Tracer: t}
}

// proposal is the command of the call of ctx; nil when nobody traces it.
func (t *tracing) proposal(ctx context.Context) *TracedProposal {
	if t == nil {
		return nil
	}
	caller := t.Context(ctx)
	if caller == nil {
		return nil
	}
	return &TracedProposal{Caller: caller, Queued: time.Now()}
}

// remote is the command of a call that a follower forwards.
func (t *tracing) remote(caller *peerv1.TraceContext) *TracedProposal {
	if t == nil || caller == nil {
		return nil
	}
	return &TracedProposal{Caller: caller, Remote: true, Queued: time.Now()}
}

// entry tells of an entry, if one of its commands is of a traced call.
func (t *tracing) entry(batch []*proposal, e TracedEntry) {
	if t == nil {
		return
	}
	for _, q := range batch {
		e.Bytes += len(q.command)
		if q.trace != nil {
			e.Proposals = append(e.Proposals, q.trace)
		}
	}
	if len(e.Proposals) == 0 {
		return
	}
	e.Commands = len(batch)
	if w := t.appended.Load(); w != nil && e.Index >= w.first && e.Index <= w.last {
		e.Storing, e.Stored = w.began, w.ended
	}
	t.Entry(e)
}

// logs notes when entries are written.
func (t *tracing) logs(inner raft.LogStore) raft.LogStore {
	if t == nil {
		return inner
	}
	return timedLogs{inner, &t.appended}
}

// timedLogs is a raft.LogStore that notes when its last entries were written.
type timedLogs struct {
	raft.LogStore

	last *atomic.Pointer[appended]
}

// appended are entries that were written at once.
type appended struct {
	first, last  uint64
	began, ended time.Time
}

// StoreLogs implements raft.LogStore.
func (l timedLogs) StoreLogs(entries []*raft.Log) error {
	began := time.Now()
	if err := l.LogStore.StoreLogs(entries); err != nil {
		return err
	}
	l.last.Store(&appended{entries[0].Index, entries[len(entries)-1].Index, began, time.Now()})
	return nil
}

// IsMonotonic implements raft.MonotonicLogStore.
func (l timedLogs) IsMonotonic() bool { return isMonotonic(l.LogStore) }
