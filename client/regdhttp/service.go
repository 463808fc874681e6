package regdhttp

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// service is one that is called: its view, its balancer, its retry budget.
type service struct {
	target   target
	handle   *discovery.Service
	balancer *balance.Balancer
	budget   budget
	inner    http.RoundTripper
	own      bool // inner is this service's alone

	users    int           // requests that look for a response; guarded by the transport's mu
	lastUsed time.Duration // guarded by the transport's mu

	work   sync.WaitGroup
	life   context.Context // ends with close
	end    context.CancelFunc
	mu     sync.Mutex  // held while follow is set, and life ended
	follow atomic.Bool // the balancer is kept current

	telling sync.Mutex // held while the balancer is told of a view
}

// newService makes a service without instances.
func (t *Transport) newService(to target) (*service, error) {
	var opts []discovery.ServiceOption
	if to.namespace != "" {
		opts = append(opts, discovery.InNamespace(to.namespace))
	}
	handle, err := t.discovery.Service(to.service, opts...)
	if err != nil {
		return nil, err
	}
	balancer, err := balance.New(t.cfg.policy, t.cfg.balance...)
	if err != nil {
		handle.Close()
		return nil, err
	}
	s := &service{
		target: to, handle: handle, balancer: balancer, inner: t.inner,
		budget: budget{share: t.cfg.share, floor: t.cfg.perSecond * budgetWindow.Seconds()},
	}
	s.life, s.end = context.WithCancel(context.Background())
	if base, ok := t.inner.(*http.Transport); ok && to.serverName != "" {
		s.inner, s.own = forServerName(base, to.serverName), true
	}
	return s, nil
}

// forServerName returns a copy of a transport that verifies a name.
func forServerName(base *http.Transport, name string) *http.Transport {
	clone := base.Clone()
	if clone.TLSClientConfig == nil {
		clone.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	clone.TLSClientConfig.ServerName = name
	return clone
}

// pick chooses an instance. It waits for the first view.
func (s *service) pick(ctx context.Context, request balance.Request) (balance.Pick, error) {
	view, err := s.handle.View(ctx)
	if view == nil {
		return balance.Pick{}, err
	}
	if !s.follow.Load() {
		s.keep()
	}
	if err != nil {
		return balance.Pick{}, err
	}
	pick, err := s.balancer.Pick(request)
	if errors.Is(err, balance.ErrNoInstances) && len(view.Instances) > 0 { // The first ones have just come.
		s.update(ctx)
		pick, err = s.balancer.Pick(request)
	}
	return pick, err
}

// keep gives the balancer its first instances, and has it told of all changes from then on. There is a view. Who leaves waits until
// the balancer has been told.
func (s *service) keep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.follow.Load() || s.life.Err() != nil {
		return
	}
	told := make(chan struct{})
	tell := sync.OnceFunc(func() { close(told) })
	s.work.Go(func() {
		defer tell()
		for _, err := range s.handle.All(s.life) {
			if err != nil {
				return
			}
			s.update(s.life)
			tell()
		}
	})
	<-told
	s.follow.Store(true)
}

// update tells the balancer of the newest view: who comes late does not tell it of an older one.
func (s *service) update(ctx context.Context) {
	s.telling.Lock()
	defer s.telling.Unlock()
	if view, err := s.handle.Next(ctx, nil); err == nil {
		s.balancer.Update(view.Instances)
	}
}

// close ends what the service keeps running. Requests under way go on.
func (s *service) close() {
	s.mu.Lock()
	s.end()
	s.mu.Unlock()
	s.work.Wait()
	s.handle.Close()
	if clone, ok := s.inner.(*http.Transport); ok && s.own {
		clone.CloseIdleConnections()
	}
}

// address returns where an instance is called.
func (s *service) address(i *registryv1.Instance, port string) (string, error) {
	if port == "" && len(i.GetPorts()) > 1 {
		port = s.target.scheme
	}
	return balance.HostPort(i, port)
}
