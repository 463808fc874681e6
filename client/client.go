package client

import (
	"context"
	"errors"
	"fmt"
	"sync"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// Client talks to one regd cluster. One per process is enough; it is safe for concurrent use. Close it at the end.
type Client struct {
	cfg      config
	pool     *pool
	requests *requests
	keeper   *keeper
	hub      *hub
	locks    *locks
	counts   counts

	// life ends with Close. It is kept here since background work starts when it is first needed, long after New.
	life context.Context
	end  context.CancelCauseFunc

	mu     sync.Mutex // guards closed, and work against being added to after Close
	closed bool
	work   sync.WaitGroup

	closing  sync.Once
	closeErr error

	epochMu sync.Mutex // guards epoch
	epoch   clusterEpoch
}

// clusterEpoch tells the content of registries apart: it changes when a snapshot is restored.
type clusterEpoch struct {
	cluster string
	epoch   uint64
}

// New returns a client for the cluster whose nodes answer at the given endpoints (host:port of their gRPC ports; some
// are enough, duplicates are ignored). It does no I/O: connections are made when they are first needed. The error joins
// all that is wrong with endpoints and options.
func New(endpoints []string, opts ...Option) (*Client, error) {
	cfg, err := newConfig(endpoints, opts)
	if err != nil {
		return nil, fmt.Errorf("new client: %w", err)
	}
	connections, err := newPool(cfg)
	if err != nil {
		return nil, fmt.Errorf("new client: %w", err)
	}
	c := &Client{cfg: cfg, pool: connections, requests: newRequests(newClientID())}
	c.life, c.end = context.WithCancelCause(context.Background())
	c.keeper = newKeeper(c)
	c.hub = newHub(c)
	c.locks = newLocks(c)
	return c, nil
}

// Close ends all calls, watches, registrations and locks with ErrClosed, and the session at the registry, so that its
// instances and locks go at once. When no node confirms that within the close timeout, Close returns an error and the
// session ends by its TTL. All goroutines of the client have ended when Close returns. Closing again returns the same.
func (c *Client) Close() error {
	c.closing.Do(func() {
		c.mu.Lock()
		c.closed = true
		c.mu.Unlock()
		c.end(ErrClosed)
		c.work.Wait()
		c.closeErr = errors.Join(c.keeper.close(), c.pool.close())
	})
	return c.closeErr
}

// Namespace returns the namespace that is used where none is named.
func (c *Client) Namespace() string { return c.cfg.namespace }

// start runs f in a goroutine that Close waits for. Its context ends with Close. It tells whether f was started.
func (c *Client) start(f func(ctx context.Context)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.work.Go(func() { f(c.life) })
	return true
}

// observe takes from an answer what concerns the client as a whole.
func (c *Client) observe(header *apiv1.ResponseHeader) {
	c.pool.learn(header.GetLeader())
	if header.GetClusterId() == "" {
		return
	}
	c.enter(clusterEpoch{cluster: header.GetClusterId(), epoch: header.GetEpoch()})
}

// observeEpoch is observe for an answer that tells the epoch alone.
func (c *Client) observeEpoch(epoch uint64) {
	c.epochMu.Lock()
	cluster := c.epoch.cluster
	c.epochMu.Unlock()
	if cluster != "" {
		c.enter(clusterEpoch{cluster: cluster, epoch: epoch})
	}
}

// enter notes the epoch of an answer. In a new one all is made anew that hangs on the session.
func (c *Client) enter(now clusterEpoch) {
	c.epochMu.Lock()
	before := c.epoch
	// A node that lags may still answer from an older epoch.
	restored := before.cluster != "" && (now.cluster != before.cluster || now.epoch > before.epoch)
	if before.cluster == "" || restored {
		c.epoch = now
	}
	c.epochMu.Unlock()
	if restored {
		c.cfg.log.Warn("registry was restored; registering again", "cluster_id", now.cluster, "epoch", now.epoch)
		c.keeper.restored()
	}
}
