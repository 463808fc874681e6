package discovery

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Service is a handle on a service. It is safe for concurrent use.
type Service struct {
	f      *follower
	closed atomic.Bool
	once   sync.Once
	done   chan struct{} // closed by Close
}

// Namespace returns the service's namespace, where none was named the client's.
func (s *Service) Namespace() string { return s.f.name.namespace }

// View returns the service as it is now. It blocks only while there has never been a view: until the registry has answered,
// ctx ends, or the registry refuses the watch. With an error that matches ErrNoSuchService or ErrStale the view is there
// all the same.
func (s *Service) View(ctx context.Context) (*View, error) {
	s.f.lookups.Add(1)
	v := s.f.current.Load()
	if v == nil || s.closed.Load() {
		s.f.waits.Add(1)
		var err error
		if v, err = s.first(ctx); err != nil {
			return nil, err
		}
	}
	return v, v.judge(s.f.d.cfg.maxStale)
}

// first waits for a view.
func (s *Service) first(ctx context.Context) (*View, error) {
	tracer := s.f.d.cfg.tracer
	if tracer == nil {
		return s.Next(ctx, nil)
	}
	ctx, end := tracer.Start(ctx, client.Operation{
		Name: client.OperationFirstView, Namespace: s.f.name.namespace, Service: s.f.name.service,
	})
	v, err := s.Next(ctx, nil)
	end(err)
	return v, err
}

// Healthy returns the instances that can serve. It is View, with an error that matches ErrNoneHealthy if there are none.
// With ErrStale the instances are there all the same.
func (s *Service) Healthy(ctx context.Context) ([]*registryv1.Instance, error) {
	v, err := s.View(ctx)
	if v == nil {
		return nil, err
	}
	if err == nil && len(v.Healthy) == 0 {
		err = fmt.Errorf("service %s: %w: %d are listed", s.f.name, ErrNoneHealthy, len(v.Instances))
	}
	return v.Healthy, err
}

// Next returns the newest view as soon as its lists differ from those of the given one, which may be nil. Of several changes
// meanwhile the last one counts. A view without instances, or one that is stale, is no error here. Errors: as ctx ends,
// client.ErrClosed after Close, and with no view at all what the registry refused the watch for.
func (s *Service) Next(ctx context.Context, after *View) (*View, error) {
	for {
		changed, refused := s.f.news()
		v := s.f.current.Load()
		switch {
		case s.closed.Load() || s.f.d.life.Err() != nil:
			return nil, fmt.Errorf("service %s: %w", s.f.name, client.ErrClosed)
		case v != nil && (after == nil || v.list != after.list):
			return v, nil
		case v == nil && refused != nil:
			return nil, fmt.Errorf("service %s: %w", s.f.name, refused)
		}
		select {
		case <-changed:
		case <-s.done:
		case <-s.f.d.life.Done():
		case <-ctx.Done():
			err := fmt.Errorf("service %s: %w", s.f.name, context.Cause(ctx))
			if trouble := s.f.unwell(); trouble != nil {
				err = fmt.Errorf("%w: %w", err, trouble)
			}
			return nil, err
		}
	}
}

// All yields the view, and then each newer one as Next does. The last pair has the error that Next returned.
//
// An instance that leaves (client.Registration.Leave) serves on until the loop has come back from a view in which it is draining:
// what a view is to bring about, finish before that.
func (s *Service) All(ctx context.Context) iter.Seq2[*View, error] {
	return func(yield func(*View, error) bool) {
		loop := s.f.enter()
		defer s.f.leave(loop)
		var last *View
		for {
			v, err := s.Next(ctx, last)
			if !yield(v, err) || err != nil {
				return
			}
			s.f.back(loop, v)
			last = v
		}
	}
}

// Close gives the handle back. The service is watched on for the linger, for whoever asks next.
func (s *Service) Close() {
	s.once.Do(func() {
		s.closed.Store(true)
		close(s.done)
		s.f.d.release(s.f)
	})
}
