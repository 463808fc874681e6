package history_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/internal/history"
)

// script is a server that answers Deregister as the id of the instance says, and echoes what is sent to Watch once.
type script struct {
	apiv1.UnimplementedRegistryServiceServer
}

func (script) Deregister(_ context.Context, req *apiv1.DeregisterRequest) (*apiv1.DeregisterResponse, error) {
	refuse := func(c codes.Code, reason string) error {
		s, err := status.New(c, "no").WithDetails(&errdetails.ErrorInfo{Domain: "regd.io", Reason: reason})
		if err != nil {
			return err
		}
		return s.Err()
	}
	switch req.GetKey().GetId() {
	case "refuse":
		return nil, refuse(codes.Unavailable, "NO_LEADER")
	case "doubt":
		return nil, refuse(codes.Aborted, "OUTCOME_UNKNOWN")
	case "vanish":
		return nil, status.Error(codes.Unavailable, "connection lost")
	default:
		return &apiv1.DeregisterResponse{Header: &apiv1.ResponseHeader{Revision: 7}}, nil
	}
}

func (script) Watch(stream grpc.BidiStreamingServer[apiv1.WatchRequest, apiv1.WatchResponse]) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	return stream.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Progress{Progress: &apiv1.Progress{}}})
}

// dial serves the script and returns a recorded connection to it.
func dial(t *testing.T, r *history.Recorder) apiv1.RegistryServiceClient {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	apiv1.RegisterRegistryServiceServer(server, script{})
	done := make(chan error, 1)
	go func() { done <- server.Serve(lis) }()
	conn, err := grpc.NewClient(lis.Addr().String(), append(r.DialOptions("c1", "n1"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return apiv1.NewRegistryServiceClient(conn)
}

func TestCallsAreTakenDownWithTheirOutcome(t *testing.T) {
	r := history.NewRecorder()
	api := dial(t, r)
	for i, id := range []string{"fine", "refuse", "doubt", "vanish"} {
		_, _ = api.Deregister(t.Context(), &apiv1.DeregisterRequest{ // How it ends is what is taken down.
			RequestId: &apiv1.RequestID{ClientId: "c1", Sequence: uint64(i + 1)}, Key: &apiv1.InstanceKey{Service: "web", Id: id},
		})
	}
	type row struct {
		ID      string
		Outcome history.Outcome
		Reason  apiv1.Reason
	}
	var got []row
	last := time.Duration(0)
	for _, c := range r.History().Calls {
		if c.Client != "c1" || c.Node != "n1" || c.Begun < last || c.Ended < c.Begun {
			t.Errorf("call %+v", c)
		}
		last = c.Ended
		got = append(got, row{c.Request.(*apiv1.DeregisterRequest).GetKey().GetId(), c.Outcome, c.Reason})
	}
	want := []row{
		{"fine", history.OK, apiv1.Reason_REASON_UNSPECIFIED},
		{"refuse", history.Failed, apiv1.Reason_REASON_NO_LEADER},
		{"doubt", history.Unknown, apiv1.Reason_REASON_OUTCOME_UNKNOWN},
		{"vanish", history.Unknown, apiv1.Reason_REASON_UNSPECIFIED},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if got := r.History().Calls[0].Header().GetRevision(); got != 7 {
		t.Errorf("revision %d of the answer, want 7", got)
	}
}

func TestStreamsAreTakenDownWhole(t *testing.T) {
	r := history.NewRecorder()
	stream, err := dial(t, r).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&apiv1.WatchRequest{})
	for err == nil {
		_, err = stream.Recv()
	}
	var got []history.Direction
	for _, m := range r.History().Streams("/regd.api.v1.RegistryService/Watch")[0] {
		got = append(got, m.Direction)
	}
	want := []history.Direction{history.Opened, history.Sent, history.Received, history.Ended}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

func TestAttemptsOfOneRequestAreOneWrite(t *testing.T) {
	attempt := func(sequence uint64, begun, ended time.Duration, o history.Outcome) history.Call {
		c := history.Call{
			Begun: begun, Ended: ended, Outcome: o,
			Request: &apiv1.DeregisterRequest{RequestId: &apiv1.RequestID{ClientId: "c", Sequence: sequence}},
		}
		if o == history.OK {
			c.Response = &apiv1.DeregisterResponse{}
		}
		return c
	}
	h := &history.History{Calls: []history.Call{
		attempt(1, 1, 2, history.Unknown), attempt(2, 3, 4, history.Failed), attempt(1, 5, 6, history.OK),
		attempt(3, 7, 8, history.Unknown), attempt(3, 9, 10, history.Failed), attempt(1, 11, 12, history.OK),
		{Begun: 13, Ended: 14, Outcome: history.OK, Request: &apiv1.GetRequest{}},
	}}
	type row struct {
		Sequence     uint64
		Begun, Ended time.Duration
		Outcome      history.Outcome
		Calls        int
	}
	var got []row
	for _, w := range h.Writes() {
		got = append(got, row{w.Sequence, w.Begun, w.Ended, w.Outcome, len(w.Calls)})
	}
	want := []row{{1, 1, 6, history.OK, 3}, {2, 3, 4, history.Failed, 1}, {3, 7, 10, history.Unknown, 2}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
}
