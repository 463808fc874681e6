package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// acknowledged returns the markers that were acknowledged.
func (f *fakeCluster) acknowledged() []uint64 {
	synctest.Wait()
	var numbers []uint64
	for _, c := range f.calls("Watch") {
		if a := c.req.(*apiv1.WatchRequest).GetAcknowledge(); a != nil {
			numbers = append(numbers, a.GetNumber())
		}
	}
	return numbers
}

func (f *fakeCluster) wantAcknowledged(t *testing.T, want ...uint64) {
	t.Helper()
	if got := f.acknowledged(); !slices.Equal(got, want) {
		t.Fatalf("acknowledged %v, want %v", got, want)
	}
}

// A marker is acknowledged once the reader of each watch that it is about came back after all that was before it.
func TestWatchAcknowledgesWhatItsReaderKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		steps := make(chan func(*fakeStream) error)
		f.nodes[0].scripts(func(s *fakeStream) error {
			for range 3 {
				if _, err := first(s); err != nil {
					return err
				}
			}
			go func() { _ = s.idle() }()
			for {
				select {
				case step := <-steps:
					if err := step(s); err != nil {
						return err
					}
				case <-s.Context().Done():
					return nil
				}
			}
		})
		step := func(do func(*fakeStream) error) { steps <- do; synctest.Wait() }
		c := f.client(nil)
		a, b, other := watch(t, c), watch(t, c), watch(t, c)
		for _, w := range []*client.Watch{a, b, other} {
			wantChanges(t, w, "+b3 +a5 =10")
		}
		for _, call := range f.calls("Watch")[:3] {
			if !call.req.(*apiv1.WatchRequest).GetSubscribe().GetAcknowledges() {
				t.Error("a subscription does not say that it acknowledges")
			}
		}
		step(func(s *fakeStream) error { return s.mark(1, 1) })
		f.wantAcknowledged(t) // The reader has it, and may not have done with it.
		wantNothing(t, a)
		f.wantAcknowledged(t, 1)
		step(func(s *fakeStream) error { return s.mark(2, 1) }) // There was nothing new.
		f.wantAcknowledged(t, 1, 2)

		step(func(s *fakeStream) error {
			return errors.Join(s.events(11, put("a", 11, 1, 2)), s.mark(3, 1, 2), s.events(12, put("b", 12, 1)))
		})
		wantChanges(t, a, "+a11 =11")
		f.wantAcknowledged(t, 1, 2)
		wantChanges(t, a, "+b12") // It came back. What follows is not waited for.
		wantChanges(t, b, "+a11")
		f.wantAcknowledged(t, 1, 2)
		wantChanges(t, b, "=11")
		wantNothing(t, b)
		f.wantAcknowledged(t, 1, 2, 3)

		step(func(s *fakeStream) error {
			return errors.Join(s.events(13, put("a", 13, 1, 3)), s.mark(4, 1, 3, 99), s.mark(5, 3), s.mark(6, 99))
		})
		f.wantAcknowledged(t, 1, 2, 3, 6)
		wantChanges(t, a, "=12 +a13 =13")
		wantNothing(t, a)
		f.wantAcknowledged(t, 1, 2, 3, 6)
		other.Close() // Its reader needs to know nothing.
		if got := f.acknowledged(); len(got) != 6 {
			t.Errorf("acknowledged %v after a watch was closed", got)
		}
	})
}

// What was before a marker may be said by a later change, once a slow reader gets only the last ones.
func TestWatchAcknowledgesNothingUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].scripts(func(s *fakeStream) error {
			id, err := first(s)
			err = errors.Join(err, s.events(11, put("a", 11, id)), s.mark(7, id))
			for r := uint64(12); r < 20; r++ {
				err = errors.Join(err, s.events(r, put("b", r, id)))
			}
			for r := uint64(20); r < 24; r++ {
				err = errors.Join(err, s.events(r, put("a", r, id)))
			}
			return errors.Join(err, s.idle())
		})
		w := watch(t, f.client(nil), client.WatchBuffer(4))
		synctest.Wait()
		for {
			change, err := w.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			f.wantAcknowledged(t)
			if change.Key.ID == "a" && change.Revision >= 11 {
				break
			}
		}
		for change := (client.Change{}); change.Revision < 23 || change.Kind != client.ChangeSynced; {
			var err error
			if change, err = w.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		wantNothing(t, w)
		f.wantAcknowledged(t, 7)
	})
}

// delivery is an answer in which one stream of two lags, or none.
func delivery(lags bool) *apiv1.AwaitDeliveryResponse {
	n := &apiv1.NodeDelivery{Node: "n1", Revision: 9, Streams: 3, Sent: 1, Acknowledged: 1, Ended: 1}
	if lags {
		n.Ended, n.Lagging, n.Laggards = 0, 1, []*apiv1.LaggingStream{{Client: "10.0.0.9:1234", Sent: true}}
	}
	return &apiv1.AwaitDeliveryResponse{Complete: !lags, Nodes: []*apiv1.NodeDelivery{n, {Node: "n2", Revision: 9}}}
}

// orders are the calls about the end of an instance, in order.
func (f *fakeCluster) orders() string {
	var names []string
	for _, method := range []string{"Drain", "AwaitDelivery", "Deregister"} {
		for _, c := range f.calls(method) {
			names = append(names, fmt.Sprintf("%s@%d", method, c.at.UnixMilli()))
		}
	}
	slices.SortStableFunc(names, func(a, b string) int {
		_, at, _ := strings.Cut(a, "@")
		_, bt, _ := strings.Cut(b, "@")
		return strings.Compare(at, bt)
	})
	for i, n := range names {
		names[i], _, _ = strings.Cut(n, "@")
	}
	return strings.Join(slices.Compact(names), " ")
}

func TestLeaveDrainsTellsAndDeregisters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		reg := register(t, f.client(nil), "a")
		asked := 0
		for _, n := range f.nodes {
			n.set(func(n *fakeNode) {
				n.deliver = func(ctx context.Context, req *apiv1.AwaitDeliveryRequest) (*apiv1.AwaitDeliveryResponse, error) {
					if i := f.instance("default/web/a"); !i.GetDraining() || req.GetRevision() < i.GetModifyRevision() ||
						req.GetService() != "web" || req.GetNamespace() != "default" {
						t.Errorf("asked for %v while the instance is %v", req, i)
					}
					end, ok := ctx.Deadline()
					if asked++; !ok || time.Until(end) > time.Minute {
						t.Error("no deadline")
					}
					time.Sleep(time.Second)
					return delivery(asked < 3), nil
				}
			})
		}
		d, err := reg.Leave(t.Context())
		if err != nil || d.Err != nil || !d.Delivery.Complete || d.Revision == 0 || d.Delivery.Revision != d.Revision || asked != 3 {
			t.Errorf("%+v, %v after %d questions", d, err, asked)
		}
		want := client.NodeDelivery{Node: "n1", Revision: 9, Streams: 3, Sent: 1, Acknowledged: 1, Ended: 1}
		if n := d.Delivery.Nodes; len(n) != 2 || fmt.Sprint(n[0]) != fmt.Sprint(want) {
			t.Errorf("nodes %+v", n)
		}
		if got := f.orders(); got != "Drain AwaitDelivery Deregister" {
			t.Errorf("orders %s", got)
		}
		if f.instance("default/web/a") != nil || reg.State() != client.StateEnded {
			t.Errorf("still there, %s", reg.State())
		}
	})
}

// The wait ends with the context, in time, and the instance goes all the same.
func TestLeaveDeregistersWhoeverLags(t *testing.T) {
	for name, end := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 7*time.Second)
		},
		"cancelled": func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(7*time.Second, cancel)
			return ctx, cancel
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeCluster(t, 1)
				reg := register(t, f.client(nil), "a")
				f.nodes[0].set(func(n *fakeNode) {
					n.deliver = func(ctx context.Context, _ *apiv1.AwaitDeliveryRequest) (*apiv1.AwaitDeliveryResponse, error) {
						end, _ := ctx.Deadline()
						time.Sleep(time.Until(end) - 10*time.Millisecond)
						return delivery(true), nil
					}
				})
				ctx, cancel := end(t.Context())
				defer cancel()
				began := time.Now()
				d, err := reg.Leave(ctx)
				var lag *client.UndeliveredError
				if err != nil || d.Delivery.Complete || !errors.Is(d.Err, client.ErrUndelivered) || !errors.As(d.Err, &lag) {
					t.Fatalf("%+v, %v", d, err)
				}
				if took := time.Since(began); took < 6*time.Second || took > 7100*time.Millisecond {
					t.Errorf("took %v", took)
				}
				if l := lag.Delivery.Nodes[0].Laggards; len(l) != 1 || l[0] != (client.Laggard{Client: "10.0.0.9:1234", Sent: true}) {
					t.Errorf("laggards %v", l)
				}
				if text := d.Err.Error(); !strings.Contains(text, "n1: 1 of 3 streams lag, that of 10.0.0.9:1234 among them") ||
					!strings.Contains(text, "default/web/a") {
					t.Errorf("error %q", text)
				}
				if f.instance("default/web/a") != nil {
					t.Error("still registered")
				}
			})
		})
	}
}

func TestLeaveGoesOnWithoutTheMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		reg := register(t, f.client(nil), "a")
		refused := status.Error(codes.PermissionDenied, "no")
		f.nodes[0].set(func(n *fakeNode) { n.before = failing("Drain", refused) })
		d, err := reg.Leave(t.Context())
		if err != nil || d.Err == nil || d.Revision != 0 || f.instance("default/web/a") != nil {
			t.Errorf("%+v, %v", d, err)
		}
		if n := len(f.calls("AwaitDelivery")); n != 0 {
			t.Errorf("asked %d times about nothing", n)
		}

		reg = register(t, f.client(nil), "b")
		f.nodes[0].set(func(n *fakeNode) {
			n.before = failing("Deregister", refused)
			n.deliver = func(context.Context, *apiv1.AwaitDeliveryRequest) (*apiv1.AwaitDeliveryResponse, error) {
				return delivery(false), nil
			}
		})
		if d, err = reg.Leave(t.Context()); err == nil || d.Err != nil {
			t.Errorf("%+v, %v: want the error of the deregistration", d, err)
		}
		f.nodes[0].set(func(n *fakeNode) { n.before = nil })
		if d, err = reg.Leave(t.Context()); err != nil || d.Err != nil || f.instance("default/web/b") != nil {
			t.Errorf("again: %+v, %v", d, err)
		}
	})
}

// A registry that can't tell who was told can tell how far its nodes are.
func TestLeaveFromAnOlderRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 3)
		reg := register(t, f.client(nil), "a")
		f.nodes[2].stop()
		time.AfterFunc(3*time.Second, f.nodes[2].start)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		d, err := reg.Leave(ctx)
		if err != nil || d.Err != nil || !d.Delivery.RevisionOnly || !d.Delivery.Complete || len(d.Delivery.Nodes) != 3 {
			t.Errorf("%+v, %v", d, err)
		}
		if took := time.Since(began); took < 3*time.Second || took > 30*time.Second {
			t.Errorf("took %v, a node was down for 3s", took)
		}
		for _, n := range d.Delivery.Nodes {
			if n.Revision < d.Revision || n.Problem != "" || n.Streams != 0 {
				t.Errorf("node %+v", n)
			}
		}
	})
}
