package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// registering registers on a live session, in turn in a thousand services, with so many bytes of metadata, or what is usual
// if that is 0.
func registering(where place, clients, metadata int) measurement {
	return on(where, func(ctx context.Context, c *cluster, wires []*wire, last time.Duration) (result, error) {
		t, err := onOwner(ctx, c, wires, metadata, func(t *turn) instance {
			return instance{service: oneOf(1000, t.n), id: "i" + strconv.Itoa(t.client), version: t.n}
		})
		if err != nil {
			return result{}, err
		}
		return t.closed(ctx, c.cpu, clients, last)
	})
}

// oneOf is one of so many services.
func oneOf(services, n int) string { return "s" + strconv.Itoa(n%services) }

// onOwner is registrations on a live owner.
func onOwner(ctx context.Context, c *cluster, wires []*wire, metadata int, what func(t *turn) instance) (*traffic, error) {
	var opened turn
	err := exchange{c.opening(time.Hour)}.do(ctx, wires[0], &opened)
	return &traffic{exchange: exchange{c.registering(metadata, what)}, wires: wires, who: opened.who}, err
}

// another is an instance that was not there: to register one that is there already costs less.
func another(t *turn) instance {
	return instance{service: oneOf(1000, t.n), id: "i" + strconv.Itoa(t.n)}
}

// registeringAlone registers instances with an owner of their own each.
func registeringAlone(clients int) measurement {
	return on(atLeader, func(ctx context.Context, c *cluster, wires []*wire, last time.Duration) (result, error) {
		t := &traffic{exchange: c.registeringAlone(another), wires: wires}
		return t.closed(ctx, c.cpu, clients, last)
	})
}

// ten is how many instances a service has that is read.
const ten = 10

// web is a service.
func web(*turn) string { return "web" }

func reading(clients int, linearizable bool) measurement {
	return on(atLeader, func(ctx context.Context, c *cluster, wires []*wire, last time.Duration) (result, error) {
		t, err := onOwner(ctx, c, wires, 0, func(t *turn) instance { return instance{service: "web", id: strconv.Itoa(t.n)} })
		if err == nil {
			err = t.times(ctx, 1, ten)
		}
		if err != nil {
			return result{}, err
		}
		reads := &traffic{exchange: exchange{c.reading(web, linearizable, ten)}, wires: wires}
		return reads.closed(ctx, c.cpu, clients, last)
	})
}

// halfLoaded takes the time of registrations that come at half the rate at which 64 clients can make them.
func halfLoaded(ctx context.Context, c *cluster, last time.Duration) (result, error) {
	wires, done, err := place(atLeader).wired(ctx, c, openWires)
	if err != nil {
		return result{}, err
	}
	defer done()
	t, err := onOwner(ctx, c, wires, 0, another)
	if err != nil {
		return result{}, err
	}
	peak, err := t.closed(ctx, c.cpu, 64, last)
	if err != nil {
		return result{}, err
	}
	became := newTally()
	stop := t.paced(ctx, peak.value/2, 0, became)
	warmUp(ctx, last)
	became.answered.take()
	r := counted(ctx, c.cpu, last, became.answered.count)
	stop()
	if became.failed.Load() > 0 {
		return result{}, fmt.Errorf("at %.0f registrations a second: %v", peak.value/2, became)
	}
	r.latency = became.answered.take()
	// One that was refused, or could not even begin, is not left out: it took too long.
	err = r.latency.RecordValues(int64(callTimeout), became.refused.Load()+became.late.Load())
	r.value = milliseconds(r.latency, 99)
	return r, errors.Join(err, ctx.Err())
}

// failingOver kills the leader and takes the time until another node acknowledges a write.
func failingOver(ctx context.Context, c *cluster, _ time.Duration) (result, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return result{}, err
	}
	others, done, err := c.wired(ctx, nodes-1, (leader+1)%nodes, (leader+2)%nodes)
	if err != nil {
		return result{}, err
	}
	defer done()
	register := func(id string) exchange {
		return exchange{c.registering(0, func(t *turn) instance { return instance{service: "web", id: id, version: t.n} })}
	}
	before := &traffic{exchange: register("before"), wires: others}
	if err := before.times(ctx, 1, 50); err != nil { // A cluster at work.
		return result{}, err
	}
	begun := time.Now()
	c.kill(leader)
	won := make(chan struct{}, len(others))
	var trying sync.WaitGroup
	defer trying.Wait() // After cancel.
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for i, w := range others {
		trying.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				callCtx, stop := context.WithTimeout(ctx, 250*time.Millisecond)
				err := register("after").do(callCtx, w, &turn{client: 100 + i, n: k})
				stop()
				if err == nil {
					won <- struct{}{}
					return
				}
				wait(ctx, 5*time.Millisecond)
			}
		})
	}
	select {
	case <-won:
		return result{value: float64(time.Since(begun).Microseconds()) / 1000}, nil
	case <-ctx.Done():
		return result{}, fmt.Errorf("no write was acknowledged: %w", ctx.Err())
	}
}
