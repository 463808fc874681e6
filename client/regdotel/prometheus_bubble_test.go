package regdotel

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/internal/livetest"
)

// TestNamesOfPrometheus checks that all metrics reach Prometheus under names as docs/client.md says, and that what it quotes
// is there.
func TestNamesOfPrometheus(t *testing.T) {
	page, err := os.ReadFile("../../docs/client.md")
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile(`regd_client_[a-z_]+(\{[^}]*\})?`).FindAllString(string(page), -1)
	if len(quoted) < 5 {
		t.Fatalf("docs/client.md quotes only %v", quoted)
	}
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutScopeInfo())
		if err != nil {
			t.Fatal(err)
		}
		f := newFixture(t, WithMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter))))
		c, _ := livetest.New(t, 3).Client(client.WithTracer(f))
		d, err := discovery.New(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.Close)
		f.ObserveClient(c)
		f.ObserveDiscovery(d)
		if _, err = c.Register(t.Context(), inst("payment", "a")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // The node that serves the watch may lag.
		if _, err = get(t, f.transport(d, ok), "http://payment.service/"); err != nil {
			t.Fatal(err)
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, family := range families {
			name := family.GetName()
			for _, m := range family.GetMetric() {
				var labels []string
				for _, l := range m.GetLabel() {
					labels = append(labels, l.GetName()+`="`+l.GetValue()+`"`)
				}
				names = append(names, name+"{"+strings.Join(labels, ",")+"}")
			}
			names = append(names, name, name+"_bucket")
		}
		for _, name := range quoted {
			if !slices.Contains(names, name) {
				t.Errorf("docs/client.md speaks of %s; there are\n%s", name, strings.Join(names, "\n"))
			}
		}
		for _, d := range descriptions() {
			name := strings.ReplaceAll(d.name, ".", "_")
			switch {
			case d.onlyByInstance():
				continue
			case d.kind == counter:
				name += "_total"
			case d.unit == "s":
				name += "_seconds"
			}
			if !slices.Contains(names, name) {
				t.Errorf("%s is not there as %s", d.name, name)
			}
		}
	})
}
