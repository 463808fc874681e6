package feed

import (
	"slices"

	"github.com/regd-io/regd/fsm"
)

const (
	// maxDifference is the number of differing instances up to which watchers are told which ones. With more they have
	// to read everything.
	maxDifference = 100_000
	// spareItems bounds the memory that a passed burst leaves behind.
	spareItems = 1024
)

// dispatch delivers what the applier has put, in order. last is the State before that.
func (f *Feed) dispatch(last *fsm.State) {
	defer f.topics.close()
	var spare []item
	for {
		select {
		case <-f.kick:
		case <-f.quit:
			return
		}
		f.mu.Lock()
		batch := f.pending
		f.pending, f.events = spare, 0
		f.mu.Unlock()
		for i := range batch {
			f.deliver(last, &batch[i])
			last = batch[i].state
		}
		spare = nil
		if cap(batch) <= spareItems {
			clear(batch)
			spare = batch[:0]
		}
	}
}

// deliver brings one step to the history and the watchers.
func (f *Feed) deliver(last *fsm.State, it *item) {
	switch {
	case it.state.Epoch() != last.Epoch():
		f.restored(it.state)
	case it.reset:
		f.skipped(last, it)
	default:
		f.changed(it)
	}
	f.done.Store(it.state.Revision())
	if f.queued.due(it.state.Revision()) {
		f.queued.release(it.state.Revision())
	}
	f.kept.expire(it.state.Revision())
}

// changed delivers the events of an ordinary step. The history is first: who adds a topic too late for the round finds
// the events there, and in the State.
func (f *Feed) changed(it *item) {
	events := make([]Event, len(it.events))
	for i := range events {
		events[i].Event = it.events[i]
	}
	f.history.append(events)
	t := &f.topics
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begin(it.state)
	for i := range events {
		e := &events[i]
		namespace, name := e.Subject()
		t.concerned(e.Kind, namespace, name, func(w *Watcher) {
			t.touch(w)
			w.stage(e)
		})
	}
	delivered := 0
	for _, w := range t.touched {
		delivered += len(w.staged)
		w.commit(&f.limits)
	}
	f.counters.delivered.Add(float64(delivered))
}

// restored tells all watchers that everything may differ.
func (f *Feed) restored(st *fsm.State) {
	f.history.cut(st)
	t := &f.topics
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begin(st)
	for w := range t.watchers {
		w.skip(ReasonRestored, st.Revision(), nil)
	}
}

// skipped tells the watchers whom it may concern what differs between two States of one epoch, or that all may. What came
// and went in between differs in neither: who watches something that has changed is told even if nothing of it differs.
func (f *Feed) skipped(old *fsm.State, it *item) {
	st := it.state
	f.history.cut(st)
	var d *difference
	if !it.lost {
		d = differ(old, st)
	}
	t := &f.topics
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begin(st)
	t.each(func(l *list) {
		full := d == nil || l.topic().Kind != fsm.EventInstance // Only instances are compared.
		if !full && l.topic().unchanged(st, old.Revision()) {
			return
		}
		for _, w := range l.watchers {
			if full {
				w.skip(ReasonSkipped, st.Revision(), nil)
			} else {
				t.touch(w)
			}
		}
	})
	for _, w := range t.touched {
		w.skip(ReasonSkipped, st.Revision(), d)
	}
}

// differ returns the keys of the instances that differ, nil when there are too many.
func differ(old, st *fsm.State) *difference {
	d := &difference{}
	fsm.Diff(old, st, func(before, after *fsm.Record) bool {
		r := after
		if r == nil {
			r = before
		}
		d.keys = append(d.keys, instanceKey(r))
		return len(d.keys) <= maxDifference
	})
	if len(d.keys) > maxDifference {
		return nil
	}
	slices.SortFunc(d.keys, Key.Compare)
	return d
}
