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

// peaking opens the connections of an open loop to the leader, and finds what registrations as many clients can make in a
// closed one. The caller calls done in the end.
func peaking(ctx context.Context, c *cluster, clients int, last time.Duration) (op operation, peak result, done func(), err error) {
	conns, done, err := atLeader(ctx, c, crowded)
	if err != nil {
		return nil, result{}, nil, err
	}
	if op, err = writing(ctx, c, conns, 0); err == nil {
		peak, err = closed(ctx, c.cpu, clients, last, op)
	}
	if err != nil {
		done()
		return nil, result{}, nil, err
	}
	return op, peak, done, nil
}

// halfLoaded takes the time of registrations that come at half the rate at which 64 clients can make them.
func halfLoaded(ctx context.Context, c *cluster, last time.Duration) (result, error) {
	op, peak, done, err := peaking(ctx, c, 64, last)
	if err != nil {
		return result{}, err
	}
	defer done()
	t := newTally()
	stop := pacing(ctx, time.Now(), peak.value/2, crowd, op, t)
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
	// lossAllowed is the share of renewals and deregistrations that may fail. One of few may: it is no rate.
	lossAllowed = 0.01
)

// overloading has registrations come at three times the rate of the peak, which 256 clients make, while sessions are
// renewed and instances deregistered. What share of the peak is done then, in percent, is the value. Refusals are how
// regd keeps it up; but no session may be lost, renewals and deregistrations go on, and the leader leads on.
func overloading(last time.Duration) measurement {
	return func(ctx context.Context, c *cluster, short time.Duration) (result, error) {
		op, peak, done, err := peaking(ctx, c, 256, short)
		if err != nil {
			return result{}, err
		}
		defer done()
		b, err := newBesides(ctx, c, last)
		if err != nil {
			return result{}, err
		}
		defer b.done()
		before, err := leadership(ctx, c)
		if err != nil {
			return result{}, err
		}
		flood := newTally()
		stopBesides := b.start(ctx)
		stopFlood := pacing(ctx, time.Now(), overloadFactor*peak.value, crowd, op, flood)
		warmUp(ctx, last)
		flood.answered.take()
		r := counted(ctx, c.cpu, last, flood.answered.count)
		stopFlood()
		stopBesides()
		r.value *= 100 / peak.value
		r.latency = flood.answered.take()
		r.note = fmt.Sprintf("peak %s/s; registrations: %v; renewals: %v; deregistrations: %v", number(peak.value), flood, b.renewals, b.deregistrations)
		if err = errors.Join(ctx.Err(), b.check(ctx)); err != nil {
			return result{}, fmt.Errorf("%w (%s)", err, r.note)
		}
		after, err := leadership(ctx, c)
		if err == nil && after != before {
			err = fmt.Errorf("%s led, now it is %s (%s)", before, after, r.note)
		}
		return r, err
	}
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
	system          *regd
	conns           []*grpc.ClientConn
	done            func()
	sessions        []string
	renewals        *tally
	deregistrations *tally
}

// newBesides opens the sessions and registers what will be deregistered.
func newBesides(ctx context.Context, c *cluster, last time.Duration) (*besides, error) {
	system, ok := c.system.(*regd)
	if !ok {
		return nil, errors.New("only regd is overloaded")
	}
	conns, done, err := c.everywhere(ctx, connections)
	if err != nil {
		return nil, err
	}
	b := &besides{
		system: system, conns: conns, done: done, sessions: make([]string, keptSessions), renewals: newTally(), deregistrations: newTally(),
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
func (b *besides) start(ctx context.Context) (stop func()) {
	stopRenewing := pacing(ctx, time.Now(), keptSessions, crowd, func(ctx context.Context, client, k int) error {
		return b.renew(ctx, client, b.sessions[k%keptSessions])
	}, b.renewals)
	stopLeaving := pacing(ctx, time.Now(), leavingPerSec, crowd, func(ctx context.Context, client, k int) error {
		_, err := apiv1.NewRegistryServiceClient(b.conn(client)).Deregister(ctx, &apiv1.DeregisterRequest{
			RequestId: b.system.request(2*crowd + client), Key: &apiv1.InstanceKey{Service: "leaving", Id: strconv.Itoa(k)},
		})
		return err
	}, b.deregistrations)
	return func() {
		stopRenewing()
		stopLeaving()
	}
}

// renew renews sessions.
func (b *besides) renew(ctx context.Context, client int, sessions ...string) error {
	reply, err := apiv1.NewSessionServiceClient(b.conn(client)).Renew(ctx, &apiv1.RenewRequest{SessionIds: sessions})
	if err == nil && len(reply.GetEnded()) > 0 {
		err = fmt.Errorf("%d sessions were lost", len(reply.GetEnded()))
	}
	return err
}

// check tells what went wrong.
func (b *besides) check(ctx context.Context) error {
	err := b.renew(ctx, 0, b.sessions...) // Says whether all are still there.
	for what, t := range map[string]*tally{"renewals": b.renewals, "deregistrations": b.deregistrations} {
		if float64(t.lost()) > max(1, lossAllowed*float64(t.due.Load())) {
			err = errors.Join(err, fmt.Errorf("too many %s were lost", what))
		}
	}
	return err
}
