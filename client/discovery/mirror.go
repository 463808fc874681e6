package discovery

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// name of a service.
type name struct{ namespace, service string }

func (n name) String() string { return n.namespace + "/" + n.service }

// mirror makes views of one service from what its watch delivers. It has no clock and no lock: one goroutine owns it.
type mirror struct {
	name    name
	guard   guard
	pending map[string]client.Change // since the last mark, the last one of each id
	known   bool                     // the service was seen to have instances
	fresh   bool                     // what the registry had acknowledged before the service was asked for was seen
	view    *View                    // nil before the first mark
}

func newMirror(n name, keep float64, hold time.Duration) *mirror {
	return &mirror{
		name: n, pending: make(map[string]client.Change),
		guard: guard{keep: keep, hold: hold, suspects: make(map[string]suspect)},
	}
}

// restore begins with a view from a file.
func (m *mirror) restore(s *stored) {
	for _, lost := range s.lost {
		m.guard.suspects[lost.instance.GetId()] = lost
	}
	m.guard.on = len(s.lost) > 0
	m.known = true
	m.view = View{
		Namespace: m.name.namespace, Service: m.name.service, Staleness: client.UnknownStaleness,
		Point: s.point, SyncedAt: s.syncedAt, Source: SourceFile,
	}.with(newList(s.live, s.lost))
}

// begin prepares for a new watch: what an earlier one left unfinished is of no use.
func (m *mirror) begin() { m.pending = make(map[string]client.Change) }

// take keeps a change until the mark that makes it whole.
func (m *mirror) take(c client.Change) { m.pending[c.Key.ID] = c }

// synced is what a mark did.
type synced struct {
	resynced  bool // history was lost
	protected bool // protection has begun
	released  bool // protection has ended
	foreign   bool // the registry is another one than the view was of
}

// sync goes to the state of a mark. The view is of the same list as before if nothing has changed.
func (m *mirror) sync(mark client.Change, point client.ResumePoint) synced {
	var did synced
	last := m.view
	if last == nil {
		last = View{Staleness: client.UnknownStaleness}.with(newList(nil, nil))
	}
	did.foreign = last.Point.ClusterID != "" && last.Point.ClusterID != point.ClusterID
	current := last.list
	if did.foreign {
		clear(m.guard.suspects) // Nothing that is known of another registry's instances holds here.
		m.guard.on, m.known = false, false
	}
	if len(m.pending) > 0 || did.foreign {
		live, gone, fresh := m.apply(current.live, mark.Received)
		did.resynced = m.resynced()
		m.begin()
		if !did.foreign {
			m.guard.note(gone, fresh)
		}
		before := m.guard.on
		did.protected = m.guard.judge(len(live))
		did.released = before && !m.guard.on
		current = newList(live, m.guard.protected())
	}
	m.known, m.fresh = m.known || len(current.live) > 0, m.fresh || mark.Fresh
	v := View{
		Namespace: m.name.namespace, Service: m.name.service,
		Point: point, SyncedAt: mark.Received, Staleness: mark.Staleness, Node: mark.Node, Source: SourceLive,
	}.with(current)
	if v.Staleness == client.UnknownStaleness && v.Node == last.Node {
		v.Staleness = last.Staleness // Events bring none with them.
	}
	if !m.known {
		v.fault = fmt.Errorf("service %s: %w", m.name, ErrNoSuchService)
	}
	m.view = v
	return did
}

// unproved tells whether the view shows no such service only as the node that it is from lags, for all that is known.
func (m *mirror) unproved() bool { return !m.known && !m.fresh }

// apply returns the list with what is pending applied, and what was lost by it and is new.
func (m *mirror) apply(live []*registryv1.Instance, now time.Time) (next []*registryv1.Instance, gone []suspect, fresh []string) {
	next = make([]*registryv1.Instance, 0, len(live)+len(m.pending))
	for _, id := range slices.Sorted(maps.Keys(m.pending)) {
		change := m.pending[id]
		at, known := search(live, id)
		next = append(next, live[:at]...)
		live = live[at:]
		if known {
			if change.Kind == client.ChangeDelete && lost(change.Cause) {
				gone = append(gone, suspect{instance: live[0], since: now})
			}
			live = live[1:]
		}
		if change.Kind == client.ChangePut {
			next = append(next, change.Instance)
			if !known {
				fresh = append(fresh, id)
			}
		}
	}
	return append(next, live...), gone, fresh
}

// resynced tells whether something is pending because history was lost.
func (m *mirror) resynced() bool {
	for _, c := range m.pending {
		if c.Cause == registryv1.Cause_CAUSE_RESYNC {
			return true
		}
	}
	return false
}

// stall notes that the view is no longer kept current.
func (m *mirror) stall(trouble error) {
	if m.view == nil {
		return
	}
	v := *m.view
	if v.trouble = trouble; v.Source == SourceLive {
		v.Source = SourceCached
	}
	m.view = &v
}

// release lets suspects go whose time has passed, and tells whether the view has changed by it.
func (m *mirror) release(now time.Time) bool {
	if !m.guard.release(now) || !m.guard.on {
		return false
	}
	m.guard.judge(len(m.view.list.live))
	m.view = m.view.with(newList(m.view.list.live, m.guard.protected()))
	return true
}
