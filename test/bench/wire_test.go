package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
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
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// registry answers as it is told.
type registry struct {
	apiv1.UnimplementedRegistryServiceServer
	apiv1.UnimplementedSessionServiceServer
	register func(context.Context, *apiv1.RegisterRequest) error
	list     func(*apiv1.ListInstancesRequest) *apiv1.ListInstancesResponse
	watch    func(*apiv1.WatchServiceRequest, grpc.ServerStreamingServer[apiv1.WatchServiceResponse]) error
	attach   func(grpc.BidiStreamingServer[apiv1.AttachRequest, apiv1.AttachResponse]) error
}

func (r registry) Register(ctx context.Context, req *apiv1.RegisterRequest) (*apiv1.RegisterResponse, error) {
	return &apiv1.RegisterResponse{}, r.register(ctx, req)
}

func (r registry) ListInstances(_ context.Context, req *apiv1.ListInstancesRequest) (*apiv1.ListInstancesResponse, error) {
	return r.list(req), nil
}

func (r registry) WatchService(req *apiv1.WatchServiceRequest, stream grpc.ServerStreamingServer[apiv1.WatchServiceResponse]) error {
	return r.watch(req, stream)
}

func (r registry) Attach(stream grpc.BidiStreamingServer[apiv1.AttachRequest, apiv1.AttachResponse]) error {
	return r.attach(stream)
}

// Open opens a session that is named after its client.
func (registry) Open(_ context.Context, req *apiv1.OpenRequest) (*apiv1.OpenResponse, error) {
	return &apiv1.OpenResponse{Session: &registryv1.Session{Id: "of " + req.GetClientName()}}, nil
}

// serving starts a server with windows of 64 kB and as many streams as regd allows, if the options do not say other, and
// returns what dials it.
func serving(t *testing.T, register func(*grpc.Server), options ...grpc.ServerOption) (*grpc.Server, dialer) {
	t.Helper()
	server := grpc.NewServer(append([]grpc.ServerOption{
		grpc.StaticStreamWindowSize(64 << 10), grpc.StaticConnWindowSize(64 << 10), grpc.MaxConcurrentStreams(256),
	}, options...)...)
	register(server)
	lis := bufconn.Listen(1 << 20)
	done := make(chan error, 1)
	go func() { done <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return server, func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }
}

// serve starts a registry.
func serve(t *testing.T, r registry, options ...grpc.ServerOption) (*grpc.Server, dialer) {
	t.Helper()
	return serving(t, func(s *grpc.Server) {
		apiv1.RegisterRegistryServiceServer(s, r)
		apiv1.RegisterSessionServiceServer(s, r)
	}, options...)
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

// wireTo returns a wire to a server.
func wireTo(t *testing.T, dial dialer) *wire {
	t.Helper()
	conn, err := dial(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(conn)
	t.Cleanup(w.close)
	return w
}

// ends gathers how calls end.
type ends struct {
	under sync.WaitGroup
	mu    sync.Mutex
	of    map[int][]error // by client
}

func newEnds() *ends { return &ends{of: map[int][]error{}} }

// begin begins a registration of a client.
func (e *ends) begin(t *testing.T, w *wire, client int) {
	t.Helper()
	message := encoded(&apiv1.RegisterRequest{RequestId: &apiv1.RequestID{ClientId: strconv.Itoa(client)}, Instance: described(instance{service: "web", id: "1"}, 0)})
	e.under.Add(1)
	err := w.begin(&call{
		kind:    kind{method: apiv1.RegistryService_Register_FullMethodName},
		request: func(b []byte) []byte { return append(b, message...) },
		ended: func(err error) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.of[client] = append(e.of[client], err)
			e.under.Done()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAWireTellsHowACallWent(t *testing.T) {
	overloaded, full := refusal(t, "OVERLOADED"), refusal(t, "DISK_FULL")
	_, dial := serve(t, registry{register: func(ctx context.Context, req *apiv1.RegisterRequest) error {
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
	}})
	w, e := wireTo(t, dial), newEnds()
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
	_, dial := serve(t, registry{register: func(_ context.Context, req *apiv1.RegisterRequest) error {
		if req.GetRequestId().GetClientId() == "1" {
			<-answer
		}
		return nil
	}})
	w, e := wireTo(t, dial), newEnds()
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
	server, dial := serve(t, registry{register: func(ctx context.Context, _ *apiv1.RegisterRequest) error {
		came <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}})
	w, e := wireTo(t, dial), newEnds()
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
	if err := w.begin(&call{request: func(b []byte) []byte { return b }}); err == nil {
		t.Error("a call was begun on a broken connection")
	}
}

func TestSeveralMethodsShareAWire(t *testing.T) {
	_, dial := serve(t, registry{
		register: func(_ context.Context, req *apiv1.RegisterRequest) error {
			if req.GetInstance().GetService() != "web" {
				return status.Errorf(codes.Internal, "registered %v", req)
			}
			return nil
		},
		list: func(req *apiv1.ListInstancesRequest) *apiv1.ListInstancesResponse {
			return &apiv1.ListInstancesResponse{NextPageToken: req.GetFilter().GetService()}
		},
	})
	w := wireTo(t, dial)
	var x turn
	// In turn, so that each finds the table of header fields as another has left it.
	for k := range 50 {
		service := "s" + strconv.Itoa(k)
		reading := exchange{{
			method: apiv1.RegistryService_ListInstances_FullMethodName,
			request: func(b []byte, _ *turn) []byte {
				return append(b, encoded(&apiv1.ListInstancesRequest{Filter: &apiv1.Filter{Service: service}})...)
			},
			answer: func(_ *turn, message []byte) error {
				var reply apiv1.ListInstancesResponse
				if err := proto.Unmarshal(message, &reply); err != nil || reply.GetNextPageToken() != service {
					return fmt.Errorf("read %v of %s, %w", &reply, service, err)
				}
				return nil
			},
		}}
		s := &regd{}
		for _, e := range []exchange{reading, {s.registering(0, func(*turn) instance { return instance{service: "web"} })}, {s.opening(time.Hour)}} {
			if k < 3 && e[0].method == reading[0].method {
				continue // It comes when the headers of the others are in the table.
			}
			if err := e.do(t.Context(), w, &x); err != nil {
				t.Fatalf("%d: %s: %v", k, e[0].method, err)
			}
		}
	}
	if x.who.id != "of bench" {
		t.Errorf("session %q was opened", x.who.id)
	}
	if n := len(w.headers); n != 3 || slices.ContainsFunc(sorted(w), func(b []byte) bool { return len(b) > 10 }) {
		t.Errorf("headers %v, want three short ones", w.headers)
	}
}

// sorted are the headers that a wire keeps, the shortest first.
func sorted(w *wire) [][]byte {
	var list [][]byte
	for _, b := range w.headers {
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b []byte) int { return len(a) - len(b) })
	return list
}

func TestAnAnswerOfManyFramesIsHeardWhole(t *testing.T) {
	want := &apiv1.ListInstancesResponse{}
	for i := range 3000 { // More than half a megabyte.
		want.Instances = append(want.Instances, described(instance{service: "web", id: strconv.Itoa(i)}, 0))
	}
	_, dial := serve(t, registry{list: func(*apiv1.ListInstancesRequest) *apiv1.ListInstancesResponse { return want }})
	w := wireTo(t, dial)
	read := exchange{(&regd{}).reading(web, true, 3000)}
	judge := read[0].answer
	read[0].answer = func(x *turn, message []byte) error {
		got := &apiv1.ListInstancesResponse{}
		if err := proto.Unmarshal(message, got); err != nil || !proto.Equal(got, want) {
			return fmt.Errorf("read something else: %d instances, %w", len(got.GetInstances()), err)
		}
		return judge(x, message)
	}
	for range 3 {
		if err := read.do(t.Context(), w, &turn{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := (exchange{(&regd{}).reading(web, true, 2999)}).do(t.Context(), w, &turn{}); err == nil || !strings.Contains(err.Error(), "read 3000 instances") {
		t.Errorf("an instance too many: %v", err)
	}
}

func TestMessagesAreHeardHoweverTheyAreCut(t *testing.T) {
	var all []byte
	want := []string{"", "a", strings.Repeat("b", 300), "", strings.Repeat("c", 70)}
	for _, m := range want {
		all = append(binary.BigEndian.AppendUint32(append(all, 0), uint32(len(m))), m...)
	}
	for size := 1; size <= len(all); size++ {
		var got []string
		c := &call{heard: func(m []byte) error { got = append(got, string(m)); return nil }}
		for part := range slices.Chunk(all, size) {
			if err := c.take(bytes.Clone(part)); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, want) || c.messages != len(want) || len(c.partial) != 0 {
			t.Fatalf("in parts of %d bytes: %q, %d left", size, got, len(c.partial))
		}
	}
	if err := (&call{}).take([]byte{1, 0, 0, 0, 0}); err == nil {
		t.Error("a compressed message was taken")
	}
}
