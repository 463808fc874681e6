package prometheus

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
	client "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/common/promslog"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/consul"
	"github.com/prometheus/prometheus/discovery/targetgroup"
)

// node is a cluster of one.
type node struct {
	t                     *testing.T
	regd                  string // the binary
	grpc, consul          string // addresses
	peer, operations, dir string
	process               *exec.Cmd
}

// startNode builds regd and runs it until the test ends.
func startNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir()}
	n.regd = filepath.Join(n.dir, "regd")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", n.regd, "./cmd/regd")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build regd: %v\n%s", err, out)
	}
	for _, address := range []*string{&n.grpc, &n.consul, &n.peer, &n.operations} {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer lis.Close() // Together: else one could be given twice.
		*address = lis.Addr().String()
	}
	t.Cleanup(func() {
		n.kill()
		if text, err := os.ReadFile(n.log()); err == nil && t.Failed() {
			t.Logf("regd said:\n%s", text)
		}
	})
	return n
}

func (n *node) log() string { return filepath.Join(n.dir, "log") }

func (n *node) start() {
	n.t.Helper()
	log, err := os.OpenFile(n.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close() // The process has it, too.
	n.process = exec.CommandContext(context.WithoutCancel(n.t.Context()), n.regd, "serve", "--name", "n1", "--data-dir", filepath.Join(n.dir, "data"),
		"--grpc-listen", n.grpc, "--peer-listen", n.peer, "--http-listen", n.operations, "--consul-listen", n.consul,
		"--initial-peers", n.peer, "--heartbeat-timeout", "100ms")
	n.process.Stderr = log
	if err := n.process.Start(); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) kill() {
	if n.process != nil {
		_ = n.process.Process.Kill()
		_ = n.process.Wait() // It was killed: that is all it says.
	}
}

// do runs a command of regd.
func (n *node) do(args ...string) {
	n.t.Helper()
	cmd := exec.CommandContext(n.t.Context(), n.regd, args...)
	cmd.Env = append(os.Environ(), "REGD_ENDPOINTS="+n.grpc)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("regd %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// found is what a discovery has found so far, as Prometheus' manager keeps it: the newest group of each source counts.
type found struct {
	t    *testing.T
	logs bytes.Buffer

	mu      sync.Mutex // guards the field below
	sources map[string]*targetgroup.Group
}

// discover runs a discovery with a configuration until the test ends.
func (n *node) discover(change func(*consul.SDConfig)) *found {
	n.t.Helper()
	config := consul.DefaultSDConfig
	config.Server, config.RefreshInterval = n.consul, model.Duration(100*time.Millisecond)
	change(&config)
	registry := client.NewRegistry()
	refresh := discovery.NewRefreshMetrics(registry)
	metrics := config.NewDiscovererMetrics(registry, refresh)
	f := &found{t: n.t, sources: map[string]*targetgroup.Group{}}
	d, err := config.NewDiscoverer(discovery.DiscovererOptions{Logger: promslog.New(&promslog.Config{Writer: &f.logs}), Metrics: metrics})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(n.t.Context())
	groups := make(chan []*targetgroup.Group)
	var running sync.WaitGroup
	running.Go(func() { d.Run(ctx, groups) })
	running.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case list := <-groups:
				f.take(list)
			}
		}
	})
	n.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return f
}

func (f *found) take(list []*targetgroup.Group) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, g := range list {
		f.sources[g.Source] = g
	}
}

// targets are all targets with their labels, by instance.
func (f *found) targets() map[string]model.LabelSet {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[string]model.LabelSet{}
	for _, g := range f.sources {
		for _, target := range g.Targets {
			all[string(target["__meta_consul_service_id"])] = target.Merge(g.Labels)
		}
	}
	return all
}

// has waits until exactly these instances are found: "ID ADDRESS HEALTH".
func (f *found) has(want ...string) {
	f.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		var got []string
		for id, labels := range f.targets() {
			got = append(got, fmt.Sprintf("%s %s %s", id, labels[model.AddressLabel], labels["__meta_consul_health"]))
		}
		slices.Sort(got)
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("found %q, want %q; it says:\n%s", got, want, f.logs.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestPrometheusFollows has several configurations find what was registered by Consul's API and by regd's own, and follow it when
// instances come, drain, fall ill and go.
func TestPrometheusFollows(t *testing.T) {
	n := startNode(t)
	n.start()
	n.do("status", "--wait", "--timeout", "30s")
	c, err := api.NewClient(&api.Config{Address: n.consul})
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: "web-1", Name: "web", Port: 8080, Address: "10.0.0.1", Tags: []string{"v2", "metrics"}, Meta: map[string]string{"team-name": "shop"},
		Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing},
	}))
	_, err = c.Catalog().Register(&api.CatalogRegistration{
		Node: "ext", Address: "192.0.2.9", NodeMeta: map[string]string{"rack": "r7"}, Service: &api.AgentService{ID: "db-1", Service: "db", Port: 5432},
	}, nil)
	must(err)
	n.do("register", "web", "--id", "web-2", "--address", "10.0.0.2", "--port", "http=8080", "--tag", "metrics", "--meta", "team-name=ops", "--detach")

	everything := n.discover(func(*consul.SDConfig) {})
	fresh := n.discover(func(c *consul.SDConfig) { c.AllowStale, c.Services = false, []string{"web"} })
	tagged := n.discover(func(c *consul.SDConfig) { c.Services, c.ServiceTags = []string{"web", "db"}, []string{"v2"} })
	byFilter := n.discover(func(c *consul.SDConfig) { c.Filter = `"metrics" in ServiceTags` })
	byHealth := n.discover(func(c *consul.SDConfig) {
		c.Services, c.HealthFilter = []string{"web", "db"}, `Service.Meta["team-name"] == "ops" or Node.Meta.rack == "r7"`
	})
	byNode := n.discover(func(c *consul.SDConfig) { c.NodeMeta = map[string]string{"rack": "r7"} })

	const one, two, db = "web-1 10.0.0.1:8080 passing", "web-2 10.0.0.2:8080 passing", "db-1 192.0.2.9:5432 passing"
	everything.has(db, one, two)
	fresh.has(one, two)
	tagged.has(one)
	byFilter.has(one, two)
	byHealth.has(db, two)
	byNode.has(db)
	host := everything.targets()["web-1"]["__meta_consul_node"]
	if diff := cmp.Diff(map[string]model.LabelSet{
		"web-1": {
			"__address__": "10.0.0.1:8080", "__meta_consul_address": "127.0.0.1", "__meta_consul_dc": "dc1", "__meta_consul_health": "passing",
			"__meta_consul_namespace": "", "__meta_consul_partition": "", "__meta_consul_node": host, "__meta_consul_service": "web",
			"__meta_consul_service_address": "10.0.0.1", "__meta_consul_service_id": "web-1", "__meta_consul_service_port": "8080",
			"__meta_consul_service_metadata_team_name": "shop", "__meta_consul_tagged_address_lan": "127.0.0.1",
			"__meta_consul_tagged_address_wan": "127.0.0.1", "__meta_consul_tags": ",v2,metrics,",
		},
		"web-2": {
			"__address__": "10.0.0.2:8080", "__meta_consul_address": "10.0.0.2", "__meta_consul_dc": "dc1", "__meta_consul_health": "passing",
			"__meta_consul_namespace": "", "__meta_consul_partition": "", "__meta_consul_node": "10.0.0.2", "__meta_consul_service": "web",
			"__meta_consul_service_address": "10.0.0.2", "__meta_consul_service_id": "web-2", "__meta_consul_service_port": "8080",
			"__meta_consul_service_metadata_team_name": "ops", "__meta_consul_tagged_address_lan": "10.0.0.2",
			"__meta_consul_tagged_address_wan": "10.0.0.2", "__meta_consul_tags": ",metrics,",
		},
		"db-1": {
			"__address__": "192.0.2.9:5432", "__meta_consul_address": "192.0.2.9", "__meta_consul_dc": "dc1", "__meta_consul_health": "passing",
			"__meta_consul_namespace": "", "__meta_consul_partition": "", "__meta_consul_node": "ext", "__meta_consul_service": "db",
			"__meta_consul_service_address": "", "__meta_consul_service_id": "db-1", "__meta_consul_service_port": "5432",
			"__meta_consul_metadata_rack": "r7", "__meta_consul_tagged_address_lan": "192.0.2.9",
			"__meta_consul_tagged_address_wan": "192.0.2.9", "__meta_consul_tags": ",,",
		},
	}, everything.targets()); diff != "" || host == "" {
		t.Errorf("targets (-want +got):\n%s", diff)
	}

	// Scale out, by both doors; a service that nobody had named.
	n.do("register", "web", "--id", "web-3", "--address", "10.0.0.3", "--port", "http=8080", "--tag", "v2", "--detach")
	must(c.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "new-1", Name: "new", Port: 1, Address: "10.0.0.9", Tags: []string{"metrics"}}))
	const three, other = "web-3 10.0.0.3:8080 passing", "new-1 10.0.0.9:1 passing"
	everything.has(db, other, one, two, three)
	fresh.has(one, two, three)
	tagged.has(one, three)
	byFilter.has(other, one, two, three)
	byHealth.has(db, two)

	// A drain, and an illness.
	n.do("drain", "web", "web-2")
	must(c.Agent().FailTTL("service:web-1", "no more"))
	const draining, ill = "web-2 10.0.0.2:8080 critical", "web-1 10.0.0.1:8080 critical"
	everything.has(db, other, ill, draining, three)
	fresh.has(ill, draining, three)
	byHealth.has(db, draining)

	// The end of instances, and of a whole service.
	n.do("deregister", "web", "web-2")
	must(c.Agent().ServiceDeregister("web-1"))
	must(c.Agent().ServiceDeregister("new-1"))
	everything.has(db, three)
	fresh.has(three)
	tagged.has(three)
	byHealth.has(db)
	byNode.has(db)

	if logs := everything.logs.String(); strings.Contains(logs, "level=ERROR") {
		t.Errorf("it complains:\n%s", logs)
	}
}
