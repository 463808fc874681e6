package main

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// serviceAt registers an instance at an address, with further flags.
func (s *shell) serviceAt(service, id, address, flags string) {
	s.t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.ok(append([]string{"register", service, "--id", id, "--address", host, "--port", port, "--detach"}, strings.Fields(flags)...)...)
}

// echo serves HTTP, and says what it got.
func echo(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Name", name)
		if r.URL.Path == "/missing" {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, strings.Join([]string{name, r.Method, r.Host, r.RequestURI, r.Header.Get("X-Test"), r.UserAgent(), string(body)}, "|"))
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/binary", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte{0xff, 0x1b}) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) })
	return mux
}

func TestCallGetsAnAnswerFromAnInstance(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	for _, id := range []string{"w1", "w2"} {
		server := httptest.NewServer(echo(id))
		t.Cleanup(server.Close)
		s.serviceAt("web", id, server.Listener.Addr().String(), "--zone zone-"+id+" --tag t-"+id+" --meta version="+id[1:])
	}
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	host := "|web.default.service|"
	for args, want := range map[string]string{
		"--tag t-w1":                           "w1|GET" + host + "/||regd/v1.2.3|",
		"--tag t-w2":                           "w2|GET" + host + "/||regd/v1.2.3|",
		"--zone zone-w2":                       "w2|GET" + host + "/||regd/v1.2.3|",
		"--meta version=1":                     "w1|GET" + host + "/||regd/v1.2.3|",
		"--from-zone zone-w2":                  "w2|GET" + host + "/||regd/v1.2.3|",
		"/a?b=c --tag t-w1":                    "w1|GET" + host + "/a?b=c||regd/v1.2.3|",
		"--tag t-w1 -d text":                   "w1|POST" + host + "/||regd/v1.2.3|text",
		"--tag t-w1 -X PUT -d @" + file:        "w1|PUT" + host + "/||regd/v1.2.3|from a file",
		"--tag t-w1 -d @-":                     "w1|POST" + host + "/||regd/v1.2.3|", // stdin is empty
		"--tag t-w1 -H X-Test:yes":             "w1|GET" + host + "/|yes|regd/v1.2.3|",
		"--tag t-w1 -H Host:h -H user-agent:u": "w1|GET|h|/||u|",
		"/missing --tag t-w1":                  "w1|GET" + host + "/missing||regd/v1.2.3|",
		"/moved --tag t-w1":                    "<a href=\"/\">Found</a>.\n\n",
		"--policy round-robin --from-region r --health passing --retries 0 --tag t-w1": "w1|GET" + host + "/||regd/v1.2.3|",
	} {
		s.expect(want, s.ok(append([]string{"call", "web"}, strings.Fields(args)...)...))
	}
	key := decode[callView](t, s.ok("call", "web", "--policy", "rendezvous", "--key", "user-42", "-o", "json"))
	resolved := strings.TrimSpace(s.ok("resolve", "web", "--policy", "rendezvous", "--key", "user-42", "--one"))
	if at := key.Attempts[0].Address; at != resolved || key.Share != 1 || key.Choice != 2 || key.Instances != 2 {
		t.Errorf("called %s, resolved %s; %+v", at, resolved, key)
	}
	v := decode[callView](t, s.ok("call", "web", "/binary", "--tag", "t-w1", "-o", "json"))
	if v.Code != 200 || v.Status != "200 OK" || string(v.BodyBase64) != "\xff\x1b" || v.Body != "" || v.Instance.ID != "w1" || v.Error != "" {
		t.Errorf("%+v", v)
	}
	r := s.run("call", "web", "/missing", "--tag", "t-w1", "-v")
	for _, says := range []string{
		"attempt 1: w1 (127.0.0.1:", "404 Not Found after ", "w1 in zone-w1 gets 100.0 % of the calls by weighted round robin; 1 of 2 instances can be chosen\n",
		"X-Name: w1\n",
	} {
		if !strings.Contains(r.stderr, says) {
			t.Errorf("stderr lacks %q:\n%s", says, r.stderr)
		}
	}
}

func TestCallFailsWithACodeAndSaysWhatToDo(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	server := httptest.NewServer(echo("w1"))
	t.Cleanup(server.Close)
	s.serviceAt("web", "w1", server.Listener.Addr().String(), "")
	s.serviceAt("dead", "d1", freeAddress(t), "")
	s.serviceAt("dead", "d2", freeAddress(t), "")
	s.serviceAt("away", "a1", freeAddress(t), "")
	s.ok("drain", "away", "a1")
	for args, want := range map[string]struct {
		code exitCode
		says string
	}{
		"wbe":                       {exitNotFound, `no instances of wbe in namespace default; did you mean "web"?`},
		"web --tag x":               {exitNoneFit, "none of 1 instances has what --tag"},
		"web --grpc --tag x":        {exitNoneFit, "none of 1 instances has what --tag"},
		"away":                      {exitNoneFit, "1 draining\n  hint: regd resolve away"},
		"dead":                      {exitFailed, "attempt 2 of 3: d"},
		"dead --retries 0":          {exitFailed, "attempt 1 of 1: d"},
		"dead --grpc --retries 0":   {exitFailed, "connection refused"},
		"web --port nope":           {exitNotFound, `no port "nope"`},
		"web /missing --fail":       {exitBadAnswer, "w1 (" + server.Listener.Addr().String() + ") answered 404 Not Found"},
		"web /slow --timeout 300ms": {exitTimeout, "no answer within 300ms: tried w1 ("},
		"web --scheme https":        {exitFailed, "hint: it does not use TLS"},
		"web --grpc":                {exitFailed, "hint: it speaks HTTP there: leave --grpc out"},
		"web --scheme https --service-ca-cert /missing": {exitUsage, "--service-ca-cert"},
		"web --service-ca-cert x":                       {exitUsage, "--service-ca-cert: needs --scheme https"},
		"web --namespace *":                             {exitUsage, "name its namespace"},
		"web path":                                      {exitUsage, "as in /path"},
		"web /%zz":                                      {exitUsage, "invalid URL escape"},
		"web --retries 5":                               {exitUsage, "must be 0 to 4"},
		"web --count 0":                                 {exitUsage, "must be 1 to 100000"},
		"web --rate -1":                                 {exitUsage, "at most 1000"},
		"web --grpc-service x":                          {exitUsage, "needs --grpc"},
		"web / --grpc":                                  {exitUsage, "has no path"},
		"web --grpc -d x":                               {exitUsage, "--data and --grpc exclude each other"},
		"web -H x":                                      {exitUsage, "a name, a colon and a value"},
		"web -d @/missing":                              {exitUsage, "no such file"},
		"web -X nope/nope":                              {exitUsage, "invalid method"},
		"web --policy least":                            {exitUsage, `did you mean "least-requests"?`},
		"web --count 3 --fail /missing":                 {exitBadAnswer, "3 of 3 calls went wrong; the last: call web"},

		"web --endpoint 127.0.0.1:1 --timeout 300ms": {exitUnreachable, "connection refused"},
	} {
		r := s.run(append([]string{"call"}, strings.Fields(args)...)...)
		if r.code != want.code || !strings.Contains(r.stderr, want.says) {
			t.Errorf("call %s: exit code %d, want %d and %q\n%s", args, r.code, want.code, want.says, r.stderr)
		}
		if !strings.Contains(r.stderr, "hint:") {
			t.Errorf("call %s: no hint:\n%s", args, r.stderr)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	if r := s.runCtx(ctx, "call", "web", "/slow"); r.code != exitInterrupted {
		t.Errorf("interrupted: exit code %d\n%s", r.code, r.stderr)
	}
}

func TestCallTriesAnotherInstance(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	server := httptest.NewServer(echo("w1"))
	t.Cleanup(server.Close)
	s.serviceAt("web", "w1", server.Listener.Addr().String(), "--weight 1")
	s.serviceAt("web", "w2", freeAddress(t), "--weight 1")
	doc := decode[struct {
		Calls     int
		Statuses  map[string]int
		Instances []calledView
	}](t, s.ok("call", "web", "--count", "20", "--rate", "1000", "--fail", "-o", "json"))
	w1, w2 := doc.Instances[0], doc.Instances[1]
	if doc.Calls != 20 || doc.Statuses["200 OK"] != 20 || w1.OK != 20 || w1.P50Ms <= 0 || w2.Calls != 0 || w2.Retried == 0 ||
		!strings.Contains(w2.Error, "connection refused") {
		t.Errorf("%+v", doc)
	}
	r := s.run("call", "web", "--count", "4", "--no-headers")
	if r.code != exitUsage {
		t.Errorf("--no-headers: exit code %d", r.code)
	}
	if got := s.ok("call", "web", "--count", "4"); !strings.HasPrefix(got, "ID  ENDPOINT ") || strings.Count(got, "\n") != 3 {
		t.Errorf("printed\n%s", got)
	}
	for range 20 { // until the dead one was tried first
		v := decode[callView](t, s.ok("call", "web", "-o", "json"))
		if len(v.Attempts) == 2 {
			if v.Attempts[0].Instance != "w2" || v.Attempts[0].Error == "" || v.Attempts[1].Status != "200 OK" || v.Instance.ID != "w1" {
				t.Errorf("%+v", v)
			}
			return
		}
	}
	t.Error("20 calls never tried the dead instance first")
}

func TestCallOverTLS(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	server := httptest.NewUnstartedServer(echo("w1"))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // handshakes that fail are meant to
	server.StartTLS()
	t.Cleanup(server.Close)
	s.serviceAt("web", "w1", server.Listener.Addr().String(), "")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, flags := range []string{"--service-insecure", "--service-server-name example.com --service-ca-cert " + ca} {
		if got := s.ok(append([]string{"call", "web", "--scheme", "https"}, strings.Fields(flags)...)...); !strings.HasPrefix(got, "w1|GET|") {
			t.Errorf("%s: %q", flags, got)
		}
	}
	for _, flags := range []string{"", "--service-ca-cert " + ca} { // not trusted; not for this name
		r := s.run(append([]string{"call", "web", "--scheme", "https"}, strings.Fields(flags)...)...)
		if r.code != exitFailed || !strings.Contains(r.stderr, "hint: --service-ca-cert FILE") {
			t.Errorf("%q: exit code %d\n%s", flags, r.code, r.stderr)
		}
	}
}

func TestCallChecksHealthByGRPC(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	for _, id := range []string{"g1", "g2"} {
		lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server, healths := grpc.NewServer(), health.NewServer()
		healths.SetServingStatus("sick", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
		grpc_health_v1.RegisterHealthServer(server, healths)
		served := make(chan error, 1)
		go func() { served <- server.Serve(lis) }()
		t.Cleanup(func() {
			server.Stop()
			if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				t.Error(err)
			}
		})
		s.serviceAt("pay", id, lis.Addr().String(), "--tag t-"+id)
	}
	s.expect("SERVING\n", s.ok("call", "pay", "--grpc"))
	for _, id := range []string{"g1", "g2"} {
		for _, policy := range policyWords() {
			v := decode[callView](t, s.ok("call", "pay", "--grpc", "--tag", "t-"+id, "--policy", policy, "--key", "k", "-o", "json"))
			if v.Status != "SERVING" || len(v.Attempts) != 1 || v.Instance == nil || v.Instance.ID != id || v.Share != 1 {
				t.Errorf("%s %s: %+v", id, policy, v)
			}
		}
	}
	type many struct {
		Statuses  map[string]int
		Instances []calledView
	}
	key := strings.TrimSpace(s.ok("resolve", "pay", "--policy", "ring", "--key", "user-7", "--one"))
	doc := decode[many](t, s.ok("call", "pay", "--grpc", "--policy", "ring", "--key", "user-7", "--count", "200", "-o", "json"))
	for _, i := range doc.Instances {
		if (i.Address == key) != (i.Calls > 100) {
			t.Errorf("the key belongs to %s: %+v", key, doc)
		}
	}
	s.expect("NOT_SERVING\n", s.ok("call", "pay", "--grpc", "--grpc-service", "sick"))
	if r := s.run("call", "pay", "--grpc", "--grpc-service", "sick", "--fail"); r.code != exitBadAnswer || r.stdout != "NOT_SERVING\n" {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
	if r := s.run("call", "pay", "--grpc", "--grpc-service", "none"); r.code != exitFailed || !strings.Contains(r.stderr, `no health of "none"`) {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
	doc = decode[many](t, s.ok("call", "pay", "--grpc", "--count", "10", "-o", "json"))
	if doc.Statuses["SERVING"] != 10 {
		t.Errorf("%+v", doc)
	}
}

// TestCallChoosesAsInstancesDoes compares the choice of the flags with the registry's.
func TestCallChoosesAsInstancesDoes(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	s.ok(strings.Fields("register web --id w1 --address 10.0.0.1 --port 80 --zone a --tag x --tag y --meta v=1 --detach")...)
	s.ok(strings.Fields("register web --id w2 --address 10.0.0.2 --port 80 --zone b --tag y --meta v=2 --detach")...)
	s.ok(strings.Fields("register web --id w3 --address 10.0.0.3 --port 80 --zone a --tag x --detach")...)
	s.ok("maintenance", "on", "web", "w3")
	all := s.instances("web")
	if len(all) != 3 {
		t.Fatalf("registered %v", all)
	}
	for _, f := range []filterFlags{
		{},
		{zone: "a"},
		{zone: "c"},
		{tags: []string{"x", "y"}},
		{tags: []string{"y"}},
		{metadata: []string{"v=1"}},
		{metadata: []string{"v="}},
		{health: "passing"},
		{health: "maintenance"},
		{zone: "a", tags: []string{"x"}, health: "critical"},
	} {
		f.namespace = "default"
		filter, err := f.filter("web")
		if err != nil {
			t.Fatal(err)
		}
		c, err := client.New([]string{s.env["REGD_ENDPOINTS"]})
		if err != nil {
			t.Fatal(err)
		}
		want, err := c.Instances(t.Context(), filter)
		every, allErr := c.Instances(t.Context(), client.Filter{Service: "web"})
		if err = errors.Join(err, allErr, c.Close()); err != nil {
			t.Fatal(err)
		}
		got := slices.DeleteFunc(every.Instances, func(i *registryv1.Instance) bool { return !matches(filter)(i) })
		if !slices.EqualFunc(got, want.Instances, func(a, b *registryv1.Instance) bool { return a.GetId() == b.GetId() }) {
			t.Errorf("%+v: call chooses %v, the registry %v", f, got, want.Instances)
		}
	}
}
