package regdhttp

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
)

// idlePerInstance is how many idle connections to an instance the default transport keeps. The two of net/http's default
// suit browsers, not services.
const idlePerInstance = 64

// Transport calls services by name. It is an http.RoundTripper, safe for concurrent use.
type Transport struct {
	discovery *discovery.Discovery
	cfg       config
	start     time.Time
	inner     http.RoundTripper // to instances
	other     http.RoundTripper // to hosts that are no services
	own       *http.Transport   // nil: all are the user's

	mu       sync.Mutex // guards the fields below
	closed   bool
	services map[target]*service
}

// New returns a transport that finds instances through a Discovery. Close it before that. The error joins all that is wrong
// with the options.
func New(d *discovery.Discovery, opts ...Option) (*Transport, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return nil, fmt.Errorf("new transport: %w", err)
	}
	t := &Transport{
		discovery: d, cfg: cfg, start: time.Now(), inner: cfg.inner, other: cfg.inner, services: make(map[target]*service),
	}
	if cfg.inner == nil {
		t.own, t.other = &http.Transport{ForceAttemptHTTP2: true}, http.DefaultTransport
		if base, ok := http.DefaultTransport.(*http.Transport); ok {
			t.own = base.Clone()
		}
		t.own.Proxy, t.own.MaxIdleConns, t.own.MaxIdleConnsPerHost = nil, 0, idlePerInstance
		t.inner = t.own
	}
	return t, nil
}

// RoundTrip sends a request to an instance of the service that its URL names, and to others if that fails in a way that
// allows it; see the package comment. Requests to other hosts go to the inner transport as they are. An error is an *Error.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	to, ours, err := t.cfg.parse(req.URL)
	if !ours {
		return t.other.RoundTrip(req)
	}
	var s *service
	if err == nil {
		s, err = t.enter(to)
	}
	if err != nil {
		closeBody(req)
		return nil, &Error{Namespace: to.namespace, Service: to.service, Err: err}
	}
	defer t.leave(s)
	s.budget.request(time.Since(t.start))
	c := call{t: t, s: s, req: req, request: t.cfg.request(req)}
	if t.cfg.tracer != nil {
		var ctx context.Context
		ctx, c.trace = t.cfg.tracer.Call(req, s.handle.Namespace(), to.service)
		c.req = req.WithContext(ctx)
	}
	return c.run()
}

// CloseIdleConnections closes connections that no request uses, as http.Client.CloseIdleConnections asks for.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	inners := []http.RoundTripper{t.inner}
	for _, s := range t.services {
		if s.own {
			inners = append(inners, s.inner)
		}
	}
	t.mu.Unlock()
	for _, inner := range inners {
		if idler, ok := inner.(interface{ CloseIdleConnections() }); ok {
			idler.CloseIdleConnections()
		}
	}
}

// Close ends the watches of all services; their goroutines have ended when it returns. Later requests, and those that have
// no instance yet, fail with client.ErrClosed. Responses that are being read are not disturbed.
func (t *Transport) Close() {
	t.mu.Lock()
	t.closed = true
	services := t.services
	t.services = nil
	t.mu.Unlock()
	for _, s := range services {
		s.close()
	}
	if t.own != nil {
		t.own.CloseIdleConnections()
	}
}

// enter returns the service, and counts a user in.
func (t *Transport) enter(to target) (*service, error) {
	s, dropped, err := t.find(to)
	if dropped != nil {
		dropped.close()
	}
	return s, err
}

// find returns the service for enter. If it is new another one may have to make room, which the caller is to close.
func (t *Transport) find(to target) (s, dropped *service, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, nil, client.ErrClosed
	}
	s = t.services[to]
	if s == nil {
		if len(t.services) >= t.cfg.maxServices {
			if dropped = t.idlest(); dropped == nil {
				return nil, nil, fmt.Errorf("%w: %d are in use", ErrTooManyServices, len(t.services))
			}
			delete(t.services, dropped.target)
		}
		if s, err = t.newService(to); err != nil {
			return nil, dropped, err
		}
		t.services[to] = s
	}
	s.users++
	s.lastUsed = time.Since(t.start)
	return s, dropped, nil
}

// idlest returns the service without users that was not called for longest, nil if there is none. The caller holds mu.
func (t *Transport) idlest() *service {
	var idlest *service
	for _, s := range t.services {
		if s.users == 0 && (idlest == nil || s.lastUsed < idlest.lastUsed) {
			idlest = s
		}
	}
	return idlest
}

// leave counts a user out.
func (t *Transport) leave(s *service) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.users--
}
