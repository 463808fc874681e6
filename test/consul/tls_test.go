package consul

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hashicorp/consul/api"
)

// TestTLS: with certificates all that the client does goes by HTTPS, and nobody comes in without.
func TestTLS(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	args := []string{"tls", "init", "--out", dir, "--trust-domain", "test.example", "--client", "shop"}
	for _, name := range []string{"n1", "n2", "n3"} {
		args = append(args, "--node", name+"=127.0.0.1")
	}
	if out, err := exec.CommandContext(t.Context(), regd, args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c := startWith(t, dir)
	one, two := c.nodes[0].client(t), c.nodes[1].client(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f := follow(ctx, two, "web")
	f.sees(t, "")
	if err := one.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 80}); err != nil {
		t.Fatal(err)
	}
	f.sees(t, "web-1")
	l, err := two.LockKey("lock")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = l.Lock(nil); err != nil {
		t.Fatal(err)
	}
	if err = l.Unlock(); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]*api.Config{
		"plaintext":           {Address: c.nodes[0].consul},
		"without certificate": {Address: c.nodes[0].consul, Scheme: "https", TLSConfig: api.TLSConfig{CAFile: filepath.Join(dir, "ca.crt")}},
	} {
		client, err := api.NewClient(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if leader, err := client.Status().Leader(); err == nil {
			t.Errorf("%s was answered: %q", name, leader)
		}
	}
}
