package discovery_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/cluster/clustertest"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"
)

// serve starts a cluster of one node with a real server on loopback.
func serve(b *testing.B) string {
	b.Helper()
	cluster := clustertest.New(b, 1)
	cluster.Ready()
	server, err := rpc.NewServer(rpc.Config{MaxReceive: 16 << 20}, cluster.Leader())
	if err != nil {
		b.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(lis) })
	b.Cleanup(func() {
		_ = server.Shutdown(context.Background())
		serving.Wait()
	})
	return lis.Addr().String()
}

// register puts n instances of a service, of about 250 bytes each.
func register(b *testing.B, address, service string, n int) {
	b.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	for from := 0; from < n; from += 1000 {
		req := &apiv1.RegisterBatchRequest{}
		for i := from; i < min(n, from+1000); i++ {
			req.Register = append(req.Register, &registryv1.Instance{
				Service: service, Id: fmt.Sprintf("%s-7c9d8f6b5-%05d", service, i), Address: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255),
				Ports: []*registryv1.Port{{Name: "http", Number: 8080}, {Name: "grpc", Number: 9090}},
				Tags:  []string{"v2", "canary"}, Metadata: map[string]string{"version": "2.14.3", "commit": "0c1d2e3f"},
				Zone: fmt.Sprintf("eu-west-1%c", 'a'+i%3), Region: "eu-west-1",
			})
		}
		if _, err := apiv1.NewRegistryServiceClient(conn).RegisterBatch(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkView reads the view of a service of 100 instances, as each call of an application does.
func BenchmarkView(b *testing.B) {
	for _, bound := range []bool{false, true} {
		b.Run(fmt.Sprintf("bound=%v", bound), func(b *testing.B) {
			r := newRegistry(b, 1)
			for n := range 100 {
				r.change(put(fmt.Sprint(n))...)
			}
			var opts []discovery.Option
			if bound {
				opts = append(opts, discovery.WithMaxStale(time.Minute))
			}
			c := r.client()
			defer c.Close()
			d, err := discovery.New(c, opts...)
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			s, err := d.Service("web")
			if err != nil {
				b.Fatal(err)
			}
			if _, err := s.View(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.Run("serial", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if v, err := s.View(b.Context()); err != nil || len(v.Healthy) != 100 {
						b.Fatal(err)
					}
				}
			})
			b.Run("parallel", func(b *testing.B) {
				b.ReportAllocs()
				ctx := b.Context()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if v, err := s.View(ctx); err != nil || len(v.Healthy) != 100 {
							b.Error(err)
							return
						}
					}
				})
			})
		})
	}
}

// BenchmarkSync is a client's first view of a service of a real server over loopback, both in one process.
func BenchmarkSync(b *testing.B) {
	address := serve(b)
	for _, n := range []int{100, 10_000} {
		service := fmt.Sprintf("s%d", n)
		register(b, address, service, n)
		b.Run(fmt.Sprintf("instances=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			var kept uint64
			for b.Loop() {
				b.StopTimer()
				before := heap()
				b.StartTimer()
				s, end := first(b, address, service, n)
				b.StopTimer()
				kept += heap() - before
				runtime.KeepAlive(s)
				end()
				b.StartTimer()
			}
			b.ReportMetric(float64(kept)/float64(b.N)/float64(n), "kept-B/instance")
		})
	}
}

// BenchmarkChange is one changed instance of a service of 10,000, from the order until the new view is there.
func BenchmarkChange(b *testing.B) {
	address := serve(b)
	register(b, address, "web", 10_000)
	s, end := first(b, address, "web", 10_000)
	defer end()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	v, err := s.View(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	id, n := v.Instances[5000].GetId(), 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		if _, err = apiv1.NewRegistryServiceClient(conn).Drain(b.Context(), &apiv1.DrainRequest{
			Key: &apiv1.InstanceKey{Namespace: "default", Service: "web", Id: id}, Cancel: n%2 == 0,
		}); err != nil {
			b.Fatal(err)
		}
		if v, err = s.Next(b.Context(), v); err != nil {
			b.Fatal(err)
		}
	}
}

// first waits for the first view of a new client.
func first(b *testing.B, address, service string, n int) (*discovery.Service, func()) {
	b.Helper()
	c, err := client.New([]string{address})
	if err != nil {
		b.Fatal(err)
	}
	d, err := discovery.New(c)
	if err != nil {
		b.Fatal(err)
	}
	s, err := d.Service(service)
	if err != nil {
		b.Fatal(err)
	}
	v, err := s.View(b.Context())
	if err != nil || len(v.Instances) != n {
		b.Fatalf("view %v, error %v", v, err)
	}
	return s, func() {
		d.Close()
		_ = c.Close()
	}
}

// heap is what is in use after a collection.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
