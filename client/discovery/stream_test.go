package discovery_test

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// Watch serves a stream as the real one does: cut or history first, then every change, and progress after 5s of silence.
func (n *node) Watch(stream grpc.BidiStreamingServer[apiv1.WatchRequest, apiv1.WatchResponse]) error {
	n.mu.Lock()
	n.streams++
	n.open++
	n.mu.Unlock()
	defer n.set(func() { n.open-- })
	requests := make(chan *apiv1.WatchRequest)
	failed := make(chan error, 1)
	var reading sync.WaitGroup
	defer reading.Wait()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	reading.Go(func() {
		for {
			req, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				return
			}
		}
	})
	s := &served{n: n, stream: stream, subs: make(map[uint32]string), claims: make(map[uint32]bool)}
	progress := time.NewTimer(5 * time.Second)
	defer progress.Stop()
	for {
		n.mu.Lock()
		changed, refuse := n.changed, n.refuse
		n.mu.Unlock()
		err := refuse
		if err == nil {
			err = s.deliver()
		}
		if err != nil {
			cancel()
			return err
		}
		progress.Reset(5 * time.Second)
		select {
		case <-changed:
		case req := <-requests:
			err = s.handle(req)
		case <-progress.C:
			err = stream.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Progress{
				Progress: &apiv1.Progress{Header: s.header()},
			}})
		case err = <-failed:
		}
		if err != nil {
			return err
		}
	}
}

// served is a stream and what it has sent.
type served struct {
	n      *node
	stream grpc.BidiStreamingServer[apiv1.WatchRequest, apiv1.WatchResponse]
	subs   map[uint32]string // services
	claims map[uint32]bool   // of those that are to be linearizable, and are not known to be
	sent   uint64            // revision that all subscriptions have
}

func (s *served) handle(req *apiv1.WatchRequest) error {
	if id := req.GetUnsubscribe().GetSubscriptionId(); id != 0 {
		delete(s.subs, id)
		delete(s.claims, id)
		return nil
	}
	sub := req.GetSubscribe()
	id, service, from := sub.GetSubscriptionId(), sub.GetFilter().GetService(), sub.GetResume()
	s.n.mu.Lock()
	s.n.subs = append(s.n.subs, sub)
	revision := s.n.revision()
	if len(s.subs) == 0 {
		s.sent = revision
	}
	var answer []*apiv1.WatchResponse
	if from.GetClusterId() == s.n.cluster && from.GetEpoch() == s.n.epochs[s.sent] && from.GetRevision() >= s.n.kept && from.GetRevision() <= s.sent {
		if events := s.n.between(from.GetRevision(), s.sent, map[uint32]string{id: service}); len(events.GetEvents()) > 0 {
			answer = append(answer, &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Events{Events: events}})
		}
	} else {
		answer = append(answer, s.cut(id, service))
	}
	s.n.mu.Unlock()
	s.subs[id], s.claims[id] = service, sub.GetLinearizable()
	return s.send(append(answer, s.synced(id))...)
}

func (s *served) send(messages ...*apiv1.WatchResponse) error {
	for _, m := range messages {
		if err := s.stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// header is of what has been sent.
func (s *served) header() *apiv1.ResponseHeader {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	return s.n.header(s.sent)
}

// synced is linearizable if that is asked for and possible.
func (s *served) synced(id uint32) *apiv1.WatchResponse {
	m := &apiv1.Synced{SubscriptionId: id, Header: s.header()}
	if s.claims[id] && s.led() {
		m.Header.Mode = apiv1.Mode_MODE_LINEARIZABLE
		delete(s.claims, id)
	}
	return &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Synced{Synced: m}}
}

// led tells whether what has been sent holds all that was acknowledged, and is known to.
func (s *served) led() bool {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	return !s.n.unled && s.sent == uint64(len(s.n.states)-1)
}

// cut is all that a service has at what has been sent. The caller holds mu.
func (s *served) cut(id uint32, service string) *apiv1.WatchResponse {
	cut := &apiv1.Cut{SubscriptionId: id, Full: true}
	for _, i := range s.n.states[s.sent] {
		if i.GetService() == service {
			cut.Instances = append(cut.Instances, i)
		}
	}
	return &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Cut{Cut: cut}}
}

// between returns the events of (after, upTo] for subscriptions. The caller holds mu.
func (r *registry) between(after, upTo uint64, subs map[uint32]string) *apiv1.Events {
	m := &apiv1.Events{Revision: upTo}
	for _, e := range r.events {
		if e.GetRevision() <= after || e.GetRevision() > upTo {
			continue
		}
		var ids []uint32
		for id, service := range subs {
			if service == e.GetInstance().GetService() {
				ids = append(ids, id)
			}
		}
		if len(ids) > 0 {
			m.Events = append(m.Events, &apiv1.SubscribedEvent{Event: e, SubscriptionIds: ids})
		}
	}
	return m
}

// deliver sends what has changed: events, or all anew in another epoch.
func (s *served) deliver() error {
	s.n.mu.Lock()
	before, upTo := s.sent, max(s.sent, s.n.revision())
	s.sent = upTo
	restored := s.n.epochs[before] != s.n.epochs[upTo] && before > 0
	var messages []*apiv1.WatchResponse
	if events := s.n.between(before, upTo, s.subs); !restored && len(events.GetEvents()) > 0 {
		messages = append(messages, &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Events{Events: events}})
	}
	cuts := make(map[uint32]*apiv1.WatchResponse)
	for id, service := range s.subs {
		if restored {
			cuts[id] = s.cut(id, service)
		}
	}
	s.n.mu.Unlock()
	for id, cut := range cuts {
		messages = append(messages, cut, s.synced(id))
	}
	for id := range s.subs {
		if s.claims[id] && s.led() {
			messages = append(messages, s.synced(id))
		}
	}
	return s.send(messages...)
}
