package rpc

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// benchInstance is an instance as services register it: about 230 bytes.
func benchInstance(service, id string) *registryv1.Instance {
	return &registryv1.Instance{
		Service: service, Id: id, Address: "10.1.2.3", Zone: "eu-central-1a", Region: "eu-central-1",
		Ports: []*registryv1.Port{{Name: "http", Number: 8080}}, Tags: []string{"v2", "canary"},
		Metadata: map[string]string{"version": "2.14.3", "commit": "0f3a9c1", "team": "payments", "lang": "go"},
	}
}

// BenchmarkRegisterHandler is what a node does to a registration besides gRPC and the log: it checks it, encodes it and makes
// the answer.
func BenchmarkRegisterHandler(b *testing.B) {
	var f faults
	req := &apiv1.RegisterRequest{RequestId: &apiv1.RequestID{ClientId: "bench-1", Sequence: 1}, Instance: benchInstance("web", "1")}
	b.Run("check", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if f.instance("instance", req.GetInstance(), nil) == nil || f.err() != nil {
				b.Fatal(f.err())
			}
		}
	})
	spec := f.instance("instance", req.GetInstance(), nil)
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := encodeSpec(spec); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("request id", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			f.request(req)
		}
	})
	data, _ := proto.Marshal(req)
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := proto.Unmarshal(data, new(apiv1.RegisterRequest)); err != nil {
				b.Fatal(err)
			}
		}
	})
	r := newRig(b)
	server := &registryServer{core: r.server.core}
	b.Run("handler", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			req.RequestId.Sequence++
			req.Instance.Id = fmt.Sprint(i % 100)
			if _, err := server.Register(bg, req); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkListHandler reads a service of ten.
func BenchmarkListHandler(b *testing.B) {
	r := newRig(b)
	for i := range 10 {
		r.register(b, benchInstance("web", fmt.Sprint(i)))
	}
	server, send := &registryServer{core: r.server.core}, sent(b)
	b.Run("list", func(b *testing.B) {
		b.ReportAllocs()
		req := &apiv1.ListInstancesRequest{Filter: &apiv1.Filter{Service: "web"}}
		for b.Loop() {
			send(server.listInstances(bg, req))
		}
	})
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		req := &apiv1.GetRequest{Key: &apiv1.InstanceKey{Service: "web", Id: "1"}}
		for b.Loop() {
			send(server.get(bg, req))
		}
	})
}

// sent does to an answer what gRPC does: it encodes it and frees the buffer.
func sent(tb testing.TB) func(*encoded, error) {
	tb.Helper()
	c := newCodec()
	return func(answer *encoded, err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		data, err := c.Marshal(answer)
		if err != nil {
			tb.Fatal(err)
		}
		data.Free()
	}
}

// BenchmarkInterceptor is what a unary call costs besides gRPC and its handler.
func BenchmarkInterceptor(b *testing.B) {
	call, ctx := intercepted(b)
	b.ReportAllocs()
	for b.Loop() {
		call(ctx)
	}
}

// intercepted returns a call that does nothing, with what every call goes through, and a context as clients' calls have it.
func intercepted(tb testing.TB) (func(context.Context), context.Context) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(bg, time.Minute)
	tb.Cleanup(cancel)
	server, req := newRig(tb).server, &apiv1.ListInstancesRequest{}
	info := &grpc.UnaryServerInfo{FullMethod: apiv1.RegistryService_ListInstances_FullMethodName}
	handler := func(context.Context, any) (any, error) { return req, nil }
	return func(ctx context.Context) {
		if _, err := server.unary(ctx, req, info, handler); err != nil {
			tb.Fatal(err)
		}
	}, ctx
}

// BenchmarkRefusedRegister is a registration that an overloaded node refuses, with what the client does for it.
func BenchmarkRefusedRegister(b *testing.B) {
	r := newRig(b)
	r.server.core.admission.inFlight.Store(r.server.core.admission.limit)
	defer r.server.core.admission.inFlight.Store(0)
	req := &apiv1.RegisterRequest{Instance: benchInstance("web", "1")}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.registry.Register(bg, req); err == nil {
			b.Fatal("a registration was let in")
		}
	}
}
