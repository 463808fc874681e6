package client

// entry is a change that waits for its reader.
type entry struct {
	change Change
	point  ResumePoint // of a ChangeSynced
	fresh  bool        // a put of an instance that was not there before
	number uint64      // of the queue's entries, from 1 on
}

// queue holds changes for the reader, in order. Above its limit it keeps, of each instance, only the last change, and
// nothing of instances that came and went unseen: then it is no larger than the state that the reader has plus the state
// that there is.
type queue struct {
	limit   int
	entries []entry
	next    int    // length at which to compact; 0: limit
	last    uint64 // number of the entry that was put last
	popped  uint64 // number of the entry that was taken last
}

// put appends a change. It tells whether the queue was compacted: what was there may now be said by a later entry.
func (q *queue) put(e entry) (compacted bool) {
	if n := len(q.entries); e.change.Kind == ChangeSynced && n > 0 && q.entries[n-1].change.Kind == ChangeSynced {
		e.number = q.last
		q.entries[n-1] = e
		return false
	}
	q.last++
	e.number = q.last
	q.entries = append(q.entries, e)
	if len(q.entries) <= max(q.limit, q.next) {
		return false
	}
	q.compact()
	return true
}

// pop takes the first one.
func (q *queue) pop() (entry, bool) {
	if len(q.entries) == 0 {
		return entry{}, false
	}
	first := q.entries[0]
	q.popped = first.number
	q.entries[0] = entry{}
	if q.entries = q.entries[1:]; len(q.entries) == 0 {
		q.entries, q.next = nil, 0
	}
	return first, true
}

// compact keeps the last change of each instance, in the order of those, and a mark at the end. A mark in between would
// claim a state that the reader never gets to see.
func (q *queue) compact() {
	first := make(map[Key]bool) // whether the reader had no such instance before the queue
	last := make(map[Key]int)
	for i, e := range q.entries {
		if e.change.Kind == ChangeSynced {
			continue
		}
		if _, ok := last[e.change.Key]; !ok {
			first[e.change.Key] = e.fresh
		}
		last[e.change.Key] = i
	}
	kept := make([]entry, 0, len(last)+1)
	for i, e := range q.entries {
		key := e.change.Key
		switch {
		case e.change.Kind == ChangeSynced:
			if i == len(q.entries)-1 {
				kept = append(kept, e)
			}
		case last[key] != i, e.change.Kind == ChangeDelete && first[key]:
		default:
			e.fresh = first[key]
			kept = append(kept, e)
		}
	}
	q.entries = kept
	q.next = 2 * len(kept) // so that the work is spread over as many changes
}
