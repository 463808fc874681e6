package rpc

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// violations returns the fields that validation complains of.
func violations(err error) []string {
	var bad *InvalidError
	if !errors.As(err, &bad) {
		return nil
	}
	var fields []string
	for _, v := range bad.Violations {
		fields = append(fields, v.Field)
	}
	return fields
}

func checkInstance(in *registryv1.Instance) error {
	var f faults
	f.instance("instance", in, nil)
	return f.err()
}

func long(n int) string { return strings.Repeat("a", n) }

func ttlCheck(name string, ttl time.Duration) *registryv1.Check {
	return &registryv1.Check{Name: name, Kind: &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(ttl)}}}
}

func httpCheck(change func(*registryv1.Check, *registryv1.HTTPCheck)) func(*registryv1.Instance) {
	return func(in *registryv1.Instance) {
		http := &registryv1.HTTPCheck{}
		c := &registryv1.Check{Name: "c", Kind: &registryv1.Check_Http{Http: http}}
		in.Ports = []*registryv1.Port{{Name: "main", Number: 80}}
		in.Checks = []*registryv1.Check{c}
		change(c, http)
	}
}

func many(n int, add func(i int)) {
	for i := range n {
		add(i)
	}
}

func TestInstanceLimits(t *testing.T) {
	type edit = func(*registryv1.Instance)
	ports := func(n int) edit {
		return func(in *registryv1.Instance) {
			many(n, func(i int) {
				in.Ports = append(in.Ports, &registryv1.Port{Name: fmt.Sprint("p", i), Number: uint32(i + 1)})
			})
		}
	}
	tags := func(n int) edit {
		return func(in *registryv1.Instance) { many(n, func(i int) { in.Tags = append(in.Tags, fmt.Sprint("t", i)) }) }
	}
	pairs := func(n int) edit {
		return func(in *registryv1.Instance) {
			in.Metadata = map[string]string{}
			many(n, func(i int) { in.Metadata[fmt.Sprint("k", i)] = "v" })
		}
	}
	metadataBytes := func(n int) edit {
		return func(in *registryv1.Instance) {
			in.Metadata = map[string]string{}
			for i := 0; n > 0; i++ {
				key := fmt.Sprintf("%02d", i)
				size := min(n-len(key), MaxMetadataValueLen)
				in.Metadata[key] = long(size)
				n -= len(key) + size
			}
		}
	}
	checks := func(n int) edit {
		return func(in *registryv1.Instance) {
			many(n, func(i int) { in.Checks = append(in.Checks, ttlCheck(fmt.Sprint("c", i), time.Minute)) })
		}
	}
	headers := func(n int) edit {
		return httpCheck(func(_ *registryv1.Check, h *registryv1.HTTPCheck) {
			h.Headers = map[string]string{}
			many(n, func(i int) { h.Headers[fmt.Sprint("h", i)] = "v" })
		})
	}
	interval := func(d time.Duration) edit {
		return httpCheck(func(c *registryv1.Check, _ *registryv1.HTTPCheck) { c.Interval = durationpb.New(d) })
	}
	timeout := func(d time.Duration) edit {
		return httpCheck(func(c *registryv1.Check, _ *registryv1.HTTPCheck) { c.Timeout = durationpb.New(d) })
	}
	for _, tt := range []struct {
		name    string
		at      edit // the limit
		beyond  edit // one beyond it
		field   string
		mention string
	}{
		{"namespace", func(in *registryv1.Instance) { in.Namespace = long(63) }, func(in *registryv1.Instance) { in.Namespace = long(64) }, "instance.namespace", "63"},
		{"service", func(in *registryv1.Instance) { in.Service = long(128) }, func(in *registryv1.Instance) { in.Service = long(129) }, "instance.service", "128"},
		{"id", func(in *registryv1.Instance) { in.Id = long(128) }, func(in *registryv1.Instance) { in.Id = long(129) }, "instance.id", "128"},
		{"address", func(in *registryv1.Instance) {
			in.Address = long(63) + "." + long(63) + "." + long(63) + "." + long(63)
		}, func(in *registryv1.Instance) {
			in.Address = long(63) + "." + long(63) + "." + long(63) + "." + long(63) + "."
		}, "instance.address", "255"},
		{"ports", ports(16), ports(17), "instance.ports", "16"},
		{"port name", func(in *registryv1.Instance) { in.Ports = []*registryv1.Port{{Name: long(32), Number: 1}} }, func(in *registryv1.Instance) { in.Ports = []*registryv1.Port{{Name: long(33), Number: 1}} }, "instance.ports[0].name", "32"},
		{"port number", func(in *registryv1.Instance) { in.Ports = []*registryv1.Port{{Number: 65535}} }, func(in *registryv1.Instance) { in.Ports = []*registryv1.Port{{Number: 65536}} }, "instance.ports[0].number", "65535"},
		{"least port", func(in *registryv1.Instance) { in.Ports = []*registryv1.Port{{Number: 1}} }, func(in *registryv1.Instance) { in.Ports = []*registryv1.Port{{Number: 0}} }, "instance.ports[0].number", "1 to"},
		{"tags", tags(64), tags(65), "instance.tags", "64"},
		{"tag", func(in *registryv1.Instance) { in.Tags = []string{long(128)} }, func(in *registryv1.Instance) { in.Tags = []string{long(129)} }, "instance.tags[0]", "128"},
		{"metadata", pairs(64), pairs(65), "instance.metadata", "64"},
		{"metadata key", func(in *registryv1.Instance) { in.Metadata = map[string]string{long(128): ""} }, func(in *registryv1.Instance) { in.Metadata = map[string]string{long(129): ""} }, "instance.metadata", "128"},
		{"metadata value", func(in *registryv1.Instance) { in.Metadata = map[string]string{"k": long(512)} }, func(in *registryv1.Instance) { in.Metadata = map[string]string{"k": long(513)} }, "instance.metadata", "512"},
		{"metadata bytes", metadataBytes(4096), metadataBytes(4097), "instance.metadata", "4096"},
		{"zone", func(in *registryv1.Instance) { in.Zone = long(64) }, func(in *registryv1.Instance) { in.Zone = long(65) }, "instance.zone", "64"},
		{"region", func(in *registryv1.Instance) { in.Region = long(64) }, func(in *registryv1.Instance) { in.Region = long(65) }, "instance.region", "64"},
		{"weight", func(in *registryv1.Instance) { in.Weight = 65535 }, func(in *registryv1.Instance) { in.Weight = 65536 }, "instance.weight", "65535"},
		{"checks", checks(16), checks(17), "instance.checks", "16"},
		{"check name", func(in *registryv1.Instance) { in.Checks = []*registryv1.Check{ttlCheck(long(64), time.Minute)} }, func(in *registryv1.Instance) { in.Checks = []*registryv1.Check{ttlCheck(long(65), time.Minute)} }, "instance.checks[0].name", "64"},
		{"least ttl", func(in *registryv1.Instance) { in.Checks = []*registryv1.Check{ttlCheck("c", time.Second)} }, func(in *registryv1.Instance) { in.Checks = []*registryv1.Check{ttlCheck("c", time.Second-1)} }, "instance.checks[0].ttl.ttl", "1s"},
		{"most ttl", func(in *registryv1.Instance) { in.Checks = []*registryv1.Check{ttlCheck("c", 24*time.Hour)} }, func(in *registryv1.Instance) { in.Checks = []*registryv1.Check{ttlCheck("c", 24*time.Hour+1)} }, "instance.checks[0].ttl.ttl", "24h"},
		{"least interval", interval(time.Second), interval(time.Second - 1), "instance.checks[0].interval", "1s"},
		{"most interval", interval(time.Hour), interval(time.Hour + 1), "instance.checks[0].interval", "1h"},
		{"least timeout", timeout(10 * time.Millisecond), timeout(10*time.Millisecond - 1), "instance.checks[0].timeout", "10ms"},
		{"most timeout is the interval", timeout(10 * time.Second), timeout(10*time.Second + 1), "instance.checks[0].timeout", "10s"},
		{"rise", httpCheck(func(c *registryv1.Check, _ *registryv1.HTTPCheck) { c.Rise = 10 }), httpCheck(func(c *registryv1.Check, _ *registryv1.HTTPCheck) { c.Rise = 11 }), "instance.checks[0].rise", "10"},
		{"fall", httpCheck(func(c *registryv1.Check, _ *registryv1.HTTPCheck) { c.Fall = 10 }), httpCheck(func(c *registryv1.Check, _ *registryv1.HTTPCheck) { c.Fall = 11 }), "instance.checks[0].fall", "10"},
		{"headers", headers(16), headers(17), "instance.checks[0].http.headers", "16"},
		{"deregister critical after", func(in *registryv1.Instance) { in.DeregisterCriticalAfter = durationpb.New(10 * time.Second) }, func(in *registryv1.Instance) { in.DeregisterCriticalAfter = durationpb.New(10*time.Second - 1) }, "instance.deregister_critical_after", "10s"},
		{"session id", func(in *registryv1.Instance) { in.SessionId = long(64) }, func(in *registryv1.Instance) { in.SessionId = long(65) }, "instance.session_id", "64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := instance("web", "1")
			tt.at(in)
			if err := checkInstance(in); err != nil {
				t.Errorf("at the limit: %v", err)
			}
			in = instance("web", "1")
			tt.beyond(in)
			err := checkInstance(in)
			if fields := violations(err); len(fields) != 1 || !strings.HasPrefix(fields[0], tt.field) {
				t.Fatalf("beyond the limit: faults in %q (%v), want one in %s", fields, err, tt.field)
			}
			if !strings.Contains(err.Error(), tt.mention) {
				t.Errorf("error %q doesn't name the limit %s", err, tt.mention)
			}
		})
	}
}

func TestInstanceRefusesMalformedFields(t *testing.T) {
	for _, tt := range []struct {
		name  string
		edit  func(*registryv1.Instance)
		field string
	}{
		{"namespace in upper case", func(in *registryv1.Instance) { in.Namespace = "Prod" }, "instance.namespace"},
		{"no service", func(in *registryv1.Instance) { in.Service = "" }, "instance.service"},
		{"service with a slash", func(in *registryv1.Instance) { in.Service = "a/b" }, "instance.service"},
		{"service of dots", func(in *registryv1.Instance) { in.Service = ".." }, "instance.service"},
		{"service that ends with a dash", func(in *registryv1.Instance) { in.Service = "web-" }, "instance.service"},
		{"service with NUL", func(in *registryv1.Instance) { in.Service = "we\x00b" }, "instance.service"},
		{"service beyond ASCII", func(in *registryv1.Instance) { in.Service = "wéb" }, "instance.service"},
		{"no id", func(in *registryv1.Instance) { in.Id = "" }, "instance.id"},
		{"id that climbs", func(in *registryv1.Instance) { in.Id = "../../etc" }, "instance.id"},
		{"id with a dot as an element", func(in *registryv1.Instance) { in.Id = "a/./b" }, "instance.id"},
		{"id with a space", func(in *registryv1.Instance) { in.Id = "a b" }, "instance.id"},
		{"id with an escape", func(in *registryv1.Instance) { in.Id = "a%2e" }, "instance.id"},
		{"no address", func(in *registryv1.Instance) { in.Address = "" }, "instance.address"},
		{"address with a port", func(in *registryv1.Instance) { in.Address = "10.0.0.1:80" }, "instance.address"},
		{"address with an empty label", func(in *registryv1.Instance) { in.Address = "a..b" }, "instance.address"},
		{"address that is a URL", func(in *registryv1.Instance) { in.Address = "http://a" }, "instance.address"},
		{"ports of one name", func(in *registryv1.Instance) {
			in.Ports = []*registryv1.Port{{Name: "a", Number: 1}, {Name: "a", Number: 2}}
		}, "instance.ports[1].name"},
		{"two ports without names", func(in *registryv1.Instance) { in.Ports = []*registryv1.Port{{Name: "a", Number: 1}, {Number: 2}} }, "instance.ports[1].name"},
		{"tag twice", func(in *registryv1.Instance) { in.Tags = []string{"a", "b", "a"} }, "instance.tags[2]"},
		{"empty tag", func(in *registryv1.Instance) { in.Tags = []string{""} }, "instance.tags[0]"},
		{"tag with an escape sequence", func(in *registryv1.Instance) { in.Tags = []string{"\x1b[31m"} }, "instance.tags[0]"},
		{"tag that is not UTF-8", func(in *registryv1.Instance) { in.Tags = []string{"\xff"} }, "instance.tags[0]"},
		{"empty metadata key", func(in *registryv1.Instance) { in.Metadata = map[string]string{"": "v"} }, "instance.metadata"},
		{"metadata key with a line break", func(in *registryv1.Instance) { in.Metadata = map[string]string{"a\nb": "v"} }, "instance.metadata"},
		{"metadata value with NUL", func(in *registryv1.Instance) { in.Metadata = map[string]string{"a": "\x00"} }, "instance.metadata"},
		{"zone with a bell", func(in *registryv1.Instance) { in.Zone = "a\a" }, "instance.zone"},
		{"session with a slash", func(in *registryv1.Instance) { in.SessionId = "a/b" }, "instance.session_id"},
		{"check without a kind", func(in *registryv1.Instance) { in.Checks = []*registryv1.Check{{Name: "c"}} }, "instance.checks[0].kind"},
		{"checks of one name", func(in *registryv1.Instance) {
			in.Checks = []*registryv1.Check{ttlCheck("c", time.Minute), ttlCheck("c", time.Hour)}
		}, "instance.checks[1].name"},
		{"ttl missing", func(in *registryv1.Instance) { in.Checks = []*registryv1.Check{ttlCheck("c", 0)} }, "instance.checks[0].ttl.ttl"},
		{"duration that is none", func(in *registryv1.Instance) {
			in.DeregisterCriticalAfter = &durationpb.Duration{Seconds: 1, Nanos: -1}
		}, "instance.deregister_critical_after"},
		{"check of a port that is not there", httpCheck(func(_ *registryv1.Check, h *registryv1.HTTPCheck) { h.Port = "other" }), "instance.checks[0].http.port"},
		{"check without any port", func(in *registryv1.Instance) {
			in.Checks = []*registryv1.Check{{Name: "c", Kind: &registryv1.Check_Tcp{Tcp: &registryv1.TCPCheck{}}}}
		}, "instance.checks[0].tcp.port"},
		{"check of a port and an address", func(in *registryv1.Instance) {
			in.Checks = []*registryv1.Check{{Name: "c", Kind: &registryv1.Check_Grpc{Grpc: &registryv1.GRPCCheck{Address: "a:1", Port: "main"}}}}
		}, "instance.checks[0].grpc.port"},
		{"check of an address without a port", func(in *registryv1.Instance) {
			in.Checks = []*registryv1.Check{{Name: "c", Kind: &registryv1.Check_Tcp{Tcp: &registryv1.TCPCheck{Address: "a"}}}}
		}, "instance.checks[0].tcp.address"},
		{"check of a file", httpCheck(func(_ *registryv1.Check, h *registryv1.HTTPCheck) { h.Url = "file:///etc/passwd" }), "instance.checks[0].http.url"},
		{"check with a password", httpCheck(func(_ *registryv1.Check, h *registryv1.HTTPCheck) { h.Url = "http://u:p@a/" }), "instance.checks[0].http.url"},
		{"check of a URL and a path", httpCheck(func(_ *registryv1.Check, h *registryv1.HTTPCheck) { h.Url, h.Path = "http://a/", "/b" }), "instance.checks[0].http.url"},
		{"check of a relative path", httpCheck(func(_ *registryv1.Check, h *registryv1.HTTPCheck) { h.Path = "b" }), "instance.checks[0].http.path"},
		{"check that deletes", httpCheck(func(_ *registryv1.Check, h *registryv1.HTTPCheck) { h.Method = "DELETE" }), "instance.checks[0].http.method"},
		{"check with a header that breaks the line", httpCheck(func(_ *registryv1.Check, h *registryv1.HTTPCheck) { h.Headers = map[string]string{"A": "b\r\nC: d"} }), "instance.checks[0].http.headers"},
		{"check with statuses upside down", httpCheck(func(_ *registryv1.Check, h *registryv1.HTTPCheck) { h.StatusMin, h.StatusMax = 400, 300 }), "instance.checks[0].http.status_min"},
		{"check with an unknown initial status", httpCheck(func(c *registryv1.Check, _ *registryv1.HTTPCheck) { c.Initial = 99 }), "instance.checks[0].initial"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := instance("web", "1")
			tt.edit(in)
			err := checkInstance(in)
			if fields := violations(err); len(fields) != 1 || !strings.HasPrefix(fields[0], tt.field) {
				t.Errorf("faults in %q (%v), want one in %s", fields, err, tt.field)
			}
		})
	}
}

func TestInstanceAcceptsWhatIsUsual(t *testing.T) {
	for _, address := range []string{"10.0.0.1", "::1", "fe80::1%eth0", "web-1.prod.svc.cluster.local", "web_1.docker", "localhost", "a."} {
		in := instance("web.v2_x-1", "pod/web-1:80@a.b")
		in.Address = address
		in.Metadata = map[string]string{"note": "two\nlines\tand more", "empty": ""}
		in.Tags = []string{"größe"}
		if err := checkInstance(in); err != nil {
			t.Errorf("address %q: %v", address, err)
		}
	}
}

func TestAllFaultsAreNamedAtOnce(t *testing.T) {
	in := instance("", "a b")
	in.Address, in.Weight = "", 70000
	want := []string{"instance.weight", "instance.service", "instance.id", "instance.address"}
	if diff := cmp.Diff(want, violations(checkInstance(in))); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}

func TestFaultsAreBounded(t *testing.T) {
	var f faults
	many(maxViolations+5, func(int) { f.add("a", "is wrong") })
	err := f.err()
	if n := len(violations(err)); n != maxViolations {
		t.Errorf("%d faults, want %d", n, maxViolations)
	}
	if !strings.HasSuffix(err.Error(), "and 5 more") {
		t.Errorf("error %q doesn't tell that there are more", err)
	}
}

// Every client can read an error, however much is wrong and however that looks: many take 8 KiB of trailers.
func TestErrorsFitIntoTrailers(t *testing.T) {
	for _, bad := range []string{"a b", strings.Repeat("\x01", 60), strings.Repeat("é", 60) + "\x01", strings.Repeat("%", 200)} {
		var f faults
		in := instance("web", bad)
		in.Metadata = map[string]string{}
		many(MaxMetadata, func(i int) { in.Metadata[fmt.Sprint(i)+bad] = bad + "\x00" })
		many(10, func(i int) { f.instance(index("register", i), in, nil) })
		fault, _ := faultOf(Faults(), f.err())
		if n := trailerBytes(t, toStatus(fault, f.err(), "n1:7400")); n > maxTrailers {
			t.Errorf("%d bytes of trailers for values such as %q", n, bad)
		}
		if len(f.Violations) == 0 || f.More == 0 {
			t.Errorf("%d faults and %d more", len(f.Violations), f.More)
		}
	}
}

func TestErrorsQuoteAndCutValues(t *testing.T) {
	var f faults
	f.word("a", strings.Repeat("é\x1b", 200), 1000, nameChars)
	text := f.err().Error()
	if len(text) > 400 || strings.Contains(text, "\x1b") || !strings.Contains(text, "…") {
		t.Errorf("error %q is not cut and escaped", text)
	}
}

func TestSpecificationIsCanonical(t *testing.T) {
	in := &registryv1.Instance{
		Service: "web", Id: "1", Address: "a", Ports: []*registryv1.Port{{Number: 80}}, Tags: []string{"b", "a"},
		Checks: []*registryv1.Check{
			{Name: "h", Kind: &registryv1.Check_Http{Http: &registryv1.HTTPCheck{Method: "head"}}, Interval: durationpb.New(2 * time.Second)},
			{Name: "t", Kind: &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(time.Minute)}}, Interval: durationpb.New(time.Hour), Rise: 7},
			{Name: "g", Kind: &registryv1.Check_Grpc{Grpc: &registryv1.GRPCCheck{Address: "b:1", Tls: &registryv1.CheckTLS{ServerName: "b"}}}, Initial: registryv1.CheckStatus_CHECK_STATUS_PASSING},
		},
		DeregisterCriticalAfter: durationpb.New(0),
		Incarnation:             5, CreateRevision: 6, ModifyRevision: 7, Health: registryv1.Health_HEALTH_PASSING, Draining: true,
		Maintenance: true, CheckStates: []*registryv1.CheckState{{Name: "x"}}, RegisteredUnixMs: 8,
	}
	in.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 0x01}) // field 127
	want := &registryv1.Instance{
		Namespace: "default", Service: "web", Id: "1", Address: "a", Ports: []*registryv1.Port{{Name: "main", Number: 80}},
		Tags: []string{"a", "b"}, Weight: 100,
		Checks: []*registryv1.Check{
			{
				Name: "h", Kind: &registryv1.Check_Http{Http: &registryv1.HTTPCheck{
					Port: "main", Path: "/", Method: "HEAD", StatusMin: 200, StatusMax: 299,
				}},
				Interval: durationpb.New(2 * time.Second), Timeout: durationpb.New(2 * time.Second), Rise: 1, Fall: 3,
				Initial: registryv1.CheckStatus_CHECK_STATUS_STARTING,
			},
			{
				Name: "t", Kind: &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(time.Minute)}},
				Initial: registryv1.CheckStatus_CHECK_STATUS_STARTING,
			},
			{
				Name: "g", Kind: &registryv1.Check_Grpc{Grpc: &registryv1.GRPCCheck{Address: "b:1", Tls: &registryv1.CheckTLS{ServerName: "b"}}},
				Interval: durationpb.New(10 * time.Second), Timeout: durationpb.New(5 * time.Second), Rise: 1, Fall: 3,
				Initial: registryv1.CheckStatus_CHECK_STATUS_PASSING,
			},
		},
	}
	var f faults
	got := f.instance("instance", in, nil)
	if err := f.err(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("specification (-want +got):\n%s", diff)
	}
	// What is canonical stays as it is.
	if diff := cmp.Diff(want, f.instance("instance", got, nil), protocmp.Transform()); diff != "" {
		t.Errorf("specification of the specification (-want +got):\n%s", diff)
	}
}

func TestEqualRegistrationsEncodeEqually(t *testing.T) {
	encode := func(tags []string, metadata map[string]string) string {
		in := instance("web", "1")
		in.Tags, in.Metadata = tags, metadata
		var f faults
		data, err := encodeSpec(f.instance("instance", in, nil))
		if err != nil || f.err() != nil {
			t.Fatal(err, f.err())
		}
		return string(data)
	}
	first := encode([]string{"a", "b", "c"}, map[string]string{"1": "x", "2": "y", "3": "z"})
	many(20, func(int) {
		if encode([]string{"c", "b", "a"}, map[string]string{"3": "z", "2": "y", "1": "x"}) != first {
			t.Fatal("equal registrations have different encodings")
		}
	})
}

func TestLargestInstanceFitsTheStateMachine(t *testing.T) {
	if MaxInstanceBytes > fsm.MaxSpecBytes || MaxChecks > fsm.MaxChecks || MaxLockNameLen > fsm.MaxNameBytes ||
		MaxBatch > fsm.MaxBatch || MaxCheckOutputLen > fsm.MaxOutputBytes || MaxLockValueLen > fsm.MaxLockValueBytes {
		t.Error("a limit of the API is beyond that of the state machine")
	}
	in := instance("web", "1")
	in.Ports = []*registryv1.Port{{Number: 1}}
	many(MaxChecks, func(i int) {
		headers := map[string]string{}
		many(MaxCheckHeaders, func(k int) { headers[fmt.Sprint("h", k)] = long(MaxCheckHeaderLen) })
		in.Checks = append(in.Checks, &registryv1.Check{
			Name: fmt.Sprint("c", i), Kind: &registryv1.Check_Http{Http: &registryv1.HTTPCheck{Headers: headers}},
		})
	})
	if fields := violations(checkInstance(in)); len(fields) != 1 || fields[0] != "instance" {
		t.Errorf("faults in %q, want one: the instance as a whole is too large", fields)
	}
}

func TestBodyHashIgnoresOnlyTheRequestID(t *testing.T) {
	hash := func(m proto.Message) uint64 { return bodyHash(m) }
	key := &apiv1.InstanceKey{Service: "web", Id: "1"}
	first := hash(&apiv1.DeregisterRequest{Key: key, RequestId: &apiv1.RequestID{ClientId: "a", Sequence: 1}})
	if again := hash(&apiv1.DeregisterRequest{Key: key, RequestId: &apiv1.RequestID{ClientId: "a", Sequence: 1, AnsweredBelow: 1}}); again != first {
		t.Error("the request id is part of the hash")
	}
	if other := hash(&apiv1.DeregisterRequest{Key: key, Incarnation: 1}); other == first {
		t.Error("another body has the same hash")
	}
	if other := hash(&apiv1.DrainRequest{Key: key}); other == first {
		t.Error("another kind of request with the same bytes has the same hash")
	}
}

func TestRequestIDIsValidated(t *testing.T) {
	for _, tt := range []struct {
		name  string
		id    *apiv1.RequestID
		field string
	}{
		{"fine", &apiv1.RequestID{ClientId: "a-b_c.9", Sequence: 5, AnsweredBelow: 5}, ""},
		{"no client", &apiv1.RequestID{Sequence: 1}, "request_id.client_id"},
		{"long client", &apiv1.RequestID{ClientId: long(65), Sequence: 1}, "request_id.client_id"},
		{"client with a slash", &apiv1.RequestID{ClientId: "a/b", Sequence: 1}, "request_id.client_id"},
		{"no sequence", &apiv1.RequestID{ClientId: "a"}, "request_id.sequence"},
		{"answered from the future", &apiv1.RequestID{ClientId: "a", Sequence: 1, AnsweredBelow: 2}, "request_id.answered_below"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var f faults
			f.request(&apiv1.DeregisterRequest{RequestId: tt.id})
			if got := strings.Join(violations(f.err()), " "); got != tt.field {
				t.Errorf("faults in %q, want %q", got, tt.field)
			}
		})
	}
}

func FuzzInstance(f *testing.F) {
	f.Add([]byte("\x12\x03web\x1a\x011\x22\x01a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var in registryv1.Instance
		if proto.Unmarshal(data, &in) != nil {
			return
		}
		var first, second faults
		spec := first.instance("instance", &in, nil)
		if first.err() != nil {
			return
		}
		again := second.instance("instance", spec, nil)
		if err := second.err(); err != nil {
			t.Fatalf("the canonical form is refused: %v", err)
		}
		if !proto.Equal(spec, again) {
			t.Fatalf("the canonical form changes: %v, then %v", spec, again)
		}
	})
}
