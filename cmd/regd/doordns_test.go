package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// withDNS makes the commands of a shell have the door for DNS.
func withDNS(s *shell) *app {
	a := s.app(&syncBuffer{}, &syncBuffer{})
	a.doors = func() []door { return []door{new(dnsDoor)} }
	return a
}

func TestDNSSettingsAreAsReviewed(t *testing.T) {
	t.Parallel()
	fs := pflag.NewFlagSet("dns", pflag.ContinueOnError)
	fs.SortFlags = false
	new(dnsDoor).addFlags(fs)
	golden(t, "door-dns.txt", fs.FlagUsages())
}

func TestDNSSettingsAreChecked(t *testing.T) {
	t.Parallel()
	args := []string{"config", "check", "--name", "n1", "--data-dir", "/x"}
	for _, tt := range []struct {
		args []string
		says []string
	}{
		{[]string{"--dns-listen", "127.0.0.1"}, nil},
		{[]string{"--dns-listen", "::1"}, nil},
		{[]string{"--dns-listen", ":53", "--dns-domain", "regd.,consul", "--dns-service-ttl", "web=0s,*=5s", "--dns-zone", "10.0.0.0/8=a", "--dns-forward", "10.0.0.1,[::1]:5353"}, nil},
		{[]string{"--dns-udp-size", "1"}, nil}, // The door is closed.
		{
			[]string{"--dns-listen", "127.0.0.1:x", "--dns-udp-size", "1", "--dns-ttl", "-1s"},
			[]string{`--dns-listen "127.0.0.1:x": must be IP:port`, "--dns-udp-size 1: must be 512 to 4096", "--dns-ttl -1s: must be"},
		},
		{
			[]string{"--dns-service-ttl", "web", "--dns-zone", "10.0.0.0=a", "--dns-forward", "dns.example"},
			[]string{`--dns-service-ttl "web": must be service=duration`, `--dns-zone "10.0.0.0=a": must be network=zone`, `--dns-forward "dns.example": must be an IP address`},
		},
	} {
		a := withDNS(newShell(t))
		code := exitCode(a.run(t.Context(), append(args[:len(args):len(args)], tt.args...)))
		if stderr := a.stderr.(*syncBuffer).String(); (code == exitOK) != (tt.says == nil) {
			t.Errorf("%v: exit code %d\n%s", tt.args, code, stderr)
		} else {
			for _, says := range tt.says {
				if !strings.Contains(stderr, says) {
					t.Errorf("%v: stderr lacks %q:\n%s", tt.args, says, stderr)
				}
			}
		}
	}
}

// TestNodeAnswersDNS has a node, started as people do, answer about what is registered.
func TestNodeAnswersDNS(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	peers, grpc, ops, dns := freeAddress(t), freeAddress(t), freeAddress(t), freeAddress(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended, a := make(chan exitCode, 1), withDNS(s)
	go func() {
		ended <- exitCode(a.run(ctx, []string{
			"serve", "--name", "n1", "--data-dir", t.TempDir(), "--grpc-listen", grpc, "--http-listen", ops,
			"--peer-listen", peers, "--initial-peers", peers, "--heartbeat-timeout", "100ms", "--dns-listen", dns,
		}))
	}()
	s.env["REGD_ENDPOINTS"] = grpc
	s.ok("status", "--wait")
	s.ok("register", "web", "--id", "w1", "--address", "192.0.2.1", "--port", "80", "--detach")
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, dns)
	}}
	hosts, err := r.LookupHost(t.Context(), "web.service.regd.")
	if err != nil || len(hosts) != 1 || hosts[0] != "192.0.2.1" {
		t.Errorf("hosts %v: %v", hosts, err)
	}
	resp, err := http.Get("http://" + ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var metrics bytes.Buffer
	if _, err = metrics.ReadFrom(resp.Body); err != nil || !strings.Contains(metrics.String(), `regd_dns_queries_total{rcode="NOERROR",type="A"} 1`) {
		t.Errorf("the query is not counted: %v", err)
	}
	cancel()
	if code := <-ended; code != exitOK {
		t.Errorf("exit code %d\n%s", code, a.stderr)
	}
	if !portFree(dns) {
		t.Error("it still listens")
	}
	taken, err := net.Listen("tcp", dns)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	a = withDNS(s)
	code := exitCode(a.run(t.Context(), serveArgs(t, t.TempDir(), "--initial-peers", peers, "--peer-listen", peers, "--dns-listen", dns)))
	if stderr := a.stderr.(*syncBuffer).String(); code != exitFailed || !strings.Contains(stderr, "hint: another process listens there") {
		t.Errorf("on a taken port: exit code %d\n%s", code, stderr)
	}
}
