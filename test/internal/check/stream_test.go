package check_test

import (
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/internal/history"
)

// stream is one that keeps all promises. Watches have one subscription, number 1.
type stream struct {
	w      *world
	like   history.Message
	filter *apiv1.Filter
	at     uint64 // the reader has everything up to here
}

func (w *world) open(client, method string) *stream {
	w.streams++
	s := &stream{w: w, like: history.Message{Client: client, Node: "n1", Method: method, Stream: w.streams}}
	s.note(history.Opened, nil)
	return s
}

func (s *stream) note(d history.Direction, body proto.Message) {
	m := s.like
	m.Direction, m.Body, m.At = d, body, s.w.tick()
	s.w.h.Messages = append(s.w.h.Messages, m)
}

func (s *stream) sent(body proto.Message)     { s.note(history.Sent, body) }
func (s *stream) received(body proto.Message) { s.note(history.Received, body) }
func (s *stream) end()                        { s.note(history.Ended, nil) }

// watch subscribes. A resume revision of 0 means none.
func (w *world) watch(client string, filter *apiv1.Filter, resume uint64) *stream {
	s := w.open(client, apiv1.RegistryService_Watch_FullMethodName)
	s.filter, s.at = filter, resume
	sub := &apiv1.Subscribe{SubscriptionId: 1, Filter: filter}
	if resume > 0 {
		sub.Resume = &apiv1.ResumePoint{ClusterId: clusterID, Epoch: 1, Revision: resume}
	}
	s.sent(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: sub}})
	return s
}

func (s *stream) watched(payload any) {
	m := &apiv1.WatchResponse{}
	switch p := payload.(type) {
	case *apiv1.Cut:
		m.Payload = &apiv1.WatchResponse_Cut{Cut: p}
	case *apiv1.Synced:
		m.Payload = &apiv1.WatchResponse_Synced{Synced: p}
	case *apiv1.Events:
		m.Payload = &apiv1.WatchResponse_Events{Events: p}
	case *apiv1.Progress:
		m.Payload = &apiv1.WatchResponse_Progress{Progress: p}
	}
	s.received(m)
}

// full sends a full cut of what is now.
func (s *stream) full(reason apiv1.CutReason) {
	c := &apiv1.Cut{SubscriptionId: 1, Full: true, Reason: reason}
	if svc := s.w.state().Service("default", s.filter.GetService()); svc != nil {
		svc.Ascend("", func(r *fsm.Record) bool {
			if match(s.filter, r) {
				c.Instances = append(c.Instances, decode(s.w.t, r))
			}
			return true
		})
	}
	s.watched(c)
	s.synced()
}

func (s *stream) synced() {
	s.at = s.w.state().Revision()
	s.watched(&apiv1.Synced{SubscriptionId: 1, Header: s.w.header(s.at)})
}

// difference sends a cut of what has changed.
func (s *stream) difference(reason apiv1.CutReason) {
	c := &apiv1.Cut{SubscriptionId: 1, Reason: reason}
	seen := map[string]bool{}
	for _, e := range s.changes() {
		r := e.New
		if r == nil {
			r = e.Old
		}
		if seen[r.ID()] {
			continue
		}
		seen[r.ID()] = true
		if now := s.w.state().Instance("default", r.Service(), r.ID()); match(s.filter, now) {
			c.Instances = append(c.Instances, decode(s.w.t, now))
		} else {
			c.Deleted = append(c.Deleted, &apiv1.InstanceKey{Namespace: "default", Service: r.Service(), Id: r.ID()})
		}
	}
	s.watched(c)
	s.synced()
}

// changes are the events that concern the subscription and that it has not got.
func (s *stream) changes() []fsm.Event {
	var list []fsm.Event
	i := len(s.w.events)
	for i > 0 && s.w.events[i-1].Revision > s.at {
		i--
	}
	for _, e := range s.w.events[i:] {
		if e.Kind == fsm.EventInstance && (match(s.filter, e.New) || match(s.filter, e.Old)) {
			list = append(list, e)
		}
	}
	return list
}

// deliver sends what has changed as events, if anything has. It returns how many there were.
func (s *stream) deliver() int {
	m := &apiv1.Events{Revision: s.w.state().Revision()}
	for _, e := range s.changes() {
		event := &registryv1.Event{Type: registryv1.EventType_EVENT_TYPE_PUT, Revision: e.Revision, Cause: e.Cause}
		if match(s.filter, e.New) {
			event.Instance = decode(s.w.t, e.New)
		} else {
			event.Type = registryv1.EventType_EVENT_TYPE_DELETE
			event.Instance = &registryv1.Instance{
				Namespace: "default", Service: e.Old.Service(), Id: e.Old.ID(), Incarnation: e.Old.Incarnation(),
			}
		}
		m.Events = append(m.Events, &apiv1.SubscribedEvent{Event: event, SubscriptionIds: []uint32{1}})
	}
	if len(m.Events) > 0 {
		s.watched(m)
		s.at = m.GetRevision()
	}
	return len(m.Events)
}

func (s *stream) progress() {
	s.at = s.w.state().Revision()
	s.watched(&apiv1.Progress{Header: s.w.header(s.at)})
}

// attach renews a session over a stream of its own.
func (w *world) attach(client string) *stream {
	return w.open(client, apiv1.SessionService_Attach_FullMethodName)
}

func (s *stream) renew(sequence uint64, id string) {
	s.sent(&apiv1.AttachRequest{SessionIds: []string{id}, Sequence: sequence})
	resp := &apiv1.AttachResponse{Sequence: sequence}
	if s.w.state().Session(id) == nil {
		resp.Ended = []string{id}
	}
	s.received(resp)
}

// keepAlive renews a lease over a stream of its own.
func (w *world) keepAlive(client string) *stream {
	return w.open(client, apiv1.LeaseService_KeepAlive_FullMethodName)
}

func (s *stream) renewLease(sequence uint64, id string) {
	s.sent(&apiv1.KeepAliveRequest{LeaseIds: []string{id}, Sequence: sequence})
	resp := &apiv1.KeepAliveResponse{Sequence: sequence}
	if s.w.state().Lease(id) == nil {
		resp.Ended = []string{id}
	}
	s.received(resp)
}

// pass lets time go by.
func (w *world) pass(d time.Duration) { w.now += d }
