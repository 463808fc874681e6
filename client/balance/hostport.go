package balance

import (
	"net"
	"strconv"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// HostPort returns "host:port" of the instance's port of that name, of its first port if the name is empty. The error is a
// *PortError and matches ErrNoPort.
func HostPort(instance *registryv1.Instance, port string) (string, error) {
	ports := instance.GetPorts()
	for _, p := range ports {
		if port == "" || p.GetName() == port {
			return net.JoinHostPort(instance.GetAddress(), strconv.FormatUint(uint64(p.GetNumber()), 10)), nil
		}
	}
	missing := &PortError{Instance: instance.GetId(), Port: port}
	for _, p := range ports {
		missing.Have = append(missing.Have, p.GetName())
	}
	return "", missing
}
