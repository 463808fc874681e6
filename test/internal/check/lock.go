package check

import (
	"cmp"
	"slices"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	"github.com/regd-io/regd/test/internal/history"
)

// LockFigures say what Lock judged.
type LockFigures struct {
	// Acquired locks that were acknowledged, and Handovers from one session to another in the log.
	Acquired, Handovers int
}

// Lock judges acknowledged ownership of locks. That there is one owner at a time, alive and in the order of the queue, is
// what the state machine makes of the log; that answers to GetLock and ListLocks are of the log, Content tells; that
// nobody acquires with a session that was seen ended, Lease. What is left is what owners are told:
//
//   - lock-owner: whoever was told a token owned the lock with it, at the revision told or before.
//   - lock-shared: no two sessions, and no two locks, were told one token.
//   - lock-order: a token is larger than every one that was told, or given back, for the lock before its request began.
//     A session that owns the lock may be told its token again. Of a semaphore, whose owners do not follow one another,
//     only what was given back: it is not told again.
func Lock(r *Run) ([]Violation, LockFigures) {
	l := &locking{facts: r.facts(), owned: map[ownership]uint64{}}
	l.readLog()
	var told []grant
	for _, w := range l.writes {
		switch req := w.Request.(type) {
		case *apiv1.AcquireRequest:
			if resp, ok := w.Response.(*apiv1.AcquireResponse); ok {
				o := ownership{namespaceOf(req), req.GetName(), req.GetSessionId(), resp.GetToken()}
				told = append(told, grant{o, w, false, req.GetSlots() > 1})
			}
		case *apiv1.ReleaseRequest:
			if w.Outcome == history.OK {
				o := ownership{namespaceOf(req), req.GetName(), req.GetSessionId(), req.GetToken()}
				told = append(told, grant{o, w, true, false})
			}
		}
	}
	l.judgeLog(told)
	l.judgeOrder(told)
	return l.list, l.figures
}

type locking struct {
	*facts
	verdict
	owned   map[ownership]uint64 // from which revision on
	figures LockFigures
}

// ownership is a session's time as the owner of a lock.
type ownership struct {
	namespace, name, session string
	token                    uint64
}

// grant is an ownership that a client was told of, or gave back.
type grant struct {
	ownership
	write    *history.Write
	released bool
	shared   bool // of a lock with several slots
}

// readLog finds who owned which lock.
func (l *locking) readLog() {
	last := map[[2]string]string{}
	own := func(o ownership, revision uint64) {
		if from, ok := l.owned[o]; ok && from <= revision {
			return
		}
		l.owned[o] = revision
	}
	for _, step := range l.run.Timeline.Steps() {
		for i, cmd := range step.Entry.GetCommands() {
			// Nobody can read what is between the commands of an entry, but be told by them.
			out := step.Result.Outcomes[i]
			if c, ok := cmd.GetKind().(*raftlogv1.Command_AcquireLock); ok && out.Number > 0 {
				a := c.AcquireLock
				own(ownership{a.GetNamespace(), a.GetName(), a.GetSessionId(), out.Number}, out.Revision)
			}
		}
		for i := range step.Result.Events {
			e := &step.Result.Events[i]
			if e.Kind != fsm.EventLock {
				continue
			}
			lock := step.State.Lock(e.Namespace, e.Name)
			if lock == nil {
				continue
			}
			for _, o := range append([]fsm.Owner{lock.Owner}, lock.Others...) {
				own(ownership{lock.Namespace, lock.Name, o.SessionID, o.Token}, o.AcquireRevision)
			}
			at := [2]string{lock.Namespace, lock.Name}
			if was := last[at]; was != "" && was != lock.SessionID {
				l.figures.Handovers++
			}
			last[at] = lock.SessionID
		}
	}
}

// judgeLog holds what clients were told against the log, and against one another.
func (l *locking) judgeLog(told []grant) {
	first := map[uint64]grant{}
	for _, g := range told {
		if g.released {
			continue
		}
		l.figures.Acquired++
		revision := headerOf(g.write.Response).GetRevision()
		if from, ok := l.owned[g.ownership]; !ok || revision < from {
			l.fault("lock-owner", "%s was told token %d at revision %d; in the log it owns %s/%s with it: %v, from revision %d on",
				describe(g.write), g.token, revision, g.namespace, g.name, ok, from)
		}
		if other, ok := first[g.token]; ok && other.ownership != g.ownership {
			l.fault("lock-shared", "%s and %s were both told token %d", describe(other.write), describe(g.write), g.token)
		}
		first[g.token] = g
	}
}

// judgeOrder sweeps through time: what is told later is larger.
func (l *locking) judgeOrder(told []grant) {
	ended, begun := slices.Clone(told), told
	slices.SortFunc(ended, func(a, b grant) int { return cmp.Compare(a.write.Ended, b.write.Ended) })
	slices.SortFunc(begun, func(a, b grant) int { return cmp.Compare(a.write.Begun, b.write.Begun) })
	largest := map[[2]string]grant{} // by lock, of those that have ended
	back := map[ownership]grant{}    // given back
	for _, g := range begun {
		for len(ended) > 0 && ended[0].write.Ended < g.write.Begun {
			e := ended[0]
			ended = ended[1:]
			at := [2]string{e.namespace, e.name}
			if e.released {
				back[e.ownership] = e
			}
			if was := largest[at]; e.token > was.token || e.token == was.token && e.released {
				largest[at] = e
			}
		}
		before := largest[[2]string{g.namespace, g.name}]
		again := before.ownership == g.ownership && !before.released
		if g.shared {
			before, again = back[g.ownership], false
		}
		if !g.released && before.write != nil && g.token <= before.token && !again {
			l.fault("lock-order", "%s was told token %d, and began after %s, with token %d",
				describe(g.write), g.token, describe(before.write), before.token)
		}
	}
}
