package client_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// fakeStream is a Watch stream with words for a script.
type fakeStream struct {
	grpc.BidiStreamingServer[apiv1.WatchRequest, apiv1.WatchResponse]
	n *fakeNode
}

func (n *fakeNode) Watch(stream grpc.BidiStreamingServer[apiv1.WatchRequest, apiv1.WatchResponse]) error {
	n.script.Lock()
	script := n.watch
	n.script.Unlock()
	if script == nil {
		return status.Error(codes.Unavailable, "no script")
	}
	return script(&fakeStream{BidiStreamingServer: stream, n: n})
}

// subscribe waits for a subscription.
func (s *fakeStream) subscribe() (*apiv1.Subscribe, error) {
	req, err := s.Recv()
	if err != nil {
		return nil, err
	}
	s.n.note("Watch", req)
	if req.GetSubscribe() == nil {
		return nil, fmt.Errorf("want a subscription, got %v", req)
	}
	return req.GetSubscribe(), nil
}

// head is a header at a revision of an epoch.
func (s *fakeStream) head(epoch, revision uint64) *apiv1.ResponseHeader {
	return &apiv1.ResponseHeader{
		ClusterId: "cluster", Epoch: epoch, Revision: revision, Node: strings.TrimSuffix(s.n.address, ":7400"),
		Staleness: durationpb.New(10 * time.Millisecond),
	}
}

// cut sends a cut and its end.
func (s *fakeStream) cut(cut *apiv1.Cut, epoch, revision uint64) error {
	return errors.Join(
		s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Cut{Cut: cut}}),
		s.synced(cut.GetSubscriptionId(), epoch, revision),
	)
}

func (s *fakeStream) synced(id uint32, epoch, revision uint64) error {
	return s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Synced{
		Synced: &apiv1.Synced{SubscriptionId: id, Header: s.head(epoch, revision)},
	}})
}

func (s *fakeStream) events(revision uint64, events ...*apiv1.SubscribedEvent) error {
	return s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Events{
		Events: &apiv1.Events{Events: events, Revision: revision},
	}})
}

func (s *fakeStream) progress(revision uint64, staleness time.Duration) error {
	header := s.head(1, revision)
	header.Staleness = durationpb.New(staleness)
	return s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Progress{Progress: &apiv1.Progress{Header: header}}})
}

// mark asks for an acknowledgement.
func (s *fakeStream) mark(number uint64, ids ...uint32) error {
	return s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Marker{
		Marker: &apiv1.Marker{Number: number, SubscriptionIds: ids},
	}})
}

// idle reads, so that requests are logged, until the stream ends.
func (s *fakeStream) idle() error {
	for {
		req, err := s.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		s.n.note("Watch", req)
	}
}
