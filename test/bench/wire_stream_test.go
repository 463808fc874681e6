package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// stream begins a call that lasts, and returns how it ends.
func stream(t *testing.T, w *wire, c *call) (*call, <-chan error) {
	t.Helper()
	ended := make(chan error, 1)
	c.kind.stream, c.ended = true, func(err error) { ended <- err }
	if c.request == nil {
		c.request = func(b []byte) []byte { return b }
	}
	if err := w.begin(c); err != nil {
		t.Fatal(err)
	}
	w.flush()
	return c, ended
}

func TestAServerIsGivenRoomOnAStreamAndAWire(t *testing.T) {
	const messages, size = 1500, 30_000 // More than twice the room that a stream has at first.
	_, dial := serve(t, registry{watch: func(_ *apiv1.WatchServiceRequest, to grpc.ServerStreamingServer[apiv1.WatchServiceResponse]) error {
		if _, has := to.Context().Deadline(); has {
			return status.Error(codes.Internal, "a stream has a deadline")
		}
		m := &apiv1.WatchServiceResponse{Payload: &apiv1.WatchServiceResponse_Ended{Ended: &apiv1.SubscriptionEnded{Message: strings.Repeat("x", size)}}}
		for range messages {
			if err := to.Send(m); err != nil {
				return err
			}
		}
		return nil
	}})
	w := wireTo(t, dial)
	var all []<-chan error
	counts := make([]int, 2)
	for i := range counts {
		_, ended := stream(t, w, &call{kind: kind{method: apiv1.RegistryService_WatchService_FullMethodName}, heard: func(m []byte) error {
			if len(m) < size {
				return fmt.Errorf("%d bytes", len(m))
			}
			counts[i]++
			return nil
		}})
		all = append(all, ended)
	}
	for i, ended := range all {
		if err := <-ended; err != nil || counts[i] != messages {
			t.Errorf("stream %d: %d messages, %v", i, counts[i], err)
		}
	}
}

// attaching is a stream of requests.
func attaching(heard func([]byte) error) *call {
	return &call{kind: kind{method: apiv1.SessionService_Attach_FullMethodName}, more: true, heard: heard}
}

func TestAStreamTakesWhatTheServerReads(t *testing.T) {
	const messages = 3000 // Of 100 bytes: four times the server's window.
	_, dial := serve(t, registry{attach: func(from grpc.BidiStreamingServer[apiv1.AttachRequest, apiv1.AttachResponse]) error {
		for {
			req, err := from.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := from.Send(&apiv1.AttachResponse{Sequence: req.GetSequence()}); err != nil {
				return err
			}
		}
	}})
	w := wireTo(t, dial)
	r := (&regd{}).renewing()
	who := owner{id: strings.Repeat("i", 90)}
	done := make(chan int, messages)
	var c *call
	answered := 0
	c = attaching(func(m []byte) error {
		n, err := r.answer(m)
		if answered += n; answered == messages {
			close(done)
		} else if err == nil && answered < messages {
			err = w.add(c, func(b []byte) []byte { return r.request(b, who) })
		}
		return err
	})
	c.request = func(b []byte) []byte { return r.request(b, who) }
	_, ended := stream(t, w, c)
	select {
	case <-done:
	case err := <-ended:
		t.Fatalf("after %d answers: %v", answered, err)
	}
	w.cancel(c, context.Canceled)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled stream ends with %v", err)
	}
	if w.add(c, c.request) == nil {
		t.Error("a message was sent on a stream that has ended")
	}
}

func TestAStreamIsNotSentMoreThanTheServerTakes(t *testing.T) {
	_, dial := serve(t, registry{attach: func(from grpc.BidiStreamingServer[apiv1.AttachRequest, apiv1.AttachResponse]) error {
		<-from.Context().Done()
		return from.Context().Err()
	}}, grpc.StaticConnWindowSize(1<<20))
	w := wireTo(t, dial)
	open := exchange{(&regd{}).opening(time.Hour)}
	if err := open.do(t.Context(), w, &turn{}); err != nil { // From now on the server's windows are known.
		t.Fatal(err)
	}
	c, ended := stream(t, w, attaching(nil))
	sent := 0
	for ; sent < 100; sent++ {
		if w.add(c, func(b []byte) []byte { return append(b, make([]byte, 1000)...) }) != nil {
			break
		}
		w.flush()
	}
	if err := open.do(t.Context(), w, &turn{}); err != nil {
		t.Errorf("beside a stream that is full: %v", err)
	}
	if sent < 60 || sent > 66 {
		t.Errorf("%d messages of a kB were sent into a window of 64", sent)
	}
	w.cancel(c, context.Canceled)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestACallThatIsGivenUpIsCancelledAtTheServer(t *testing.T) {
	left := make(chan struct{}, 1)
	_, dial := serve(t, registry{watch: func(_ *apiv1.WatchServiceRequest, to grpc.ServerStreamingServer[apiv1.WatchServiceResponse]) error {
		for to.Send(&apiv1.WatchServiceResponse{}) == nil {
			wait(to.Context(), time.Millisecond)
		}
		left <- struct{}{}
		return nil
	}})
	w := wireTo(t, dial)
	broken := errors.New("broken")
	heard := 0
	_, ended := stream(t, w, &call{kind: kind{method: apiv1.RegistryService_WatchService_FullMethodName}, heard: func([]byte) error {
		if heard++; heard == 3 {
			return broken
		}
		return nil
	}})
	if err := <-ended; !errors.Is(err, broken) || heard != 3 {
		t.Errorf("%d messages heard, %v", heard, err)
	}
	<-left
}

func TestAnAnswerThatMattersHasAMessage(t *testing.T) {
	_, dial := serve(t, registry{watch: func(*apiv1.WatchServiceRequest, grpc.ServerStreamingServer[apiv1.WatchServiceResponse]) error {
		return nil
	}})
	w := wireTo(t, dial)
	for _, heard := range []func([]byte) error{nil, func([]byte) error { return nil }} {
		_, ended := stream(t, w, &call{kind: kind{method: apiv1.RegistryService_WatchService_FullMethodName}, heard: heard})
		if err := <-ended; (err != nil) != (heard != nil) {
			t.Errorf("an answer without a message: %v", err)
		}
	}
}

func TestAWireTakesWhatOtherServersSend(t *testing.T) {
	ours, theirs := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, theirs) }() // Until the wire is closed.
	w := newWire(ours)
	t.Cleanup(w.close)
	server := http2.NewFramer(theirs, nil)
	heard := make(chan string, 1)
	c, ended := stream(t, w, attaching(func(m []byte) error { heard <- string(m); return nil }))
	// A window that shrinks while a stream is open, and an answer that ends without a status.
	err := errors.Join(
		server.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 30}),
		server.WriteDataPadded(c.id, false, []byte{0, 0, 0, 0, 2, 'o'}, make([]byte, 9)),
		server.WriteData(c.id, false, []byte{'k'}),
	)
	if got := <-heard; err != nil || got != "ok" {
		t.Fatalf("heard %q, %v", got, err)
	}
	ten := func(b []byte) []byte { return append(b, make([]byte, 10)...) }
	if first, second := w.add(c, ten), w.add(c, ten); first != nil || second == nil {
		t.Errorf("two messages of 15 bytes, after one of 5, in a window of 30: %v, %v", first, second)
	}
	if err := server.WriteData(c.id, true, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "without a status") {
		t.Errorf("ended with %v", err)
	}
}
