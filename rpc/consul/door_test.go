package consul

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/regd-io/regd/cluster/certs"
	"github.com/regd-io/regd/cluster/certs/certstest"
	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"
)

// listen has the world's server answer on a socket, and returns its address.
func (w *world) listen() string {
	w.tb.Helper()
	s, err := Listen(w.tb.Context(), Config{Host: "here", Listen: "127.0.0.1:0", Door: w.api.Door("consul", "h2", "http/1.1")}, w)
	if err != nil {
		w.tb.Fatal(err)
	}
	w.server = s
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	w.tb.Cleanup(func() {
		if err := errors.Join(s.Shutdown(context.Background()), <-served); err != nil {
			w.tb.Error(err)
		}
	})
	return s.Addr().String()
}

// secured is a world whose clients use TLS, and the folder of its files.
func secured(t *testing.T, ca *certstest.Authority, auth certs.ClientAuth) (w *world, address, dir string) {
	t.Helper()
	dir = t.TempDir()
	source, err := certs.Open(certs.Config{Files: certstest.Write(t, dir, ca.Peer("n1"), ca.PEM()), Port: "client", Every: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(source.Close)
	w = worldWith(t, rpc.Config{TLS: &rpc.TLS{Source: source, ClientAuth: auth, Domain: certstest.Domain}})
	return w, w.listen(), dir
}

// browser is an HTTP client that trusts an authority, and shows a certificate if it has one.
func browser(t *testing.T, ca *certstest.Authority, shown *certstest.Pair, protocols ...string) *http.Client {
	t.Helper()
	cfg := &tls.Config{RootCAs: ca.Pool(), NextProtos: protocols}
	if shown != nil {
		cfg.Certificates = []tls.Certificate{shown.TLS(t)}
	}
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: len(protocols) > 0 && protocols[0] == "h2"}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// got is an answer.
type got struct {
	major int // version of HTTP
	index string
	body  string
}

func get(t *testing.T, c *http.Client, url string) (got, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(r)
	if err != nil {
		return got{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return got{resp.ProtoMajor, resp.Header.Get("X-Consul-Index"), string(body)}, err
}

func TestClientsUseTLSWhereTheNodeDoes(t *testing.T) {
	ca := certstest.NewAuthority(t)
	w, address, _ := secured(t, ca, certs.ClientAuthNone)
	for protocol, want := range map[string]int{"": 1, "http/1.1": 1, "h2": 2} {
		var protocols []string
		if protocol != "" {
			protocols = []string{protocol}
		}
		answer, err := get(t, browser(t, ca, nil, protocols...), "https://"+address+"/v1/status/leader")
		if err != nil || answer.major != want || answer.body != `"n1.example:7401"` {
			t.Errorf("by %q: %+v, %v, want HTTP/%d", protocol, answer, err, want)
		}
	}
	if _, err := get(t, browser(t, certstest.NewAuthority(t), nil), "https://"+address+"/v1/status/leader"); err == nil {
		t.Error("who does not trust the authority was answered")
	}
	if answer, err := get(t, http.DefaultClient, "http://"+address+"/v1/status/leader"); err == nil {
		t.Errorf("plaintext was answered: %+v", answer)
	}
	until(func() bool { return w.metric("regd_tls_refused_connections_total") == 2 }) // Once they have gone.
}

func TestCertificateIsWhoAsks(t *testing.T) {
	ca := certstest.NewAuthority(t)
	team, stranger := ca.Client("team"), ca.Client("stranger")
	for _, auth := range []certs.ClientAuth{certs.ClientAuthRequest, certs.ClientAuthRequire} {
		w, address, _ := secured(t, ca, auth)
		w.register(&registryv1.Instance{Service: "web", Id: "web-1", Address: "10.0.0.1"})
		w.enforce()
		url := "https://" + address + "/v1/health/service/web"
		for name, tt := range map[string]struct {
			shown *certstest.Pair
			query string
			has   string
		}{
			"the team":                      {&team, "", `"web-1"`},
			"a stranger":                    {&stranger, "", "[]"},
			"a token counts more":           {&stranger, "?token=regd_t1_secret", `"web-1"`},
			"also one that is nobody's":     {&team, "?token=regd_t1_wrong", "ACL not found"},
			"who shows none, if he may":     {nil, "", "[]"},
			"who shows none but the token":  {nil, "?token=regd_t1_secret", `"web-1"`},
			"who shows one of another role": {new(ca.Peer("team")), "", ""},
		} {
			answer, err := get(t, browser(t, ca, tt.shown, "http/1.1"), url+tt.query)
			refused := tt.has == "" || tt.shown == nil && auth == certs.ClientAuthRequire
			if (err != nil) != refused || !refused && !strings.Contains(answer.body, tt.has) {
				t.Errorf("%s, of whom it is a %s: %s, %v, want %q", name, auth, answer.body, err, tt.has)
			}
		}
	}
}

// A connection lives as long as the trust in who is on its other side, and new ones get the new certificate.
func TestNewFilesAreUsed(t *testing.T) {
	ca, next := certstest.NewAuthority(t), certstest.NewAuthority(t)
	w, address, dir := secured(t, ca, certs.ClientAuthRequire)
	shown := ca.Client("team")
	old := browser(t, ca, &shown, "http/1.1")
	url := "https://" + address + "/v1/catalog/nodes"
	first, err := get(t, old, url)
	if err != nil {
		t.Fatal(err)
	}
	waits := make(chan error, 1)
	go func() {
		_, err := get(t, old, url+"?index="+first.index)
		waits <- err
	}()
	until(func() bool { return len(w.server.waiters) == 1 }) // The query is on its way.
	certstest.Write(t, dir, next.Peer("n1"), next.PEM())
	select {
	case err := <-waits:
		if err == nil {
			t.Error("the query was answered, though nobody trusts the client's certificate any more")
		}
	case <-time.After(20 * time.Second):
		t.Error("the connection of a client that is not trusted any more goes on")
	}
	shown = next.Client("team")
	deadline := time.Now().Add(20 * time.Second)
	for { // The files may have been read while they were written: until the next look the certificate is the old one.
		_, err := get(t, browser(t, next, &shown), url)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a client of the new authority: %v", err)
		}
	}
}

func TestOneAddressHasSoManyConnections(t *testing.T) {
	w := worldWith(t, rpc.Config{MaxConnsPerIP: 2})
	address := w.listen()
	ask := func() (net.Conn, error) {
		var dialer net.Dialer
		conn, err := dialer.DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_, _ = io.WriteString(conn, "GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n\r\n") // What matters is the answer.
		_, err = conn.Read(make([]byte, 1))
		return conn, err
	}
	first, err := ask()
	if err != nil {
		t.Fatal(err)
	}
	if _, err = ask(); err != nil {
		t.Fatal(err)
	}
	if _, err = ask(); err == nil {
		t.Error("a third connection was answered")
	}
	_ = first.Close()
	until(func() bool { return w.metric("regd_limit_used") == 2 }) // One connection, of one address: the server has seen the end of the other.
	if _, err = ask(); err != nil {
		t.Errorf("after one has gone: %v", err)
	}
}

// journal is a log that tests can read.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

// take returns the records since the last time, each in a line: what of it does not change from run to run.
func (j *journal) take(t *testing.T) (lines []string) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(j.b.String()) {
		var r struct {
			Msg, Door, Method, Request, Identity, Client string
			Err                                          string
			Revision                                     uint64
			On                                           map[string]any
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		_, method, _ := strings.Cut(r.Method[1:], "/")
		on, err := json.Marshal(r.On)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Join([]string{r.Msg, r.Door, method, r.Request, "by " + r.Identity, "on " + string(on)}, " ")
		if (r.Err == "") != (r.Msg == "done") || (r.Revision > 0) != (r.Msg == "done") || !strings.HasPrefix(r.Client, "127.0.0.1:") {
			t.Errorf("a record without its client, revision or error: %s", line)
		}
		lines = append(lines, text)
	}
	j.b.Reset()
	return lines
}

func TestWritesAreInTheAuditLog(t *testing.T) {
	var log journal
	w := worldWith(t, rpc.Config{Audit: slog.New(slog.NewJSONHandler(&log, nil))})
	base := "http://" + w.listen() + "/v1/"
	w.enforce()
	for _, tt := range []struct {
		method, path, body, token string
		code                      int
		want                      []string
	}{
		{"PUT", "agent/service/register", `{"Name":"web","Check":{"TTL":"9s","Status":"passing"}}`, "regd_t1_secret", 200, []string{`done consul Register PUT /v1/agent/service/register by team on {"id":"web","namespace":"default","service":"web"}`}},
		{"PUT", "agent/check/pass/service:web", "", "regd_t1_secret", 200, nil},
		{"PUT", "agent/check/fail/service:web", "", "regd_t1_secret", 200, []string{`done consul SetHealth PUT /v1/agent/check/fail/service:web by team on {"check":"service","id":"web","namespace":"default","service":"web"}`}},
		{"GET", "health/service/web", "", "regd_t1_secret", 200, nil},
		{"GET", "agent/members", "", "regd_t1_secret", 403, []string{`refused consul Status GET /v1/agent/members by team on null`}},
		{"GET", "health/service/web", "", "regd_t1_wrong", 403, []string{`refused consul ListInstances GET /v1/health/service/web by anonymous on null`}},
		{"PUT", "agent/service/register", `{"Name":"db"}`, "regd_t1_secret", 403, []string{`refused consul Register PUT /v1/agent/service/register by team on null`}},
		{"PUT", "agent/service/register?token=regd_t1_secret", `{"Name":"db"}`, "", 403, []string{`refused consul Register PUT /v1/agent/service/register by team on null`}},
		{"PUT", "agent/service/register", `{`, "regd_t1_secret", 400, []string{`failed consul Register PUT /v1/agent/service/register by team on null`}},
		{"PUT", "agent/service/deregister/none", "", "regd_t1_secret", 404, []string{`failed consul Deregister PUT /v1/agent/service/deregister/none by team on null`}},
		{"PUT", "agent/service/deregister/web", "", "regd_t1_secret", 200, []string{`done consul Deregister PUT /v1/agent/service/deregister/web by team on {"id":"web","namespace":"default","service":"web"}`}},
		{"GET", "health/service/", "", "regd_t1_secret", 400, nil},
		{"PUT", "kv/app/a", "a secret", "regd_t1_secret", 200, []string{`done consul PutKey PUT /v1/kv/app/a by team on {"key":"app/a","namespace":"default"}`}},
		{"GET", "kv/app/a", "", "regd_t1_secret", 200, nil},
		{"DELETE", "kv/app/?recurse", "", "regd_t1_secret", 200, []string{`done consul DeleteKey DELETE /v1/kv/app/ by team on {"key":"app/","namespace":"default","prefix":true}`}},
		{"PUT", "kv/secret", "a secret", "regd_t1_secret", 403, []string{`refused consul PutKey PUT /v1/kv/secret by team on null`}},
		{"PUT", "txn", `[{"KV":{"Verb":"set","Key":"app/a"}},{"KV":{"Verb":"set","Key":"app/b"}}]`, "regd_t1_secret", 200, []string{
			`done consul Transact PUT /v1/txn by team on {"namespace":"default","ops":2}`,
		}},
		{"PUT", "txn", `[{"KV":{"Verb":"get","Key":"app/a"}}]`, "regd_t1_secret", 200, nil},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, base+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Consul-Token", tt.token)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		got := log.take(t)
		if diff := cmp.Diff(tt.want, got); diff != "" || resp.StatusCode != tt.code {
			t.Errorf("%s %s: %d, want %d; records (-want +got):\n%s", tt.method, tt.path, resp.StatusCode, tt.code, diff)
		}
	}
}

// govern gives a namespace a quota.
func (w *world) govern(namespace string, quota *registryv1.Quota) {
	w.tb.Helper()
	w.must(&raftlogv1.Command{Level: fsm.FeatureLevel, Kind: &raftlogv1.Command_PutNamespace{PutNamespace: &raftlogv1.PutNamespace{
		Namespace: &registryv1.Namespace{Name: namespace, Quota: quota},
	}}})
}
