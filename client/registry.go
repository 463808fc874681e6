package client

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Key names an instance.
type Key struct {
	// Namespace. Empty: the client's.
	Namespace string
	// Service name.
	Service string
	// ID, unique within the service.
	ID string
}

// String returns namespace/service/id.
func (k Key) String() string { return k.Namespace + "/" + k.Service + "/" + k.ID }

// proto returns the key as it travels.
func (k Key) proto() *apiv1.InstanceKey {
	return &apiv1.InstanceKey{Namespace: k.Namespace, Service: k.Service, Id: k.ID}
}

// keyOf returns the key of an instance.
func keyOf(i *registryv1.Instance) Key {
	return Key{Namespace: i.GetNamespace(), Service: i.GetService(), ID: i.GetId()}
}

// in fills an empty namespace.
func (k Key) in(namespace string) Key {
	if k.Namespace == "" {
		k.Namespace = namespace
	}
	return k
}

// specOf returns a copy of an instance with its namespace filled in, and its key.
func (c *Client) specOf(instance *registryv1.Instance) (*registryv1.Instance, Key, error) {
	if instance.GetService() == "" || instance.GetId() == "" {
		return nil, Key{}, fmt.Errorf("register %s: service and id are required: %w", keyOf(instance), ErrInvalidArgument)
	}
	spec := proto.CloneOf(instance)
	key := keyOf(spec).in(c.cfg.namespace)
	spec.Namespace = key.Namespace
	return spec, key, nil
}

// registerOptions is what the options made.
type registerOptions struct {
	claim claim
}

// RegisterOption changes how an instance is registered.
type RegisterOption func(*registerOptions) error

// IfAbsent makes the registration fail with ErrAlreadyExists when the instance belongs to another session. Without it the
// newest owner wins.
func IfAbsent() RegisterOption {
	return func(o *registerOptions) error {
		o.claim = absent
		return nil
	}
}

func newRegisterOptions(opts []RegisterOption) (registerOptions, error) {
	var o registerOptions
	var errs []error
	for _, opt := range opts {
		errs = append(errs, opt(&o))
	}
	return o, errors.Join(errs...)
}

// Detached is the outcome of RegisterDetached.
type Detached struct {
	// Key of the instance.
	Key Key
	// Incarnation of the registration.
	Incarnation uint64
	// Changed is false when an equal registration stood already.
	Changed bool
	// Revision of the change.
	Revision uint64
}

// RegisterDetached registers an instance that lives until it is deregistered (or its lease ends, if lease_id names one),
// whatever becomes of this client. Nothing keeps it registered.
func (c *Client) RegisterDetached(ctx context.Context, instance *registryv1.Instance, opts ...RegisterOption) (Detached, error) {
	spec, key, err := c.specOf(instance)
	if err != nil {
		return Detached{}, err
	}
	options, err := newRegisterOptions(opts)
	if err != nil {
		return Detached{}, fmt.Errorf("register %s: %w", key, err)
	}
	spec.SessionId = ""
	resp, err := c.register(ctx, &apiv1.RegisterRequest{Instance: spec, IfAbsent: options.claim == absent})
	if err != nil {
		return Detached{}, err
	}
	return Detached{
		Key: key, Incarnation: resp.GetIncarnation(), Changed: resp.GetChanged(), Revision: resp.GetHeader().GetRevision(),
	}, nil
}

// register sends a registration.
func (c *Client) register(ctx context.Context, req *apiv1.RegisterRequest) (*apiv1.RegisterResponse, error) {
	return write(ctx, c, "register "+keyOf(req.GetInstance()).String(), func(id *apiv1.RequestID) send[*apiv1.RegisterResponse] {
		req.RequestId = id
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.RegisterResponse, error) {
			return apiv1.NewRegistryServiceClient(conn).Register(ctx, req, opts...)
		}
	})
}

// orderOptions is what the options made.
type orderOptions struct {
	incarnation uint64
}

// OrderOption narrows an order about an instance.
type OrderOption func(*orderOptions) error

// OnlyIncarnation makes an order fail with ErrStaleIncarnation when the instance has been registered anew since.
func OnlyIncarnation(incarnation uint64) OrderOption {
	return func(o *orderOptions) error {
		if incarnation == 0 {
			return errors.New("incarnation: 0")
		}
		o.incarnation = incarnation
		return nil
	}
}

// order makes the options of an order and completes its key.
func (c *Client) order(verb string, key Key, opts []OrderOption) (Key, orderOptions, error) {
	key = key.in(c.cfg.namespace)
	var o orderOptions
	var errs []error
	for _, opt := range opts {
		errs = append(errs, opt(&o))
	}
	if err := errors.Join(errs...); err != nil {
		return key, o, fmt.Errorf("%s %s: %w", verb, key, err)
	}
	return key, o, nil
}

// Deregister removes an instance, whoever owns it. Removing what is not there succeeds, with changed false. An owner that
// keeps it registered is not told: drain it, or end its process.
func (c *Client) Deregister(ctx context.Context, key Key, opts ...OrderOption) (changed bool, err error) {
	key, o, err := c.order("deregister", key, opts)
	if err != nil {
		return false, err
	}
	return c.deregister(ctx, key, o.incarnation)
}

func (c *Client) deregister(ctx context.Context, key Key, incarnation uint64) (changed bool, err error) {
	resp, err := write(ctx, c, "deregister "+key.String(), func(id *apiv1.RequestID) send[*apiv1.DeregisterResponse] {
		req := &apiv1.DeregisterRequest{RequestId: id, Key: key.proto(), Incarnation: incarnation}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.DeregisterResponse, error) {
			return apiv1.NewRegistryServiceClient(conn).Deregister(ctx, req, opts...)
		}
	})
	return resp.GetChanged(), err
}

// Drain marks an instance as draining: it stays listed, and consumers send it nothing new. changed is false when it was so
// already.
func (c *Client) Drain(ctx context.Context, key Key, opts ...OrderOption) (changed bool, err error) {
	key, o, err := c.order("drain", key, opts)
	if err != nil {
		return false, err
	}
	resp, err := c.drain(ctx, key, o.incarnation, false)
	return resp.GetChanged(), err
}

// Undrain clears the draining mark. changed is false when there was none.
func (c *Client) Undrain(ctx context.Context, key Key, opts ...OrderOption) (changed bool, err error) {
	key, o, err := c.order("undrain", key, opts)
	if err != nil {
		return false, err
	}
	resp, err := c.drain(ctx, key, o.incarnation, true)
	return resp.GetChanged(), err
}

func (c *Client) drain(ctx context.Context, key Key, incarnation uint64, cancel bool) (*apiv1.DrainResponse, error) {
	return write(ctx, c, "drain "+key.String(), func(id *apiv1.RequestID) send[*apiv1.DrainResponse] {
		req := &apiv1.DrainRequest{RequestId: id, Key: key.proto(), Incarnation: incarnation, Cancel: cancel}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.DrainResponse, error) {
			return apiv1.NewRegistryServiceClient(conn).Drain(ctx, req, opts...)
		}
	})
}

// SetHealth reports the status of a TTL check of any instance; for an own one use its Registration. An empty check means
// the instance's only one.
func (c *Client) SetHealth(ctx context.Context, key Key, check string, status registryv1.CheckStatus, output string) error {
	return c.setHealth(ctx, key.in(c.cfg.namespace), 0, check, report{status: status, output: output})
}

func (c *Client) setHealth(ctx context.Context, key Key, incarnation uint64, check string, r report) error {
	_, err := write(ctx, c, "set health of "+key.String(), func(id *apiv1.RequestID) send[*apiv1.SetHealthResponse] {
		req := &apiv1.SetHealthRequest{
			RequestId: id, Key: key.proto(), Incarnation: incarnation, Check: check, Status: r.status, Output: r.output,
		}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.SetHealthResponse, error) {
			return apiv1.NewRegistryServiceClient(conn).SetHealth(ctx, req, opts...)
		}
	})
	return err
}

// SetMaintenance takes an instance out of service, or puts it back. changed is false when it was so already.
func (c *Client) SetMaintenance(ctx context.Context, key Key, maintenance bool) (changed bool, err error) {
	key = key.in(c.cfg.namespace)
	resp, err := write(ctx, c, "set maintenance of "+key.String(), func(id *apiv1.RequestID) send[*apiv1.SetMaintenanceResponse] {
		req := &apiv1.SetMaintenanceRequest{RequestId: id, Key: key.proto(), Maintenance: maintenance}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.SetMaintenanceResponse, error) {
			return apiv1.NewRegistryServiceClient(conn).SetMaintenance(ctx, req, opts...)
		}
	})
	return resp.GetChanged(), err
}
