package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// settling is how long a cluster is given before a look at its memory.
	settling = 2 * time.Second
	// fillers are the clients that fill a registry.
	fillers = 256
	// coldTick is how often each node is asked whether it serves again: asking takes CPU time from what is measured.
	coldTick = 10 * time.Millisecond
	// coldTimeout is how long a cluster may take to serve again.
	coldTimeout = 2 * time.Minute
)

// filling registers many instances, each with its own session, and returns what memory each costs.
func filling(instances int) measurement {
	return on(atLeader, func(ctx context.Context, c *cluster, wires []*wire, _ time.Duration) (result, error) {
		empty := c.usage()
		t := &traffic{exchange: c.registeringAlone(another), wires: wires}
		err := t.times(ctx, fillers, instances)
		full := c.usage()
		wait(ctx, settling)
		return result{
			value:      float64(c.usage().memory-empty.memory) / nodes / float64(instances) / 1024,
			operations: int64(instances),
			cpu:        full.cpu - empty.cpu,
		}, err
	})
}

// startingCold kills all nodes that were filled, starts them again at once, and takes the time until any of them answers a
// stale read of a service with all of its instances.
func startingCold(instances int) measurement {
	return func(ctx context.Context, c *cluster, _ time.Duration) (result, error) {
		for i := range c.processes {
			c.kill(i)
		}
		ctx, cancel := context.WithTimeout(ctx, coldTimeout)
		defer cancel()
		begun := time.Now()
		answered := make(chan error, len(c.processes)) // nil, or the last error of a node that did not
		read := exchange{c.reading(func(*turn) string { return oneOf(1000, 0) }, false, instances/1000)}
		for i := range c.processes {
			if err := c.start(i); err != nil {
				return result{}, err
			}
		}
		for i := range c.processes {
			go func() {
				err := errors.New("it was not asked")
				for ctx.Err() == nil {
					if err = readOnce(ctx, read, c.addresses[i].client); err == nil {
						break
					}
					wait(ctx, coldTick)
				}
				answered <- err
			}()
		}
		var took time.Duration
		var last error
		for range c.processes {
			if err := <-answered; err != nil {
				last = err
			} else if took == 0 {
				took = time.Since(begun)
				cancel() // The others need not go on.
			}
		}
		if took == 0 {
			return result{}, fmt.Errorf("no node answers %v after its start: %w", coldTimeout, last)
		}
		return result{value: took.Seconds()}, nil
	}
}

// readOnce reads on a connection of its own.
func readOnce(ctx context.Context, read exchange, address string) error {
	conn, err := tcp(ctx, address)
	if err != nil {
		return err
	}
	w := newWire(conn)
	defer w.close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return read.do(ctx, w, &turn{})
}
