package fsm_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// everything is an instance that uses every field of the specification.
func everything() *registryv1.Instance {
	return &registryv1.Instance{
		Namespace: "default", Service: "web", Id: "a", Address: "10.0.0.1",
		Ports: []*registryv1.Port{{Name: "main", Number: 80}, {Name: "admin", Number: 81}},
		Tags:  []string{"blue", "grün"}, Metadata: map[string]string{"k": "v", "empty": "", "": "no key"},
		Zone: "z", Region: "r", Weight: 7,
		Checks: []*registryv1.Check{
			{
				Name: "http", Interval: durationpb.New(1e9), Timeout: durationpb.New(5e8), Rise: 1, Fall: 2,
				Kind: &registryv1.Check_Http{Http: &registryv1.HTTPCheck{
					Url: "http://x", Port: "main", Path: "/", Method: "GET", Headers: map[string]string{"a": "b"},
					StatusMin: 200, StatusMax: 299, BodyContains: "ok",
					Tls: &registryv1.CheckTLS{ServerName: "x", SkipVerify: true},
				}},
			},
			{Name: "tcp", Kind: &registryv1.Check_Tcp{Tcp: &registryv1.TCPCheck{Address: "x:1", Port: "main"}}},
			{Name: "grpc", Kind: &registryv1.Check_Grpc{Grpc: &registryv1.GRPCCheck{
				Service: "s", Tls: &registryv1.CheckTLS{},
			}}},
			{
				Name: "ttl", Initial: registryv1.CheckStatus_CHECK_STATUS_WARNING,
				Kind: &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(3e9)}},
			},
		},
		SessionId: "s", LeaseId: "l", DeregisterCriticalAfter: durationpb.New(60e9),
	}
}

// TestRecordShowsTheInstance holds that a record is what was registered, and what the registry says of it, twice: in its
// header and in its bytes.
func TestRecordShowsTheInstance(t *testing.T) {
	m := newMachine(t)
	m.must(openSession("s"))
	m.must(grantLease("l", ""))
	o := m.must(register(t, everything()))
	r := m.st.Instance("default", "web", "a")
	want := everything()
	want.Incarnation, want.CreateRevision, want.ModifyRevision = o.Number, 3, 3
	want.Health, want.RegisteredUnixMs = registryv1.Health_HEALTH_STARTING, m.time
	for _, c := range want.GetChecks() {
		status := max(c.GetInitial(), registryv1.CheckStatus_CHECK_STATUS_STARTING)
		want.CheckStates = append(want.CheckStates, &registryv1.CheckState{
			Name: c.GetName(), Status: status, ChangedRevision: 3, ChangedUnixMs: m.time,
		})
	}
	got, err := r.Proto()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
	if !bytes.Equal(r.Spec(), encode(t, everything())) || !bytes.HasPrefix(r.Encoded(), r.Spec()) {
		t.Errorf("the specification is not kept as it came")
	}
	sameHeader(t, r, got)
	for key, value := range want.GetMetadata() {
		if v, ok := r.Metadata(key); !ok || v != value {
			t.Errorf("metadata %q is %q, %t", key, v, ok)
		}
	}
	if v, ok := r.Metadata("K"); ok {
		t.Errorf("metadata that is not there is %q", v)
	}
}

// sameHeader holds that the header of a record says what its bytes say.
func sameHeader(t failer, r *fsm.Record, i *registryv1.Instance) {
	t.Helper()
	header := &registryv1.Instance{
		Namespace: r.Namespace(), Service: r.Service(), Id: r.ID(), Tags: r.Tags(), Zone: r.Zone(), Region: r.Region(),
		Weight: r.Weight(), SessionId: r.SessionID(), LeaseId: r.LeaseID(), Incarnation: r.Incarnation(),
		CreateRevision: r.CreateRevision(), ModifyRevision: r.ModifyRevision(), Health: r.Health(),
		Draining: r.Draining(), Maintenance: r.Maintenance(),
	}
	for _, c := range r.Checks() {
		header.CheckStates = append(header.CheckStates, &registryv1.CheckState{Name: c.Name, Status: c.Status})
	}
	body := proto.CloneOf(i)
	body.ProtoReflect().SetUnknown(nil) // fields of a later version are served, not understood
	for _, c := range body.GetCheckStates() {
		c.Output, c.ChangedRevision, c.ChangedUnixMs = "", 0, 0
	}
	diff := cmp.Diff(body, header, protocmp.Transform(), protocmp.IgnoreFields(&registryv1.Instance{},
		"address", "ports", "metadata", "checks", "deregister_critical_after", "registered_unix_ms"))
	if diff != "" || r.HasChecks() != (len(i.GetChecks()) > 0) {
		t.Fatalf("header differs from bytes:\n%s", diff)
	}
}

// TestMalformedSpecificationIsRefused holds down to the last nested field: bytes that a reader could not decode never
// get in.
func TestMalformedSpecificationIsRefused(t *testing.T) {
	text := func(b []byte, n protowire.Number, s string) []byte {
		return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), s)
	}
	number := func(b []byte, n protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
	}
	nested := func(path ...any) []byte { // numbers of fields, then a string
		b := []byte(path[len(path)-1].(string))
		for n := len(path) - 2; n >= 0; n-- {
			b = text(nil, protowire.Number(path[n].(int)), string(b))
		}
		return b
	}
	base := encode(t, web("a"))
	for _, row := range []struct {
		name string
		tail []byte
		want string
	}{
		{"nothing added", nil, ""},
		{"later field", text(nil, 19, "any"), ""},
		{"later nested field", nested(11, 99, "any"), "checks"}, // the check has no name
		{"cut off", []byte{0x0a, 5, 'x'}, "instance"},
		{"group", protowire.AppendTag(nil, 15, protowire.StartGroupType), "instance"},
		{"status field", number(nil, 20, 1), "instance"},
		{"field after the status", text(nil, 30, "x"), "instance"},
		{"number for text", number(nil, 4, 1), "address"},
		{"text for number", text(nil, 10, "x"), "weight"},
		{"not UTF-8", text(nil, 4, "\xff"), "address"},
		{"tag not UTF-8", text(nil, 6, "\xff"), "tags"},
		{"port not a message", text(nil, 5, "\xff"), "ports"},
		{"port name not UTF-8", nested(5, 1, "\xff"), "ports"},
		{"metadata not UTF-8", nested(7, 2, "\xff"), "metadata"},
		{"check without name", nested(11, ""), "checks"},
		{"header of a check not UTF-8", nested(11, 2, 5, 1, "\xff"), "checks"},
		{"TLS of a check not UTF-8", nested(11, 4, 4, 1, "\xff"), "checks"},
		{"duration malformed", text(nil, 14, "\x08"), "deregister_critical_after"},
		{"last of two ids counts", text(nil, 3, ""), "id"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := fsm.DecodeSpec(append(bytes.Clone(base), row.tail...)); got != row.want {
				t.Errorf("%q, want %q", got, row.want)
			}
		})
	}
}
