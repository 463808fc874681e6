package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// regd is what is measured.
type regd struct {
	binary, logStore string

	asked atomic.Uint64 // sequences of requests
}

func (*regd) name() string { return "regd" }

func (s *regd) command(node int, all []addresses, dir string) []string {
	peers := ""
	for i, a := range all {
		if i > 0 {
			peers += ","
		}
		peers += a.peer
	}
	a := all[node]
	return []string{
		s.binary, "serve", "--name", "n" + strconv.Itoa(node), "--data-dir", filepath.Join(dir, "data"), "--grpc-listen", a.client,
		"--peer-listen", a.peer, "--http-listen", a.metrics, "--initial-peers", peers,
		"--log-store", s.logStore,
	}
}

func (*regd) leads(ctx context.Context, conn *grpc.ClientConn) bool {
	s, err := apiv1.NewClusterServiceClient(conn).Status(ctx, &apiv1.StatusRequest{Local: true})
	return err == nil && s.GetHeader().GetLeader() != "" && "passthrough:///"+s.GetHeader().GetLeader() == conn.Target()
}

// request is the id of the next request of a client that makes one at a time.
func (s *regd) request(client int) *apiv1.RequestID {
	n := s.asked.Add(1)
	return &apiv1.RequestID{ClientId: "bench-" + strconv.Itoa(client), Sequence: n, AnsweredBelow: n}
}

func (s *regd) open(ctx context.Context, conn *grpc.ClientConn) (owner, error) {
	reply, err := apiv1.NewSessionServiceClient(conn).Open(ctx, &apiv1.OpenRequest{ClientName: "bench", Ttl: durationpb.New(time.Hour)})
	return owner{id: reply.GetSession().GetId()}, err
}

func (s *regd) register(ctx context.Context, conn *grpc.ClientConn, who owner, in instance) error {
	_, err := apiv1.NewRegistryServiceClient(conn).Register(ctx, &apiv1.RegisterRequest{
		RequestId: s.request(in.client), Instance: described(who, in),
	})
	return err
}

// registration returns what appends the message with which a client registers one more instance on a session: what register
// sends, but that most of it is encoded once.
func (s *regd) registration(who owner) (appendTo func(b []byte, client int) []byte) {
	same, _ := proto.Marshal(described(who, instance{})) // Nothing in it can't be encoded.
	named := func(b []byte, field protowire.Number, prefix string, n uint64) []byte {
		var name [32]byte
		return appendBytes(b, field, strconv.AppendUint(append(name[:0], prefix...), n, 10))
	}
	number := func(b []byte, field protowire.Number, n uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
	}
	return func(b []byte, client int) []byte {
		n := s.asked.Add(1)
		var space [512]byte
		request := named(space[:0], 1, "bench-", uint64(client)) //nolint:gosec // It counts from 0.
		b = appendBytes(b, 1, number(number(request, 2, n), 3, n))
		return appendBytes(b, 2, named(named(append(space[:0], same...), 2, "s", n%1000), 3, "i", n))
	}
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

func (s *regd) registerAlone(ctx context.Context, conn *grpc.ClientConn, in instance) error {
	_, err := apiv1.NewRegistryServiceClient(conn).Register(ctx, &apiv1.RegisterRequest{
		RequestId: s.request(in.client), Instance: described(owner{}, in),
		OpenSession: &apiv1.NewSession{ClientName: "bench", Ttl: durationpb.New(time.Hour)},
	})
	return err
}

// described is an instance as regd has it.
func described(who owner, in instance) *registryv1.Instance {
	metadata := map[string]string{"version": "2.14.3", "commit": in.version(), "team": "payments", "lang": "go"}
	pad(metadata, in.metadata)
	return &registryv1.Instance{
		Service: in.service, Id: in.id, SessionId: who.id, Address: "10.1.2.3", Zone: "eu-central-1a", Region: "eu-central-1",
		Ports: []*registryv1.Port{{Name: "http", Number: 8080}}, Tags: []string{"v2", "canary"}, Metadata: metadata,
	}
}

// pad fills metadata up to a size, all keys and values together, with values as long as the API takes.
func pad(metadata map[string]string, size int) {
	for key, v := range metadata {
		size -= len(key) + len(v)
	}
	const longest = 512
	for i := 0; size > 0; i++ {
		key := "p" + strconv.Itoa(i)
		n := min(longest, max(0, size-len(key)))
		metadata[key] = strings.Repeat("x", n)
		size -= len(key) + n
	}
}

func (*regd) read(ctx context.Context, conn *grpc.ClientConn, service string, linearizable bool) (int, error) {
	mode := apiv1.Mode_MODE_STALE
	if linearizable {
		mode = apiv1.Mode_MODE_LINEARIZABLE
	}
	reply, err := apiv1.NewRegistryServiceClient(conn).ListInstances(ctx, &apiv1.ListInstancesRequest{
		Filter: &apiv1.Filter{Service: service}, Freshness: &apiv1.Freshness{Mode: mode},
	})
	return len(reply.GetInstances()), err
}

func (*regd) renew(ctx context.Context, conn *grpc.ClientConn) (renewals, error) {
	stream, err := apiv1.NewSessionServiceClient(conn).Attach(ctx)
	return &regdRenewals{stream: stream}, err
}

type regdRenewals struct {
	stream       grpc.BidiStreamingClient[apiv1.AttachRequest, apiv1.AttachResponse]
	asked, acked uint64
}

func (r *regdRenewals) ask(who owner) error {
	r.asked++
	return r.stream.Send(&apiv1.AttachRequest{SessionIds: []string{who.id}, Sequence: r.asked})
}

func (r *regdRenewals) answer() (int, error) {
	reply, err := r.stream.Recv()
	switch {
	case err != nil:
		return 0, err
	case len(reply.GetEnded()) > 0:
		return 0, fmt.Errorf("sessions have ended: %v", reply.GetEnded())
	}
	n := int(reply.GetSequence() - r.acked) //nolint:gosec // Some of those under way.
	r.acked = reply.GetSequence()
	return n, nil
}

func (*regd) watch(ctx context.Context, conn *grpc.ClientConn, service string) (changes, error) {
	stream, err := apiv1.NewRegistryServiceClient(conn).WatchService(ctx, &apiv1.WatchServiceRequest{
		Filter: &apiv1.Filter{Service: service},
	})
	if err != nil {
		return nil, err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if m.GetSynced() != nil {
			return regdChanges{stream}, nil
		}
	}
}

type regdChanges struct {
	stream grpc.ServerStreamingClient[apiv1.WatchServiceResponse]
}

func (c regdChanges) next() ([]string, error) {
	for {
		m, err := c.stream.Recv()
		if err != nil {
			return nil, err
		}
		if m.GetCut() != nil || m.GetEnded() != nil {
			return nil, errors.New("the watch fell behind")
		}
		var versions []string
		for _, e := range m.GetEvents().GetEvents() {
			versions = append(versions, e.GetEvent().GetInstance().GetMetadata()["commit"])
		}
		if len(versions) > 0 {
			return versions, nil
		}
	}
}
