package chaos_test

import (
	"context"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// TestServicesAreCalledWhileTheRegistryIsGone: all registry nodes are killed for a while. The consumer calls on from its
// cached view, says that it is cached and how old it is, and no request fails. When the nodes are back all views are live
// again, nobody's registration was lost, and fifty clients come back spread as their backoff promises (G1, G5, G8).
//
// CHAOS_OUTAGE is how long the registry is gone, CHAOS_RATE as in TestARollingRestartFailsNoCall.
func TestServicesAreCalledWhileTheRegistryIsGone(t *testing.T) {
	t.Parallel()
	const clients = 50
	outage := 3 * time.Second
	if s := os.Getenv("CHAOS_OUTAGE"); s != "" {
		var err error
		if outage, err = time.ParseDuration(s); err != nil || outage < 2*time.Second {
			t.Fatalf("CHAOS_OUTAGE=%q: must be a duration of 2s or more", s)
		}
	}
	c := nodes.Start(t, 3)
	startFleet(t, c)
	d := discover(t, c)
	consumer := lookUp(t, d)
	var crowd []*discovery.Service
	var dials, streams arrivals
	for range clients {
		crowd = append(crowd, lookUp(t, discover(t, c, client.WithDialOptions(dials.ofConnections(), streams.ofWatches()))))
	}
	all := append(slices.Clone(crowd), consumer)
	every := func(source discovery.Source) func(context.Context) bool {
		return func(context.Context) bool {
			return !slices.ContainsFunc(all, func(s *discovery.Service) bool { return now(t, s).Source != source })
		}
	}
	c.Wait("all views to be live", 10*time.Second, every(discovery.SourceLive))
	before := incarnations(now(t, consumer))
	tr := call(t, c, d)
	tr.progress()

	tr.enter("the registry is gone")
	for _, n := range c.Nodes() {
		n.Kill()
	}
	gone := time.Now()
	c.Wait("all views to be cached", 10*time.Second, every(discovery.SourceCached))
	cached := time.Now()
	over := time.After(outage)
	for waiting := true; waiting; {
		select {
		case <-time.After(outage / 10):
		case <-over:
			waiting = false
		}
		v, least := now(t, consumer), time.Since(cached)
		age := v.Age()
		if v.Source != discovery.SourceCached || age < least || len(v.Healthy) != fleetSize {
			t.Fatalf("%v after the registry was gone the view is %v, %v old, with %d healthy instances; want cached, %v or more, and %d",
				time.Since(gone), v.Source, age, len(v.Healthy), least, fleetSize)
		}
	}
	tr.progress()
	stats := d.Stats()[0]
	t.Logf("at the end of the outage the view is %v, %v old: %v", stats.Source, stats.Age.Round(time.Millisecond), stats.Err)
	if stats.Source != discovery.SourceCached || stats.Err == nil {
		t.Errorf("figures at the end of the outage: %+v; want a cached view, and why", stats)
	}

	tr.enter("it is back")
	back := time.Now()
	for _, n := range c.Nodes() {
		n.Start()
	}
	c.Wait("all views to be live again", time.Minute, every(discovery.SourceLive))
	t.Logf("all views were live again %v after the nodes were started", time.Since(back).Round(time.Millisecond))
	c.Ready()
	tr.progress()
	tr.judge()
	spread(t, "watches", streams.busiest(back), watchRate(back.Sub(gone)), clients)
	spread(t, "connections", dials.busiest(back), dialRate(back.Sub(gone)), clients*len(c.Nodes()))
	v := now(t, consumer)
	if after := incarnations(v); !slices.Equal(before, after) || len(v.Protected) > 0 {
		t.Errorf("registrations are %v after the outage, and were %v: want the same; %v are protected", after, before, v.Protected)
	}
	verify(t, c)
}

// incarnations are the numbers of the registrations of a view, in the order of the instances' ids.
func incarnations(v *discovery.View) []uint64 {
	var list []uint64
	for _, i := range v.Instances {
		list = append(list, i.GetIncarnation())
	}
	return list
}

// window is the time for which arrivals are counted.
const window = 100 * time.Millisecond

// arrivals are the times at which clients knocked.
type arrivals struct {
	mu    sync.Mutex
	times []time.Time
}

func (a *arrivals) note() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.times = append(a.times, time.Now())
}

// ofConnections counts every connection that a client tries to make.
func (a *arrivals) ofConnections() grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		a.note()
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	})
}

// ofWatches counts every watch stream that a client tries to open.
func (a *arrivals) ofWatches() grpc.DialOption {
	return grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
		open grpc.Streamer, opts ...grpc.CallOption,
	) (grpc.ClientStream, error) {
		if method == apiv1.RegistryService_Watch_FullMethodName {
			a.note()
		}
		return open(ctx, desc, cc, method, opts...)
	})
}

// busiest is the largest number within a window that begins after a time.
func (a *arrivals) busiest(after time.Time) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	most := 0
	for i, from := range a.times {
		if from.Before(after) {
			continue
		}
		k := 0
		for _, at := range a.times[i:] {
			if at.Sub(from) < window {
				k++
			}
		}
		most = max(most, k)
	}
	return most
}

// maxBackoff is where the two backoffs of the client end.
const maxBackoff = 5 * time.Second

// watchRate is the largest rate, per second, at which a client tries to open a watch stream once it has been without one for
// a time. It waits for a random time of up to 50 ms, then up to 100 ms, and so on to maxBackoff. The bounds of all waits so
// far add up to less than twice the last one, which so is at least half of the time. The density of renewals that lie evenly spread
// times up to a bound apart is nowhere larger than e / bound.
func watchRate(without time.Duration) float64 {
	return math.E / min(without/2, maxBackoff).Seconds()
}

// firstDials is the time in which a client that lost all nodes has dialled each: the bounds of its first three waits.
const firstDials = 350 * time.Millisecond

// dialRate is the largest rate, per second, at which a client tries to connect to one node, which it has been without for a
// time. Its tries are 100 ms apart, then 160 ms, and so on by 1.6 to maxBackoff, each give or take a fifth. With that fifth
// all so far add up to less than 1.2 * 1.6 / 0.6 = 3.2 times the last one. That is spread over two fifths of itself, and not
// more than one try falls into such a stretch.
func dialRate(without time.Duration) float64 {
	backoff := min(time.Duration(float64(without-firstDials)/3.2), maxBackoff)
	return 1 / (0.4 * backoff.Seconds())
}

// spread fails the test when more knocked within one window than chance allows, once in a thousand million windows, for a
// number of them that knock independently, each at a rate per second.
func spread(t *testing.T, what string, got int, rate float64, knocking int) {
	t.Helper()
	mean := rate * float64(knocking) * window.Seconds()
	term := math.Exp(-mean)
	bound := 0
	for tail := 1 - term; tail > 1e-9; tail -= term {
		bound++
		term *= mean / float64(bound)
	}
	t.Logf("at most %d %s were tried within %v after the return; by the backoff at most %.1f are expected, and %d allowed",
		got, what, window, mean, bound)
	if got == 0 || got > bound {
		t.Errorf("%d %s were tried within %v, want 1 to %d", got, what, window, bound)
	}
}
