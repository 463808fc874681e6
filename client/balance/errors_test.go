package balance

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestErrors(t *testing.T) {
	b := balancer(t, RoundRobin(), nil)
	if _, err := b.Pick(Request{}); !errors.Is(err, ErrNoInstances) || errors.Is(err, ErrNoneHealthy) {
		t.Errorf("without instances: %v", err)
	}
	instances := fleet(6, false)
	instances[0].Health = registryv1.Health_HEALTH_CRITICAL
	instances[1].Health = registryv1.Health_HEALTH_STARTING
	instances[2].Draining = true
	instances[3].Health = registryv1.Health_HEALTH_DRAINING
	instances[4].Maintenance = true
	instances[5].Health = 0
	b.Update(instances)
	_, err := b.Pick(Request{})
	var unavailable *UnavailableError
	if !errors.Is(err, ErrNoneHealthy) || !errors.As(err, &unavailable) {
		t.Fatalf("with none that is fit: %v", err)
	}
	want := UnavailableError{Instances: 6, Matching: 6, Unhealthy: 3, Draining: 2, Maintenance: 1}
	if diff := cmp.Diff(want, *unavailable); diff != "" {
		t.Error(diff)
	}
	if text := "none of 6 is available: 1 in maintenance, 2 draining, 3 unhealthy"; !strings.Contains(err.Error(), text) {
		t.Errorf("%q doesn't say %q", err, text)
	}
	_, err = b.Pick(Request{Filter: All(HasTag("x"), Not(HasMetadata("version", "1")))})
	if !errors.Is(err, ErrNoMatch) || !strings.Contains(err.Error(), `none of 6 matches tag "x" and not (metadata version="1")`) {
		t.Errorf("with none that matches: %v", err)
	}
}

func TestNewReportsAllFaults(t *testing.T) {
	for _, c := range []struct {
		policy Policy
		opts   []Option
		want   []string
	}{
		{nil, nil, []string{"no policy"}},
		{BoundedRing(1), nil, []string{"factor 1"}},
		{BoundedRing(0), nil, []string{"factor NaN"}},
		{Local("", "", nil), nil, []string{"neither region nor zone"}},
		{Subset("", 0, Split(2, nil, nil)), nil, []string{"no client id", "size 0", "share 2", "no filter", "split: no inner policy"}},
		{Split(math.NaN(), HasTag("x"), Random()), nil, []string{"share NaN"}},
		{Random(), []Option{
			WithMinHealth(registryv1.Health_HEALTH_DRAINING), WithPanicThreshold(0), WithBreaker(Breaker{FailureRatio: 1.5}),
			WithEjection(Ejection{MaxShare: -1}), WithBreaker(Breaker{Window: time.Millisecond}),
		}, []string{"least health", "panic threshold 0", "FailureRatio:1.5", "MaxShare:-1", "breaker window 1ms"}},
	} {
		_, err := New(c.policy, c.opts...)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("New(%v): %v, want it to say %q", c.policy, err, want)
			}
		}
	}
}

func TestHostPort(t *testing.T) {
	in := &registryv1.Instance{Id: "a", Address: "::1", Ports: []*registryv1.Port{{Name: "http", Number: 80}, {Name: "grpc", Number: 81}}}
	for port, want := range map[string]string{"": "[::1]:80", "http": "[::1]:80", "grpc": "[::1]:81"} {
		if got, err := HostPort(in, port); got != want || err != nil {
			t.Errorf("port %q: %q, %v; want %q", port, got, err, want)
		}
	}
	_, err := HostPort(in, "admin")
	var missing *PortError
	if !errors.Is(err, ErrNoPort) || !errors.As(err, &missing) || !strings.Contains(err.Error(), `no port "admin", it has http, grpc`) {
		t.Errorf("a port that isn't there: %v", err)
	}
	if _, err := HostPort(nil, ""); !errors.Is(err, ErrNoPort) {
		t.Errorf("no ports at all: %v", err)
	}
}

// TestFiltersKeepTheirPlans checks that a plan is made once for each filter and state, and that their number is bounded.
func TestFiltersKeepTheirPlans(t *testing.T) {
	made := 0
	counting := FilterFunc("counting", func(*registryv1.Instance) bool { made++; return true })
	b := balancer(t, RoundRobin(), fleet(1, false))
	for range 100 {
		mustPick(t, b, Request{Filter: counting})
	}
	if made != 1 {
		t.Errorf("the filter was asked %d times, want once", made)
	}
	for range 3 {
		b.Update(fleet(1, false))
		mustPick(t, b, Request{Filter: counting})
	}
	if made != 4 {
		t.Errorf("the filter was asked %d times, want once more for each update", made)
	}
	for range 10 * maxFilters {
		mustPick(t, b, Request{Filter: HasMetadata("version", "2")})
	}
	if n := len(*b.plans.Load().byList.Load()); n > maxFilters {
		t.Errorf("%d plans are kept, want at most %d", n, maxFilters)
	}
	b.Update(nil)
	b.Update(nil)
	if n := len(*b.plans.Load().byList.Load()); n != 0 {
		t.Errorf("%d plans of filters that nobody uses are kept", n)
	}
}

// TestMinHealth checks who has a share at each least health, and that those in warning come second.
func TestMinHealth(t *testing.T) {
	instances := fleet(7, false)
	for i, in := range instances {
		in.Health = registryv1.Health(i)
	}
	picked := func(instances []*registryv1.Instance, least registryv1.Health) (out []int32) {
		b := balancer(t, RoundRobin(), instances, WithMinHealth(least))
		for _, s := range b.Explain(Request{}).Instances {
			if s.Share > 0 {
				out = append(out, int32(s.Instance.GetHealth()))
			}
		}
		return out
	}
	for _, c := range []struct {
		of    []*registryv1.Instance
		least registryv1.Health
		want  []int32
	}{
		{instances, registryv1.Health_HEALTH_PASSING, []int32{6}},
		{instances, registryv1.Health_HEALTH_WARNING, []int32{5, 6}},
		{instances, registryv1.Health_HEALTH_STARTING, []int32{4, 5, 6}},
		{instances[:6], registryv1.Health_HEALTH_PASSING, []int32{5}},
		{instances[:5], registryv1.Health_HEALTH_PASSING, nil},
	} {
		if diff := cmp.Diff(c.want, picked(c.of, c.least)); diff != "" {
			t.Errorf("least health %v of %d: %s", c.least, len(c.of), diff)
		}
	}
}
