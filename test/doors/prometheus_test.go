package doors_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// TestPrometheusFindsItsTargets has a Prometheus find what is registered, and follow it.
func TestPrometheusFindsItsTargets(t *testing.T) {
	prometheus := program(t, "prometheus", "prometheus")
	n := startNode(t, "dns")
	web := func(id string) *registryv1.Instance {
		return &registryv1.Instance{
			Service: "web", Id: id, Address: id + ".test", Ports: []*registryv1.Port{{Name: "http", Number: 80}, {Name: "metrics", Number: 9100}},
			Metadata: map[string]string{"prometheus.io/path": "/internal"},
		}
	}
	for _, in := range []*registryv1.Instance{web("a"), web("b"), {Service: "other", Id: "x", Address: "x.test", Ports: []*registryv1.Port{{Name: "http", Number: 80}}}} {
		if _, err := n.client.RegisterDetached(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	dir, at := t.TempDir(), freeAddress(t)
	config := fmt.Sprintf(`
scrape_configs:
  - job_name: services
    http_sd_configs: [{url: "http://%s/sd/prometheus?service=web", refresh_interval: 1s}]
    relabel_configs: [{source_labels: [__meta_regd_instance], target_label: instance}]
`, n.ops)
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, prometheus, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+at)
	want := func(targets ...string) {
		t.Helper()
		eventually(t, func() string {
			if got := scraped(at); !slices.Equal(got, targets) {
				return fmt.Sprintf("Prometheus has the targets %v, want %v", got, targets)
			}
			return ""
		})
	}
	want("a http://a.test:9100/internal", "b http://b.test:9100/internal")
	if _, err := n.client.RegisterDetached(t.Context(), web("c")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.Deregister(t.Context(), client.Key{Service: "web", ID: "a"}); err != nil {
		t.Fatal(err)
	}
	want("b http://b.test:9100/internal", "c http://c.test:9100/internal")
}

// scraped are the targets of a Prometheus, as "INSTANCE URL", sorted; none while it can't be asked.
func scraped(at string) []string {
	resp, err := http.Get("http://" + at + "/api/v1/targets?state=active")
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var answer struct {
		Data struct {
			ActiveTargets []struct {
				Labels    map[string]string
				ScrapeURL string `json:"scrapeUrl"`
			}
		}
	}
	if json.NewDecoder(resp.Body).Decode(&answer) != nil {
		return nil
	}
	found := map[string]bool{}
	for _, target := range answer.Data.ActiveTargets {
		found[strings.TrimSpace(target.Labels["instance"]+" "+target.ScrapeURL)] = true
	}
	return slices.Sorted(maps.Keys(found))
}
