package regdgrpc

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
	"google.golang.org/grpc/balancer/endpointsharding"
	"google.golang.org/grpc/balancer/pickfirst"
	"google.golang.org/grpc/connectivity"
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

	mu        sync.Mutex // guards the fields below; held while gRPC is told, so that the last word is the newest
	cfg       *parsed
	choice    *balance.Balancer
	instances []*registryv1.Instance // of the last resolution
	addresses []string               // of each
	trouble   error                  // why there is none
	picker    *picker                // nil: no instance is connected
	retry     *time.Timer            // runs when picks found no instance available that may become so with time
	closed    bool
}

// UpdateClientConnState takes what was resolved.
func (b *channel) UpdateClientConnState(s balancer.ClientConnState) error {
	cfg, ok := s.BalancerConfig.(*parsed)
	if !ok {
		return fmt.Errorf("%s: got a config of type %T: %w", BalancerName, s.BalancerConfig, balancer.ErrBadResolverState)
	}
	b.mu.Lock()
	if b.cfg == nil || b.cfg.text != cfg.text {
		choice, err := balance.New(cfg.policy, cfg.opts...)
		if err != nil {
			b.mu.Unlock()
			return fmt.Errorf("%s: %w", BalancerName, err)
		}
		b.cfg, b.choice = cfg, choice
	}
	b.instances, b.addresses = nil, nil
	b.trouble, _ = s.ResolverState.Attributes.Value(whyKey{}).(error)
	for _, e := range s.ResolverState.Endpoints {
		if len(e.Addresses) == 0 {
			continue
		}
		i := Instance(e)
		if i == nil { // resolved by another resolver
			i = &registryv1.Instance{Id: e.Addresses[0].Addr, Health: registryv1.Health_HEALTH_PASSING}
		}
		b.instances, b.addresses = append(b.instances, i), append(b.addresses, e.Addresses[0].Addr)
	}
	b.mu.Unlock()
	// This comes back as UpdateState.
	return b.connections.UpdateClientConnState(balancer.ClientConnState{
		ResolverState: pickfirst.EnableHealthListener(s.ResolverState),
	})
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
	b.mu.Unlock()
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
		if len(b.instances) == 0 && b.trouble != nil {
			s.Picker = base.NewErrPicker(fmt.Errorf("resolve: %w", b.trouble))
		}
		b.ClientConn.UpdateState(s) // endpointsharding's picker waits for connections, or has their errors.
		return
	}
	p := &picker{channel: b, choice: b.choice, hashHeader: b.cfg.hashHeader, connections: make(map[string]balancer.Picker, len(ready))}
	members := make([]*registryv1.Instance, len(b.instances))
	for n, i := range b.instances {
		connection := ready[b.addresses[n]]
		if connection == nil {
			p.apart++
			// Not picked, but not forgotten either: what is known of it holds when the connection comes back.
			i = &registryv1.Instance{
				Namespace: i.GetNamespace(), Service: i.GetService(), Id: i.GetId(), Incarnation: i.GetIncarnation(),
				Region: i.GetRegion(), Zone: i.GetZone(), Weight: i.GetWeight(), Draining: true,
			}
		} else {
			p.connections[i.GetId()] = connection
		}
		members[n] = i
	}
	b.choice.Update(members)
	b.picker = p
	b.ClientConn.UpdateState(balancer.State{ConnectivityState: connectivity.Ready, Picker: p})
}
