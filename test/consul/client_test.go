package consul

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/api/watch"
)

// TestClient walks through what a program does with the client, each step at whatever node: a cluster is one agent.
func TestClient(t *testing.T) {
	c := startCluster(t)
	one, two, three := c.nodes[0].client(t), c.nodes[1].client(t), c.nodes[2].client(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	f := follow(ctx, three, "web")
	f.sees(t, "")
	var plans names
	plan, err := watch.Parse(map[string]any{"type": "services"})
	must(err)
	plan.Handler = plans.take
	done := make(chan error, 1)
	go func() { done <- plan.RunWithClientAndHclog(two, nil) }()

	must(one.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: "web-1", Name: "web", Port: 8080, Address: "10.1.2.3", Tags: []string{"v2", "a"}, Meta: map[string]string{"k": "v"},
		Check: &api.AgentServiceCheck{TTL: "1s", DeregisterCriticalServiceAfter: "10m"},
	}))
	must(two.Agent().UpdateTTL("service:web-1", "all is well", "passing"))
	f.sees(t, "web-1")
	entries, meta, err := two.Health().Service("web", "a", true, nil)
	must(err)
	if len(entries) != 1 || meta.LastIndex == 0 || !meta.KnownLeader {
		t.Fatalf("entries %+v, meta %+v", entries, meta)
	}
	s := entries[0].Service
	if s.ID != "web-1" || s.Address != "10.1.2.3" || s.Port != 8080 || !slices.Equal(s.Tags, []string{"v2", "a"}) || s.Meta["k"] != "v" ||
		entries[0].Checks.AggregatedStatus() != api.HealthPassing || entries[0].Checks[0].Output != "all is well" || entries[0].Node.Address == "" {
		t.Errorf("entry %+v of %+v with %+v", s, entries[0].Node, entries[0].Checks[0])
	}
	f.sees(t, "") // Nobody reports any more: the TTL runs out.
	must(three.Agent().PassTTL("service:web-1", ""))
	f.sees(t, "web-1")

	// A check by HTTP, by the nodes.
	alive := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	must(err)
	go func() { _ = alive.Serve(lis) }()
	must(two.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: "web-2", Name: "web", Port: 8081, Check: &api.AgentServiceCheck{HTTP: "http://" + lis.Addr().String(), Interval: "1s", Timeout: "500ms"},
	}))
	must(three.Agent().ServiceDeregister("web-1"))
	f.sees(t, "web-2")
	must(one.Agent().EnableServiceMaintenance("web-2", "fan"))
	f.sees(t, "")
	checks, _, err := three.Health().Checks("web", nil)
	must(err)
	if checks.AggregatedStatus() != api.HealthMaint {
		t.Errorf("in maintenance: %s, %+v", checks.AggregatedStatus(), checks)
	}
	must(two.Agent().DisableServiceMaintenance("web-2"))
	f.sees(t, "web-2")
	must(alive.Close())
	f.sees(t, "")

	services, err := three.Agent().Services()
	must(err)
	if len(services) != 1 || services["web-2"] == nil || services["web-2"].Port != 8081 {
		t.Errorf("services of the agent: %+v", services)
	}
	status, info, err := one.Agent().AgentHealthServiceByID("web-2")
	must(err)
	if status != api.HealthCritical || info.Service.ID != "web-2" {
		t.Errorf("health of web-2: %s, %+v", status, info)
	}
	name, err := one.Agent().NodeName()
	must(err)
	onNode, _, err := two.Catalog().Node(name, nil)
	must(err)
	if onNode == nil || onNode.Services["web-2"] == nil {
		t.Errorf("node %s: %+v", name, onNode)
	}
	members, err := one.Agent().Members(false)
	must(err)
	if len(members) != 3 {
		t.Errorf("members: %+v", members)
	}
	health, err := one.Operator().AutopilotServerHealth(nil)
	must(err)
	if !health.Healthy || health.FailureTolerance != 1 {
		t.Errorf("autopilot: %+v", health)
	}
	filtered, _, err := two.Health().Service("web", "", false, &api.QueryOptions{Filter: `Service.Port == 1`})
	must(err)
	if len(filtered) != 0 {
		t.Errorf("filtered: %+v", filtered)
	}

	saved, _, err := one.Snapshot().Save(nil)
	must(err)
	data, err := io.ReadAll(saved)
	must(err)
	must(two.Agent().ServiceDeregister("web-2"))
	eventually(t, "nothing is registered", func() error {
		left, _, listErr := three.Catalog().Services(nil)
		if listErr == nil && len(left) > 0 {
			listErr = fmt.Errorf("services: %v", left)
		}
		return listErr
	})
	must(three.Snapshot().Restore(nil, bytes.NewReader(data)))
	all, _, err := one.Catalog().Services(nil)
	must(err)
	if _, ok := all["web"]; !ok {
		t.Errorf("services after the restore: %v", all)
	}
	must(one.Agent().ServiceDeregister("web-2"))

	plan.Stop()
	must(<-done)
	if !plans.had("web") {
		t.Errorf("the watch plan was told %v", plans.seen)
	}
	cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.IsSorted(f.indexes) || len(f.errs) > 0 {
		t.Errorf("the follower was told indexes %v and errors %v", f.indexes, f.errs)
	}
}

// names is what a watch plan of services was told.
type names struct{ seen []string }

func (n *names) take(_ uint64, raw any) {
	if services, ok := raw.(map[string][]string); ok {
		var all []string
		for name := range services {
			all = append(all, name)
		}
		n.seen = append(n.seen, strings.Join(all, ","))
	}
}

func (n *names) had(name string) bool { return slices.Contains(n.seen, name) }

// TestLeaderDiesWhileQueriesWait: what waits at a follower is told of what the next leader does, by one answer or after an error, and
// never by an index that falls.
func TestLeaderDiesWhileQueriesWait(t *testing.T) {
	c := startCluster(t)
	leader, followers := c.leader(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	write := followers[0].client(t)
	register := func(id string) {
		t.Helper()
		eventually(t, "register "+id, func() error {
			return write.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: "web", Address: "10.0.0.1"})
		})
	}
	register("a")
	f, g := follow(ctx, followers[0].client(t), "web"), follow(ctx, followers[1].client(t), "web")
	f.sees(t, "a")
	g.sees(t, "a")
	began := time.Now()
	leader.kill()
	register("b")
	t.Logf("the first write after the leader's death took %v", time.Since(began))
	f.sees(t, "a,b")
	g.sees(t, "a,b")
	for _, each := range []*follower{f, g} {
		each.mu.Lock()
		if !slices.IsSorted(each.indexes) || len(each.errs) > 0 {
			t.Errorf("indexes %v, errors %v", each.indexes, each.errs)
		}
		each.mu.Unlock()
	}
	leader.start(t)
	back := leader.client(t)
	eventually(t, "the node that was dead shows both", func() error {
		entries, _, err := back.Health().Service("web", "", true, nil)
		if err == nil && len(entries) != 2 {
			err = fmt.Errorf("%d entries", len(entries))
		}
		return err
	})
}
