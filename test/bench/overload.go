package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

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
		wires, done, err := place(atLeader).wired(ctx, c, openWires)
		if err != nil {
			return result{}, err
		}
		defer done()
		registrations, err := onOwner(ctx, c, wires, 0, another)
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
	stopBesides := b.start(ctx)
	stopFlood := registrations.paced(ctx, overloadFactor*before.value, trafficTick, t)
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
	wires           []*wire
	done            func()
	sessions        []owner
	renewals        *tally
	deregistrations *tally
}

// newBesides opens the sessions and registers what will be deregistered.
func newBesides(ctx context.Context, c *cluster, last time.Duration) (*besides, error) {
	system, ok := c.system.(*regd)
	if !ok {
		return nil, fmt.Errorf("only regd is overloaded, not %s", c.name())
	}
	wires, done, err := place(everywhere).wired(ctx, c, connections)
	if err != nil {
		return nil, err
	}
	b := &besides{c: c, system: system, wires: wires, done: done, renewals: newTally(), deregistrations: newTally()}
	// As many as will be due while it lasts, warms up and ends.
	leaving := int((last + time.Duration(warm*float64(last)) + callTimeout).Seconds()) * leavingPerSec
	register := &traffic{wires: wires, exchange: exchange{system.registering(0, func(t *turn) instance {
		return instance{service: "leaving", id: strconv.Itoa(t.n)}
	})}}
	if err = register.times(ctx, 64, leaving); err == nil {
		b.sessions, err = opened(ctx, c, wires, keptSessions, 15*time.Second)
	}
	if err != nil {
		done()
		return nil, err
	}
	return b, nil
}

// start begins what goes on, and returns what ends it.
func (b *besides) start(ctx context.Context) (stop func()) {
	renew := &traffic{wires: b.wires, exchange: exchange{{
		method: apiv1.SessionService_Renew_FullMethodName,
		request: func(to []byte, t *turn) []byte {
			return appendBytes(to, 1, b.sessions[t.n%len(b.sessions)].id)
		},
	}}}
	leave := &traffic{wires: b.wires, exchange: exchange{{
		method: apiv1.RegistryService_Deregister_FullMethodName,
		request: func(to []byte, t *turn) []byte {
			to = b.system.requestID(to, openWires*wirePlaces+t.client) // Those before register.
			return append(to, encoded(&apiv1.DeregisterRequest{Key: &apiv1.InstanceKey{Service: "leaving", Id: strconv.Itoa(t.n)}})...)
		},
	}}}
	stopRenewing := renew.paced(ctx, keptSessions, trafficTick, b.renewals)
	stopLeaving := leave.paced(ctx, leavingPerSec, trafficTick, b.deregistrations)
	return func() {
		stopRenewing()
		stopLeaving()
	}
}

// check tells what went wrong.
func (b *besides) check(ctx context.Context) error {
	var ids []string
	for _, s := range b.sessions {
		ids = append(ids, s.id)
	}
	reply, err := apiv1.NewSessionServiceClient(b.c.conns[0]).Renew(ctx, &apiv1.RenewRequest{SessionIds: ids})
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
