package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/regd-io/regd/cluster/certs/certstest"
)

func TestTLSInitMakesWhatNodesAndClientsNeed(t *testing.T) {
	t.Parallel()
	s, dir := newShell(t), filepath.Join(t.TempDir(), "tls")
	s.ok("tls", "init", "--out", dir, "--trust-domain", "prod.example", "--node", "n1=n1.example,10.0.0.1", "--node", "n2", "--client", "admin")
	s.ok("tls", "node", "n3", "--out", dir, "--hosts", "n3.example")
	s.ok("tls", "client", "shop", "--out", filepath.Join(dir, "clients"), "--ca", dir, "--days", "40")
	for file, want := range map[string]certificateView{
		"ca.crt":           {Is: "authority"},
		"n1.crt":           {Is: "peer", Name: "n1", Hosts: []string{"localhost", "n1.example", "127.0.0.1", "::1", "10.0.0.1"}},
		"n2.crt":           {Is: "peer", Name: "n2", Hosts: []string{"localhost", "127.0.0.1", "::1"}},
		"n3.crt":           {Is: "peer", Name: "n3", Hosts: []string{"localhost", "n3.example", "127.0.0.1", "::1"}},
		"admin.crt":        {Is: "client", Name: "admin"},
		"clients/shop.crt": {Is: "client", Name: "shop"},
	} {
		all := decode[certificatesView](t, s.ok("tls", "show", filepath.Join(dir, file), "-o", "json")).Certificates
		if len(all) != 1 {
			t.Fatalf("%s: %+v", file, all)
		}
		got := all[0]
		if got.Is != want.Is || got.Name != want.Name || got.TrustDomain != "prod.example" || strings.Join(got.Hosts, " ") != strings.Join(want.Hosts, " ") {
			t.Errorf("%s is %+v", file, got)
		}
		if info, err := os.Stat(filepath.Join(dir, strings.TrimSuffix(file, "crt")+"key")); err != nil || info.Mode() != 0o600 {
			t.Errorf("the key of %s: mode %v, %v", file, info.Mode(), err)
		}
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		code exitCode
		says string
	}{
		{"init --trust-domain x --out " + dir, exitConflict, "ca.crt is there already"},
		{"node n1 --out " + dir, exitConflict, "n1.crt is there already"},
		{"node n9 --out " + t.TempDir(), exitFailed, "--ca says where the authority is"},
		{"init --out " + t.TempDir(), exitUsage, "--trust-domain: must be set"},
		{"init --trust-domain A --out " + t.TempDir(), exitUsage, `trust domain "A"`},
		{"init --trust-domain a --node n1=x:1 --out " + t.TempDir(), exitUsage, `--node n1=x:1: host "x:1"`},
		{"init --trust-domain a --node x --client x --out " + t.TempDir(), exitUsage, "two certificates would be called x"},
		{"client a --days 9999 --out " + dir, exitUsage, "choose a time between"},
		{"show " + filepath.Join(dir, "n1.key"), exitFailed, "has no certificate in PEM form"},
	} {
		if r := s.run(append([]string{"tls"}, strings.Fields(tt.args)...)...); r.code != tt.code || !strings.Contains(r.stderr, tt.says) {
			t.Errorf("tls %s: exit code %d, want %d and %q\n%s", tt.args, r.code, tt.code, tt.says, r.stderr)
		}
	}
	if now, err := os.ReadFile(filepath.Join(dir, "ca.crt")); err != nil || string(now) != string(ca) {
		t.Error("the authority was replaced")
	}
	s.ok("tls", "node", "n1", "--out", dir, "--force")
}

func TestTLSShowWarnsInTime(t *testing.T) {
	t.Parallel()
	ca, now := certstest.NewAuthority(t), time.Now()
	for name, tt := range map[string]struct {
		from, to time.Time
		says     string
	}{
		"good":    {now.Add(-time.Hour), now.Add(31 * 24 * time.Hour), ""},
		"soon":    {now.Add(-time.Hour), now.Add(29 * 24 * time.Hour), "about to expire"},
		"expired": {now.Add(-2 * time.Hour), now.Add(-time.Hour), "has expired"},
		"later":   {now.Add(time.Hour), now.Add(31 * 24 * time.Hour), "not valid yet"},
	} {
		f := certstest.Write(t, t.TempDir(), ca.Peer("n1", certstest.Between(tt.from, tt.to)), ca.PEM())
		r := newShell(t).run("tls", "show", f.Cert)
		want := exitOK
		if tt.says != "" {
			want = exitDegraded
		}
		if r.code != want || !strings.Contains(r.stdout, "node n1 of test.example") || strings.Contains(r.stdout, "PROBLEM") != (tt.says != "") ||
			!strings.Contains(r.stdout, tt.says) {
			t.Errorf("%s: exit code %d\n%s%s", name, r.code, r.stdout, r.stderr)
		}
	}
	f := certstest.Write(t, t.TempDir(), ca.Peer("\x1b[31m", certstest.URIs()), ca.PEM())
	r := newShell(t).run("tls", "show", f.Cert)
	if !strings.Contains(r.stdout, "nobody that regd knows") || strings.Contains(r.stdout, "\x1b") {
		t.Errorf("a certificate of others:\n%q", r.stdout)
	}
}
