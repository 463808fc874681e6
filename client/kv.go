package client

import (
	"context"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// KV reads and changes keys. Its methods are safe for concurrent use. An empty namespace is the client's.
//
// A key that is not there fails with an error that matches ErrKeyNotFound, a condition that does not hold with one that matches
// ErrRevisionMismatch, ErrKeyExists, ErrLockHeld or ErrLockNotHeld.
type KV struct{ c *Client }

// KV returns the calls about keys.
func (c *Client) KV() *KV { return &KV{c: c} }

func kvService(conn grpc.ClientConnInterface) apiv1.KVServiceClient {
	return apiv1.NewKVServiceClient(conn)
}

// Get returns a key.
func (k *KV) Get(ctx context.Context, namespace, key string, opts ...ReadOption) (*registryv1.KeyValue, error) {
	op := "get key " + k.c.namespace(namespace) + "/" + key
	fresh, err := freshness(op, opts)
	if err != nil {
		return nil, err
	}
	req := &apiv1.GetKeyRequest{Namespace: k.c.namespace(namespace), Key: key, Freshness: fresh}
	resp, err := read(ctx, k.c, op,
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.GetKeyResponse, error) {
			return kvService(conn).GetKey(ctx, req, opts...)
		})
	return resp.GetKeyValue(), err
}

// List returns the keys of a namespace that begin with the prefix, in order of their bytes, without their values if keysOnly.
func (k *KV) List(ctx context.Context, namespace, prefix string, keysOnly bool, opts ...ReadOption) ([]*registryv1.KeyValue, error) {
	op := "list keys " + k.c.namespace(namespace) + "/" + prefix
	fresh, err := freshness(op, opts)
	if err != nil {
		return nil, err
	}
	var all []*registryv1.KeyValue
	_, err = pages(ctx, k.c, op, func(token string) send[*apiv1.ListKeysResponse] {
		req := &apiv1.ListKeysRequest{
			Namespace: k.c.namespace(namespace), Prefix: prefix, KeysOnly: keysOnly, Freshness: fresh, PageToken: token,
		}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.ListKeysResponse, error) {
			return kvService(conn).ListKeys(ctx, req, opts...)
		}
	}, func(first bool, resp *apiv1.ListKeysResponse) {
		if first {
			all = nil
		}
		all = append(all, resp.GetKeyValues()...)
	})
	return all, err
}

// Put puts a value as the request says, whose request id is the client's to choose, and returns the revision of the change.
func (k *KV) Put(ctx context.Context, put *apiv1.PutKeyRequest) (revision uint64, err error) {
	namespace := k.c.namespace(put.GetNamespace())
	resp, err := write(ctx, k.c, "put key "+namespace+"/"+put.GetKey(), func(id *apiv1.RequestID) send[*apiv1.PutKeyResponse] {
		req := &apiv1.PutKeyRequest{
			RequestId: id, Namespace: namespace, Key: put.GetKey(), Value: put.GetValue(), Flags: put.GetFlags(),
			ExpectedRevision: put.GetExpectedRevision(), MustBeAbsent: put.GetMustBeAbsent(), SessionId: put.GetSessionId(),
		}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.PutKeyResponse, error) {
			return kvService(conn).PutKey(ctx, req, opts...)
		}
	})
	return resp.GetHeader().GetRevision(), err
}

// Delete deletes what the request says, whose request id is the client's to choose. changed is false if there was nothing to
// delete.
func (k *KV) Delete(ctx context.Context, order *apiv1.DeleteKeyRequest) (changed bool, err error) {
	namespace := k.c.namespace(order.GetNamespace())
	resp, err := write(ctx, k.c, "delete key "+namespace+"/"+order.GetKey(), func(id *apiv1.RequestID) send[*apiv1.DeleteKeyResponse] {
		req := &apiv1.DeleteKeyRequest{
			RequestId: id, Namespace: namespace, Key: order.GetKey(), Prefix: order.GetPrefix(),
			ExpectedRevision: order.GetExpectedRevision(),
		}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.DeleteKeyResponse, error) {
			return kvService(conn).DeleteKey(ctx, req, opts...)
		}
	})
	return resp.GetChanged(), err
}

// Transact applies operations on keys of one namespace as one change: all, or none if one of them fails. changed is false if
// there was nothing to change.
func (k *KV) Transact(ctx context.Context, namespace string, ops ...*apiv1.KeyOp) (changed bool, err error) {
	namespace = k.c.namespace(namespace)
	resp, err := write(ctx, k.c, "change keys of "+namespace, func(id *apiv1.RequestID) send[*apiv1.TransactResponse] {
		req := &apiv1.TransactRequest{RequestId: id, Namespace: namespace, Ops: ops}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.TransactResponse, error) {
			return kvService(conn).Transact(ctx, req, opts...)
		}
	})
	return resp.GetChanged(), err
}
