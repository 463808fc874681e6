package client

import (
	"context"
	"errors"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Namespaces bounds what may be in namespaces. Putting and deleting take the permission to administer, reading that to observe
// the cluster, once access control is on. Its methods are safe for concurrent use.
//
// What a quota refuses fails with an error that matches ErrQuotaExceeded, whose Metadata has namespace, resource, limit and used.
// What is written too fast is repeated, as long as the context allows, and fails with ErrRateLimited then.
type Namespaces struct{ c *Client }

// Namespaces returns the calls about namespaces.
func (c *Client) Namespaces() *Namespaces { return &Namespaces{c: c} }

func namespaceService(conn grpc.ClientConnInterface) apiv1.NamespaceServiceClient {
	return apiv1.NewNamespaceServiceClient(conn)
}

// Put says something about a namespace, in place of what was said before. It holds at once. A limit below what there is
// refuses what is new and removes nothing.
func (n *Namespaces) Put(ctx context.Context, entry *registryv1.Namespace) (changed bool, err error) {
	resp, err := write(ctx, n.c, "put namespace "+entry.GetName(), func(id *apiv1.RequestID) send[*apiv1.PutNamespaceResponse] {
		req := &apiv1.PutNamespaceRequest{RequestId: id, Namespace: entry}
		return func(
			ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption,
		) (*apiv1.PutNamespaceResponse, error) {
			return namespaceService(conn).PutNamespace(ctx, req, opts...)
		}
	})
	return resp.GetChanged(), err
}

// Delete deletes the entry of a namespace, which is unlimited from then on. What is in it stays.
func (n *Namespaces) Delete(ctx context.Context, name string) (changed bool, err error) {
	resp, err := write(ctx, n.c, "delete namespace "+name, func(id *apiv1.RequestID) send[*apiv1.DeleteNamespaceResponse] {
		req := &apiv1.DeleteNamespaceRequest{RequestId: id, Name: name}
		return func(
			ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption,
		) (*apiv1.DeleteNamespaceResponse, error) {
			return namespaceService(conn).DeleteNamespace(ctx, req, opts...)
		}
	})
	return resp.GetChanged(), err
}

// Get returns the entry of a namespace and what is in it. One that has no entry has a modify revision of 0.
func (n *Namespaces) Get(ctx context.Context, name string) (*apiv1.NamespaceInfo, error) {
	resp, err := read(ctx, n.c, "get namespace "+name,
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.GetNamespaceResponse, error) {
			return namespaceService(conn).GetNamespace(ctx, &apiv1.GetNamespaceRequest{Name: name}, opts...)
		})
	return resp.GetNamespace(), err
}

// List returns the namespaces that have an entry, or hold instances or locks, by name.
func (n *Namespaces) List(ctx context.Context) ([]*apiv1.NamespaceInfo, error) {
	for restart := 0; ; restart++ {
		all, err := n.list(ctx)
		if !errors.Is(err, ErrPageExpired) || restart == maxListRestarts {
			return all, err
		}
	}
}

func (n *Namespaces) list(ctx context.Context) ([]*apiv1.NamespaceInfo, error) {
	var all []*apiv1.NamespaceInfo
	for page := ""; ; {
		resp, err := read(ctx, n.c, "list namespaces",
			func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.ListNamespacesResponse, error) {
				return namespaceService(conn).ListNamespaces(ctx, &apiv1.ListNamespacesRequest{PageToken: page}, opts...)
			})
		if err != nil {
			return nil, err
		}
		all = append(all, resp.GetNamespaces()...)
		if page = resp.GetNextPageToken(); page == "" {
			return all, nil
		}
	}
}
