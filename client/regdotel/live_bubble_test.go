package regdotel

import (
	"errors"
	"maps"
	"math"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/internal/livetest"
)

// TestMetrics checks, at a real cluster, that all metrics are made, those of instances only if they are asked for, and that
// each is of the kind and unit that it is described with.
func TestMetrics(t *testing.T) {
	for name, opts := range map[string][]Option{"by service": nil, "by instance": {WithInstances()}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, opts...)
				c, _ := livetest.New(t, 3).Client(client.WithTracer(f))
				d, err := discovery.New(c, discovery.WithTracer(f))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(d.Close)
				f.ObserveClient(c)
				f.ObserveDiscovery(d)
				if _, err := c.Register(t.Context(), inst("payment", "a")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second) // The node that serves the watch may lag.
				if _, err := get(t, f.transport(d, ok), "http://payment.service/"); err != nil {
					t.Fatal(err)
				}
				if _, err := f.channel(d, "payment").Check(t.Context(), &healthpb.HealthCheckRequest{}); err == nil {
					t.Fatal("the server has become implemented")
				}
				time.Sleep(10 * time.Second)
				want := make(map[string]string)
				for _, d := range descriptions() {
					if !d.onlyByInstance() || opts != nil {
						want[d.name] = string(d.kind) + ", " + d.unit
					}
				}
				got, _ := f.metrics()
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error("-described +made:\n" + diff)
				}
			})
		})
	}
}

func ok(*http.Request) (int, error) { return http.StatusOK, nil }

// TestSeriesHaveTheAttributesDescribed checks that the attributes of each series are those of its description.
func TestSeriesHaveTheAttributesDescribed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		described := make(map[string][]string)
		for _, d := range descriptions() {
			for _, key := range d.attributes {
				described[d.name] = append(described[d.name], string(key))
			}
			slices.Sort(described[d.name])
		}
		f := newFixture(t, WithInstances())
		c, _ := livetest.New(t, 3).Client(client.WithTracer(f))
		d, err := discovery.New(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.Close)
		f.ObserveClient(c)
		f.ObserveDiscovery(d)
		if _, err := c.Register(t.Context(), inst("payment", "a")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // The node that serves the watch may lag.
		if _, err := get(t, f.transport(d, ok), "http://payment.service/"); err != nil {
			t.Fatal(err)
		}
		series := f.sample()
		if len(series.all) < len(described) {
			t.Errorf("%d series of %d metrics", len(series.all), len(described))
		}
		for at, s := range series.all {
			var keys []string
			for _, a := range s.attributes.ToSlice() {
				keys = append(keys, string(a.Key))
			}
			if !slices.Equal(keys, described[at.name]) {
				t.Errorf("%s has attributes %v, described are %v", at.name, keys, described[at.name])
			}
		}
	})
}

// TestSessionIsLostAndRegained follows the metrics of a session and a registration through an outage, at a real cluster.
func TestSessionIsLostAndRegained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		c, link := livetest.New(t, 3).Client()
		f.ObserveClient(c)
		if _, values := f.metrics(); len(values) == 0 || values[sessionTimeLeft+"{}"] != 0 {
			t.Errorf("before there is a session: %v", values)
		}
		reg, err := c.Register(t.Context(), inst("payment", "a"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		f.want(map[string]float64{
			registrationState + "{instance.id=a,registration.state=registered,service=payment}": 1,
			registrationState + "{instance.id=a,registration.state=lost,service=payment}":       0,
			registrationIncarnation + "{instance.id=a,service=payment}":                         1,
			sessionOpenings + "{}": 1, sessionLosses + "{}": 0, registrationSuperseded + "{}": 0,
		})
		_, before := f.metrics()
		if age, left := before[sessionRenewalAge+"{}"], before[sessionTimeLeft+"{}"]; age < 0 || age > 2 || math.Abs(age+left-4) > 1e-6 {
			t.Errorf("renewed %v s ago, %v s are left of 4", age, left)
		}
		link.Cut()
		lost, avoided := before, 0.0 // at most at a time: an endpoint is tried again once its pause is over
		for range 60 {
			time.Sleep(100 * time.Millisecond)
			_, lost = f.metrics()
			avoided = max(avoided, lost[registryAvoided+"{}"])
		}
		if avoided != 3 {
			t.Errorf("of 3 endpoints that fail, %v were avoided", avoided)
		}
		if age, left := lost[sessionRenewalAge+"{}"], lost[sessionTimeLeft+"{}"]; age < 6 || left > -2 {
			t.Errorf("cut off for 6 s: renewed %v s ago, %v s are left", age, left)
		}
		f.want(map[string]float64{
			registrationState + "{instance.id=a,registration.state=registered,service=payment}": 0,
			registrationState + "{instance.id=a,registration.state=lost,service=payment}":       1,
			registrationLosses + "{instance.id=a,service=payment}":                              1,
			registrationRecoveries + "{instance.id=a,service=payment}":                          0,
			sessionLosses + "{}": 1,
		})
		if lost[sessionFailedRenewals+"{}"] == 0 || lost[sessionRenewals+"{}"] < before[sessionRenewals+"{}"] {
			t.Errorf("%v renewals failed, %v were confirmed", lost[sessionFailedRenewals+"{}"], lost[sessionRenewals+"{}"])
		}
		link.Mend()
		time.Sleep(15 * time.Second)
		if reg.State() != client.StateRegistered {
			t.Fatal(reg.State())
		}
		f.want(map[string]float64{
			registrationState + "{instance.id=a,registration.state=registered,service=payment}": 1,
			registrationLosses + "{instance.id=a,service=payment}":                              1,
			registrationRecoveries + "{instance.id=a,service=payment}":                          1,
			registrationIncarnation + "{instance.id=a,service=payment}":                         float64(reg.Incarnation()),
			sessionOpenings + "{}": 2, sessionLosses + "{}": 1, registryAvoided + "{}": 0,
		})
	})
}

// TestOperations checks the spans and the histogram of what is done with a registration, at a real cluster.
func TestOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		cluster := livetest.New(t, 3)
		c, _ := cluster.Client(client.WithTracer(f))
		other, link := cluster.Client()
		d, err := discovery.New(other, discovery.WithTracer(f))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.Close)
		f.ObserveDiscovery(d)
		reg, err := c.Register(t.Context(), inst("payment", "a"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = c.Register(t.Context(), inst("payment", "a")); !errors.Is(err, client.ErrAlreadyExists) {
			t.Fatal(err)
		}
		link.Cut()
		time.AfterFunc(2*time.Second, link.Mend)
		payment, err := d.Service("payment")
		if err != nil {
			t.Fatal(err)
		}
		defer payment.Close()
		for range 2 {
			if _, err = payment.Healthy(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		f.want(map[string]float64{viewLookups + "{service=payment}": 2, viewMisses + "{service=payment}": 1})
		if _, values := f.metrics(); values[viewFirstSync+"{service=payment}"] < 2 {
			t.Errorf("the first sync took %v s, two of which the registry was away", values[viewFirstSync+"{service=payment}"])
		}
		if _, err = reg.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := `regd register internal Unset {instance.id=a,operation=register,service=payment}
regd register internal Error {error.type=already_exists,instance.id=a,operation=register,service=payment}
regd first_view internal Unset {operation=first_view,service=payment}
regd leave internal Unset {instance.id=a,operation=leave,service=payment}
  regd drain internal Unset {instance.id=a,operation=drain,service=payment}
  regd await_delivery internal Unset {instance.id=a,operation=await_delivery,service=payment}
  regd deregister internal Unset {instance.id=a,operation=deregister,service=payment}
`
		if diff := cmp.Diff(want, f.tree()); diff != "" {
			t.Error("-want +got:\n" + diff)
		}
		_, values := f.metrics()
		maps.DeleteFunc(values, func(name string, _ float64) bool { return name[:len(operationDuration)] != operationDuration })
		counts := map[string]float64{operationDuration + "{error.type=already_exists,operation=register,service=payment}": 1}
		for _, op := range []string{"register", "first_view", "leave", "drain", "await_delivery", "deregister"} {
			counts[operationDuration+"{operation="+op+",service=payment}"] = 1
		}
		if diff := cmp.Diff(counts, values); diff != "" {
			t.Error("-want +got:\n" + diff)
		}
	})
}
