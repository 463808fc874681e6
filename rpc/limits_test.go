package rpc

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/cluster"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// limit is a limit of requests: at it a call works, one beyond it is refused with the field, the limit and the value.
type limit struct {
	// limit is the constant.
	limit string
	// call makes a call with a value that is n beyond the limit (0: at it).
	call func(t *testing.T, r *rig, n int) error
	// field and mentions are what the error names.
	field    string
	mentions []string
}

// requestLimits are the limits that TestInstanceLimits and others do not show.
func requestLimits() []limit {
	checked := func(change func(c *registryv1.Check, n int)) func(*testing.T, *rig, int) error {
		return func(_ *testing.T, r *rig, n int) error {
			in := instance("web", "1")
			in.Ports = []*registryv1.Port{{Name: "main", Number: 80}}
			in.Checks = []*registryv1.Check{{Name: "c"}}
			change(in.GetChecks()[0], n)
			_, err := r.registry.Register(bg, &apiv1.RegisterRequest{Instance: in})
			return err
		}
	}
	http := func(change func(h *registryv1.HTTPCheck, n int)) func(*testing.T, *rig, int) error {
		return checked(func(c *registryv1.Check, n int) {
			h := &registryv1.HTTPCheck{}
			change(h, n)
			c.Kind = &registryv1.Check_Http{Http: h}
		})
	}
	list := func(change func(f *apiv1.Filter, n int)) func(*testing.T, *rig, int) error {
		return func(t *testing.T, r *rig, n int) error {
			f := &apiv1.Filter{}
			change(f, n)
			_, err := r.registry.ListInstances(bg, &apiv1.ListInstancesRequest{Filter: f})
			return err
		}
	}
	stale := func(d time.Duration, sign int) func(*testing.T, *rig, int) error {
		return func(t *testing.T, r *rig, n int) error {
			_, err := r.registry.ListServices(bg, &apiv1.ListServicesRequest{Freshness: &apiv1.Freshness{
				Mode: apiv1.Mode_MODE_BOUNDED, MaxStaleness: durationpb.New(d + time.Duration(sign*n)),
			}})
			return err
		}
	}
	ttl := func(d time.Duration, sign int) func(*testing.T, *rig, int) error {
		return func(t *testing.T, r *rig, n int) error {
			_, err := r.leases.Grant(bg, &apiv1.GrantRequest{Ttl: durationpb.New(d + time.Duration(sign*n))})
			return err
		}
	}
	host := strings.Repeat(long(62)+".", 16) // 1,008 bytes
	return []limit{
		{"MaxCheckURLLen", http(func(h *registryv1.HTTPCheck, n int) { h.Url = "http://a/" + long(MaxCheckURLLen-9+n) }), "instance.checks[0].http.url", []string{"1024", "1025"}},
		{"MaxCheckURLLen", http(func(h *registryv1.HTTPCheck, n int) { h.Path = "/" + long(MaxCheckURLLen-1+n) }), "instance.checks[0].http.path", []string{"1024", "1025"}},
		{"MaxCheckURLLen", checked(func(c *registryv1.Check, n int) {
			c.Kind = &registryv1.Check_Grpc{Grpc: &registryv1.GRPCCheck{Service: long(MaxCheckURLLen + n)}}
		}), "instance.checks[0].grpc.service", []string{"1024", "1025"}},
		{"MaxCheckURLLen", checked(func(c *registryv1.Check, n int) {
			c.Kind = &registryv1.Check_Tcp{Tcp: &registryv1.TCPCheck{Address: host + long(MaxCheckURLLen-len(host)-3+n) + ":80"}}
		}), "instance.checks[0].tcp.address", []string{"1024", "1025"}},
		{"MaxCheckHeaderLen", http(func(h *registryv1.HTTPCheck, n int) { h.Headers = map[string]string{long(MaxCheckHeaderLen + n): ""} }), "instance.checks[0].http.headers", []string{"512", "513"}},
		{"MaxCheckHeaderLen", http(func(h *registryv1.HTTPCheck, n int) { h.Headers = map[string]string{"a": long(MaxCheckHeaderLen + n)} }), `instance.checks[0].http.headers["a"]`, []string{"512", "513"}},
		{"MaxCheckBodyLen", http(func(h *registryv1.HTTPCheck, n int) { h.BodyContains = long(MaxCheckBodyLen + n) }), "instance.checks[0].http.body_contains", []string{"1024", "1025"}},
		{"MaxCheckOutputLen", func(t *testing.T, r *rig, n int) error {
			r.node.put(t, withTTL("beat"))
			_, err := r.registry.SetHealth(bg, &apiv1.SetHealthRequest{
				Key: webKey("1"), Status: registryv1.CheckStatus_CHECK_STATUS_WARNING, Output: long(MaxCheckOutputLen + n),
			})
			return err
		}, "output", []string{"256", "257"}},
		{"MaxTTL", ttl(MaxTTL, 1), "ttl", []string{"24h0m0s", "24h0m0.000000001s"}},
		{"MinTTL", ttl(MinTTL, -1), "ttl", []string{"2s", "1.999999999s"}},
		{"MaxClientNameLen", func(t *testing.T, r *rig, n int) error {
			_, err := r.sessions.Open(bg, &apiv1.OpenRequest{ClientName: long(MaxClientNameLen + n)})
			return err
		}, "client_name", []string{"128", "129"}},
		{"MaxIDLen", func(t *testing.T, r *rig, n int) error {
			_, err := r.sessions.Close(bg, &apiv1.CloseRequest{SessionId: long(MaxIDLen + n)})
			return err
		}, "session_id", []string{"64", "65"}},
		{"MaxIDLen", func(t *testing.T, r *rig, n int) error {
			_, err := r.leases.Revoke(bg, &apiv1.RevokeRequest{LeaseId: long(MaxIDLen + n)})
			return err
		}, "lease_id", []string{"64", "65"}},
		{"MaxIDLen", func(t *testing.T, r *rig, n int) error {
			_, err := r.sessions.Open(bg, &apiv1.OpenRequest{RequestId: &apiv1.RequestID{ClientId: long(MaxIDLen + n), Sequence: 1}})
			return err
		}, "request_id.client_id", []string{"64", "65"}},
		{"MaxRenewals", func(t *testing.T, r *rig, n int) error {
			ids := make([]string, MaxRenewals+n)
			for i := range ids {
				ids[i] = "s"
			}
			stream, err := r.leases.KeepAlive(t.Context())
			if err == nil {
				err = stream.Send(&apiv1.KeepAliveRequest{LeaseIds: ids})
			}
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}, "lease_ids", []string{"10000", "10001"}},
		{"MaxFilterTerms", list(func(f *apiv1.Filter, n int) {
			many(MaxFilterTerms+n, func(i int) { f.Tags = append(f.Tags, fmt.Sprint(i)) })
		}), "filter.tags", []string{"16", "17"}},
		{"MaxFilterTerms", list(func(f *apiv1.Filter, n int) {
			f.Metadata = map[string]string{}
			many(MaxFilterTerms+n, func(i int) { f.Metadata[fmt.Sprint(i)] = "v" })
		}), "filter.metadata", []string{"16", "17"}},
		{"MaxTagLen", list(func(f *apiv1.Filter, n int) { f.Tags = []string{long(MaxTagLen + n)} }), "filter.tags[0]", []string{"128", "129"}},
		{"MaxZoneLen", list(func(f *apiv1.Filter, n int) { f.Zone = long(MaxZoneLen + n) }), "filter.zone", []string{"64", "65"}},
		{"MaxServiceLen", func(t *testing.T, r *rig, n int) error {
			_, err := r.registry.ListServices(bg, &apiv1.ListServicesRequest{Prefix: long(MaxServiceLen + n)})
			return err
		}, "prefix", []string{"128", "129"}},
		{"MaxStaleness", stale(MaxStaleness, 1), "freshness.max_staleness", []string{"1h0m0s", "1h0m0.000000001s"}},
		{"MinStaleness", stale(MinStaleness, -1), "freshness.max_staleness", []string{"1ms", "999.999µs"}},
		{"MaxNodeNameLen", func(t *testing.T, r *rig, n int) error {
			_, err := r.cluster.Promote(bg, &apiv1.PromoteRequest{Node: long(MaxNodeNameLen + n)})
			return err
		}, "node", []string{"64", "65"}},
		{"MaxCheckURLLen", func(t *testing.T, r *rig, n int) error {
			_, err := r.cluster.Join(bg, &apiv1.JoinRequest{PeerAddress: host + long(MaxCheckURLLen-len(host)-3+n) + ":80"})
			return err
		}, "peer_address", []string{"1024", "1025"}},
		{"MaxNamespaceLen", func(t *testing.T, r *rig, n int) error {
			_, err := r.locks.ListLocks(bg, &apiv1.ListLocksRequest{Namespace: long(MaxNamespaceLen + n)})
			return err
		}, "namespace", []string{"63", "64"}},
	}
}

// withTTL is an instance with a TTL check.
func withTTL(name string) *registryv1.Instance {
	in := instance("web", "1")
	in.Checks = []*registryv1.Check{ttlCheck(name, time.Minute)}
	return in
}

func TestRequestLimits(t *testing.T) {
	r := newRig(t)
	for _, tt := range requestLimits() {
		t.Run(tt.limit+" of "+tt.field, func(t *testing.T) {
			if err := tt.call(t, r, 0); err != nil {
				t.Errorf("at the limit: %v", err)
			}
			err := tt.call(t, r, 1)
			wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
			for _, part := range append(tt.mentions, tt.field+": ") {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q doesn't say %q", err, part)
				}
			}
			r.register(t, instance("alive", "1"))
		})
	}
}

func TestProgressIntervalsAreLimited(t *testing.T) {
	r := newRig(t)
	first := func(d time.Duration) *apiv1.WatchServiceResponse {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream, err := r.registry.WatchService(ctx, &apiv1.WatchServiceRequest{ProgressInterval: durationpb.New(d)})
		if err != nil {
			t.Fatal(err)
		}
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for at, beyond := range map[time.Duration]time.Duration{
		MinProgressInterval: MinProgressInterval - 1, MaxProgressInterval: MaxProgressInterval + 1,
	} {
		if m := first(at); m.GetCut() == nil {
			t.Errorf("at the limit: %v", m)
		}
		end := first(beyond).GetEnded()
		if end.GetReason() != "INVALID_ARGUMENT" || !strings.Contains(end.GetMessage(), "progress_interval: ") ||
			!strings.Contains(end.GetMessage(), at.String()) || !strings.Contains(end.GetMessage(), beyond.String()) {
			t.Errorf("beyond the limit: %v", end)
		}
	}
}

// TestSnapshotsAreLimited counts the last bytes only: a snapshot of 1 GiB is too large for a test.
func TestSnapshotsAreLimited(t *testing.T) {
	upload := framed(t, &apiv1.RestoreSnapshotRequest{Chunk: make([]byte, 10)}, &apiv1.RestoreSnapshotRequest{Chunk: make([]byte, 1)})
	stream := &grpc.GenericServerStream[apiv1.RestoreSnapshotRequest, apiv1.RestoreSnapshotResponse]{
		ServerStream: &script{t: t, ctx: t.Context(), rest: upload},
	}
	r := &chunkReader{stream: stream, left: 10}
	if n, err := r.Read(make([]byte, 100)); n != 10 || err != nil {
		t.Errorf("at the limit: %d, %v", n, err)
	}
	_, err := r.Read(make([]byte, 100))
	if !errors.Is(err, cluster.ErrBadSnapshot) || !strings.Contains(err.Error(), fmt.Sprint(MaxSnapshotBytes)) {
		t.Errorf("beyond the limit: %v", err)
	}
}

// TestEveryLimitIsTested holds that a limit of requests is not only written down.
func TestEveryLimitIsTested(t *testing.T) {
	// By value, in TestInstanceLimits and TestPagesAreBoundedInBytes, and above.
	shown := map[string]bool{
		"MaxPageBytes": true, "MaxSnapshotBytes": true, "MaxProgressInterval": true, "MinProgressInterval": true,
		"MaxAddressLen": true, "MaxChecks": true, "MaxCheckCount": true, "MaxCheckHeaders": true, "MaxCheckInterval": true,
		"MaxCheckNameLen": true, "MaxCheckTTL": true, "MaxInstanceIDLen": true, "MaxMetadata": true, "MaxMetadataBytes": true,
		"MaxMetadataKeyLen": true, "MaxMetadataValueLen": true, "MaxPort": true, "MaxPortNameLen": true, "MaxPorts": true,
		"MaxTags": true, "MaxWeight": true, "MinCheckInterval": true, "MinCheckTTL": true, "MinCheckTimeout": true,
		"MinDeregisterCriticalAfter": true,
	}
	for _, l := range requestLimits() {
		shown[l.limit] = true
	}
	files := token.NewFileSet()
	tests, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range tests {
		if name == "limits_test.go" {
			continue
		}
		ast.Inspect(parsed(t, files, name), func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok {
				shown[id.Name] = true
			}
			return true
		})
	}
	limits := 0
	for _, name := range []string{"limits.go", "watch.go"} {
		for name := range parsed(t, files, name).Scope.Objects {
			if !strings.HasPrefix(name, "Max") && !strings.HasPrefix(name, "Min") {
				continue
			}
			if limits++; !shown[name] {
				t.Errorf("no test shows %s", name)
			}
		}
	}
	if limits < 40 {
		t.Errorf("only %d limits were found", limits)
	}
}

func parsed(t *testing.T, files *token.FileSet, name string) *ast.File {
	t.Helper()
	file, err := parser.ParseFile(files, name, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	return file
}
