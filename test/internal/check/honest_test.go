package check_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/internal/check"
	"github.com/regd-io/regd/test/internal/history"
)

// crowd is many clients at once, of a world that keeps all promises.
type crowd struct {
	*world
	rng      *rand.Rand
	calls    int
	pending  []*history.Call          // by the time at which they take effect, which is in Ended until then
	sessions map[string]time.Duration // when they expire
	watches  []*stream
	held     map[string]uint64 // token of the lock, by session
	events   int
}

// ms is a random time of up to so many milliseconds.
func (c *crowd) ms(most int) time.Duration {
	return time.Duration(1+c.rng.IntN(most)) * time.Millisecond
}

// plan has a client make another call after a time.
func (c *crowd) plan(client string, after time.Duration) {
	c.calls++
	call := &history.Call{Client: client, Node: "n1", Begun: after + c.ms(50)}
	call.Ended = call.Begun + c.ms(30)
	c.push(call)
}

func (c *crowd) push(call *history.Call) {
	i, _ := slices.BinarySearchFunc(c.pending, call, func(a, b *history.Call) int { return cmp.Compare(a.Ended, b.Ended) })
	c.pending = slices.Insert(c.pending, i, call)
}

// request is what a client asks next.
func (c *crowd) request(client string) proto.Message {
	id := fmt.Sprintf("%d-%d", c.calls/400, c.rng.IntN(4)) // Not too much is done to one.
	session := ""
	for s := range c.sessions {
		session = max(session, s)
	}
	fresh := pickOne(c.rng, nil, mode(apiv1.Mode_MODE_STALE), &apiv1.Freshness{
		Mode: apiv1.Mode_MODE_BOUNDED, MaxStaleness: durationpb.New(c.ms(100)),
	})
	switch n := c.rng.IntN(40); {
	case n < 12:
		return &apiv1.RegisterRequest{
			RequestId: c.id(client), Instance: instance("web", id, fmt.Sprint(c.calls)), IfAbsent: c.rng.IntN(4) == 0,
		}
	case n < 16:
		return &apiv1.DeregisterRequest{RequestId: c.id(client), Key: key("web", id)}
	case n < 28:
		return &apiv1.GetRequest{Key: key("web", id), Freshness: fresh}
	case n < 31:
		return &apiv1.ListInstancesRequest{Filter: &apiv1.Filter{Service: "web"}, Freshness: fresh}
	case n < 32:
		return &apiv1.ListServicesRequest{Freshness: fresh}
	case n < 34 && len(c.sessions) < 20:
		return &apiv1.OpenRequest{RequestId: c.id(client), Ttl: durationpb.New(ttl)}
	case n < 35 && len(c.sessions) < 20:
		return &apiv1.RegisterRequest{
			RequestId: c.id(client), Instance: instance("web", "own-"+id, fmt.Sprint(c.calls)), OpenSession: &apiv1.NewSession{Ttl: durationpb.New(ttl)},
		}
	case n < 36 && session != "":
		return &apiv1.RenewRequest{SessionIds: []string{session}}
	case n < 38 && c.held[session] > 0:
		return &apiv1.ReleaseRequest{RequestId: c.id(client), Name: "l", SessionId: session, Token: c.held[session]}
	case n < 38 && session != "":
		return &apiv1.AcquireRequest{RequestId: c.id(client), Name: "l", SessionId: session}
	case n < 39 && session != "":
		i := instance("web", "hung-"+session, "1")
		i.SessionId = session
		return &apiv1.RegisterRequest{RequestId: c.id(client), Instance: i}
	default:
		return &apiv1.ListRequest{Freshness: fresh}
	}
}

func pickOne[T any](rng *rand.Rand, of ...T) T { return of[rng.IntN(len(of))] }

// step has the next call take effect.
func (c *crowd) step(more bool) {
	call := c.pending[0]
	c.pending = c.pending[1:]
	c.now = max(c.now, call.Ended)
	c.expireDue()
	if call.Request == nil {
		call.Request = c.request(call.Client)
		call.Method = methodOf(call.Request)
	}
	c.answer(call)
	c.learn(call)
	call.Ended = c.now + c.ms(30)
	if _, isWrite := call.Request.(interface{ GetRequestId() *apiv1.RequestID }); isWrite && c.rng.IntN(20) == 0 {
		call.Outcome, call.Response, call.Reason = history.Unknown, nil, 0
		if c.rng.IntN(2) == 0 {
			again := &history.Call{Client: call.Client, Node: "n2", Method: call.Method, Request: call.Request, Begun: call.Ended}
			again.Ended = again.Begun + c.ms(30)
			c.push(again)
			more = false
		}
	}
	c.h.Calls = append(c.h.Calls, *call)
	if more {
		c.plan(call.Client, call.Ended)
	}
	for i := range c.watches {
		if c.rng.IntN(6) == 0 {
			c.tell(i)
		}
	}
}

// learn keeps up with what a call has done.
func (c *crowd) learn(call *history.Call) {
	switch resp := call.Response.(type) {
	case *apiv1.OpenResponse:
		c.sessions[resp.GetSession().GetId()] = c.now + ttl
	case *apiv1.RegisterResponse:
		if resp.GetSession() != nil {
			c.sessions[resp.GetSession().GetId()] = c.now + ttl
		}
	case *apiv1.RenewResponse:
		for _, id := range call.Request.(*apiv1.RenewRequest).GetSessionIds() {
			if c.sessions[id] > 0 {
				c.sessions[id] = c.now + ttl
			}
		}
	case *apiv1.AcquireResponse:
		c.held[call.Request.(*apiv1.AcquireRequest).GetSessionId()] = resp.GetToken()
	case *apiv1.ReleaseResponse:
		delete(c.held, call.Request.(*apiv1.ReleaseRequest).GetSessionId())
	}
}

func (c *crowd) expireDue() {
	var due []string
	for id, at := range c.sessions {
		if at <= c.now {
			due = append(due, id)
			delete(c.sessions, id)
			delete(c.held, id)
		}
	}
	if len(due) > 0 {
		slices.Sort(due)
		c.expire(due, nil)
	}
}

// tell has a watch hear something.
func (c *crowd) tell(i int) {
	s := c.watches[i]
	switch n := c.rng.IntN(60); {
	case n < 50:
		c.events += s.deliver()
	case n < 55:
		c.events += s.deliver()
		s.progress()
	case n < 57:
		s.difference(slow)
	case n < 58:
		s.full(installed)
	default:
		s.end()
		next := c.watch(s.like.Client, s.filter, s.at)
		c.events += next.deliver()
		next.synced()
		c.watches[i] = next
	}
}

// runCrowd has clients make so many calls while so many watch.
func runCrowd(tb testing.TB, seed uint64, clients, calls, watches int) *crowd {
	tb.Helper()
	c := &crowd{
		world: newWorld(tb), rng: rand.New(rand.NewPCG(seed, 1)), sessions: map[string]time.Duration{}, held: map[string]uint64{},
	}
	for i := range watches {
		s := c.watch(fmt.Sprint("w", i), &apiv1.Filter{Service: "web"}, 0)
		s.full(initial)
		c.watches = append(c.watches, s)
	}
	for i := range clients {
		c.plan(fmt.Sprint("c", i), 0)
	}
	for len(c.pending) > 0 {
		c.step(c.calls < calls)
	}
	c.pass(time.Second)
	c.run.Settled = c.now
	for _, s := range c.watches {
		c.events += s.deliver()
		s.progress()
	}
	return c
}

func TestACrowdThatIsToldTheTruthHasNoViolation(t *testing.T) {
	for seed := range uint64(3 / fewer) {
		c := runCrowd(t, seed, 8, 1000, 4)
		found, figures := check.Judge(c.judged())
		expect(t, found)
		if f := figures; f.Linear.Keys < 8 || f.Linear.Accesses < 500 || f.Watch.Events < 700 || f.Watch.Resumed < 10 || f.Lease.Expired < 5 ||
			f.Lease.Renewals < 20 || f.Lock.Handovers < 2 || f.Once.Repeated < 10 {
			t.Errorf("seed %d: little was met: %+v", seed, figures)
		}
	}
}

// BenchmarkJudge judges a long run: 50,000 calls, 100,000 events.
func BenchmarkJudge(b *testing.B) {
	c := runCrowd(b, 1, 16, 50_000, 7)
	for b.Loop() {
		found, figures := check.Judge(c.judged())
		if len(found) > 0 {
			b.Fatal(found)
		}
		b.ReportMetric(float64(len(c.h.Calls)), "calls")
		b.ReportMetric(float64(figures.Watch.Events), "events")
	}
}
