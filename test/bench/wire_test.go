package main

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// registrar answers registrations as it is told.
type registrar struct {
	apiv1.UnimplementedRegistryServiceServer
	answer func(context.Context, *apiv1.RegisterRequest) error
}

func (r registrar) Register(ctx context.Context, req *apiv1.RegisterRequest) (*apiv1.RegisterResponse, error) {
	return &apiv1.RegisterResponse{}, r.answer(ctx, req)
}

// serve starts a server with the windows that regd has, and returns what dials it.
func serve(t *testing.T, answer func(context.Context, *apiv1.RegisterRequest) error) (_ *grpc.Server, dial func(context.Context) (net.Conn, error)) {
	t.Helper()
	server := grpc.NewServer(grpc.StaticStreamWindowSize(64<<10), grpc.StaticConnWindowSize(64<<10), grpc.MaxConcurrentStreams(256))
	apiv1.RegisterRegistryServiceServer(server, registrar{answer: answer})
	lis := bufconn.Listen(1 << 20)
	done := make(chan error, 1)
	go func() { done <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return server, lis.DialContext
}

// refusal is an error as regd has it.
func refusal(t *testing.T, reason string) error {
	t.Helper()
	s, err := status.New(codes.ResourceExhausted, "no").WithDetails(&errdetails.ErrorInfo{Reason: reason}, &errdetails.RetryInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return s.Err()
}

// ends gathers how calls end.
type ends struct {
	under sync.WaitGroup
	mu    sync.Mutex
	of    map[int][]error // by client
}

func (e *ends) ended(_ *wire, c call, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.of[c.client] = append(e.of[c.client], err)
	e.under.Done()
}

// wired returns a wire to a server, and how its calls end.
func wired(t *testing.T, dial func(context.Context) (net.Conn, error)) (*wire, *ends) {
	t.Helper()
	conn, err := dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e := &ends{of: map[int][]error{}}
	w := newWire(conn, apiv1.RegistryService_Register_FullMethodName, e.ended)
	t.Cleanup(w.close)
	return w, e
}

// begin begins a registration of a client.
func (e *ends) begin(t *testing.T, w *wire, client int) {
	t.Helper()
	message, err := proto.Marshal(&apiv1.RegisterRequest{
		RequestId: &apiv1.RequestID{ClientId: strconv.Itoa(client)}, Instance: described(owner{}, instance{service: "web", id: "1"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	e.under.Add(1)
	if err := w.begin(call{client, time.Now(), time.Now()}, func(b []byte) []byte { return append(b, message...) }); err != nil {
		t.Fatal(err)
	}
}

func TestAWireTellsHowACallWent(t *testing.T) {
	overloaded, full := refusal(t, "OVERLOADED"), refusal(t, "DISK_FULL")
	_, dial := serve(t, func(ctx context.Context, req *apiv1.RegisterRequest) error {
		if end, ok := ctx.Deadline(); !ok || time.Until(end) > callTimeout {
			return status.Errorf(codes.Internal, "the call ends at %v", end)
		}
		switch client, _ := strconv.Atoi(req.GetRequestId().GetClientId()); client % 5 {
		case 0:
			return overloaded
		case 1:
			return full
		case 2:
			return status.Error(codes.ResourceExhausted, "no details")
		case 3:
			return status.Error(codes.Unavailable, "no leader: at all")
		default:
			return nil
		}
	})
	w, e := wired(t, dial)
	const calls = 2000 // More than the server's window takes without being told that it was read.
	for client := 0; client < calls; {
		for range 100 {
			e.begin(t, w, client)
			client++
		}
		w.flush()
		e.under.Wait()
	}
	for client := range calls {
		if n := len(e.of[client]); n != 1 {
			t.Fatalf("call %d has ended %d times", client, n)
		}
		err := e.of[client][0]
		want := []codes.Code{codes.ResourceExhausted, codes.ResourceExhausted, codes.ResourceExhausted, codes.Unavailable, codes.OK}[client%5]
		if refused := errors.Is(err, errOverloaded); status.Code(err) != want || refused != (client%5 == 0) {
			t.Fatalf("call %d: %v, refused %v; want code %v", client, err, refused, want)
		}
		if client%5 == 3 && !strings.Contains(err.Error(), "no leader: at all") {
			t.Fatalf("call %d: %v", client, err)
		}
	}
}

func TestACallWithoutAnAnswerIsGivenUpOnce(t *testing.T) {
	answer := make(chan struct{})
	_, dial := serve(t, func(_ context.Context, req *apiv1.RegisterRequest) error {
		if req.GetRequestId().GetClientId() == "1" {
			<-answer
		}
		return nil
	})
	w, e := wired(t, dial)
	e.begin(t, w, 1)
	w.expire(time.Now().Add(callTimeout - time.Second))
	if n := len(e.of[1]); n != 0 {
		t.Errorf("the call was given up early: %v", e.of[1])
	}
	w.expire(time.Now().Add(callTimeout + time.Second))
	e.under.Wait()
	close(answer)
	e.begin(t, w, 2) // Its answer comes after that of the first one, if there is one.
	w.flush()
	e.under.Wait()
	if first := e.of[1]; len(first) != 1 || status.Code(first[0]) != codes.DeadlineExceeded || e.of[2][0] != nil {
		t.Errorf("calls ended with %v", e.of)
	}
}

func TestABrokenConnectionEndsItsCalls(t *testing.T) {
	came := make(chan struct{})
	server, dial := serve(t, func(ctx context.Context, _ *apiv1.RegisterRequest) error {
		came <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	w, e := wired(t, dial)
	for client := range 3 {
		e.begin(t, w, client)
	}
	w.flush()
	for range 3 {
		<-came
	}
	server.Stop()
	e.under.Wait()
	<-w.done
	for client := range 3 {
		if ended := e.of[client]; len(ended) != 1 || ended[0] == nil {
			t.Errorf("call %d ended with %v", client, ended)
		}
	}
	if err := w.begin(call{}, func(b []byte) []byte { return b }); err == nil {
		t.Error("a call was begun on a broken connection")
	}
}

func TestARegistrationIsEncodedAsClientsDo(t *testing.T) {
	s := &regd{}
	who := owner{id: "0123-4567"}
	appendTo := s.registration(who)
	const before = "before"
	for n := uint64(1); n <= 1001; n++ {
		got := &apiv1.RegisterRequest{}
		b := appendTo([]byte(before), 4095)
		if err := proto.Unmarshal(b[len(before):], got); err != nil || string(b[:len(before)]) != before {
			t.Fatalf("%q: %v", b, err)
		}
		want := &apiv1.RegisterRequest{
			RequestId: &apiv1.RequestID{ClientId: "bench-4095", Sequence: n, AnsweredBelow: n},
			Instance:  described(who, instance{service: "s" + strconv.Itoa(int(n%1000)), id: "i" + strconv.Itoa(int(n))}),
		}
		if !proto.Equal(got, want) {
			t.Fatalf("message %v, want %v", got, want)
		}
	}
}
