package regdgrpc

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
	"google.golang.org/grpc/balancer/endpointsharding"
	"google.golang.org/grpc/balancer/pickfirst"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/regd-io/regd/client/balance"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func init() { //nolint:gochecknoinits // gRPC wants policies to be registered while a program starts, and not later
	balancer.Register(policy{})
}

// policy makes balancers. It is a balancer.Builder and a balancer.ConfigParser.
type policy struct{}

// Name returns the policy's name.
func (policy) Name() string { return BalancerName }

// ParseConfig reads a Config.
func (policy) ParseConfig(text json.RawMessage) (serviceconfig.LoadBalancingConfig, error) {
	return parseConfig(text)
}

// Build makes the balancer of a channel.
func (policy) Build(cc balancer.ClientConn, opts balancer.BuildOptions) balancer.Balancer {
	b := &channel{ClientConn: cc}
	b.connections = endpointsharding.NewBalancer(b, opts, balancer.Get(pickfirst.Name).Build, endpointsharding.Options{})
	return b
}

// channel balances the calls of one. Its connections are endpointsharding's: a pick_first for each address, which says here,
// as to its own balancer.ClientConn, how they are.
type channel struct {
	balancer.ClientConn
	connections balancer.Balancer

	mu      sync.Mutex // guards the fields below; held while gRPC is told, so that the last word is the newest
	origin  origin     // the zero value: another resolver's
	cfg     *parsed
	choice  *balance.Balancer
	members []member                   // of the last resolution
	trouble error                      // why there is none
	ready   map[string]balancer.Picker // connections that gRPC was told of, by address
	picker  *picker                    // nil: it has to be told anew
	retry   *time.Timer                // runs when picks found no instance available that may become so with time
	closed  bool
}

// member is an instance that was resolved.
type member struct {
	address  string
	instance *registryv1.Instance
	// apart stands for it while it has no connection. It is not picked, but not forgotten either: what is known of the
	// instance holds when the connection comes back.
	apart *registryv1.Instance
}

// newMember makes one of an endpoint, also of another resolver's.
func newMember(e resolver.Endpoint) member {
	m := member{address: e.Addresses[0].Addr, instance: Instance(e)}
	if m.instance == nil {
		m.instance = &registryv1.Instance{Id: m.address, Health: registryv1.Health_HEALTH_PASSING}
	}
	m.apart = &registryv1.Instance{
		Namespace: m.instance.GetNamespace(), Service: m.instance.GetService(), Id: m.instance.GetId(),
		Incarnation: m.instance.GetIncarnation(), Region: m.instance.GetRegion(), Zone: m.instance.GetZone(),
		Weight: m.instance.GetWeight(), Draining: true,
	}
	return m
}

// UpdateClientConnState takes what was resolved.
func (b *channel) UpdateClientConnState(s balancer.ClientConnState) error {
	cfg, ok := s.BalancerConfig.(*parsed)
	if !ok {
		return fmt.Errorf("%s: got a config of type %T: %w", BalancerName, s.BalancerConfig, balancer.ErrBadResolverState)
	}
	b.mu.Lock()
	b.origin, _ = s.ResolverState.Attributes.Value(originKey{}).(origin)
	if b.cfg == nil || b.cfg.text != cfg.text {
		if err := b.configure(cfg); err != nil {
			b.mu.Unlock()
			return fmt.Errorf("%s: %w", BalancerName, err)
		}
	}
	b.members, b.picker = make([]member, 0, len(s.ResolverState.Endpoints)), nil
	b.trouble, _ = s.ResolverState.Attributes.Value(whyKey{}).(error)
	for _, e := range s.ResolverState.Endpoints {
		if len(e.Addresses) > 0 {
			b.members = append(b.members, newMember(e))
		}
	}
	b.mu.Unlock()
	// This comes back as UpdateState.
	return b.connections.UpdateClientConnState(balancer.ClientConnState{
		ResolverState: pickfirst.EnableHealthListener(s.ResolverState),
	})
}

// configure begins with a config. The caller holds mu.
func (b *channel) configure(cfg *parsed) error {
	opts := cfg.opts
	builder := b.origin.builder
	if builder != nil && builder.log != nil {
		opts = append(slices.Clip(opts), balance.WithLogger(builder.log))
	}
	choice, err := balance.New(cfg.policy, opts...)
	if err != nil {
		return err
	}
	b.cfg, b.choice = cfg, choice
	if builder != nil {
		builder.add(b)
	}
	return nil
}

// ResolverError takes why nothing was resolved. What was resolved before stays.
func (b *channel) ResolverError(err error) {
	b.mu.Lock()
	b.trouble = err
	b.mu.Unlock()
	b.connections.ResolverError(err) // This comes back as UpdateState.
}

// UpdateSubConnState is not called: endpointsharding's children listen to their own.
func (b *channel) UpdateSubConnState(balancer.SubConn, balancer.SubConnState) {}

// ExitIdle connects.
func (b *channel) ExitIdle() { b.connections.ExitIdle() }

// Close ends the balancer.
func (b *channel) Close() {
	b.mu.Lock()
	b.closed = true
	if b.retry != nil {
		b.retry.Stop()
	}
	from := b.origin
	b.mu.Unlock()
	if from.builder != nil {
		from.builder.remove(b)
	}
	b.connections.Close()
}

// UpdateState takes how the connections are, and tells gRPC who can be picked.
func (b *channel) UpdateState(s balancer.State) {
	ready := make(map[string]balancer.Picker)
	for _, child := range endpointsharding.ChildStatesFromPicker(s.Picker) {
		if child.State.ConnectivityState == connectivity.Ready {
			ready[child.Endpoint.Addresses[0].Addr] = child.State.Picker
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	if len(ready) == 0 {
		b.picker = nil
		if len(b.members) == 0 && b.trouble != nil {
			s.Picker = base.NewErrPicker(fmt.Errorf("resolve: %w", b.trouble))
		}
		b.ClientConn.UpdateState(s) // endpointsharding's picker waits for connections, or has their errors.
		return
	}
	if b.picker != nil && maps.Equal(ready, b.ready) {
		return // Only connections that are not there yet have changed.
	}
	b.ready = ready
	b.picker = &picker{
		channel: b, choice: b.choice, hashHeader: b.cfg.hashHeader, connections: make(map[string]balancer.Picker, len(ready)),
	}
	if b.origin.builder != nil {
		b.picker.tracer = b.origin.builder.tracer
	}
	instances := make([]*registryv1.Instance, len(b.members))
	for n, m := range b.members {
		if connection := ready[m.address]; connection != nil {
			b.picker.connections[m.instance.GetId()] = connection
			instances[n] = m.instance
		} else {
			b.picker.apart++
			instances[n] = m.apart
		}
	}
	b.choice.Update(instances)
	b.ClientConn.UpdateState(balancer.State{ConnectivityState: connectivity.Ready, Picker: b.picker})
}
