package client

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"
)

const (
	// maxLearned bounds the addresses that nodes told of, beside the configured endpoints.
	maxLearned = 32
	// maxMessageBytes bounds one answer: a page or cut of 1,000 instances may have 8 MiB.
	maxMessageBytes = 64 << 20
	// leavingPause is how long a node that is leaving is left alone.
	leavingPause = 10 * time.Second
	// minShun and maxShun bound how long a node that failed is only the last choice.
	minShun = 250 * time.Millisecond
	maxShun = 10 * time.Second
)

// endpoint is one address and its connection. The pool guards its fields.
type endpoint struct {
	address    string
	configured bool
	conn       *grpc.ClientConn // nil until it is first used
	uses       int              // calls and streams under way
	failures   int              // in a row
	shunned    time.Time        // only the last choice until then
}

// pool keeps a connection per address, and chooses. Calls stick to one address while it serves; writes go to the leader
// when its address is known and works.
type pool struct {
	options []grpc.DialOption

	mu        sync.Mutex // guards the fields below and all endpoints
	endpoints []*endpoint
	sticky    *endpoint
	leader    string
	closed    bool
}

// newPool makes the connections of the configured endpoints; none is dialled yet.
func newPool(cfg config) (*pool, error) {
	p := &pool{options: append([]grpc.DialOption{
		grpc.WithTransportCredentials(cfg.credentials),
		grpc.WithUserAgent("regd-client-go"),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		// Finds a peer that vanished while a call waits long, as for a lock. Streams have their own, quicker watchdogs.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	}, cfg.dialOptions...)}
	for _, address := range cfg.endpoints {
		ep := &endpoint{address: address, configured: true}
		if err := p.connect(ep); err != nil {
			return nil, errors.Join(err, p.close())
		}
		p.endpoints = append(p.endpoints, ep)
	}
	p.sticky = p.endpoints[rand.IntN(len(p.endpoints))] // spreads clients over nodes
	return p, nil
}

// connect makes the endpoint's connection object. It does no I/O. The address is resolved whenever the connection is
// dialled, so a node that comes back with another IP is found again.
func (p *pool) connect(ep *endpoint) error {
	conn, err := grpc.NewClient("passthrough:///"+ep.address, p.options...)
	if err != nil {
		return fmt.Errorf("connection to %s: %w", ep.address, err)
	}
	ep.conn = conn
	return nil
}

// take chooses the best endpoint that is not among the tried ones, or returns nil. The caller must release it.
func (p *pool) take(write bool, tried map[*endpoint]bool) *endpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	var best *endpoint
	bestRank, now := 0, time.Now()
	for _, i := range rand.Perm(len(p.endpoints)) { // equals at random: a failed node's clients spread
		ep := p.endpoints[i]
		if tried[ep] {
			continue
		}
		rank := p.rank(ep, write, now)
		if best == nil || rank < bestRank || rank == bestRank && ep.shunned.Before(best.shunned) {
			best, bestRank = ep, rank
		}
	}
	if best == nil || best.conn == nil && p.connect(best) != nil {
		return nil
	}
	best.uses++
	return best
}

// rank orders endpoints; smaller is better.
func (p *pool) rank(ep *endpoint, write bool, now time.Time) int {
	switch {
	case now.Before(ep.shunned):
		return 4
	case write && ep.address == p.leader && p.proven(ep):
		return 0
	case ep == p.sticky:
		return 1
	case ep.configured:
		return 2
	default:
		return 3
	}
}

// proven tells whether it is safe to prefer an endpoint. An address that was only told may be unreachable from here: it
// is dialled in the background, and is no choice before that has succeeded.
func (p *pool) proven(ep *endpoint) bool {
	if ep.configured {
		return true
	}
	if ep.conn == nil && p.connect(ep) != nil {
		return false
	}
	if ep.conn.GetState() == connectivity.Ready {
		return true
	}
	ep.conn.Connect()
	return false
}

// release ends a use.
func (p *pool) release(ep *endpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ep.uses--
}

// succeeded notes that an endpoint serves.
func (p *pool) succeeded(ep *endpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ep.failures, ep.shunned = 0, time.Time{}
	if time.Now().Before(p.sticky.shunned) {
		p.sticky = ep
	}
}

// failed notes that an endpoint does not serve.
func (p *pool) failed(ep *endpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pause := min(minShun<<min(ep.failures, 10), maxShun)
	ep.failures++
	ep.shunned = time.Now().Add(pause)
}

// leaving notes that an endpoint asked to go elsewhere.
func (p *pool) leaving(ep *endpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ep.shunned = time.Now().Add(leavingPause)
}

// learn notes where the leader is said to be. Nonsense is ignored.
func (p *pool) learn(leader string) {
	if leader == "" || checkAddress(leader) != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leader = leader
	p.add(leader)
}

// add returns the endpoint of an address, and makes one when it is new. It returns nil when there are too many already,
// all of them in use.
func (p *pool) add(address string) *endpoint {
	if ep := p.find(address); ep != nil {
		return ep
	}
	learned := 0
	for _, ep := range p.endpoints {
		if !ep.configured {
			learned++
		}
	}
	if p.closed || learned >= maxLearned && !p.forget() {
		return nil
	}
	ep := &endpoint{address: address}
	p.endpoints = append(p.endpoints, ep)
	return ep
}

// forget drops the oldest learned endpoint that is not in use.
func (p *pool) forget() bool {
	i := slices.IndexFunc(p.endpoints, func(ep *endpoint) bool {
		return !ep.configured && ep.uses == 0 && ep != p.sticky
	})
	if i < 0 {
		return false
	}
	if conn := p.endpoints[i].conn; conn != nil {
		conn.Close()
	}
	p.endpoints = slices.Delete(p.endpoints, i, i+1)
	return true
}

func (p *pool) find(address string) *endpoint {
	for _, ep := range p.endpoints {
		if ep.address == address {
			return ep
		}
	}
	return nil
}

// addresses returns all known addresses, the configured ones first.
func (p *pool) addresses() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	addresses := make([]string, len(p.endpoints))
	for i, ep := range p.endpoints {
		addresses[i] = ep.address
	}
	return addresses
}

// at takes the endpoint of one address. The caller must release it.
func (p *pool) at(address string) (*endpoint, error) {
	if err := checkAddress(address); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	ep := p.add(address)
	if ep == nil {
		return nil, fmt.Errorf("endpoint %s: %d other addresses are in use", address, maxLearned)
	}
	if ep.conn == nil {
		if err := p.connect(ep); err != nil {
			return nil, err
		}
	}
	ep.uses++
	return ep, nil
}

// close closes all connections.
func (p *pool) close() error {
	p.mu.Lock()
	endpoints := p.endpoints
	p.endpoints, p.closed = nil, true
	p.mu.Unlock()
	var errs []error
	for _, ep := range endpoints {
		if ep.conn != nil {
			errs = append(errs, ep.conn.Close())
		}
	}
	return errors.Join(errs...)
}
