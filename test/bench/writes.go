package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// registering registers on a live session, with so many bytes of metadata, or what is usual if that is 0.
func registering(clients, metadata int) measurement {
	return connected(func(ctx context.Context, c *cluster, conns []*grpc.ClientConn, last time.Duration) (result, error) {
		op, err := writing(ctx, c, conns, metadata)
		if err != nil {
			return result{}, err
		}
		return closed(ctx, c.cpu, clients, last, op)
	})
}

// registeringAnywhere is registering through all nodes alike, as clients that know one of them do.
func registeringAnywhere(clients int) measurement {
	return func(ctx context.Context, c *cluster, last time.Duration) (result, error) {
		conns, done, err := c.everywhere(ctx, connections)
		if err != nil {
			return result{}, err
		}
		defer done()
		op, err := writing(ctx, c, conns, 0)
		if err != nil {
			return result{}, err
		}
		return closed(ctx, c.cpu, clients, last, op)
	}
}

// writing registers on a live session, in turn in a thousand services.
func writing(ctx context.Context, c *cluster, conns []*grpc.ClientConn, metadata int) (operation, error) {
	who, err := c.open(ctx, conns[0])
	return func(ctx context.Context, client, k int) error {
		return c.register(ctx, conns[client%len(conns)], who, instance{
			client: client, sequence: k, service: fmt.Sprintf("s%d", (client*31+k)%1000), id: fmt.Sprintf("i%d", client), metadata: metadata,
		})
	}, err
}

func registeringAlone(clients int) measurement {
	return connected(func(ctx context.Context, c *cluster, conns []*grpc.ClientConn, last time.Duration) (result, error) {
		return closed(ctx, c.cpu, clients, last, func(ctx context.Context, client, k int) error {
			return c.registerAlone(ctx, conns[client%len(conns)], instance{
				client: client, sequence: k, service: fmt.Sprintf("s%d", k%1000), id: fmt.Sprintf("i%d-%d", client, k),
			})
		})
	})
}

func reading(clients int, linearizable bool) measurement {
	return connected(func(ctx context.Context, c *cluster, conns []*grpc.ClientConn, last time.Duration) (result, error) {
		who, err := c.open(ctx, conns[0])
		if err != nil {
			return result{}, err
		}
		for i := range ten {
			if err := c.register(ctx, conns[0], who, instance{sequence: i, service: "web", id: strconv.Itoa(i)}); err != nil {
				return result{}, err
			}
		}
		return closed(ctx, c.cpu, clients, last, readingTen(c, conns, linearizable, func(int, int) string { return "web" }))
	})
}

// ten is how many instances a service has that is read.
const ten = 10

// readingTen reads the service that is said for each time, and finds ten instances.
func readingTen(c *cluster, conns []*grpc.ClientConn, linearizable bool, service func(client, k int) string) operation {
	return func(ctx context.Context, client, k int) error {
		n, err := c.read(ctx, conns[client%len(conns)], service(client, k), linearizable)
		if err == nil && n != ten {
			err = fmt.Errorf("read %d instances, want %d", n, ten)
		}
		return err
	}
}

// failingOver kills the leader and takes the time until another node acknowledges a write.
func failingOver(ctx context.Context, c *cluster, _ time.Duration) (result, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return result{}, err
	}
	others := []*grpc.ClientConn{c.conns[(leader+1)%nodes], c.conns[(leader+2)%nodes]}
	for k := range 50 { // A cluster at work.
		if err := c.register(ctx, others[k%2], owner{}, instance{sequence: k, service: "web", id: "before"}); err != nil {
			return result{}, err
		}
	}
	begun := time.Now()
	c.kill(leader)
	won := make(chan struct{}, len(others))
	var trying sync.WaitGroup
	defer trying.Wait() // After cancel.
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for i, conn := range others {
		trying.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				callCtx, stop := context.WithTimeout(ctx, 250*time.Millisecond)
				err := c.register(callCtx, conn, owner{}, instance{client: 100 + i, sequence: k, service: "web", id: "after"})
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

// settling is how long a cluster is given before a look at its memory.
const settling = 2 * time.Second

// filling registers many instances, each with its own session, and returns what memory each costs.
func filling(instances int) measurement {
	return connected(func(ctx context.Context, c *cluster, conns []*grpc.ClientConn, _ time.Duration) (result, error) {
		empty := c.usage()
		err := each(instances, func(worker, i int) error {
			callCtx, cancel := context.WithTimeout(ctx, 2*callTimeout)
			defer cancel()
			return c.registerAlone(callCtx, conns[worker%len(conns)], instance{
				client: worker, sequence: i, service: fmt.Sprintf("s%d", i%1000), id: strconv.Itoa(i),
			})
		})
		full := c.usage()
		wait(ctx, settling)
		return result{
			value:      float64(c.usage().memory-empty.memory) / nodes / float64(instances) / 1024,
			operations: int64(instances),
			cpu:        full.cpu - empty.cpu,
		}, err
	})
}
