package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// crowded is how many connections an open loop has: enough that its calls wait for the server, not for a stream, of which
// regd gives a connection 256.
const crowded = 2 * crowd / 256

// halfLoaded takes the time of registrations that come at half the rate at which 64 clients can make them. Each registers
// an instance of its own: to register one that is there already costs less.
func halfLoaded(ctx context.Context, c *cluster, last time.Duration) (result, error) {
	conns, done, err := atLeader(ctx, c, crowded)
	if err != nil {
		return result{}, err
	}
	defer done()
	who, err := c.open(ctx, conns[0])
	if err != nil {
		return result{}, err
	}
	register := func(loop string) operation {
		return func(ctx context.Context, client, k int) error {
			return c.register(ctx, conns[client%len(conns)], who, instance{
				client: client, sequence: k, service: fmt.Sprintf("s%d", (client*31+k)%1000), id: fmt.Sprintf("%s-%d-%d", loop, client, k),
			})
		}
	}
	peak, err := closed(ctx, c.cpu, 64, last, register("closed"))
	if err != nil {
		return result{}, err
	}
	t := newTally()
	stop := pacing(ctx, time.Now(), peak.value/2, crowd, register("open"), t)
	warmUp(ctx, last)
	t.answered.take()
	r := counted(ctx, c.cpu, last, t.answered.count)
	stop()
	if t.failed.Load()+t.refused.Load() > 0 {
		return result{}, fmt.Errorf("at %.0f registrations a second: %v", peak.value/2, t)
	}
	r.latency = t.answered.take()
	// One that could not even begin is not left out: it took too long.
	err = r.latency.RecordValues(int64(callTimeout), t.late.Load())
	r.value = milliseconds(r.latency, 99)
	return r, errors.Join(err, ctx.Err())
}

// Beside an overload.
const (
	keptSessions   = 1000 // renewed once a second each
	leavingPerSec  = 10   // deregistrations
	overloadFactor = 3    // times the peak
	peakClients    = 256  // make the peak
	// lossAllowed is the share of renewals and deregistrations that may fail. One of few may: it is no rate.
	lossAllowed = 0.01
)

// overloading has registrations come at three times the rate of the peak, while sessions are renewed and instances
// deregistered. What share of the peak is done then, in percent, is the value. Refusals are how regd keeps it up; but no
// session may be lost, renewals and deregistrations go on, the leader leads on, and memory grows with what is
// registered alone.
//
// A registration costs more the more there are, and the overload adds hundreds of thousands. So the peak is taken
// before it and after it, at both of its ends, and what it is compared with is their harmonic mean: the rate at which as
// many would be registered where the time for one grows evenly from the first to the second.
func overloading(last time.Duration) measurement {
	return func(ctx context.Context, c *cluster, short time.Duration) (result, error) {
		system, err := overloaded(c)
		if err != nil {
			return result{}, err
		}
		registrations, err := system.registrations(ctx, c)
		if err != nil {
			return result{}, err
		}
		before, err := newPeak(ctx, c, registrations, short)
		if err != nil {
			return result{}, err
		}
		r, err := flooded(ctx, c, registrations, before, last)
		if err != nil {
			return result{}, fmt.Errorf("%w (%s/s, %s; peak before: %s)", err, number(r.value), r.note, before.note)
		}
		after, err := newPeak(ctx, c, registrations, short)
		if err != nil {
			return result{}, err
		}
		goodput := r.value
		r.value = 50 * goodput * (1/before.value + 1/after.value)
		r.note = fmt.Sprintf("%s/s, %s; peak before: %s; peak after: %s", number(goodput), r.note, before.note, after.note)
		return r, nil
	}
}

// overloaded is the system that is.
func overloaded(c *cluster) (*regd, error) {
	system, ok := c.system.(*regd)
	if !ok {
		return nil, fmt.Errorf("only regd is overloaded, not %s", c.name())
	}
	return system, nil
}

// peak is what registrations a closed loop makes at a size of the registry.
type peak struct {
	result
	instances int64 // at the end
	note      string
}

func newPeak(ctx context.Context, c *cluster, registrations *traffic, last time.Duration) (peak, error) {
	own, begun := ownCPU(), time.Now()
	r, err := registrations.closed(ctx, c.cpu, peakClients, last)
	if err != nil {
		return peak{}, err
	}
	load := (ownCPU() - own).Seconds() / time.Since(begun).Seconds()
	n, err := instances(ctx, c)
	return peak{r, n, fmt.Sprintf("%s/s at %d instances, %s", number(r.value), n, spent(r, last, load))}, err
}

// spent is what CPU servers and load have taken. They share the machine: what the load takes for calls that are refused, the
// servers lack. The cost of a registration tells how much they would do with what they had at the peak.
func spent(r result, last time.Duration, load float64) string {
	return fmt.Sprintf("%.0f µs each, of %.2f cores that the servers had and %.2f of the load", microseconds(r.cpu, r.operations),
		r.cpu.Seconds()/last.Seconds(), load)
}

// flooded overloads the cluster. Its value is how many registrations a second are done meanwhile.
func flooded(ctx context.Context, c *cluster, registrations *traffic, before peak, last time.Duration) (result, error) {
	b, err := newBesides(ctx, c, last)
	if err != nil {
		return result{}, err
	}
	defer b.done()
	led, err := leadership(ctx, c)
	if err != nil {
		return result{}, err
	}
	registered, memory := before.instances, c.usage().memory
	t := newTally()
	stopBesides, err := b.start(ctx)
	if err != nil {
		return result{}, err
	}
	stopFlood, err := registrations.paced(ctx, overloadFactor*before.value, t)
	if err != nil {
		stopBesides()
		return result{}, err
	}
	warmUp(ctx, last)
	t.answered.take()
	own := ownCPU()
	r := counted(ctx, c.cpu, last, t.answered.count)
	own = ownCPU() - own
	stopFlood()
	stopBesides()
	memory = (c.usage().memory - memory) / nodes
	r.latency = t.answered.take()
	n, err := instances(ctx, c)
	r.note = fmt.Sprintf("%s; registrations: %v; renewals: %v; deregistrations: %v; %d instances and %d MB a node more",
		spent(r, last, own.Seconds()/last.Seconds()), t, b.renewals, b.deregistrations, n-registered, memory>>20)
	if err == nil {
		err = bounded(memory, n-registered)
	}
	leads, leadErr := leadership(ctx, c)
	if leadErr == nil && leads != led {
		leadErr = fmt.Errorf("%s led, now it is %s", led, leads)
	}
	return r, errors.Join(ctx.Err(), err, leadErr, b.check(ctx))
}

// bounded returns an error when a node has taken more memory than what was registered meanwhile explains: twice what
// docs/sizing.md has a node take for it, of which the 100 MB are mostly the changes that are kept for watches.
func bounded(memory, registered int64) error {
	const base, each = 100 << 20, 1300 // bytes; each with its metadata
	if most := 2 * (base + each*registered); memory > most {
		return fmt.Errorf("a node took %d MB more for %d instances, at most %d MB are explained", memory>>20, registered, most>>20)
	}
	return nil
}

// instances is how many are registered.
func instances(ctx context.Context, c *cluster) (int64, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return 0, err
	}
	s, err := apiv1.NewClusterServiceClient(c.conns[leader]).Status(ctx, &apiv1.StatusRequest{Local: true})
	return int64(s.GetInstances()), err //nolint:gosec // So many fit.
}

// leadership is who leads, and in which term.
func leadership(ctx context.Context, c *cluster) (string, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return "", err
	}
	s, err := apiv1.NewClusterServiceClient(c.conns[leader]).Status(ctx, &apiv1.StatusRequest{Local: true})
	if err != nil {
		return "", err
	}
	term := uint64(0)
	for _, m := range s.GetMembers() {
		term = max(term, m.GetTerm())
	}
	return fmt.Sprintf("node %d in term %d", leader, term), nil
}

// besides is what goes on beside an overload, through all nodes.
type besides struct {
	c               *cluster
	system          *regd
	conns           []*grpc.ClientConn
	done            func()
	sessions        []string
	renewals        *tally
	deregistrations *tally
}

// newBesides opens the sessions and registers what will be deregistered.
func newBesides(ctx context.Context, c *cluster, last time.Duration) (*besides, error) {
	system, err := overloaded(c)
	if err != nil {
		return nil, err
	}
	conns, done, err := c.everywhere(ctx, connections)
	if err != nil {
		return nil, err
	}
	b := &besides{
		c: c, system: system, conns: conns, done: done, sessions: make([]string, keptSessions), renewals: newTally(), deregistrations: newTally(),
	}
	// As many as will be due while it lasts, warms up and ends.
	leaving := int((last + time.Duration(warm*float64(last)) + callTimeout).Seconds()) * leavingPerSec
	err = each(leaving, func(worker, i int) error {
		return c.register(ctx, b.conn(worker), owner{}, instance{client: worker, sequence: i, service: "leaving", id: strconv.Itoa(i)})
	})
	if err == nil {
		err = each(keptSessions, func(worker, i int) error {
			reply, openErr := apiv1.NewSessionServiceClient(b.conn(worker)).Open(ctx, &apiv1.OpenRequest{
				ClientName: "bench", Ttl: durationpb.New(15 * time.Second),
			})
			b.sessions[i] = reply.GetSession().GetId()
			return openErr
		})
	}
	if err != nil {
		done()
		return nil, err
	}
	return b, nil
}

func (b *besides) conn(i int) *grpc.ClientConn { return b.conns[i%len(b.conns)] }

// start begins what goes on, and returns what ends it.
func (b *besides) start(ctx context.Context) (stop func(), err error) {
	renewals, err := b.system.renewals(b.c, b.sessions)
	if err != nil {
		return nil, err
	}
	stopRenewing, err := renewals.paced(ctx, keptSessions, b.renewals)
	if err != nil {
		return nil, err
	}
	stopLeaving := pacing(ctx, time.Now(), leavingPerSec, crowd, func(ctx context.Context, client, k int) error {
		_, err := apiv1.NewRegistryServiceClient(b.conn(client)).Deregister(ctx, &apiv1.DeregisterRequest{
			RequestId: b.system.request(2*crowd + client), Key: &apiv1.InstanceKey{Service: "leaving", Id: strconv.Itoa(k)},
		})
		return err
	}, b.deregistrations)
	return func() {
		stopRenewing()
		stopLeaving()
	}, nil
}

// check tells what went wrong.
func (b *besides) check(ctx context.Context) error {
	reply, err := apiv1.NewSessionServiceClient(b.conn(0)).Renew(ctx, &apiv1.RenewRequest{SessionIds: b.sessions})
	if n := len(reply.GetEnded()); err == nil && n > 0 {
		err = fmt.Errorf("%d sessions were lost", n)
	}
	for what, t := range map[string]*tally{"renewals": b.renewals, "deregistrations": b.deregistrations} {
		if float64(t.lost()) > max(1, lossAllowed*float64(t.due.Load())) {
			err = errors.Join(err, fmt.Errorf("too many %s were lost", what))
		}
	}
	return err
}
