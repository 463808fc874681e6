package chaos_test

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// TestAKilledLeaderCostsNothingButTime: with a write load, a watch, a wrapped command and fifty sessions open the leader
// is killed. Writes go on within three seconds, nothing that is alive expires, nothing acknowledged is lost, the watch
// has neither gap nor repeat, and all replicas are equal once the node is back (G1, G4, G5, G10).
func TestAKilledLeaderCostsNothingButTime(t *testing.T) {
	const sessions = 50
	c := nodes.Start(t, 3)
	admin := newClient(t, c.Addresses())
	v := observe(t, newClient(t, c.Addresses()))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for i := range sessions {
		owner := newClient(t, c.Addresses(), client.WithSessionTTL(5*time.Second))
		_, err := owner.Register(ctx, &registryv1.Instance{Service: "alive", Id: fmt.Sprint(i), Address: "127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
	}
	wrapped := exec.CommandContext(ctx, nodes.Binary(t), "register", "wrapped", "--port", "8080", "--ttl", "5s", //nolint:gosec // Ours.
		"--endpoint", strings.Join(c.Addresses(), ","), "--", "sleep", "600")
	if err := wrapped.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = wrapped.Process.Kill()
		_ = wrapped.Wait()
	}()
	alive := func() int {
		v.mu.Lock()
		defer v.mu.Unlock()
		k := 0
		for key := range v.instances {
			if strings.HasPrefix(key, "alive/") || strings.HasPrefix(key, "wrapped/") {
				k++
			}
		}
		return k
	}
	c.Wait("all to be registered", 30*time.Second, func(context.Context) bool { return alive() == sessions+1 })

	w := load(t, c.Addresses(), 4)
	c.Wait("a running load", 10*time.Second, func(context.Context) bool { return w.count() > 100 })
	for round := range rounds(t, 2) {
		w.rest.Store(0) // Each writer has a write under way when the leader is killed.
		w.progress(c)
		old := c.Leader()
		killed := time.Now()
		old.Kill()
		before := w.count()
		c.Wait("writes to go on", 10*time.Second, func(context.Context) bool { return w.count() > before+4 })
		gap := time.Since(killed)
		t.Logf("round %d: writes went on %v after the leader was killed", round, gap.Round(time.Millisecond))
		if gap > 3*time.Second {
			t.Errorf("writes went on only %v after the leader was killed, want 3s", gap)
		}
		w.rest.Store(int64(50 * time.Millisecond)) // Nothing comes of more, but load on the processors.
		// Longer than a TTL: whatever was going to expire has.
		c.Wait("a TTL to pass", 30*time.Second, func(context.Context) bool { return time.Since(killed) > 7*time.Second })
		if got := alive(); got != sessions+1 {
			t.Errorf("%d instances with living owners are registered, want %d", got, sessions+1)
		}
		old.Start()
		c.Ready()
	}
	w.judge(t, admin)
	v.equals(t, admin, c.Wait)
	v.mu.Lock()
	for key, k := range v.deletes {
		t.Errorf("%s was removed %d times although its owner lived", key, k)
	}
	v.mu.Unlock()
	verify(t, c)
}

// verify fails the test unless all replicas are equal.
func verify(t *testing.T, c *nodes.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	reply, err := c.Leader().Admin().Verify(ctx, &apiv1.VerifyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !reply.GetEqual() {
		t.Errorf("the replicas differ: %v", reply.GetReplicas())
	}
}
