package lifecycle

import (
	"context"
	"net"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Registration is what Run needs of a registration; *client.Registration is one.
type Registration interface {
	// Leave tells all who watch, until ctx ends, and deregisters.
	Leave(ctx context.Context) (client.Departure, error)
	// Deregister deregisters.
	Deregister(ctx context.Context) error
}

var _ Registration = (*client.Registration)(nil)

// Registrar registers a process of which all servers accept. The ports are those that they listen on, under their names.
type Registrar func(ctx context.Context, ports []*registryv1.Port) (Registration, error)

// Register registers an instance with a client. A port of the instance that has a server's name and no number gets the
// server's, and a server without a port is added as one: a server may listen on port 0.
func Register(c *client.Client, instance *registryv1.Instance, opts ...client.RegisterOption) Registrar {
	return func(ctx context.Context, ports []*registryv1.Port) (Registration, error) {
		return c.Register(ctx, withPorts(instance, ports), opts...)
	}
}

// withPorts returns a copy of the instance with the ports that it lacks.
func withPorts(instance *registryv1.Instance, ports []*registryv1.Port) *registryv1.Instance {
	spec := proto.CloneOf(instance)
	for _, port := range ports {
		own := portOf(spec, port.GetName())
		switch {
		case own == nil:
			spec.Ports = append(spec.Ports, port)
		case own.GetNumber() == 0:
			own.Number = port.GetNumber()
		}
	}
	return spec
}

func portOf(instance *registryv1.Instance, name string) *registryv1.Port {
	for _, p := range instance.GetPorts() {
		if p.GetName() == name {
			return p
		}
	}
	return nil
}

// portsOf are the ports that servers listen on.
func portsOf(servers []Server) []*registryv1.Port {
	var ports []*registryv1.Port
	for _, s := range servers {
		if s.listener == nil {
			continue
		}
		if at, ok := s.listener.Addr().(*net.TCPAddr); ok {
			ports = append(ports, &registryv1.Port{Name: s.name, Number: uint32(at.Port)}) //nolint:gosec // A port is.
		}
	}
	return ports
}
