package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/regd-io/regd/cluster/certs"
	"github.com/regd-io/regd/cluster/certs/certstest"
)

func TestTLSFlagsThatDontGoTogetherAreToldAtOnce(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ flags, says string }{
		{"--tls-cert a", "--tls-cert and --tls-key: one of them is missing"},
		{"--tls-key a", "--tls-cert and --tls-key: one of them is missing"},
		{"--peer-tls-cert a --peer-tls-ca c", "--peer-tls-cert and --peer-tls-key: one of them is missing"},
		{"--peer-tls-cert a --peer-tls-key b", "--peer-tls-ca or --tls-ca must be set"},
		{"--tls-ca a", "--tls-ca: without --tls-cert and --tls-key there is no TLS"},
		{"--tls-client-auth require --tls-cert a --tls-key b", "--tls-client-auth require: needs"},
		{"--tls-client-auth request", "--tls-client-auth request: needs"},
		{"--tls-cert a --tls-key b --tls-ca c --name a/b", `--name: with TLS it stands in the certificate: name "a/b"`},
		{"--grpc-listen 0.0.0.0:1 --advertise-grpc a:1", "--grpc-listen 0.0.0.0:1: reaches beyond this machine without TLS"},
		// A certificate for clients alone does not make the peer port secure.
		{"--tls-cert a --tls-key b --peer-listen 0.0.0.0:1 --advertise-peer a:1", "--peer-listen 0.0.0.0:1: reaches beyond"},
	} {
		r := newShell(t).run(append([]string{"serve", "--name", "n1", "--data-dir", t.TempDir()}, strings.Fields(tt.flags)...)...)
		if r.code != exitConfig || !strings.Contains(r.stderr, tt.says) {
			t.Errorf("%s: exit code %d, want %q\n%s", tt.flags, r.code, tt.says, r.stderr)
		}
	}
	r := newShell(t).run("serve", "--tls-min-version", "1.1")
	if r.code != exitUsage || !strings.Contains(r.stderr, `"1.1": must be one of 1.2, 1.3`) {
		t.Errorf("TLS 1.1: exit code %d\n%s", r.code, r.stderr)
	}
}

// G12: each port that others reach needs TLS of its own, or consent.
func TestPortsBeyondLoopbackNeedTLSOrConsent(t *testing.T) {
	t.Parallel()
	const everywhere, here = "0.0.0.0:1", "127.0.0.1:1"
	both := tlsSettings{Cert: "c", Key: "k", CA: "a"}
	var peersOnly tlsSettings
	peersOnly.Peer.Cert, peersOnly.Peer.Key, peersOnly.Peer.CA = "c", "k", "a"
	for name, tt := range map[string]struct {
		grpc, peer string
		tls        tlsSettings
		open       string
	}{
		"loopback":         {here, here, tlsSettings{}, ""},
		"all, no TLS":      {everywhere, everywhere, tlsSettings{}, "--grpc-listen --peer-listen"},
		"all, TLS":         {everywhere, everywhere, both, ""},
		"clients only":     {everywhere, everywhere, tlsSettings{Cert: "c", Key: "k"}, "--peer-listen"},
		"peers only":       {everywhere, everywhere, peersOnly, "--grpc-listen"},
		"clients, no TLS":  {everywhere, here, tlsSettings{}, "--grpc-listen"},
		"clients only, ok": {everywhere, here, tlsSettings{Cert: "c", Key: "k"}, ""},
	} {
		cfg := serveConfig{
			Name: "n1", DataDir: "d", GRPCListen: tt.grpc, PeerListen: tt.peer, HTTPListen: here, HeartbeatTimeout: time.Second,
			AdvertiseGRPC: "a:1", AdvertisePeer: "a:1", AdvertiseHTTP: "a:1", TLS: tt.tls, Limits: defaultLimits(),
		}
		if got := strings.Join(cfg.plaintext(), " "); got != tt.open {
			t.Errorf("%s: open are %q, want %q", name, got, tt.open)
		}
		if err := cfg.validate(); (err == nil) != (tt.open == "") {
			t.Errorf("%s: %v", name, err)
		}
		cfg.Insecure = true
		if err := cfg.validate(); err != nil {
			t.Errorf("%s, with consent: %v", name, err)
		}
	}
}

// peerFiles writes the files of a node and returns them as flags.
func peerFiles(t *testing.T, ca *certstest.Authority, p certstest.Pair) (certs.Files, []string) {
	t.Helper()
	f := certstest.Write(t, t.TempDir(), p, ca.PEM())
	return f, []string{"--tls-cert", f.Cert, "--tls-key", f.Key, "--tls-ca", f.CA}
}

func TestANodeDoesNotStartWithTheWrongCertificate(t *testing.T) {
	t.Parallel()
	ca := certstest.NewAuthority(t)
	past := certstest.Between(time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour))
	for name, tt := range map[string]struct {
		pair certstest.Pair
		mode os.FileMode
		says string
	}{
		"of another node":   {ca.Peer("n2"), 0o600, "this is the node n1: it needs spiffe://test.example/regd/peer/n1"},
		"of a client":       {ca.Client("n1"), 0o600, "certificate of another role"},
		"expired":           {ca.Peer("n1", past), 0o600, "it expired at"},
		"with an open key":  {ca.Peer("n1"), 0o644, "tls.key has mode 0644: chmod 06"},
		"without a SAN":     {ca.Peer("n1", certstest.URIs()), 0o600, "it has no URI SAN"},
		"of a stranger":     {certstest.NewAuthority(t).Peer("n1"), 0o600, "signed by unknown authority"},
		"of another regd's": {ca.Peer("n1", certstest.URIs("spiffe://test.example/ns/prod/sa/regd")), 0o600, "is not spiffe://<trust domain>/regd/"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, flags := peerFiles(t, ca, tt.pair)
			if err := os.Chmod(f.Key, tt.mode); err != nil {
				t.Fatal(err)
			}
			r := newShell(t).run(serveArgs(t, t.TempDir(), flags...)...)
			if r.code != exitConfig || !strings.Contains(r.stderr, tt.says) {
				t.Errorf("exit code %d, want 78 and %q\n%s", r.code, tt.says, r.stderr)
			}
		})
	}
}

// What a command says when TLS keeps it out: why, and what to do.
func TestCommandsTellWhyTLSKeepsThemOut(t *testing.T) {
	t.Parallel()
	ca, now := certstest.NewAuthority(t), time.Now()
	files, _ := peerFiles(t, ca, ca.Peer("n1"))
	s, _ := startNodeWith(t, tlsSettings{Cert: files.Cert, Key: files.Key, CA: files.CA, ClientAuth: "require", MinVersion: tls13})
	plain, _ := startNode(t)
	client := func(p certstest.Pair) string {
		f := certstest.Write(t, t.TempDir(), p, ca.PEM())
		return " --cert " + f.Cert + " --cert-key " + f.Key
	}
	trusts, stranger := " --ca-cert "+files.CA, certstest.NewAuthority(t)
	other, _ := peerFiles(t, stranger, stranger.Peer("x"))
	good := client(ca.Client("shop"))
	open := certstest.Write(t, t.TempDir(), ca.Client("shop"), ca.PEM())
	if err := os.Chmod(open.Key, 0o604); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, flags string
		code        exitCode
		says, hint  string
	}{
		{"plaintext", "", exitUnreachable, "one side uses TLS and the other does not", "--ca-cert or $REGD_CA_CERT"},
		{"unknown authority", " --ca-cert " + other.CA + good, exitUnreachable, "of an authority that is not trusted here", "the ca.crt of  regd tls init"},
		{"system's authorities", " --tls", exitUnreachable, "of an authority that is not trusted here", "--ca-cert"},
		{"wrong name", trusts + good + " --server-name else.example", exitUnreachable, "is not for that host", "name one by --server-name"},
		{"no certificate", trusts, exitDenied, "the node wants a certificate of the client", "regd tls client  makes one"},
		{"wrong role", trusts + client(ca.Peer("n1")), exitDenied, "does not accept the client's certificate", "its role must be client"},
		{"wrong trust domain", trusts + client(ca.Client("a", certstest.URIs("spiffe://else/regd/client/a"))), exitDenied, "does not accept", "trust domain"},
		{"expired", trusts + client(ca.Client("a", certstest.Between(now.Add(-2*time.Hour), now.Add(-time.Hour)))), exitDenied, "has expired, or is not valid yet", "regd tls show FILE"},
		{"certificate of strangers", trusts + client(stranger.Client("a")), exitDenied, "does not trust the authority of the client's", "--tls-ca"},
		{"half a pair", trusts + " --cert x", exitUsage, "--cert and --cert-key: one of them is missing", "--help"},
		{"no such file", " --ca-cert nothing", exitUsage, "open nothing: no such file", "--help"},
		{"open key", trusts + " --cert " + open.Cert + " --cert-key " + open.Key, exitUsage, "has mode 0604: chmod 06", "should be replaced"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := s.run(append(strings.Fields("members --timeout 2s"), strings.Fields(tt.flags)...)...)
			if r.code != tt.code || !strings.Contains(r.stderr, tt.says) || !strings.Contains(r.stderr, "hint: ") ||
				!strings.Contains(r.stderr[strings.Index(r.stderr, "hint: "):], tt.hint) {
				t.Errorf("exit code %d, want %d, %q and %q\n%s", r.code, tt.code, tt.says, tt.hint, r.stderr)
			}
		})
	}
	t.Run("TLS to plaintext", func(t *testing.T) {
		t.Parallel()
		r := plain.run(append(strings.Fields("members --timeout 2s"), strings.Fields(trusts)...)...)
		if r.code != exitUnreachable || !strings.Contains(r.stderr, "does not use TLS") && !strings.Contains(r.stderr, "the other does not") ||
			!strings.Contains(r.stderr, "leave out --tls") {
			t.Errorf("exit code %d\n%s", r.code, r.stderr)
		}
	})
	t.Run("let in", func(t *testing.T) {
		t.Parallel()
		s.ok(append(strings.Fields("status --wait"), strings.Fields(trusts+good)...)...)
		env := &shell{t: t, env: map[string]string{"REGD_ENDPOINTS": s.env["REGD_ENDPOINTS"], "REGD_CA_CERT": files.CA}}
		words := strings.Fields(good)
		env.env["REGD_CERT"], env.env["REGD_CERT_KEY"] = words[1], words[3]
		env.ok("members")
		plain.env["REGD_CA_CERT"] = files.CA
		plain.ok("members", "--tls=false")
	})
}

// tlsNode is a node of a cluster in this process whose files change.
type tlsNode struct {
	name, dir, grpc string
}

// A cluster goes over to another authority without a node that stops: both are trusted, then all certificates are of the new
// one, then the old one is trusted no more.
func TestAClusterChangesItsAuthorityWhileItWorks(t *testing.T) {
	t.Parallel()
	before, after := certstest.NewAuthority(t), certstest.NewAuthority(t)
	nodes := startTLSCluster(t, before)
	s := newShell(t)
	var endpoints []string
	for _, n := range nodes {
		endpoints = append(endpoints, n.grpc)
	}
	s.env["REGD_ENDPOINTS"] = strings.Join(endpoints, ",")
	trust := certstest.Write(t, t.TempDir(), before.Client("admin"), before.PEM())
	s.env["REGD_CA_CERT"], s.env["REGD_CERT"], s.env["REGD_CERT_KEY"] = trust.CA, trust.Cert, trust.Key
	s.ok("status", "--wait", "--timeout", "20s")
	watch := s.start("watch", "-o", "jsonl")
	watch.says(`"type":"synced"`)
	for i, step := range []struct {
		of    *certstest.Authority
		trust string
	}{
		{before, before.PEM() + after.PEM()}, {after, before.PEM() + after.PEM()}, {after, after.PEM()},
	} {
		for _, n := range nodes {
			certstest.Write(t, n.dir, step.of.Peer(n.name), step.trust)
		}
		certstest.Write(t, filepath.Dir(trust.CA), step.of.Client("admin"), step.trust)
		id := "step-" + string(rune('0'+i))
		eventually(t, func() string {
			if r := s.run("register", "web", "--id", id, "--port", "1", "--detach", "--timeout", "3s"); r.code != exitOK {
				return r.stderr
			}
			return s.run("status", "--wait", "--timeout", "3s").stderr
		})
		watch.says(`"id":"` + id + `"`)
	}
	s.ok("verify")
	if code := watch.wait(); code != exitOK {
		t.Errorf("the watch ended with %d\n%s", code, watch.stderr.String())
	}
	old := certstest.Write(t, t.TempDir(), before.Client("admin"), after.PEM())
	eventually(t, func() string { // Once all nodes have looked at their files.
		r := s.run("members", "--timeout", "2s", "--cert", old.Cert, "--cert-key", old.Key)
		if r.code != exitDenied || !strings.Contains(r.stderr, "does not trust the authority of the client's certificate") {
			return fmt.Sprintf("with a certificate of the old authority: exit code %d\n%s", r.code, r.stderr)
		}
		return ""
	})
}

func startTLSCluster(t *testing.T, ca *certstest.Authority) []tlsNode {
	t.Helper()
	var peers []string
	for range 3 {
		peers = append(peers, freeAddress(t))
	}
	var nodes []tlsNode
	for i, name := range []string{"n1", "n2", "n3"} {
		n := tlsNode{name: name, dir: t.TempDir()}
		f := certstest.Write(t, n.dir, ca.Peer(name), ca.PEM())
		up := make(chan string, 1)
		cfg := serveConfig{
			Name: name, DataDir: filepath.Join(t.TempDir(), name), GRPCListen: "127.0.0.1:0", HTTPListen: "127.0.0.1:0",
			PeerListen: peers[i], InitialPeers: peers, HeartbeatTimeout: 200 * time.Millisecond, NoSync: true,
			Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Limits: defaultLimits(),
			TLS: tlsSettings{
				Cert: f.Cert, Key: f.Key, CA: f.CA, ClientAuth: "require", MinVersion: tls13, Every: 50 * time.Millisecond,
			},
			Up: func(grpc, _ net.Addr) { up <- grpc.String() },
		}
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		ended := make(chan error, 1)
		go func() { ended <- serve(ctx, cfg) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("serve %s: %v", name, err)
			}
		})
		select {
		case n.grpc = <-up:
		case err := <-ended:
			ended <- nil
			t.Fatalf("serve %s: %v", name, err)
		}
		nodes = append(nodes, n)
	}
	return nodes
}
