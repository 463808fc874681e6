package rpc

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

func TestClassesAreOrdered(t *testing.T) {
	for c := range classes - 1 {
		if c.share() <= (c + 1).share() {
			t.Errorf("%v is let in up to %d %%, %v up to %d %%", c, c.share(), c+1, (c + 1).share())
		}
	}
	if classRenew.share() != 100 {
		t.Error("renewals are refused before the limit")
	}
}

// Every unary method of the API has the class that is meant, so that a new one is not forgotten.
func TestEveryMethodHasAClass(t *testing.T) {
	want := map[string]class{
		"Register": classRegister, "RegisterBatch": classRegister, "Deregister": classDeregister, "AwaitDelivery": classDeregister,
		"SetHealth": classHealth, "Drain": classHealth, "SetMaintenance": classHealth,
		"Get": classList, "ListServices": classList, "ListInstances": classList,
		"Open": classRegister, "Renew": classRenew, "Close": classDeregister, "List": classList,
		"Grant": classRegister, "Revoke": classDeregister, "GetLease": classList, "ListLeases": classList,
		"Acquire": classRegister, "Release": classDeregister, "GetLock": classList, "ListLocks": classList,
		"Status": classRenew, "Members": classRenew, "Join": classRenew, "Remove": classRenew, "Promote": classRenew,
		"Demote": classRenew, "TransferLeadership": classRenew, "Verify": classRenew,
		"Bootstrap": classRenew, "SetEnforcement": classRenew, "PutPolicy": classRenew, "DeletePolicy": classRenew,
		"ListPolicies": classRenew, "CreateToken": classRenew, "DeleteToken": classRenew, "ListTokens": classRenew,
		"PutGrant": classRenew, "DeleteGrant": classRenew, "ListGrants": classRenew, "WhoAmI": classRenew,
		"PutNamespace": classRenew, "GetNamespace": classList, "ListNamespaces": classList, "DeleteNamespace": classRenew, "Explain": classList,
		"GetKey": classList, "ListKeys": classList, "PutKey": classRegister, "DeleteKey": classDeregister, "Transact": classRegister,
	}
	r := newRig(t)
	for service, info := range r.server.grpc.GetServiceInfo() {
		if !strings.HasPrefix(service, "regd.") {
			continue
		}
		for _, m := range info.Methods {
			if m.IsClientStream || m.IsServerStream {
				continue
			}
			c, known := want[m.Name]
			if got := classOf("/" + service + "/" + m.Name); !known || got != c {
				t.Errorf("%s/%s has class %v, want %v (known here: %v)", service, m.Name, got, c, known)
			}
		}
	}
}

func TestMessagesAreLimited(t *testing.T) {
	r := newRig(t)
	_, err := r.locks.Acquire(bg, &apiv1.AcquireRequest{Name: "l", SessionId: "s", Value: make([]byte, DefaultMaxReceive)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message beyond the limit: %v", err)
	}
	_, err = r.locks.Acquire(bg, &apiv1.AcquireRequest{Name: "l", SessionId: "s", Value: make([]byte, DefaultMaxReceive-100)})
	wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
	r.register(t, instance("web", "1")) // The connection lives on.
}

func TestHeadersAreLimited(t *testing.T) {
	r := newRig(t)
	_, err := r.registry.Get(bg, &apiv1.GetRequest{Key: webKey("1")}, grpc.PerRPCCredsCallOption{Creds: hugeHeader{}})
	if err == nil || status.Code(err) == codes.NotFound {
		t.Errorf("a header beyond the limit: %v", err)
	}
}

type hugeHeader struct{}

func (hugeHeader) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"x": long(maxHeaderBytes)}, nil
}

func (hugeHeader) RequireTransportSecurity() bool { return false }

func TestReflectionNamesTheServices(t *testing.T) {
	r := newRig(t)
	stream, err := reflectionpb.NewServerReflectionClient(r.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{},
	})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil || !strings.Contains(resp.String(), "regd.api.v1.RegistryService") {
		t.Errorf("reflection: %v, %v", resp, err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
}

func TestMetricsExistBeforeTheFirstCall(t *testing.T) {
	r := newRig(t)
	reg := prometheus.NewRegistry()
	for _, c := range r.server.Collectors() {
		if err := reg.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]int{}
	for _, f := range families {
		have[f.GetName()] = len(f.GetMetric())
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", f.GetName())
		}
	}
	if have["grpc_server_handled_total"] == 0 || have["grpc_server_handling_seconds"] == 0 {
		t.Errorf("metrics %v lack those of gRPC", have)
	}
	if have["regd_admission_rejected_total"] != int(classes) || have["regd_requests_in_flight"] != 1 {
		t.Errorf("metrics %v lack those of admission", have)
	}
	before := have["grpc_server_started_total"]
	for i := range 10 {
		r.register(t, instance("web", string(rune('a'+i))))
	}
	families, err = reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "grpc_server_started_total" && len(f.GetMetric()) != before {
			t.Errorf("%d series after some calls, %d before", len(f.GetMetric()), before)
		}
	}
}

func TestConfigIsValidated(t *testing.T) {
	_, err := NewServer(Config{MaxReceive: 1, MaxConns: -1}, newFakeNode(t))
	if err == nil || !strings.Contains(err.Error(), "max receive 1") || !strings.Contains(err.Error(), "max connections -1") {
		t.Errorf("error %v, want both faults", err)
	}
}

func TestShutdownBeforeServeAndTwice(t *testing.T) {
	s, err := NewServer(Config{}, newFakeNode(t))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err = s.Shutdown(bg); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(lis); err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

// limitUse returns what the metrics of a server say of a limit.
func limitUse(t *testing.T, s *Server, resource string) (used, limit float64) {
	t.Helper()
	reg := prometheus.NewRegistry()
	for _, c := range s.limitCollectors() {
		reg.MustRegister(c)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			switch {
			case len(m.GetLabel()) == 0 || m.GetLabel()[0].GetValue() != resource:
			case f.GetName() == "regd_limit_used":
				used = m.GetGauge().GetValue()
			case f.GetName() == "regd_limit":
				limit = m.GetGauge().GetValue()
			}
		}
	}
	return used, limit
}

func TestConnectionsAreLimited(t *testing.T) {
	for name, limits := range map[string][2]int{"in all": {2, 10}, "from one address": {10, 2}} {
		t.Run(name, func(t *testing.T) {
			inner, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			conns := newConnections(limits[0], limits[1])
			lis := &limitListener{inner, conns}
			accepted := make(chan net.Conn, 10)
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					c, err := lis.Accept()
					if err != nil {
						return
					}
					accepted <- c
				}
			})
			defer wg.Wait()
			defer lis.Close()
			dial := func() net.Conn {
				t.Helper()
				c, err := net.Dial("tcp", inner.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close() })
				return c
			}
			dial()
			dial()
			first, _ := <-accepted, <-accepted
			if _, err := dial().Read(make([]byte, 1)); err == nil {
				t.Error("a third connection stays open")
			}
			total, perIP := conns.used()
			refusedTotal, refusedPerIP := conns.refusals()
			if total != 2 || perIP != 2 || refusedTotal+refusedPerIP != 1 || (refusedTotal == 1) != (name == "in all") {
				t.Errorf("%d are open, %d from one address; refused were %d and %d", total, perIP, refusedTotal, refusedPerIP)
			}
			_ = first.Close()
			_ = first.Close() // Closing twice frees one place.
			dial()
			<-accepted
			if _, err := dial().Read(make([]byte, 1)); err == nil {
				t.Error("a fourth connection stays open")
			}
		})
	}
}

func TestServerWorksOverTCP(t *testing.T) {
	s, err := NewServer(Config{}, newFakeNode(t))
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(lis) }()
	conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := apiv1.NewClusterServiceClient(conn).Status(bg, &apiv1.StatusRequest{}); err != nil {
		t.Errorf("Status: %v", err)
	}
	if err := s.Shutdown(bg); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}
