package rpc

import (
	"context"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/regd-io/regd/cluster/feed"
)

// More numbers of fields that are encoded by hand.
const (
	eventsEvents   protowire.Number = 1 // of Events
	eventsRevision protowire.Number = 2

	subscribedEvent protowire.Number = 1 // of SubscribedEvent
	subscribedIDs   protowire.Number = 2
)

// eventBatch is an Events message that is being put together.
type eventBatch struct {
	entries []batchEntry
	ids     []uint32 // of all entries, one after the other
	gone    []uint32 // scratch
	size    int      // of the entries, encoded
}

// batchEntry is a SubscribedEvent.
type batchEntry struct {
	event   *feed.Event
	deleted bool
	ids     int // end of its ids; they begin where those of the entry before end
	idsSize int // encoded
	size    int // of the SubscribedEvent without tag and length
}

// sendEvents sends the events to those whom they concern, each revision whole; what is left at the end goes with the
// revision up to which nothing is missing then. only, unless nil, is the one subscription that it is about.
func (w *watchStream) sendEvents(ctx context.Context, events []*feed.Event, upTo uint64, only *subscription) error {
	b := &w.batch
	for len(events) > 0 {
		revision := events[0].Revision
		n := wholeRevision(events)
		before := *b
		for _, e := range events[:n] {
			w.add(e, only)
		}
		var err error
		switch {
		case b.size-before.size > maxWatchMessage:
			b.entries, b.ids, b.size = b.entries[:len(before.entries)], b.ids[:len(before.ids)], before.size
			if err = w.flush(ctx, revision-1); err == nil {
				err = w.cutRevision(ctx, events[:n], only)
			}
		case b.size >= watchMessage:
			err = w.flush(ctx, revision)
		}
		if err != nil {
			return err
		}
		events = events[n:]
	}
	return w.flush(ctx, upTo)
}

// wholeRevision returns how many of the events have the first one's revision.
func wholeRevision(events []*feed.Event) int {
	n := 1
	for n < len(events) && events[n].Revision == events[0].Revision {
		n++
	}
	return n
}

// add adds an event for those whom it concerns: those with a filter that matches now, and, as a deletion, those with a
// filter that matched before.
func (w *watchStream) add(e *feed.Event, only *subscription) {
	b := &w.batch
	first := len(b.ids)
	b.gone = b.gone[:0]
	concern := func(sub *subscription) {
		switch {
		case e.New != nil && sub.filter.match(e.New):
			b.ids = append(b.ids, sub.id)
		case e.Old != nil && sub.filter.match(e.Old):
			b.gone = append(b.gone, sub.id)
		}
	}
	if only != nil {
		concern(only)
	} else {
		namespace, service := e.Subject()
		w.routesOf(namespace, service, func(sub *subscription) {
			if e.Revision > sub.from {
				concern(sub)
			}
		})
	}
	if len(b.ids) > first {
		b.entry(e, false, first)
	}
	if len(b.gone) > 0 {
		first = len(b.ids)
		b.ids = append(b.ids, b.gone...)
		b.entry(e, true, first)
	}
}

// entry adds an entry for the ids from first on.
func (b *eventBatch) entry(e *feed.Event, deleted bool, first int) {
	entry := batchEntry{event: e, deleted: deleted, ids: len(b.ids)}
	for _, id := range b.ids[first:] {
		entry.idsSize += protowire.SizeVarint(uint64(id))
	}
	entry.size = protowire.SizeTag(subscribedEvent) + protowire.SizeBytes(entry.eventSize()) +
		protowire.SizeTag(subscribedIDs) + protowire.SizeBytes(entry.idsSize)
	b.size += protowire.SizeTag(eventsEvents) + protowire.SizeBytes(entry.size)
	b.entries = append(b.entries, entry)
}

func (e *batchEntry) eventSize() int {
	if e.deleted {
		return e.event.DeleteSize()
	}
	return e.event.PutSize()
}

// flush sends the message, if there is something in it, and begins the next.
func (w *watchStream) flush(ctx context.Context, revision uint64) error {
	b := &w.batch
	if len(b.entries) == 0 {
		return nil
	}
	n := b.size + protowire.SizeTag(eventsRevision) + protowire.SizeVarint(revision)
	m := newEncoded(protowire.SizeTag(watchEvents)+protowire.SizeBytes(n), func(dst []byte) []byte {
		dst = protowire.AppendTag(dst, watchEvents, protowire.BytesType)
		dst = protowire.AppendVarint(dst, uint64(n))
		dst = b.append(dst)
		dst = protowire.AppendTag(dst, eventsRevision, protowire.VarintType)
		return protowire.AppendVarint(dst, revision)
	})
	clear(b.entries) // An idle stream holds no event.
	b.entries, b.ids, b.size = b.entries[:0], b.ids[:0], 0
	return w.send(ctx, m)
}

// append appends the encoded entries.
func (b *eventBatch) append(dst []byte) []byte {
	first := 0
	for i := range b.entries {
		e := &b.entries[i]
		dst = protowire.AppendTag(dst, eventsEvents, protowire.BytesType)
		dst = protowire.AppendVarint(dst, uint64(e.size))
		dst = protowire.AppendTag(dst, subscribedEvent, protowire.BytesType)
		dst = protowire.AppendVarint(dst, uint64(e.eventSize()))
		if e.deleted {
			dst = e.event.AppendDelete(dst)
		} else {
			dst = e.event.AppendPut(dst)
		}
		dst = protowire.AppendTag(dst, subscribedIDs, protowire.BytesType)
		dst = protowire.AppendVarint(dst, uint64(e.idsSize))
		for _, id := range b.ids[first:e.ids] {
			dst = protowire.AppendVarint(dst, uint64(id))
		}
		first = e.ids
	}
	return dst
}
