package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// AllNamespaces is the namespace of a filter for all of them.
const AllNamespaces = "*"

// Filter chooses instances. All that is set must hold.
type Filter struct {
	// Namespace. Empty: the client's. AllNamespaces: all.
	Namespace string
	// Service name. Empty: all services of the namespace.
	Service string
	// MinHealth is the least health. Unset: any.
	MinHealth registryv1.Health
	// Tags that the instance must all have, at most 16.
	Tags []string
	// Zone. Empty: any.
	Zone string
	// Metadata pairs that the instance must all have, at most 16.
	Metadata map[string]string
}

// proto returns the filter as it travels.
func (f Filter) proto(namespace string) *apiv1.Filter {
	if f.Namespace != "" {
		namespace = f.Namespace
	}
	return &apiv1.Filter{
		Namespace: namespace, Service: f.Service, MinHealth: f.MinHealth,
		Tags: slices.Clone(f.Tags), Zone: f.Zone, Metadata: maps.Clone(f.Metadata),
	}
}

// ReadOption changes how a read is done. Without one a read is linearizable.
type ReadOption func(*apiv1.Freshness) error

// Linearizable asks for an answer that is never older than the last write acknowledged anywhere before the read began.
func Linearizable() ReadOption {
	return func(f *apiv1.Freshness) error {
		f.Mode = apiv1.Mode_MODE_LINEARIZABLE
		return nil
	}
}

// Bounded accepts an answer that is at most this old, 1 ms to 1 h.
func Bounded(maxStaleness time.Duration) ReadOption {
	return func(f *apiv1.Freshness) error {
		if maxStaleness < time.Millisecond || maxStaleness > time.Hour {
			return fmt.Errorf("max staleness %s: need 1ms to 1h", maxStaleness)
		}
		f.Mode, f.MaxStaleness = apiv1.Mode_MODE_BOUNDED, durationpb.New(maxStaleness)
		return nil
	}
}

// AtLeast accepts an answer that has at least this revision, as of a write that shall be seen.
func AtLeast(revision uint64) ReadOption {
	return func(f *apiv1.Freshness) error {
		f.Mode, f.MinRevision = apiv1.Mode_MODE_AT_LEAST, revision
		return nil
	}
}

// Stale accepts whatever the asked node has. It works without a leader.
func Stale() ReadOption {
	return func(f *apiv1.Freshness) error {
		f.Mode = apiv1.Mode_MODE_STALE
		return nil
	}
}

// freshness makes the options of a read.
func freshness(op string, opts []ReadOption) (*apiv1.Freshness, error) {
	f := &apiv1.Freshness{}
	var errs []error
	for _, opt := range opts {
		errs = append(errs, opt(f))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return f, nil
}

// UnknownStaleness is the staleness of an answer whose node could not bound its age.
const UnknownStaleness time.Duration = -1

// ReadInfo says how fresh an answer is.
type ReadInfo struct {
	// ClusterID is the UUID of the cluster.
	ClusterID string
	// Epoch grows when an operator restores a snapshot. Revisions compare only within one epoch.
	Epoch uint64
	// Revision of the registry that the answer shows.
	Revision uint64
	// Staleness is an upper bound of the answer's age when it was given, or UnknownStaleness.
	Staleness time.Duration
	// Mode of the read.
	Mode apiv1.Mode
	// Node that answered, by name.
	Node string
}

// infoOf reads a header.
func infoOf(h *apiv1.ResponseHeader) ReadInfo {
	info := ReadInfo{
		ClusterID: h.GetClusterId(), Epoch: h.GetEpoch(), Revision: h.GetRevision(),
		Staleness: UnknownStaleness, Mode: h.GetMode(), Node: h.GetNode(),
	}
	if s := h.GetStaleness(); s != nil {
		info.Staleness = s.AsDuration()
	}
	return info
}

// Result is the answer of Instances.
type Result struct {
	ReadInfo
	// Instances sorted by service and id.
	Instances []*registryv1.Instance
	// ServiceRevision is the revision of the last change to the service that was asked for; without one, of the registry.
	ServiceRevision uint64
}

// Instances returns all instances that match, as of one revision.
func (c *Client) Instances(ctx context.Context, filter Filter, opts ...ReadOption) (Result, error) {
	const op = "list instances"
	fresh, err := freshness(op, opts)
	if err != nil {
		return Result{}, err
	}
	var result Result
	info, err := pages(ctx, c, op, func(token string) send[*apiv1.ListInstancesResponse] {
		req := &apiv1.ListInstancesRequest{Filter: filter.proto(c.cfg.namespace), Freshness: fresh, PageToken: token}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.ListInstancesResponse, error) {
			return apiv1.NewRegistryServiceClient(conn).ListInstances(ctx, req, opts...)
		}
	}, func(first bool, resp *apiv1.ListInstancesResponse) {
		if first {
			result = Result{ServiceRevision: resp.GetServiceRevision()}
		}
		result.Instances = append(result.Instances, resp.GetInstances()...)
	})
	if err != nil {
		return Result{}, err
	}
	result.ReadInfo = info
	return result, nil
}

// ServiceFilter chooses services.
type ServiceFilter struct {
	// Namespace. Empty: the client's. AllNamespaces: all.
	Namespace string
	// Prefix of the name. Empty: all.
	Prefix string
}

// ServicesResult is the answer of Services.
type ServicesResult struct {
	ReadInfo
	// Services sorted by namespace and name, with their counts.
	Services []*apiv1.ServiceSummary
}

// Services returns all services that match, as of one revision.
func (c *Client) Services(ctx context.Context, filter ServiceFilter, opts ...ReadOption) (ServicesResult, error) {
	const op = "list services"
	fresh, err := freshness(op, opts)
	if err != nil {
		return ServicesResult{}, err
	}
	namespace := c.namespace(filter.Namespace)
	var result ServicesResult
	info, err := pages(ctx, c, op, func(token string) send[*apiv1.ListServicesResponse] {
		req := &apiv1.ListServicesRequest{Namespace: namespace, Prefix: filter.Prefix, Freshness: fresh, PageToken: token}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.ListServicesResponse, error) {
			return apiv1.NewRegistryServiceClient(conn).ListServices(ctx, req, opts...)
		}
	}, func(first bool, resp *apiv1.ListServicesResponse) {
		if first {
			result = ServicesResult{}
		}
		result.Services = append(result.Services, resp.GetServices()...)
	})
	if err != nil {
		return ServicesResult{}, err
	}
	result.ReadInfo = info
	return result, nil
}

// InstanceResult is the answer of Instance.
type InstanceResult struct {
	ReadInfo
	// Instance that was asked for.
	Instance *registryv1.Instance
}

// Instance returns one instance, or an error that matches ErrInstanceNotFound.
func (c *Client) Instance(ctx context.Context, key Key, opts ...ReadOption) (InstanceResult, error) {
	key = key.in(c.cfg.namespace)
	op := "get " + key.String()
	fresh, err := freshness(op, opts)
	if err != nil {
		return InstanceResult{}, err
	}
	resp, err := read(ctx, c, op,
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.GetResponse, error) {
			return apiv1.NewRegistryServiceClient(conn).Get(ctx, &apiv1.GetRequest{Key: key.proto(), Freshness: fresh}, opts...)
		})
	if err != nil {
		return InstanceResult{}, err
	}
	return InstanceResult{ReadInfo: infoOf(resp.GetHeader()), Instance: resp.GetInstance()}, nil
}

// namespace returns the given namespace, or the client's.
func (c *Client) namespace(given string) string {
	if given == "" {
		return c.cfg.namespace
	}
	return given
}

// page is an answer with more to come.
type page interface {
	answer
	GetNextPageToken() string
}

// pages reads all pages of one list. When the list's revision is no longer kept, or pages show different ones, it starts
// again; take is told so by first.
func pages[R page](ctx context.Context, c *Client, op string, ask func(token string) send[R], take func(first bool, resp R)) (ReadInfo, error) {
	ctx, cancel, err := c.begin(ctx)
	if err != nil {
		return ReadInfo{}, fmt.Errorf("%s: %w", op, err)
	}
	defer cancel()
	var info ReadInfo
	var restart pause
	for token := ""; ; {
		first := token == ""
		resp, err := invoke(ctx, c, method{op: op, repeat: always}, ask(token))
		if err != nil && (first || !errors.Is(err, ErrPageExpired)) {
			return ReadInfo{}, err
		}
		seen := infoOf(resp.GetHeader())
		if err != nil || !first && (seen.Revision != info.Revision || seen.Epoch != info.Epoch) {
			token = ""
			restart.wait(ctx, 0)
			continue
		}
		if first {
			info = seen // the age of the list is that of its first page
		}
		take(first, resp)
		if token = resp.GetNextPageToken(); token == "" {
			return info, nil
		}
	}
}
