package regdgrpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/resolver"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// defaultPort is the name of the port of instances that have several.
const defaultPort = "grpc"

// patience is how long the registry has for its first answer before calls fail instead of waiting for it.
const patience = 5 * time.Second

// minPause and maxPause bound the wait before it is looked whether a watch that was refused has been granted.
const (
	minPause = time.Second
	maxPause = 30 * time.Second
)

// errNoAnswer says that the registry has not answered, and why if that is known.
var errNoAnswer = fmt.Errorf("the registry gave no answer within %s", patience)

// Builder makes resolvers for targets of the scheme regd. It is a resolver.Builder, safe for concurrent use.
type Builder struct {
	discovery *discovery.Discovery
	tracer    Tracer
	log       *slog.Logger // nil: none

	mu       sync.Mutex // guards the field below
	channels map[*channel]struct{}
}

// NewBuilder returns a Builder, for grpc.WithResolvers. Close the channels before the Discovery.
func NewBuilder(d *discovery.Discovery, opts ...BuilderOption) *Builder {
	b := &Builder{discovery: d, channels: make(map[*channel]struct{})}
	for _, opt := range opts {
		opt(b)
	}
	return b
}

// Scheme returns "regd".
func (*Builder) Scheme() string { return Scheme }

// OverrideAuthority returns the name of the service.
func (*Builder) OverrideAuthority(t resolver.Target) string {
	to, err := parseTarget(t.URL)
	if err != nil {
		return "" // Build says why.
	}
	return to.service
}

// Build starts to follow a service. Errors match ErrBadTarget, or are those of Discovery.Service.
func (b *Builder) Build(t resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	to, err := parseTarget(t.URL)
	if err != nil {
		return nil, err
	}
	var opts []discovery.ServiceOption
	if to.namespace != "" {
		opts = append(opts, discovery.InNamespace(to.namespace))
	}
	handle, err := b.discovery.Service(to.service, opts...)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", t.URL.String(), err)
	}
	r := &follower{builder: b, target: to, handle: handle, cc: cc}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.work.Go(func() { r.run(ctx) })
	return r, nil
}

// follower tells a channel of a service. It is a resolver.Resolver.
type follower struct {
	builder *Builder
	target  target
	handle  *discovery.Service
	cc      resolver.ClientConn
	cancel  context.CancelFunc
	work    sync.WaitGroup
}

// ResolveNow does nothing: changes are pushed as they happen.
func (*follower) ResolveNow(resolver.ResolveNowOptions) {}

// Close ends the resolver. Its goroutine has ended when it returns.
func (r *follower) Close() {
	r.cancel()
	r.work.Wait()
	r.handle.Close()
}

// run tells of every change until ctx ends.
func (r *follower) run(ctx context.Context) {
	err := r.first(ctx)
	if err == nil {
		var view *discovery.View
		for view, err = range r.handle.All(ctx) { // Who leaves waits until the channel has been told.
			if err == nil {
				r.tell(ctx, view)
			}
		}
	}
	if ctx.Err() == nil { // The Discovery is closed: the channel keeps what it has.
		r.cc.ReportError(err)
	}
}

// first waits for a view, and tells why there is none.
func (r *follower) first(ctx context.Context) error {
	err := r.within(ctx, patience)
	for pause := minPause; err != nil && ctx.Err() == nil && !errors.Is(err, client.ErrClosed); pause = min(2*pause, maxPause) {
		r.cc.ReportError(err)
		if !errors.Is(err, errNoAnswer) {
			// Discovery asks again for a watch that was refused, in its own time. This only looks at what has come of it.
			select {
			case <-time.After(pause/2 + rand.N(pause/2)):
			case <-ctx.Done():
			}
		}
		_, err = r.handle.Next(ctx, nil)
	}
	return err
}

// within waits for a view for a while.
func (r *follower) within(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errNoAnswer)
	defer cancel()
	_, err := r.handle.Next(ctx, nil)
	return err
}

// tell gives the channel a view. gRPC's errors say what its balancer makes of it, which is not the resolver's to mend.
func (r *follower) tell(ctx context.Context, view *discovery.View) {
	state := resolver.State{
		Endpoints:  make([]resolver.Endpoint, 0, len(view.Healthy)),
		Attributes: attributes.New(originKey{}, origin{r.builder, view.Namespace, view.Service}),
	}
	var lacking error
	for _, i := range view.Healthy {
		if i.GetDraining() || i.GetMaintenance() {
			continue
		}
		address, err := r.address(i)
		if err != nil {
			lacking = err
			continue
		}
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{
			Addresses:  []resolver.Address{{Addr: address}},
			Attributes: attributes.New(instanceKey{}, instanceValue{i}),
		})
	}
	var why error
	if len(state.Endpoints) == 0 {
		if _, why = r.handle.Healthy(ctx); why == nil {
			why = lacking // nil: a newer view has come meanwhile
		}
		state.Attributes = state.Attributes.WithValue(whyKey{}, why)
	}
	_ = r.cc.UpdateState(state)
	if why != nil {
		r.cc.ReportError(why)
	}
}

// whyKey is the key of an attribute that says why nothing was resolved. Errors are reported too, for gRPC's own balancers, but
// come a moment later.
type whyKey struct{}

// originKey is the key of an attribute that says from where a balancer has its instances.
type originKey struct{}

// origin is that.
type origin struct {
	builder            *Builder
	namespace, service string
}

// address returns where an instance is called.
func (r *follower) address(i *registryv1.Instance) (string, error) {
	port := r.target.port
	if port == "" && len(i.GetPorts()) > 1 {
		port = defaultPort
	}
	return balance.HostPort(i, port)
}

// instanceKey is the key of the attribute.
type instanceKey struct{}

// instanceValue is the attribute. gRPC compares attributes.
type instanceValue struct{ *registryv1.Instance }

// Equal tells whether it is the same as of the same change.
func (v instanceValue) Equal(other any) bool {
	o, ok := other.(instanceValue)
	return ok && o.Instance == v.Instance
}

// Instance returns the instance that an endpoint of this package's resolver is, from its attributes, for balancers of one's
// own: id, zone, weight, metadata, incarnation and all. nil: it is none. It is shared: do not modify it.
func Instance(endpoint resolver.Endpoint) *registryv1.Instance {
	v, ok := endpoint.Attributes.Value(instanceKey{}).(instanceValue)
	if !ok {
		return nil
	}
	return v.Instance
}
