package regdgrpc_test

import (
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/resolver"

	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/internal/livetest"
	"github.com/regd-io/regd/client/regdgrpc"
)

// slowChannel is a gRPC that takes its time to take in what was resolved.
type slowChannel struct{ channel }

func (c *slowChannel) UpdateState(s resolver.State) error {
	time.Sleep(2 * time.Second)
	return c.channel.UpdateState(s)
}

// TestWhoLeavesWaitsForTheChannel has an instance leave that a channel would still choose for two seconds.
func TestWhoLeavesWaitsForTheChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := livetest.New(t, 3)
		provider, _ := l.Client()
		consumer, _ := l.Client()
		d, err := discovery.New(consumer)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.Close)
		u, err := url.Parse("regd:///payment")
		if err != nil {
			t.Fatal(err)
		}
		c := &slowChannel{}
		r, err := regdgrpc.NewBuilder(d).Build(resolver.Target{URL: *u}, c, resolver.BuildOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		i := inst("a", "10.0.0.1", 80)
		i.Health = 0 // It is the registry's to say.
		reg, err := provider.Register(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		c.want(t, "a=10.0.0.1:80", nil)
		began := time.Now()
		if d, err := reg.Leave(t.Context()); err != nil || d.Err != nil {
			t.Fatalf("leave: %v, %v", d.Err, err)
		}
		c.want(t, "", discovery.ErrNoneHealthy)
		if took := time.Since(began); took < 2*time.Second || took > 3*time.Second {
			t.Errorf("it left after %v, want 2s: the channel was told then", took)
		}
	})
}
