package client_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/internal/livetest"
)

// discover makes a Discovery of a client, closed with the test, and a handle on a service.
func discover(t *testing.T, c *client.Client, name string) *discovery.Service {
	t.Helper()
	d, err := discovery.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	s, err := d.Service(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// listed is a view in short: its ids.
func listed(v *discovery.View) string {
	var ids []string
	for _, i := range v.Instances {
		ids = append(ids, i.GetId())
	}
	return strings.Join(ids, " ")
}

// onlyAt makes a client of one node.
func onlyAt(t *testing.T, l *livetest.Cluster, node string) *client.Client {
	t.Helper()
	c, err := client.New([]string{node + ":7400"}, client.WithDialOptions(grpc.WithContextDialer(l.Link().Dial)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestLiveFreshClientSeesWhatWasAcknowledged: a node hears of everything late, and then nothing at all. A client that knows
// only that node is not told of a state before what was acknowledged when it first asked.
func TestLiveFreshClientSeesWhatWasAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := livetest.New(t, 3)
		slow, leader := l.Follower().Info().Name, l.Leader().Info().Name
		l.Net.Delay(leader, slow, 100*time.Millisecond)
		owner := onlyAt(t, l, leader)
		register(t, owner, "a")
		for id := range 2 { // Of a service that is known, and of one that is not.
			want := []string{"a", "a b"}[id]
			if id == 1 {
				register(t, owner, "b")
			}
			w := watch(t, onlyAt(t, l, slow)) // That is another question: it is answered with what the node has.
			change, err := w.Next(t.Context())
			if err != nil || change.Revision >= l.Node(leader).Feed().State().Revision() {
				t.Errorf("%+v, %v: the node does not lag, which proves nothing", change, err)
			}
			v, err := discover(t, onlyAt(t, l, slow), "web").View(t.Context())
			if err != nil || listed(v) != want {
				t.Errorf("got %v, %v: want %s", v, err, want)
			}
		}

		l.Net.Isolate(slow)
		other := web("c")
		other.Service = "other"
		if _, err := owner.Register(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		c := onlyAt(t, l, slow)
		began := time.Now()
		if v, err := discover(t, c, "web").View(t.Context()); err != nil || listed(v) != "a b" || time.Since(began) > 10*time.Second {
			t.Errorf("got %v, %v after %v: want what the node has, soon", v, err, time.Since(began))
		}
		s := discover(t, c, "other")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if v, err := s.View(ctx); v != nil || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, %v: want no view, as the node does not know better", v, err)
		}
		l.Net.Heal()
		if v, err := s.View(t.Context()); err != nil || listed(v) != "c" {
			t.Errorf("got %v, %v: want the instance", v, err)
		}
	})
}
