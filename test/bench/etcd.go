package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// etcd is what regd is held against. An instance is a key below its service's, with a value of JSON, as is usual.
type etcd struct{ binary string }

func (*etcd) name() string { return "etcd" }

func (s *etcd) command(node int, all []addresses, dir string) []string {
	name := func(i int) string { return "n" + strconv.Itoa(i) }
	initial := ""
	for i, a := range all {
		if i > 0 {
			initial += ","
		}
		initial += name(i) + "=http://" + a.peer
	}
	a := all[node]
	return []string{
		s.binary, "--name", name(node), "--data-dir", filepath.Join(dir, "data"), "--log-level", "error",
		"--listen-client-urls", "http://" + a.client, "--advertise-client-urls", "http://" + a.client,
		"--listen-peer-urls", "http://" + a.peer, "--initial-advertise-peer-urls", "http://" + a.peer,
		"--initial-cluster", initial, "--initial-cluster-state", "new", "--initial-cluster-token", filepath.Base(filepath.Dir(dir)),
		"--quota-backend-bytes", strconv.Itoa(8 << 30),
	}
}

func (*etcd) leads(ctx context.Context, conn *grpc.ClientConn) bool {
	s, err := etcdserverpb.NewMaintenanceClient(conn).Status(ctx, &etcdserverpb.StatusRequest{})
	return err == nil && s.Leader != 0 && s.Leader == s.Header.MemberId
}

func (*etcd) open(ctx context.Context, conn *grpc.ClientConn) (owner, error) {
	reply, err := etcdserverpb.NewLeaseClient(conn).LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{TTL: 3600})
	if err != nil {
		return owner{}, err
	}
	return owner{number: reply.ID}, nil
}

// value is an instance as it is stored.
type value struct {
	Service  string            `json:"service"`
	ID       string            `json:"id"`
	Address  string            `json:"address"`
	Port     int               `json:"port"`
	Zone     string            `json:"zone"`
	Tags     []string          `json:"tags"`
	Metadata map[string]string `json:"metadata"`
}

func (*etcd) register(ctx context.Context, conn *grpc.ClientConn, who owner, in instance) error {
	v, err := json.Marshal(value{
		Service: in.service, ID: in.id, Address: "10.1.2.3", Port: 8080, Zone: "eu-central-1a", Tags: []string{"v2", "canary"},
		Metadata: map[string]string{"version": "2.14.3", "commit": in.version(), "team": "payments", "lang": "go"},
	})
	if err != nil {
		return err
	}
	_, err = etcdserverpb.NewKVClient(conn).Put(ctx, &etcdserverpb.PutRequest{
		Key: []byte(prefix(in.service) + in.id), Value: v, Lease: who.number,
	})
	return err
}

func (s *etcd) registerAlone(ctx context.Context, conn *grpc.ClientConn, in instance) error {
	who, err := s.open(ctx, conn)
	if err != nil {
		return err
	}
	return s.register(ctx, conn, who, in)
}

func prefix(service string) string { return "/services/" + service + "/" }

// beyond is the first key that does not begin with a service's prefix.
func beyond(service string) []byte {
	b := []byte(prefix(service))
	b[len(b)-1]++
	return b
}

func (*etcd) read(ctx context.Context, conn *grpc.ClientConn, service string, linearizable bool) (int, error) {
	reply, err := etcdserverpb.NewKVClient(conn).Range(ctx, &etcdserverpb.RangeRequest{
		Key: []byte(prefix(service)), RangeEnd: beyond(service), Serializable: !linearizable,
	})
	if err != nil {
		return 0, err
	}
	for _, kv := range reply.Kvs { // What regd's answer needs no further decoding for.
		var v value
		if err := json.Unmarshal(kv.Value, &v); err != nil {
			return 0, err
		}
	}
	return len(reply.Kvs), nil
}

func (*etcd) renew(ctx context.Context, conn *grpc.ClientConn) (renewals, error) {
	stream, err := etcdserverpb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
	return etcdRenewals{stream}, err
}

type etcdRenewals struct {
	stream etcdserverpb.Lease_LeaseKeepAliveClient
}

func (r etcdRenewals) ask(who owner) error {
	return r.stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: who.number})
}

func (r etcdRenewals) answer() (int, error) {
	reply, err := r.stream.Recv()
	switch {
	case err != nil:
		return 0, err
	case reply.TTL <= 0:
		return 0, fmt.Errorf("lease %d has ended", reply.ID)
	}
	return 1, nil
}

func (*etcd) watch(ctx context.Context, conn *grpc.ClientConn, service string) (changes, error) {
	stream, err := etcdserverpb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		return nil, err
	}
	err = stream.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{
		CreateRequest: &etcdserverpb.WatchCreateRequest{Key: []byte(prefix(service)), RangeEnd: beyond(service)},
	}})
	if err != nil {
		return nil, err
	}
	if _, err = stream.Recv(); err != nil { // That it was created.
		return nil, err
	}
	return etcdChanges{stream}, nil
}

type etcdChanges struct {
	stream etcdserverpb.Watch_WatchClient
}

func (c etcdChanges) next() ([]string, error) {
	for {
		reply, err := c.stream.Recv()
		switch {
		case err != nil:
			return nil, err
		case reply.Canceled:
			return nil, fmt.Errorf("the watch was cancelled: %s", reply.CancelReason)
		}
		var versions []string
		for _, e := range reply.Events {
			var v value
			if err := json.Unmarshal(e.Kv.Value, &v); err != nil {
				return nil, err
			}
			versions = append(versions, v.Metadata["commit"])
		}
		if len(versions) > 0 {
			return versions, nil
		}
	}
}
