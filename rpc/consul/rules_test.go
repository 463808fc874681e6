package consul

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// ids are the instances of a service as the registry has them: id and address.
func (w *world) ids(service string) []string {
	ids := []string{}
	if svc := w.state().Service("default", service); svc != nil {
		svc.Ascend("", func(r *fsm.Record) bool {
			ids = append(ids, r.ID()+" "+addressOf(r))
			return true
		})
	}
	return ids
}

// A service id is unique in a node, so two hosts may register the same: neither takes the other's place.
func TestSameServiceIDOfTwoHosts(t *testing.T) {
	w := bareWorld(t)
	body := `{"Name":"web","Port":80}`
	for range 2 {
		w.ok("PUT", "agent/service/register", body, "From", "10.0.0.1")
		w.ok("PUT", "agent/service/register", body, "From", "10.0.0.2")
	}
	if diff := cmp.Diff([]string{"web 10.0.0.1", "web@10.0.0.2 10.0.0.2"}, w.ids("web")); diff != "" {
		t.Errorf("instances (-want +got):\n%s", diff)
	}
	var entries []entry
	decode(t, w.ok("GET", "health/service/web", "").Body.Bytes(), &entries)
	for n, e := range entries {
		if e.Service.ID != "web" || e.Node.Node != fmt.Sprintf("10.0.0.%d", n+1) {
			t.Errorf("entry %d: service %s of node %s", n, e.Service.ID, e.Node.Node)
		}
	}
	if rec := w.ask("PUT", "agent/service/deregister/web", "", "From", "10.0.0.3"); rec.Code != http.StatusConflict {
		t.Errorf("a third host deregisters one of two: %d %s", rec.Code, rec.Body)
	}
	w.ok("PUT", "agent/service/deregister/web", "", "From", "10.0.0.1")
	w.ok("PUT", "agent/service/register", body, "From", "10.0.0.2")
	if diff := cmp.Diff([]string{"web@10.0.0.2 10.0.0.2"}, w.ids("web")); diff != "" {
		t.Errorf("instances after one has gone (-want +got):\n%s", diff)
	}
	// The host may have another address by now: what is unique is found.
	w.ok("PUT", "agent/service/deregister/web", "", "From", "10.0.0.3")
	if diff := cmp.Diff([]string{}, w.ids("web")); diff != "" {
		t.Errorf("instances after both have gone (-want +got):\n%s", diff)
	}
}

func TestTheHeaderSaysWhichNode(t *testing.T) {
	w := bareWorld(t)
	w.ok("PUT", "agent/service/register", `{"Name":"web"}`, "From", "10.0.0.1", "X-Regd-Node", "rack-7")
	var entries []entry
	decode(t, w.ok("GET", "health/service/web", "").Body.Bytes(), &entries)
	if len(entries) != 1 || entries[0].Node.Node != "rack-7" || entries[0].Node.Address != "10.0.0.1" {
		t.Errorf("entries: %+v", entries)
	}
	if rec := w.ask("PUT", "agent/service/register", `{"Name":"web"}`, "X-Regd-Node", "a b"); rec.Code != http.StatusBadRequest {
		t.Errorf("a bad name of a node: %d %s", rec.Code, rec.Body)
	}
}

func TestServiceIDMovesToAnotherService(t *testing.T) {
	w := bareWorld(t)
	w.ok("PUT", "agent/service/register", `{"Name":"old","ID":"x"}`)
	w.ok("PUT", "agent/service/register", `{"Name":"old","ID":"x"}`, "From", "10.0.0.2")
	w.ok("PUT", "agent/service/register", `{"Name":"new","ID":"x"}`)
	if diff := cmp.Diff([]string{"x@10.0.0.2 10.0.0.2"}, w.ids("old")); diff != "" {
		t.Errorf("the old service (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"x n1.example"}, w.ids("new")); diff != "" {
		t.Errorf("the new service (-want +got):\n%s", diff)
	}
}

func TestRegisteringAgainChangesNothing(t *testing.T) {
	w := newWorld(t)
	before := w.state()
	w.ok("PUT", "agent/service/register", `{"Name":"web","ID":"web-1","Port":8080,"Tags":["v1","a","primary"],"Meta":{"version":"1"},
		"Check":{"TTL":"10s","Notes":"beats"},"Weights":{"Passing":3,"Warning":0},"EnableTagOverride":true,
		"TaggedAddresses":{"wan":{"Address":"198.51.100.1","Port":80}}}`)
	if w.state().Revision() != before.Revision() {
		t.Errorf("revision %d after the same registration, %d before", w.state().Revision(), before.Revision())
	}
}

func TestChecksStayUnlessTheyAreReplaced(t *testing.T) {
	w := newWorld(t)
	checks := func() []string {
		var all []check
		decode(t, w.ok("GET", "health/checks/web?filter=ServiceID+%3D%3D+%22web-1%22", "").Body.Bytes(), &all)
		names := []string{}
		for _, c := range all {
			names = append(names, c.CheckID+" "+c.Status)
		}
		return names
	}
	w.ok("PUT", "agent/check/register", `{"Name":"extra","ServiceID":"web-1","TTL":"30s","Status":"warning"}`)
	w.ok("PUT", "agent/service/register", `{"Name":"web","ID":"web-1","Check":{"TTL":"10s","Notes":"beats"}}`)
	if diff := cmp.Diff([]string{"service:web-1 passing", "extra warning"}, checks()); diff != "" {
		t.Errorf("checks (-want +got):\n%s", diff)
	}
	w.ok("PUT", "agent/service/register?replace-existing-checks=true", `{"Name":"web","ID":"web-1","Check":{"CheckID":"new","TTL":"10s"}}`)
	if diff := cmp.Diff([]string{"new critical"}, checks()); diff != "" {
		t.Errorf("checks that replace others (-want +got):\n%s", diff)
	}
}

// The lists of the catalog and of health are matched by place.
func TestCatalogAndHealthHaveOneOrder(t *testing.T) {
	w := bareWorld(t)
	for n := range 20 {
		w.register(&registryv1.Instance{
			Service: "web", Id: fmt.Sprintf("i-%d", n*7%20), Address: fmt.Sprintf("10.0.0.%d", n), Tags: []string{"t"},
			Zone: fmt.Sprintf("z%d", n%3), Region: fmt.Sprintf("r%d", n%2),
		})
	}
	for _, query := range []string{"", "?tag=t", "?near=10.0.0.5", "?near=_agent"} {
		var entries []entry
		var rows []row
		decode(t, w.ok("GET", "health/service/web"+query, "").Body.Bytes(), &entries)
		decode(t, w.ok("GET", "catalog/service/web"+query, "").Body.Bytes(), &rows)
		var health, catalog []string
		for _, e := range entries {
			health = append(health, e.Service.ID)
		}
		for _, r := range rows {
			catalog = append(catalog, r.ServiceID)
		}
		if len(health) != 20 || !slices.Equal(health, catalog) {
			t.Errorf("%s: health %v, catalog %v", query, health, catalog)
		}
		if query == "?near=10.0.0.5" && entries[0].Node.Node != "10.0.0.5" {
			t.Errorf("near 10.0.0.5 is first %s", entries[0].Node.Node)
		}
	}
}

// What is registered here is seen through the other doors as what it is.
func TestOtherDoorsSeeAnInstance(t *testing.T) {
	w := newWorld(t)
	in, err := w.state().Instance("default", "web", "web-2").Proto()
	if err != nil {
		t.Fatal(err)
	}
	if in.GetAddress() != "10.0.0.2" || in.GetPorts()[0].GetNumber() != 8080 || in.GetHealth() != registryv1.Health_HEALTH_WARNING ||
		in.GetChecks()[0].GetHttp().GetUrl() != "http://10.0.0.2:8080/health" || in.GetDeregisterCriticalAfter().AsDuration().Minutes() != 90 {
		t.Errorf("the instance: %v", in)
	}
	w.must(&raftlogv1.Command{Kind: &raftlogv1.Command_SetDraining{SetDraining: &raftlogv1.SetDraining{
		Key: &raftlogv1.Key{Namespace: "default", Service: "web", Id: "web-1"}, Draining: true,
	}}})
	if body := w.ok("GET", "health/service/web?passing", "").Body.String(); body != "[]" {
		t.Errorf("a draining instance is passing: %s", body)
	}
}

// enforce switches access control on. The token is of an identity "team" that may register web, and see nothing else.
func (w *world) enforce() {
	w.tb.Helper()
	sum := sha256.Sum256([]byte("secret"))
	token := func(id, identity string) *raftlogv1.CreateToken {
		return &raftlogv1.CreateToken{Token: &registryv1.Token{Id: id, Identity: identity}, SecretHash: sum[:]}
	}
	w.must(&raftlogv1.Command{Level: fsm.KVLevel, Kind: &raftlogv1.Command_PutPolicy{PutPolicy: &raftlogv1.PutPolicy{Policy: &registryv1.Policy{
		Name: "web", Rules: []*registryv1.Rule{
			{Actions: []registryv1.Action{registryv1.Action_ACTION_REGISTER}, Namespace: "default", Name: "web"},
			{Actions: []registryv1.Action{registryv1.Action_ACTION_KV_WRITE}, Namespace: "default", Name: "app/*"},
			{Actions: []registryv1.Action{registryv1.Action_ACTION_KV_READ}, Namespace: "default", Name: "shared/a"},
		},
	}}}})
	w.must(&raftlogv1.Command{Level: 2, Kind: &raftlogv1.Command_PutGrant{PutGrant: &raftlogv1.PutGrant{
		Grant: &registryv1.Grant{Identity: "team", Policies: []string{"web"}},
	}}})
	w.must(&raftlogv1.Command{Level: 2, Kind: &raftlogv1.Command_CreateToken{CreateToken: token("t1", "team")}})
	w.must(&raftlogv1.Command{Level: 2, Kind: &raftlogv1.Command_BootstrapAccess{BootstrapAccess: &raftlogv1.BootstrapAccess{Token: token("op", "operator")}}})
}

func TestWhatATokenMayDo(t *testing.T) {
	w := newWorld(t)
	w.enforce()
	team, operator := []string{"X-Consul-Token", "regd_t1_secret"}, []string{"Authorization", "Bearer regd_op_secret"}
	for _, tc := range []struct {
		name         string
		method, path string
		body         string
		header       []string
		code         int
		has          string
		filtered     bool
	}{
		{"anonymous sees nothing", "GET", "health/service/web", "", nil, 200, "[]", true},
		{"anonymous sees no services", "GET", "catalog/services", "", nil, 200, "{}", true},
		{"anonymous may not register", "PUT", "agent/service/register", `{"Name":"web"}`, nil, 403, "Permission denied", false},
		{"a token of nobody", "GET", "health/service/web", "", []string{"X-Consul-Token", "none"}, 403, "ACL not found", false},
		{"the team sees its service", "GET", "health/service/web", "", team, 200, "web-1", false},
		{"by ?token=", "GET", "health/service/web?token=regd_t1_secret", "", nil, 200, "web-1", false},
		{"and no other", "GET", "health/service/db", "", team, 200, "[]", true},
		{"lists are filtered", "GET", "catalog/services", "", team, 200, `"web"`, true},
		{"so are nodes", "GET", "catalog/nodes", "", team, 200, `"here"`, true},
		{"and checks", "GET", "health/state/any", "", team, 200, `"alive"`, true},
		{"it registers its service", "PUT", "agent/service/register", `{"Name":"web","ID":"mine"}`, team, 200, "", false},
		{"and no other", "PUT", "agent/service/register", `{"Name":"db"}`, team, 403, "Permission denied", false},
		{"its agent has what it registered", "GET", "agent/services", "", team, 200, `"mine"`, false},
		{"others can't be deregistered", "PUT", "agent/service/deregister/db", "", team, 404, "Unknown service ID", false},
		{"nor by the catalog", "PUT", "catalog/deregister", `{"Node":"ext"}`, team, 403, "Permission denied", false},
		{"members are for who may observe", "GET", "agent/members", "", team, 403, "Permission denied", false},
		{"snapshots are for who operates", "GET", "snapshot", "", team, 403, "Permission denied", false},
		{"leadership too", "POST", "operator/raft/transfer-leader", "", team, 403, "Permission denied", false},
		{"the operator sees members", "GET", "agent/members", "", operator, 200, `"n1"`, false},
		{"the operator sees all", "GET", "catalog/services", "", operator, 200, `"db"`, false},
	} {
		rec := w.ask(tc.method, tc.path, tc.body, tc.header...)
		filtered := rec.Header().Get("X-Consul-Results-Filtered-By-ACLs") == "true"
		if rec.Code != tc.code || !strings.Contains(rec.Body.String(), tc.has) || filtered != tc.filtered {
			t.Errorf("%s: %d, filtered %v, want %d with %q, filtered %v: %s", tc.name, rec.Code, filtered, tc.code, tc.has, tc.filtered, rec.Body)
		}
	}
	if body := w.ask("GET", "agent/services", "", team...).Body.String(); strings.Contains(body, "web-1") {
		t.Errorf("the agent of a team has what another has registered: %s", body)
	}
}

func TestWhatATokenMayDoWithKeys(t *testing.T) {
	w := newWorld(t)
	for _, key := range []string{"app/a", "shared/a", "shared/b", "secret"} {
		w.ok("PUT", "kv/"+key, "x")
	}
	w.enforce()
	var foreign struct{ ID string }
	decode(t, w.ok("PUT", "session/create", `{"Name":"the operator's"}`, "X-Consul-Token", "regd_op_secret").Body.Bytes(), &foreign)
	team, operator := []string{"X-Consul-Token", "regd_t1_secret"}, []string{"X-Consul-Token", "regd_op_secret"}
	op := func(verb, key string) string { return fmt.Sprintf(`[{"KV":{"Verb":%q,"Key":%q}}]`, verb, key) }
	mine := ""
	for _, tc := range []struct {
		name         string
		method, path string
		body         string
		header       []string
		code         int
		has, not     string
		filtered     bool
	}{
		{"anonymous reads nothing", "GET", "kv/app/a", "", nil, 403, "Permission denied", "", false},
		{"anonymous lists nothing", "GET", "kv/?keys", "", nil, 404, "", "", true},
		{"anonymous writes nothing", "PUT", "kv/app/a", "x", nil, 403, "Permission denied", "", false},
		{"anonymous deletes nothing", "DELETE", "kv/app/a", "", nil, 403, "Permission denied", "", false},
		{"anonymous opens no session", "PUT", "session/create", "", nil, 403, "Permission denied", "", false},
		{"the team reads what it may write", "GET", "kv/app/a?raw", "", team, 200, "x", "", false},
		{"and what it may read", "GET", "kv/shared/a?raw", "", team, 200, "x", "", false},
		{"and no other", "GET", "kv/shared/b", "", team, 403, "Permission denied", "", false},
		{"lists are filtered", "GET", "kv/?keys", "", team, 200, `["app/a","shared/a"]`, "", true},
		{"with their values, too", "GET", "kv/shared/?recurse", "", team, 200, `"shared/a"`, "shared/b", true},
		{"it writes its own", "PUT", "kv/app/b", "x", team, 200, "true", "", false},
		{"and no other", "PUT", "kv/shared/a", "x", team, 403, "Permission denied", "", false},
		{"nor deletes it", "DELETE", "kv/shared/a", "", team, 403, "Permission denied", "", false},
		{"it deletes its own", "DELETE", "kv/app/b", "", team, 200, "true", "", false},
		{"nor what begins as a part of it", "DELETE", "kv/ap?recurse", "", team, 403, "Permission denied", "", false},
		{"nor all", "DELETE", "kv/?recurse", "", team, 403, "Permission denied", "", false},
		{"nor in another namespace", "PUT", "kv/app/a?ns=other", "x", team, 403, "Permission denied", "", false},
		{"it opens sessions", "PUT", "session/create", "", team, 200, "ID", "", false},
		{"and sees its own", "GET", "session/list", "", team, 200, "$", "the operator's", true},
		{"and owns keys by them", "PUT", "kv/app/a?acquire=$", "x", team, 200, "true", "", false},
		{"and renews them", "PUT", "session/renew/$", "", team, 200, "$", "", false},
		{"others do not", "PUT", "session/renew/$", "", nil, 403, "Permission denied", "", false},
		{"nor end them", "PUT", "session/destroy/$", "", nil, 403, "Permission denied", "", false},
		{"nor see them", "GET", "session/info/$", "", nil, 200, "[]", "", true},
		{"the operator sees all", "GET", "session/list", "", operator, 200, "the operator's", "", false},
		{"a transaction of its own", "PUT", "txn", op("set", "app/t"), team, 200, "app/t", "", false},
		{"one that reads what it may not", "PUT", "txn", op("get", "secret"), team, 403, "Permission denied", "", false},
		{"or checks it", "PUT", "txn", op("check-index", "secret"), team, 403, "Permission denied", "", false},
		{"or writes it", "PUT", "txn", op("set", "secret"), team, 403, "Permission denied", "", false},
		{"or deletes too much", "PUT", "txn", op("delete-tree", "a"), team, 403, "Permission denied", "", false},
		{"trees are filtered", "PUT", "txn", op("get-tree", ""), team, 200, "shared/a", "secret", false},
		{"it ends its session", "PUT", "session/destroy/$", "", team, 200, "true", "", false},
	} {
		at := strings.NewReplacer("$", mine)
		rec := w.ask(tc.method, at.Replace(tc.path), tc.body, tc.header...)
		filtered := rec.Header().Get("X-Consul-Results-Filtered-By-ACLs") == "true"
		body := rec.Body.String()
		if rec.Code != tc.code || !strings.Contains(body, at.Replace(tc.has)) || tc.not != "" && strings.Contains(body, tc.not) || filtered != tc.filtered {
			t.Errorf("%s: %d, filtered %v, want %d with %q, filtered %v: %s", tc.name, rec.Code, filtered, tc.code, tc.has, tc.filtered, body)
		}
		if tc.path == "session/create" && rec.Code == http.StatusOK {
			var created struct{ ID string }
			decode(t, rec.Body.Bytes(), &created)
			mine = created.ID
		}
	}
	if w.state().Session(foreign.ID) == nil || w.state().Key("default", "shared/b") == nil {
		t.Error("what others have is gone")
	}
}

func TestSnapshotComesBack(t *testing.T) {
	w := newWorld(t)
	saved := w.ok("GET", "snapshot", "").Body.String()
	w.ok("PUT", "agent/service/deregister/web-1", "")
	w.ok("PUT", "snapshot", saved)
	if w.state().Instance("default", "web", "web-1") == nil {
		t.Error("the snapshot did not come back")
	}
	if rec := w.ask("PUT", "snapshot", "nonsense"); rec.Code != http.StatusBadRequest {
		t.Errorf("nonsense as a snapshot: %d %s", rec.Code, rec.Body)
	}
}

func TestMetricsAreShown(t *testing.T) {
	w := newWorld(t)
	registry := prometheus.NewPedanticRegistry()
	for _, c := range w.server.Collectors() {
		registry.MustRegister(c)
	}
	w.server.Gather(registry)
	if body := w.ok("GET", "agent/metrics?format=prometheus", "").Body.String(); !strings.Contains(body, "regd_consul_requests_total{") {
		t.Errorf("no requests are counted: %s", body)
	}
	var info metricsInfo
	decode(t, w.ok("GET", "agent/metrics", "").Body.Bytes(), &info)
	if len(info.Counters) == 0 || len(info.Gauges) == 0 {
		t.Errorf("metrics: %+v", info)
	}
}

func decode(t *testing.T, body []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(body, into); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
}

// FuzzRegister holds that no body breaks the door, and that what it takes is there and stays the same when it is sent again.
func FuzzRegister(f *testing.F) {
	for _, body := range []string{
		`{"Name":"web"}`, `{"service":{"name":"web","tags":["b","a","b",""],"check":{"http":"http://h/","interval":"10s"}}}`,
		`{"Name":"w","Checks":[{"TTL":"10s"},{"id":"x y","tcp":"h:1","interval":1000000000}],"Weights":{"Passing":900}}`,
		`{"ID":"a/b:c@d","NAME":"W","Meta":{"a_b":"c"},"tagged_addresses":{"lan":{"address":"h","port":1}}}`,
		`{"Name":"w","Check":{"GRPC":"h:1/s","GRPCUseTLS":true,"Interval":"1s","Timeout":"2s","DeregisterCriticalServiceAfter":"1s"}}`,
	} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		w := bareWorld(t)
		rec := w.ask("PUT", "agent/service/register", body)
		if rec.Code != http.StatusOK {
			if rec.Code >= http.StatusInternalServerError {
				t.Fatalf("%q: %d %s", body, rec.Code, rec.Body)
			}
			return
		}
		before := w.state()
		w.ok("PUT", "agent/service/register", body)
		if w.state().Revision() != before.Revision() {
			t.Errorf("%q: sent again it changes something", body)
		}
		if w.state().Counts().Instances != 1 {
			t.Errorf("%q: there are %d instances", body, w.state().Counts().Instances)
		}
		var all map[string]service
		decode(t, w.ok("GET", "agent/services", "").Body.Bytes(), &all)
		for id := range all {
			w.ok("PUT", "agent/service/deregister/"+url.PathEscape(id), "")
		}
		if w.state().Counts().Instances != 0 {
			t.Errorf("%q: it can't be deregistered", body)
		}
	})
}

// A change of what another door has registered would be a new registration: its owner's orders would come too late.
func TestWhatCameByAnotherDoorIsNotRegisteredAgain(t *testing.T) {
	w := newWorld(t)
	before := w.state().Instance("default", "api", "a1").Incarnation()
	if rec := w.ask("PUT", "agent/check/register", `{"Name":"x","ServiceID":"a1","TTL":"30s"}`); rec.Code != http.StatusBadRequest {
		t.Errorf("a check for it: %d %s", rec.Code, rec.Body)
	}
	w.ok("PUT", "agent/service/maintenance/a1?enable=true&reason=x", "")
	r := w.state().Instance("default", "api", "a1")
	if !r.Maintenance() || r.Incarnation() != before {
		t.Errorf("maintenance %v, incarnation %d, before %d", r.Maintenance(), r.Incarnation(), before)
	}
	w.ok("PUT", "agent/service/deregister/a1", "")
}
