package sd

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// world is a node with a State.
type world struct {
	t     testing.TB
	st    *fsm.State
	asked cluster.Freshness
	err   error
}

func (w *world) View(_ context.Context, fresh cluster.Freshness) (cluster.View, error) {
	w.asked = fresh
	return cluster.View{State: w.st, Mode: fresh.Mode, Staleness: 20 * time.Millisecond}, w.err
}

func (w *world) apply(commands ...*raftlogv1.Command) {
	w.t.Helper()
	encoded := make([][]byte, len(commands))
	for i, c := range commands {
		var err error
		if encoded[i], err = (proto.MarshalOptions{Deterministic: true}).Marshal(c); err != nil {
			w.t.Fatal(err)
		}
	}
	next, result, err := w.st.Apply(fsm.Entry{Index: w.st.Index() + 1, Term: 1, Data: fsm.AppendEntry(nil, 1_000_000, encoded)})
	if err != nil {
		w.t.Fatal(err)
	}
	for i, o := range result.Outcomes {
		if err := o.Err(); err != nil {
			w.t.Fatalf("%v: %v", commands[i], err)
		}
	}
	w.st = next
}

func (w *world) register(in *registryv1.Instance) {
	w.t.Helper()
	spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(in)
	if err != nil {
		w.t.Fatal(err)
	}
	w.apply(&raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: &raftlogv1.Register{Instance: spec}}})
}

// newWorld has one of each kind that makes a difference.
func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{t: tb, st: fsm.New()}
	port := func(name string, n uint32) *registryv1.Port { return &registryv1.Port{Name: name, Number: n} }
	instance := func(namespace, service, id, address string, ports ...*registryv1.Port) *registryv1.Instance {
		return &registryv1.Instance{Namespace: namespace, Service: service, Id: id, Address: address, Ports: ports, Weight: 100}
	}
	w.register(instance("default", "api", "a1", "10.0.0.1", port("http", 80), port("metrics", 9100)))
	tagged := instance("default", "api", "a2", "2001:db8::1", port("http", 80))
	tagged.Tags, tagged.Zone, tagged.Region = []string{"blue", "v2"}, "z1", "r1"
	tagged.Metadata = map[string]string{
		"team": "shop", "prometheus.io/path": "/internal/metrics", "prometheus.io/scheme": "https", "prometheus.io/port": "8443",
	}
	w.register(tagged)
	named := instance("default", "api-canary", "c1", "canary.example", port("admin", 8081), port("http", 80))
	named.Metadata = map[string]string{"prometheus.io/port": "admin"}
	w.register(named)
	w.register(instance("default", "batch", "b1", "10.0.0.4"))
	unscraped := instance("default", "batch", "b2", "10.0.0.5", port("http", 80))
	unscraped.Metadata = map[string]string{"prometheus.io/scrape": "false"}
	w.register(unscraped)
	w.register(instance("other", "api", "o1", "10.1.0.1", port("main", 7000)))
	w.apply(&raftlogv1.Command{Kind: &raftlogv1.Command_SetMaintenance{SetMaintenance: &raftlogv1.SetMaintenance{
		Key: &raftlogv1.Key{Namespace: "other", Service: "api", Id: "o1"}, Maintenance: true,
	}}})
	return w
}

func anonymous(context.Context) string { return fsm.Anonymous }

func ask(tb testing.TB, h http.Handler, query string, header ...string) *httptest.ResponseRecorder {
	tb.Helper()
	r := httptest.NewRequestWithContext(tb.Context(), http.MethodGet, Path+"?"+query, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

// TestAnswers holds each form of request and answer: testdata/NAME.golden has the request, the status, the headers that count
// and the body.
func TestAnswers(t *testing.T) {
	w := newWorld(t)
	h := New(w, anonymous)
	for name, query := range map[string]string{
		"default-namespace": "",
		"all-namespaces":    "namespace=*",
		"two-namespaces":    "namespace=other&namespace=default&service=api",
		"no-such-namespace": "namespace=nowhere",
		"services":          "service=api&service=batch",
		"service-prefix":    "service=api*",
		"tags":              "tag=v2&tag=blue",
		"tag-missing":       "tag=v2&tag=green",
		"metadata":          "metadata=team%3Dshop",
		"metadata-any":      "metadata=team",
		"metadata-other":    "metadata=team%3Dpay",
		"zone":              "zone=z1&zone=z2",
		"health":            "namespace=*&health=maintenance&health=critical",
		"named-port":        "port=http",
		"bad":               "namspace=x&health=good&port=a&port=b&max_staleness=0s&tag=",
	} {
		t.Run(name, func(t *testing.T) {
			rec := ask(t, h, query)
			var got bytes.Buffer
			fmt.Fprintf(&got, "GET %s?%s\n\n%d\n", Path, query, rec.Code)
			for _, key := range []string{"Content-Type", "Cache-Control", "Vary", "X-Regd-Revision", "X-Regd-Staleness", "X-Regd-Left-Out"} {
				if v := rec.Header().Get(key); v != "" {
					fmt.Fprintf(&got, "%s: %s\n", key, v)
				}
			}
			got.WriteByte('\n')
			if rec.Code != http.StatusOK {
				got.Write(rec.Body.Bytes())
			} else if err := json.Indent(&got, rec.Body.Bytes(), "", "  "); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".golden")
			if *rewrite {
				if err := os.WriteFile(file, got.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAnAnswerIsNeverLessThanIsKnown(t *testing.T) {
	w := newWorld(t)
	h := New(w, anonymous)
	ask(t, h, "max_staleness=5s")
	if want := (cluster.Freshness{Mode: cluster.ModeBounded, MaxStaleness: 5 * time.Second}); w.asked != want {
		t.Errorf("asked for %+v, want %+v", w.asked, want)
	}
	w.err = cluster.ErrTooStale
	rec := ask(t, h, "")
	if rec.Code != http.StatusServiceUnavailable || !strings.Contains(rec.Body.String(), cluster.ErrTooStale.Error()) || rec.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("too stale: %d %s", rec.Code, rec.Body)
	}
}

func TestAnUnchangedAnswerIsNotSentAgain(t *testing.T) {
	w := newWorld(t)
	h := New(w, anonymous)
	tag := ask(t, h, "service=api").Header().Get("ETag")
	for header, want := range map[string]int{
		tag: 304, "W/" + tag: 304, `"x", ` + tag: 304, "*": 304, `"x"`: 200, "": 200,
	} {
		rec := ask(t, h, "service=api", "If-None-Match", header)
		if rec.Code != want || (want == 304) != (rec.Body.Len() == 0) {
			t.Errorf("If-None-Match %q: %d with %d bytes, want %d", header, rec.Code, rec.Body.Len(), want)
		}
	}
	w.register(&registryv1.Instance{Namespace: "default", Service: "unrelated", Id: "1", Address: "a", Ports: []*registryv1.Port{{Name: "p", Number: 1}}})
	if rec := ask(t, h, "service=api", "If-None-Match", tag); rec.Code != 304 {
		t.Errorf("after a change elsewhere: %d", rec.Code)
	}
	w.register(&registryv1.Instance{Namespace: "default", Service: "api", Id: "new", Address: "a", Ports: []*registryv1.Port{{Name: "p", Number: 1}}})
	if rec := ask(t, h, "service=api", "If-None-Match", tag); rec.Code != 200 || rec.Header().Get("ETag") == tag {
		t.Errorf("after a change: %d", rec.Code)
	}
}

func TestOnlyWhatMayBeSeenIsAnswered(t *testing.T) {
	w := newWorld(t)
	w.apply(&raftlogv1.Command{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{
		Member: &registryv1.Member{Id: "id1", Name: "n1", FeatureLevel: fsm.AccessLevel},
	}}})
	w.apply(&raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_BootstrapAccess{BootstrapAccess: &raftlogv1.BootstrapAccess{
		Token: &raftlogv1.CreateToken{Token: &registryv1.Token{Id: "root", Identity: "operator"}, SecretHash: make([]byte, 32)},
	}}})
	w.apply(&raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_PutPolicy{PutPolicy: &raftlogv1.PutPolicy{Policy: &registryv1.Policy{
		Name: "p", Rules: []*registryv1.Rule{{Actions: []registryv1.Action{registryv1.Action_ACTION_DISCOVER}, Namespace: "default", Name: "api"}},
	}}}})
	w.apply(&raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_PutGrant{PutGrant: &raftlogv1.PutGrant{
		Grant: &registryv1.Grant{Identity: fsm.Anonymous, Policies: []string{"p"}},
	}}})
	var got []group
	if err := json.Unmarshal(ask(t, New(w, anonymous), "namespace=*").Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 {
		t.Fatalf("%d targets, want the two of default/api: %v", len(got), got)
	}
	for _, g := range got {
		if g.Labels["__meta_regd_service"] != "api" || g.Labels["__meta_regd_namespace"] != "default" {
			t.Errorf("%v is shown", g)
		}
	}
}

func TestTooManyRequestsAtOnceAreRefused(t *testing.T) {
	h := New(newWorld(t), anonymous)
	for range maxAtOnce {
		h.places <- struct{}{}
	}
	rec := ask(t, h, "")
	if rec.Code != http.StatusServiceUnavailable || rec.Header().Get("Retry-After") != "1" {
		t.Errorf("beyond the limit: %d", rec.Code)
	}
	<-h.places
	if rec = ask(t, h, ""); rec.Code != http.StatusOK {
		t.Errorf("within it: %d", rec.Code)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("namespace=*&service=a*&tag=b&metadata=c%3Dd&zone=e&health=passing&port=http&max_staleness=1s")
	f.Add("health=&max_staleness=-1s&x")
	f.Fuzz(func(t *testing.T, raw string) {
		values, err := url.ParseQuery(raw)
		if err != nil {
			return
		}
		q, err := parse(values)
		if err != nil {
			return
		}
		if q.staleness <= 0 || q.staleness > maxStaleness || len(q.namespaces) == 0 || len(q.services) > maxTerms {
			t.Errorf("%q: %+v", raw, q)
		}
	})
}
