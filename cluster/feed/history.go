package feed

import (
	"slices"
	"sort"
	"sync"

	"github.com/regd-io/regd/fsm"
)

// chunkEvents is the number of events in one chunk of the history, the grain in which it is dropped.
const chunkEvents = 256

// history is the chain of the last events of instances, oldest first, bounded by number and bytes. Nobody catches up on
// anything else.
//
// Invariant: it holds every such event of the epoch that was dispatched and has a revision above floor.
type history struct {
	maxEvents, maxBytes int

	mu     sync.Mutex // guards all below; what the chunks hold is only ever appended to
	epoch  uint64
	floor  uint64
	chunks [][]Event
	events int
	bytes  int
}

func (h *history) init(maxEvents, maxBytes int, st *fsm.State) {
	h.maxEvents, h.maxBytes = maxEvents, maxBytes
	h.cut(st)
}

// cut drops everything: the history begins at st.
func (h *history) cut(st *fsm.State) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.epoch, h.floor = st.Epoch(), st.Revision()
	h.chunks, h.events, h.bytes = nil, 0, 0
}

// append adds events.
func (h *history) append(events []Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range events {
		if events[i].Kind != fsm.EventInstance {
			continue
		}
		last := len(h.chunks) - 1
		if last < 0 || len(h.chunks[last]) == chunkEvents {
			h.chunks = append(h.chunks, make([]Event, 0, chunkEvents))
			last++
		}
		// Readers hold shorter slices of the same array: what they see does not change.
		h.chunks[last] = append(h.chunks[last], events[i])
		h.events++
		h.bytes += events[i].Size()
	}
	for len(h.chunks) > 1 && (h.events > h.maxEvents || h.bytes > h.maxBytes) {
		h.drop()
	}
}

// drop removes the oldest chunk. h.mu is held.
func (h *history) drop() {
	oldest := h.chunks[0]
	for i := range oldest {
		h.bytes -= oldest[i].Size()
	}
	h.events -= len(oldest)
	h.floor = oldest[len(oldest)-1].Revision
	h.chunks[0] = nil // The array behind the slice lives on for a while.
	h.chunks = h.chunks[1:]
}

// size returns how much is kept.
func (h *history) size() (events, bytes int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.events, h.bytes
}

// after returns the kept events from the first with a larger revision on. The first chunk may begin with older ones. It
// returns false when the history does not reach back to the revision.
func (h *history) after(epoch, revision uint64) (chunks [][]Event, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if epoch != h.epoch || revision < h.floor {
		return nil, false
	}
	i := sort.Search(len(h.chunks), func(i int) bool {
		return h.chunks[i][len(h.chunks[i])-1].Revision > revision
	})
	return slices.Clone(h.chunks[i:]), true
}

// Span is a stretch of history.
type Span struct {
	// Events are the topic's events of the stretch, in revision order, each revision whole.
	Events []*Event
	// Revision is the end of the stretch: nothing up to here is missing.
	Revision uint64
}

// Since returns the events of the topic with after < revision <= upTo, about limit of them at once but whole revisions:
// with Span.Revision < upTo there is more. It returns false when that history is not kept: it is too long ago, or of
// another epoch, or the topic is not of instances. A reader who goes on with a Watcher has upTo from Watcher.Add.
func (f *Feed) Since(topic Topic, epoch, after, upTo uint64, limit int) (Span, bool) {
	chunks, ok := f.history.after(epoch, after)
	if !ok || topic.Kind != fsm.EventInstance {
		return Span{}, false
	}
	span := Span{Revision: max(after, upTo)}
	if st := f.State(); st.Epoch() == epoch && topic.unchanged(st, after) {
		return span, true // What most subscriptions find that resume.
	}
	for _, chunk := range chunks {
		for i := range chunk {
			e := &chunk[i]
			if e.Revision > upTo {
				return span, true
			}
			if e.Revision <= after || !topic.covers(e) {
				continue
			}
			if n := len(span.Events); n >= limit && span.Events[n-1].Revision != e.Revision {
				span.Revision = span.Events[n-1].Revision
				return span, true
			}
			span.Events = append(span.Events, e)
		}
	}
	return span, true
}
