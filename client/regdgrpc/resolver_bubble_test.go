package regdgrpc_test

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/internal/registrytest"
	"github.com/regd-io/regd/client/regdgrpc"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// channel is gRPC's side of a resolver.
type channel struct {
	resolver.ClientConn

	mu    sync.Mutex // guards the fields below
	state resolver.State
	err   error
	told  int
}

func (c *channel) UpdateState(s resolver.State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.err = s, nil
	c.told++
	return nil
}

func (c *channel) ReportError(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// want checks what the channel was told last: id=address of all instances, and the error.
func (c *channel) want(t *testing.T, want string, err error) {
	t.Helper()
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	var got []string
	for _, e := range c.state.Endpoints {
		got = append(got, regdgrpc.Instance(e).GetId()+"="+e.Addresses[0].Addr)
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, strings.Join(got, " ")); diff != "" {
		t.Error(diff)
	}
	if !errors.Is(c.err, err) {
		t.Errorf("error: got %v, want %v", c.err, err)
	}
}

// resolve starts a resolver that ends with the test.
func resolve(t *testing.T, d *discovery.Discovery, target string) *channel {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	c := &channel{}
	r, err := regdgrpc.NewBuilder(d).Build(resolver.Target{URL: *u}, c, resolver.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	r.ResolveNow(resolver.ResolveNowOptions{})
	return c
}

// TestResolve checks what a channel is told as instances come and go.
func TestResolve(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := registrytest.New(t)
		c := resolve(t, r.Discovery(), "regd:///payment")
		c.want(t, "", discovery.ErrNoSuchService)
		a, b := inst("a", "10.0.0.1", 80), inst("b", "10.0.0.2", 80)
		r.Put(a, b)
		c.want(t, "a=10.0.0.1:80 b=10.0.0.2:80", nil)
		a.Draining = true
		r.Put(a)
		c.want(t, "b=10.0.0.2:80", nil)
		b.Health = registryv1.Health_HEALTH_CRITICAL
		a.Health = registryv1.Health_HEALTH_CRITICAL
		r.Put(b, a)
		c.want(t, "", discovery.ErrNoneHealthy)
		b.Health = registryv1.Health_HEALTH_WARNING
		r.Put(b)
		c.want(t, "b=10.0.0.2:80", nil)
		b.Ports = append(b.Ports, &registryv1.Port{Name: "admin", Number: 81})
		r.Put(b)
		c.want(t, "", balance.ErrNoPort)
		b.Ports[0].Name = "grpc"
		r.Put(b)
		c.want(t, "b=10.0.0.2:80", nil)
		r.Stop()
		c.want(t, "b=10.0.0.2:80", nil)
		time.Sleep(time.Hour) // The view is as good as ever.
		c.want(t, "b=10.0.0.2:80", nil)
		r.Start()
		time.Sleep(time.Minute)
		r.Remove(a, b)
		c.want(t, "", discovery.ErrNoneHealthy)
	})
}

// TestResolveTargets checks which service and port targets name.
func TestResolveTargets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := registrytest.New(t)
		d := r.Discovery()
		a, b := inst("a", "10.0.0.1", 80), inst("b", "10.0.0.2", 80)
		b.Namespace = "prod"
		b.Ports = append(b.Ports, &registryv1.Port{Name: "admin", Number: 81})
		r.Put(a, b)
		for target, want := range map[string]string{
			"regd:///payment": "a=10.0.0.1:80",
			"regd://payment":  "a=10.0.0.1:80",
			"regd:payment":    "a=10.0.0.1:80",
			"regd://payment/": "a=10.0.0.1:80",
			"regd:///payment?namespace=prod&port=admin": "b=10.0.0.2:81",
			"regd://payment?namespace=prod&port=main":   "b=10.0.0.2:80",
			"regd:///payment?port=main":                 "a=10.0.0.1:80",
		} {
			resolve(t, d, target).want(t, want, nil)
			u, err := url.Parse(target)
			if err != nil {
				t.Fatal(err)
			}
			if got := regdgrpc.NewBuilder(d).OverrideAuthority(resolver.Target{URL: *u}); got != "payment" {
				t.Errorf("%s: authority %q", target, got)
			}
		}
		for _, target := range []string{
			"regd:///", "regd://", "regd://a/b", "regd:///a/b", "regd:///a:80", "regd://u@a", "regd:///a?zone=x", "regd:///a?port=",
			"regd:///a?port=x&port=y", "regd:///a?%zz",
		} {
			u, err := url.Parse(target)
			if err != nil {
				t.Fatal(err)
			}
			_, err = regdgrpc.NewBuilder(d).Build(resolver.Target{URL: *u}, &channel{}, resolver.BuildOptions{})
			if !errors.Is(err, regdgrpc.ErrBadTarget) {
				t.Errorf("%s: got %v", target, err)
			}
		}
	})
}

// TestResolveWithoutRegistry checks that a channel learns that the registry doesn't answer, or refuses, and that it may
// change its mind.
func TestResolveWithoutRegistry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := registrytest.New(t)
		r.Put(inst("a", "10.0.0.1", 80))
		r.Stop()
		d := r.Discovery()
		c := resolve(t, d, "regd:///payment")
		time.Sleep(4 * time.Second)
		c.want(t, "", nil)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		c.mu.Lock()
		if c.err == nil || !strings.Contains(c.err.Error(), "gave no answer within 5s") || !strings.Contains(c.err.Error(), "refused") {
			t.Errorf("got %v", c.err)
		}
		c.mu.Unlock()
		r.Refuse(status.Error(codes.PermissionDenied, "not for you"))
		r.Start()
		time.Sleep(time.Minute)
		synctest.Wait()
		c.mu.Lock()
		if failed := (*client.Error)(nil); !errors.As(c.err, &failed) || failed.Code != codes.PermissionDenied {
			t.Errorf("got %v", c.err)
		}
		c.mu.Unlock()
		r.Refuse(nil)
		time.Sleep(3 * time.Minute)
		c.want(t, "a=10.0.0.1:80", nil)
		d.Close()
		c.want(t, "a=10.0.0.1:80", client.ErrClosed)
	})
}
