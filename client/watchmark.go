package client

import (
	"slices"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// maxAwaited bounds the markers that one watch remembers. A reader that never comes back is not waited for so often.
const maxAwaited = 256

// marker is a request of a node to say when the readers of some watches know all that it sent before.
type marker struct {
	stream *watchStream
	number uint64
	left   int // watches that are waited for; guarded by stream.mu
}

// acceptance is what a watch owes to a marker: its reader has to come back from an entry of the queue.
type acceptance struct {
	number uint64 // of the entry
	marker *marker
}

// await takes a marker in. Subscriptions that are unknown were ended by this side.
func (s *watchStream) await(m *apiv1.Marker) {
	mark := &marker{stream: s, number: m.GetNumber(), left: len(m.GetSubscriptionIds()) + 1}
	for _, id := range m.GetSubscriptionIds() {
		if w := s.h.get(id); w != nil {
			w.await(mark)
		} else {
			mark.accept()
		}
	}
	mark.accept() // All are told of it.
}

// accept notes that one watch is no longer waited for, and has the marker acknowledged after the last.
func (m *marker) accept() {
	s := m.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.left--; m.left > 0 {
		return
	}
	s.acks = append(s.acks, m.number)
	select {
	case s.accepted <- struct{}{}:
	default:
	}
}

// acknowledge sends the acknowledgements that are due.
func (s *watchStream) acknowledge(stream grpc.BidiStreamingClient[apiv1.WatchRequest, apiv1.WatchResponse]) error {
	s.mu.Lock()
	due := s.acks
	s.acks = nil
	s.mu.Unlock()
	for _, number := range due {
		acknowledge := &apiv1.Acknowledge{Number: number}
		if err := stream.Send(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Acknowledge{Acknowledge: acknowledge}}); err != nil {
			return err
		}
	}
	return nil
}

// await has the marker accepted once the reader came back after all that is in the queue.
func (w *Watch) await(m *marker) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil || w.queue.last <= w.handled {
		m.accept()
		return
	}
	if len(w.awaited) == maxAwaited {
		w.awaited = slices.Delete(w.awaited, 0, 1)
	}
	w.awaited = append(w.awaited, acceptance{number: w.queue.last, marker: m})
}

// accept notes that the reader came back after an entry. The caller holds mu.
func (w *Watch) accept(number uint64) {
	w.handled = max(w.handled, number)
	n := 0
	for n < len(w.awaited) && w.awaited[n].number <= number {
		w.awaited[n].marker.accept()
		n++
	}
	w.awaited = slices.Delete(w.awaited, 0, n)
}

// put puts an entry into the queue. What a marker waits for may be said by a later entry then. The caller holds mu.
func (w *Watch) put(e entry) {
	if !w.queue.put(e) {
		return
	}
	for i := range w.awaited {
		w.awaited[i].number = w.queue.last
	}
}
