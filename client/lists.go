package client

import (
	"context"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// SessionsResult is the answer of Sessions.
type SessionsResult struct {
	ReadInfo
	// Sessions sorted by id.
	Sessions []*registryv1.Session
}

// Sessions returns the sessions of all clients.
func (c *Client) Sessions(ctx context.Context, opts ...ReadOption) (SessionsResult, error) {
	const op = "list sessions"
	fresh, err := freshness(op, opts)
	if err != nil {
		return SessionsResult{}, err
	}
	var result SessionsResult
	info, err := pages(ctx, c, op, func(token string) send[*apiv1.ListResponse] {
		req := &apiv1.ListRequest{Freshness: fresh, PageToken: token}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.ListResponse, error) {
			return apiv1.NewSessionServiceClient(conn).List(ctx, req, opts...)
		}
	}, func(first bool, resp *apiv1.ListResponse) {
		if first {
			result.Sessions = nil
		}
		result.Sessions = append(result.Sessions, resp.GetSessions()...)
	})
	if err != nil {
		return SessionsResult{}, err
	}
	result.ReadInfo = info
	return result, nil
}

// LeasesResult is the answer of Leases.
type LeasesResult struct {
	ReadInfo
	// Leases sorted by id.
	Leases []*registryv1.Lease
}

// Leases returns all leases.
func (c *Client) Leases(ctx context.Context, opts ...ReadOption) (LeasesResult, error) {
	const op = "list leases"
	fresh, err := freshness(op, opts)
	if err != nil {
		return LeasesResult{}, err
	}
	var result LeasesResult
	info, err := pages(ctx, c, op, func(token string) send[*apiv1.ListLeasesResponse] {
		req := &apiv1.ListLeasesRequest{Freshness: fresh, PageToken: token}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.ListLeasesResponse, error) {
			return apiv1.NewLeaseServiceClient(conn).ListLeases(ctx, req, opts...)
		}
	}, func(first bool, resp *apiv1.ListLeasesResponse) {
		if first {
			result.Leases = nil
		}
		result.Leases = append(result.Leases, resp.GetLeases()...)
	})
	if err != nil {
		return LeasesResult{}, err
	}
	result.ReadInfo = info
	return result, nil
}

// LocksResult is the answer of Locks.
type LocksResult struct {
	ReadInfo
	// Locks sorted by namespace and name.
	Locks []*registryv1.Lock
}

// Locks returns the locks of a namespace. Empty: the client's; AllNamespaces: all.
func (c *Client) Locks(ctx context.Context, namespace string, opts ...ReadOption) (LocksResult, error) {
	const op = "list locks"
	fresh, err := freshness(op, opts)
	if err != nil {
		return LocksResult{}, err
	}
	var result LocksResult
	info, err := pages(ctx, c, op, func(token string) send[*apiv1.ListLocksResponse] {
		req := &apiv1.ListLocksRequest{Namespace: c.namespace(namespace), Freshness: fresh, PageToken: token}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.ListLocksResponse, error) {
			return apiv1.NewLockServiceClient(conn).ListLocks(ctx, req, opts...)
		}
	}, func(first bool, resp *apiv1.ListLocksResponse) {
		if first {
			result.Locks = nil
		}
		result.Locks = append(result.Locks, resp.GetLocks()...)
	})
	if err != nil {
		return LocksResult{}, err
	}
	result.ReadInfo = info
	return result, nil
}

// LockResult is the answer of GetLock.
type LockResult struct {
	ReadInfo
	// Lock that was asked for.
	Lock *registryv1.Lock
}

// GetLock shows a lock: who holds it, its value, who waits. A lock that was never taken matches ErrLockNotFound.
func (c *Client) GetLock(ctx context.Context, namespace, name string, opts ...ReadOption) (LockResult, error) {
	op := "get lock " + c.namespace(namespace) + "/" + name
	fresh, err := freshness(op, opts)
	if err != nil {
		return LockResult{}, err
	}
	req := &apiv1.GetLockRequest{Namespace: c.namespace(namespace), Name: name, Freshness: fresh}
	resp, err := read(ctx, c, op,
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.GetLockResponse, error) {
			return apiv1.NewLockServiceClient(conn).GetLock(ctx, req, opts...)
		})
	if err != nil {
		return LockResult{}, err
	}
	return LockResult{ReadInfo: infoOf(resp.GetHeader()), Lock: resp.GetLock()}, nil
}
