package history

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// Recorder takes down a run. It is safe for concurrent use.
type Recorder struct {
	start   time.Time
	streams atomic.Int64

	mu sync.Mutex
	h  History
}

// NewRecorder begins a run now.
func NewRecorder() *Recorder { return &Recorder{start: time.Now()} }

// Now is the time since the start of the run.
func (r *Recorder) Now() time.Duration { return time.Since(r.start) }

// Fault takes down a fault that is over.
func (r *Recorder) Fault(f Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.h.Faults = append(r.h.Faults, f)
}

// History returns what was taken down so far.
func (r *Recorder) History() *History {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &History{Calls: slices.Clone(r.h.Calls), Messages: slices.Clone(r.h.Messages), Faults: slices.Clone(r.h.Faults)}
}

// DialOptions are what a connection of one client to one node has to be dialled with to be recorded. The client must
// make its calls one after the other.
func (r *Recorder) DialOptions(client, node string) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(r.unary(client, node)),
		grpc.WithChainStreamInterceptor(r.stream(client, node)),
	}
}

func (r *Recorder) unary(client, node string) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		call := Call{Client: client, Node: node, Method: method, Begun: r.Now(), Outcome: OK}
		call.Request = proto.Clone(req.(proto.Message)) //nolint:forcetypeassert // All that crosses gRPC here is one.
		err := invoke(ctx, method, req, reply, cc, opts...)
		call.Ended = r.Now()
		if err == nil {
			call.Response = proto.Clone(reply.(proto.Message)) //nolint:forcetypeassert // As above.
		} else {
			call.Reason = reasonOf(err)
			call.Outcome, call.Err = outcomeOf(call.Reason), err.Error()
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.h.Calls = append(r.h.Calls, call)
		return err
	}
}

// reasonOf is the reason that an error of the API carries.
func reasonOf(err error) apiv1.Reason {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == "regd.io" {
			return apiv1.Reason(apiv1.Reason_value["REASON_"+info.GetReason()])
		}
	}
	return apiv1.Reason_REASON_UNSPECIFIED
}

// outcomeOf says what the API promises of a refused write. An error without reason is one of the connection.
func outcomeOf(reason apiv1.Reason) Outcome {
	switch reason {
	case apiv1.Reason_REASON_UNSPECIFIED, apiv1.Reason_REASON_OUTCOME_UNKNOWN, apiv1.Reason_REASON_INTERNAL:
		return Unknown
	default:
		return Failed
	}
}

func (r *Recorder) stream(client, node string) grpc.StreamClientInterceptor {
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		s := &recordedStream{r: r, like: Message{Client: client, Node: node, Method: method, Stream: r.streams.Add(1)}}
		s.note(Opened, nil, nil)
		inner, err := open(ctx, desc, cc, method, opts...)
		if err != nil {
			s.note(Ended, nil, err)
			return nil, err
		}
		s.ClientStream, s.given = inner, ctx
		s.watch()
		return s, nil
	}
}

// recordedStream is a stream whose messages are taken down.
type recordedStream struct {
	grpc.ClientStream
	r    *Recorder
	like Message // all but At, Direction, Body and Err
	// given is the context that the stream was opened with. (That of the stream itself can't be asked for at will.)
	given     context.Context //nolint:containedctx // Lives as long as the stream.
	receiving atomic.Int32
	once      sync.Once
}

// watch takes down that the client gives the stream up, unless a RecvMsg is under way, which will tell why. A client that
// has given up need not read what comes of it.
func (s *recordedStream) watch() {
	context.AfterFunc(s.given, func() {
		if s.receiving.Load() == 0 {
			s.end(s.given.Err())
		}
	})
}

// end takes down that the stream is over.
func (s *recordedStream) end(err error) {
	s.once.Do(func() { s.note(Ended, nil, err) })
}

func (s *recordedStream) note(d Direction, body proto.Message, err error) {
	m := s.like
	m.Direction, m.Body = d, body
	if err != nil && !errors.Is(err, io.EOF) {
		m.Err = err.Error()
	}
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	m.At = s.r.Now()
	s.r.h.Messages = append(s.r.h.Messages, m)
}

// SendMsg takes the message down before it is sent: its time is no later than that at which a server can have it.
func (s *recordedStream) SendMsg(m any) error {
	s.note(Sent, proto.Clone(m.(proto.Message)), nil) //nolint:forcetypeassert // All that crosses gRPC here is one.
	return s.ClientStream.SendMsg(m)
}

func (s *recordedStream) RecvMsg(m any) error {
	s.receiving.Add(1)
	err := s.ClientStream.RecvMsg(m)
	if err == nil {
		s.note(Received, proto.Clone(m.(proto.Message)), nil) //nolint:forcetypeassert // As above.
	}
	s.receiving.Add(-1)
	switch {
	case err != nil:
		s.end(err)
	case s.given.Err() != nil: // It was given up meanwhile.
		s.end(s.given.Err())
	}
	return err
}
