package consul

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestAnswers holds each endpoint's requests and answers: testdata/NAME.golden has each request with its body, the status, the
// headers that count, and the answer. The requests of one file are made one after the other in one world.
func TestAnswers(t *testing.T) {
	for name, requests := range map[string][]string{
		"health-service": {
			"GET health/service/web", "GET health/service/web?passing", "GET health/service/web?passing=false&tag=v2&stale=",
			"GET health/service/web?tag=v1&tag=PRIMARY", "GET health/service/web?tag=v1&tag=v2", "GET health/service/nothing?consistent",
			"GET health/service/api", "GET health/service/db?node-meta=external:true", "GET health/service/db?node-meta=external:no",
			"GET health/service/web?filter=Service.Meta.version+%3D%3D+%221%22", "GET health/service/api?ns=other",
			"GET health/service/web?near=_agent&cached",
		},
		"health":           {"GET health/checks/web", "GET health/checks/none", "GET health/node/here", "GET health/node/none", "GET health/state/any", "GET health/state/passing", "GET health/state/odd"},
		"catalog":          {"GET catalog/services", "GET catalog/services?ns=nowhere", "GET catalog/services?node-meta=external:true", "GET catalog/services?filter=%22v2%22+in+ServiceTags", "GET catalog/service/web", "GET catalog/service/none", "GET catalog/service/api?tag=grpc", "GET catalog/datacenters"},
		"catalog-nodes":    {"GET catalog/nodes", "GET catalog/nodes?near=here", "GET catalog/node/here", "GET catalog/node/n2", "GET catalog/node/none", "GET catalog/node-services/ext", "GET catalog/node-services/none"},
		"agent":            {"GET agent/services", "GET agent/checks", "GET agent/service/web-1", "GET agent/service/none", "GET agent/self", "GET agent/members", "GET agent/version"},
		"agent-health":     {"GET agent/health/service/id/web-1", "GET agent/health/service/id/web-2", "GET agent/health/service/id/none", "GET agent/health/service/name/web", "GET agent/health/service/name/web?format=text", "GET agent/health/service/name/none", "GET agent/health/service/name/api?format=text"},
		"status":           {"GET status/leader", "GET status/peers", "GET operator/raft/configuration", "GET operator/autopilot/configuration", "GET operator/autopilot/health", "DELETE operator/raft/peer?id=id-n3", "DELETE operator/raft/peer?id=none", "DELETE operator/raft/peer", "POST operator/raft/transfer-leader", "PUT operator/raft/transfer-leader?id=id-n2"},
		"register":         {`PUT agent/service/register {"Name":"min"}`, "GET agent/service/min", `PUT agent/service/register {"Name":"min","Port":"81","Check":null,"Checks":null}`, "GET health/service/min", "PUT agent/service/deregister/min", "GET health/service/min", "PUT agent/service/deregister/min", "GET agent/service/deregister/web-1"},
		"checks":           {`PUT agent/check/register {"Name":"extra","ServiceID":"web-1","TTL":"30s","Status":"passing","Notes":"more"}`, "GET health/checks/web", "PUT agent/check/warn/extra?note=hot", `PUT agent/check/update/service:web-1 {"Status":"critical","Output":"gone"}`, "GET health/checks/web", "GET agent/check/fail/extra", "PUT agent/check/deregister/extra", "PUT agent/check/pass/extra", "GET health/checks/web", `PUT agent/check/register {"Name":"x","ServiceID":"none","TTL":"30s"}`, `PUT agent/check/register {"ServiceID":"web-1","TTL":"30s"}`, "PUT agent/check/pass/mem", `PUT agent/check/update/extra {"Status":"fine"}`},
		"checks-of-nodes":  {`PUT agent/check/register {"Name":"disk","TTL":"30s"}`, "GET health/node/here", "GET health/service/web?passing", "PUT agent/check/pass/disk", "GET health/service/web?passing&tag=v1", "GET catalog/services", "PUT agent/check/deregister/disk"},
		"maintenance":      {"PUT agent/service/maintenance/web-1?enable=true&reason=broken+fan", "GET health/service/web?tag=v1", "GET health/service/web?passing", "GET agent/health/service/id/web-1?format=text", "PUT agent/service/maintenance/web-1?enable=false", "GET health/checks/web", "PUT agent/service/maintenance/web-1", "PUT agent/service/maintenance/web-1?enable=perhaps", "PUT agent/maintenance?enable=true", "GET health/state/critical", "PUT agent/maintenance?enable=false"},
		"catalog-register": {`PUT catalog/register {"Node":"bare","Address":"192.0.2.10"}`, "GET catalog/node/bare", "GET catalog/services", `PUT catalog/register {"Node":"ext","Address":"192.0.2.9","Check":{"Node":"ext","CheckID":"service:db","Name":"db up","Status":"critical","ServiceID":"db"}}`, "GET health/service/db", `PUT catalog/deregister {"Node":"ext","CheckID":"service:db"}`, "GET health/checks/db", `PUT catalog/deregister {"Node":"ext","ServiceID":"db"}`, "GET catalog/service/db", `PUT catalog/deregister {"Node":"bare"}`, "GET catalog/node/bare", `PUT catalog/deregister {"Node":"bare"}`, `PUT catalog/deregister {"Node":"10.0.0.1","ServiceID":"a1"}`, "GET catalog/services"},
		"kv": {
			"GET kv/a", "PUT kv/a?flags=18446744073709551615 hello", "GET kv/a", "GET kv/a?raw", "GET kv/a?keys", "GET kv/a?recurse&stale",
			"PUT kv/a?cas=0 other", "PUT kv/a?cas=10 other", "GET kv/a?consistent&raw", "PUT kv/empty", "GET kv/empty", "GET kv/empty?raw", "GET kv/b",
			"DELETE kv/a?cas=1", "DELETE kv/a?cas=0", "DELETE kv/a?cas=11", "DELETE kv/a?cas=11", "DELETE kv/a", "GET kv/a", "GET kv/a?ns=other", "PUT kv/a?ns=other there", "GET kv/a?ns=other", "GET kv/a",
		},
		"kv-lists": {
			"PUT kv/app/db/host h1", "PUT kv/app%2Fdb%2Fport 5432", "PUT kv/app/name shop", "PUT kv/apple 1", "PUT kv/a%20b%3Fc%25/%C3%BC x", "PUT kv//lead x",
			"GET kv/app?recurse", "GET kv/app/?keys", "GET kv/app/?keys&separator=/", "GET kv/?keys&separator=/", "GET kv/?keys", "GET kv/app/d?keys&separator=/", "GET kv/none?recurse", "GET kv/none/?keys",
			"GET kv/a%20b%3Fc%25/%C3%BC", "GET kv//lead?raw", "GET kv/app/?recurse&pretty", "DELETE kv/app/?recurse", "GET kv/?keys", "DELETE kv/?recurse", "GET kv/?recurse", "DELETE kv/?recurse",
		},
		"kv-locks": {
			`PUT session/create {"Name":"one","TTL":"15s"}`, `PUT session/create {"Name":"two","TTL":"15s","Behavior":"delete","LockDelay":"0s"}`,
			"PUT kv/lock?acquire=$1&flags=3 by-one", "GET kv/lock", "PUT kv/lock?acquire=$1 again", "GET kv/lock", "PUT kv/lock?acquire=$2 by-two", "PUT kv/lock?release=$2 by-two",
			"PUT kv/lock by-anybody", "GET kv/lock", "PUT kv/lock?release=$1 free", "GET kv/lock", "PUT kv/lock?acquire=$2 by-two", "GET kv/lock", "PUT kv/lock?acquire=none x", "PUT kv/lock?acquire=$3 x",
			"PUT session/destroy/$2", "GET kv/lock", "PUT kv/lock?acquire=$1 by-one", "PUT session/destroy/$1", "GET kv/lock", `PUT session/create {"Name":"three"}`, "PUT kv/lock?acquire=$3 too-soon", "PUT kv/other?acquire=$3 x",
		},
		"session": {
			"PUT session/create", `PUT session/create {"LockDelay":"1500ms","Name":"named","Node":"rack-7","TTL":"1m","Behavior":"delete","Checks":["serfHealth"],"NodeChecks":["serfHealth"],"ServiceChecks":[]}`,
			`PUT session/create {"lockdelay":5,"ttl":"86400s","Checks":null}`, `PUT session/create {"LockDelay":2000000000}`, `PUT session/create {"LockDelay":"10m"}`,
			"GET session/info/$1", "GET session/info/$2", "GET session/info/$3", "GET session/info/$4", "GET session/info/$5", "GET session/info/none", "GET session/list", "GET session/node/rack-7", "GET session/node/none",
			"PUT session/renew/$2", "PUT session/renew/none", "PUT session/destroy/$2", "PUT session/renew/$2", "PUT session/destroy/$2", "PUT session/destroy/none", "GET session/info/$2", "GET session/list?stale",
		},
		"txn": {
			"PUT kv/a one", `PUT session/create {"Name":"s"}`,
			`PUT txn [{"KV":{"Verb":"set","Key":"b","Value":"dHdv","Flags":18446744073709551615}},{"KV":{"Verb":"get","Key":"a"}},{"KV":{"Verb":"get","Key":"b"}}]`,
			`PUT txn [{"KV":{"Verb":"get","Key":"a"}},{"KV":{"Verb":"set","Key":"a","Value":"bmV3"}},{"KV":{"Verb":"get-tree","Key":""}},{"KV":{"Verb":"get-or-empty","Key":"none"}}]`,
			`PUT txn [{"KV":{"Verb":"get-tree","Key":""}},{"KV":{"Verb":"delete-tree","Key":""}},{"KV":{"Verb":"get-or-empty","Key":"a"}},{"KV":{"Verb":"check-not-exists","Key":"b"}}]`,
			`PUT txn [{"KV":{"Verb":"lock","Key":"l","Value":"eA==","Session":"$1"}},{"KV":{"Verb":"check-session","Key":"l","Session":"$1"}},{"KV":{"Verb":"cas","Key":"c","Index":0}}]`,
			`PUT txn [{"KV":{"Verb":"unlock","Key":"l","Session":"$1"}},{"KV":{"Verb":"delete","Key":"none"}},{"KV":{"Verb":"delete-cas","Key":"c","Index":15}},{"kv":{"verb":"check-index","key":"l","index":16}}]`,
			`PUT txn [{"KV":{"Verb":"get-tree","Key":""}},{"KV":{"Verb":"get","Key":"l"}},{"KV":{"Verb":"check-index","Key":"l","Index":16}},{"KV":{"Verb":"check-not-exists","Key":"c"}},{"KV":{"Verb":"get-or-empty","Key":"c"}}]`,
			`PUT txn?stale [{"KV":{"Verb":"get","Key":"none"}},{"KV":{"Verb":"check-index","Key":"l","Index":1}},{"KV":{"Verb":"check-session","Key":"l","Session":"x"}},{"KV":{"Verb":"check-not-exists","Key":"l"}}]`,
			`PUT txn [{"KV":{"Verb":"set","Key":"x"}},{"KV":{"Verb":"get","Key":"none"}}]`, `PUT txn [{"KV":{"Verb":"set","Key":"x"}},{"KV":{"Verb":"cas","Key":"l","Index":1}}]`,
			`PUT txn [{"KV":{"Verb":"set","Key":"x"}},{"KV":{"Verb":"delete-cas","Key":"l","Index":1}}]`, `PUT txn [{"KV":{"Verb":"set","Key":"x"}},{"KV":{"Verb":"lock","Key":"l","Session":"none"}}]`,
			`PUT txn [{"KV":{"Verb":"set","Key":"x"}},{"KV":{"Verb":"unlock","Key":"l","Session":"none"}}]`, `PUT txn [{"KV":{"Verb":"set","Key":"x"}},{"KV":{"Verb":"check-index","Key":"l","Index":1}}]`,
			`PUT txn [{"KV":{"Verb":"set","Key":"x"}},{"KV":{"Verb":"check-session","Key":"l","Session":"$1"}}]`, `PUT txn [{"KV":{"Verb":"set","Key":"x"}},{"KV":{"Verb":"check-not-exists","Key":"l"}}]`,
			`PUT txn [{"KV":{"Verb":"delete","Key":"l"}},{"KV":{"Verb":"get","Key":"l"}}]`, "GET kv/x", "PUT txn []",
		},
		"not-there": {"PUT event/fire/x", "GET query", "GET health/connect/web", "GET connect/ca/roots", "GET config/service-defaults", "GET acl/tokens", "GET coordinate/nodes", "PUT agent/join/x", "GET nothing/at/all", "GET "},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var got bytes.Buffer
			var sessions []string // pairs of $1, $2 ... and the ids of what was created
			for _, request := range requests {
				method, rest, _ := strings.Cut(strings.NewReplacer(sessions...).Replace(request), " ")
				path, body, _ := strings.Cut(rest, " ")
				fmt.Fprintf(&got, "%s /v1/%s %s\n", method, path, body)
				rec := w.ask(method, path, body)
				var created struct{ ID string }
				if path == "session/create" && json.Unmarshal(rec.Body.Bytes(), &created) == nil {
					sessions = append(sessions, fmt.Sprintf("$%d", len(sessions)/2+1), created.ID)
				}
				show(&got, rec)
			}
			text := got.String()
			for i := 0; i < len(sessions); i += 2 {
				text = strings.ReplaceAll(text, sessions[i+1], sessions[i])
			}
			golden(t, name, []byte(text))
		})
	}
}

// TestBadRequests holds what is said of requests that are wrong: each names what is wrong with which value.
func TestBadRequests(t *testing.T) {
	w := newWorld(t)
	var got bytes.Buffer
	register := "PUT agent/service/register "
	for _, request := range []string{
		"GET health/service/web?index=x", "GET health/service/web?index=-1", "GET health/service/web?wait=x", "GET health/service/web?wait=-1s",
		"GET health/service/web?stale&consistent", "GET health/service/web?cached&consistent", "GET health/service/web?dc=dc2",
		"GET health/service/web?filter=Service.", "GET health/service/web?filter=Nothing+%3D%3D+1", "GET health/service/web?node-meta=x",
		"GET health/service/", "GET catalog/service/", "GET health/node/", "POST catalog/services", "DELETE agent/service/register", "OPTIONS catalog/services",
		register, register + "[]", register + "{", register + "{} {}", register + `{"ID":"x"}`, register + `{"Name":5}`, register + `{"Name":"a b"}`,
		register + `{"Name":"x","ID":"a b"}`, register + `{"Name":"x","Port":"eighty"}`, register + `{"Name":"x","Port":70000}`,
		register + `{"Name":"x","Address":"not a host"}`, register + `{"Name":"x","Meta":{"consul.io/node":"y"}}`, register + `{"Name":"x","Meta":{"k":1}}`,
		register + `{"Name":"x","Check":{"HTTP":"http://a/"}}`, register + `{"Name":"x","Check":{"HTTP":"http://a/","Interval":"5x"}}`,
		register + `{"Name":"x","Check":{"HTTP":"http://a/","Interval":"1ms"}}`, register + `{"Name":"x","Checks":[{"TTL":"10s"},{"TTL":"0.1s"}]}`,
		register + `{"Name":"x","Check":{"Args":["/bin/true"],"Interval":"5s"}}`, register + `{"Name":"x","Check":{"UDP":"a:1","Interval":"5s"}}`,
		register + `{"Name":"x","Check":{"Name":"nothing"}}`, register + `{"Name":"x","Check":{"TTL":"5s","Status":"fine"}}`,
		register + `{"Name":"x","Check":{"TCP":"a:1","TCPUseTLS":true,"Interval":"5s"}}`, register + `{"Name":"x","Check":{"HTTP":"http://a/","Body":"b","Interval":"5s"}}`,
		register + `{"Name":"x","Kind":"connect-proxy"}`, register + `{"Name":"x","Connect":{"Native":true}}`, register + `{"Name":"x","Weights":{"Passing":70000,"Warning":1}}`,
		register + `{"Name":"consul-node"}`, register + `{"Name":"x","Check":{"TTL":"5s","Notes":"` + strings.Repeat("n", 600) + `"}}`,
		register + `"` + strings.Repeat("x", maxBody) + `"`,
		"PUT catalog/register {}", `PUT catalog/register {"Node":"n"}`, `PUT catalog/register {"Node":"a b","Address":"10.0.0.1"}`,
		`PUT catalog/register {"Node":"n","Address":"10.0.0.1","Datacenter":"dc2"}`, "PUT catalog/deregister {}",
		"GET kv/", "PUT kv/ x", "DELETE kv/", "POST kv/a", "GET kv/a?dc=dc2", "GET kv/a%00b", "PUT kv/a%ff x", "PUT kv/" + strings.Repeat("k", 513), "PUT kv/a?ns=A%20B x", "PUT kv/a?cas=1&acquire=x y",
		"PUT kv/a?cas=x y", "PUT kv/a?cas= y", "PUT kv/a?flags=-1 y", "PUT kv/a?acquire= y", "PUT kv/a?acquire=a%20b y", "DELETE kv/a?cas=x", "DELETE kv/a?cas=1&recurse", "PUT kv/a " + strings.Repeat("x", maxBody+1),
		"POST session/create", "GET session/create", "PUT session/create []", `PUT session/create {"TTL":"9s"}`, `PUT session/create {"TTL":"86401s"}`, `PUT session/create {"TTL":"x"}`, `PUT session/create {"LockDelay":"x"}`,
		`PUT session/create {"LockDelay":-1}`, `PUT session/create {"Behavior":"x"}`, `PUT session/create {"Checks":["serfHealth","web"]}`, `PUT session/create {"NodeChecks":["web"]}`, `PUT session/create {"ServiceChecks":[{"ID":"x"}]}`,
		`PUT session/create {"Node":"a b"}`, `PUT session/create {"Name":"` + strings.Repeat("n", 129) + `"}`, "PUT session/destroy/", "PUT session/renew/", "PUT session/renew/a%20b", "GET session/info/", "GET session/node/",
		"GET txn", "PUT txn", "PUT txn {}", `PUT txn [{}]`, `PUT txn [{"Node":{"Verb":"get"}}]`, `PUT txn [{"KV":{"Verb":"put","Key":"a"}}]`, `PUT txn [{"KV":{"Verb":"set"}}]`, `PUT txn [{"KV":{"Verb":"lock","Key":"a"}}]`,
		`PUT txn [{"KV":{"Verb":"set","Key":"a","Value":"?"}}]`, `PUT txn [{"KV":{"Verb":"set","Key":"a"}},{"KV":{"Verb":"delete","Key":"a"}}]`, `PUT txn [{"KV":{"Verb":"set","Key":"ab"}},{"KV":{"Verb":"delete-tree","Key":"a"}}]`,
		`PUT txn [{"KV":{"Verb":"set","Key":"a"}},{"KV":{"Verb":"set","Key":"b","Namespace":"other"}}]`, "PUT txn [" + strings.Repeat(`{"KV":{"Verb":"get","Key":"a"}},`, 64) + `{"KV":{"Verb":"get","Key":"a"}}]`,
	} {
		method, rest, _ := strings.Cut(request, " ")
		path, body, _ := strings.Cut(rest, " ")
		rec := w.ask(method, path, body)
		if len(body) > 120 {
			body = body[:120] + "..."
		}
		fmt.Fprintf(&got, "%s /v1/%s %s\n  %d %s\n", method, path, body, rec.Code, strings.TrimSpace(rec.Body.String()))
		if rec.Code < 400 && method != "OPTIONS" {
			t.Errorf("%s %s %s: %d, want an error", method, path, body, rec.Code)
		}
	}
	golden(t, "bad", got.Bytes())
}

// show writes an answer: the status, the headers that count, the body.
func show(out *bytes.Buffer, rec *httptest.ResponseRecorder) {
	fmt.Fprintf(out, "%d\n", rec.Code)
	var keys []string
	for key := range rec.Header() {
		switch key {
		case "Vary", "X-Content-Type-Options", "X-Consul-Default-Acl-Policy":
		default:
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		fmt.Fprintf(out, "%s: %s\n", key, rec.Header().Get(key))
	}
	body := rec.Body.Bytes()
	var pretty bytes.Buffer
	if json.Indent(&pretty, body, "", "  ") == nil {
		body = pretty.Bytes()
	}
	body = regexp.MustCompile(`("StableSince": )"[^"]*"`).ReplaceAll(body, []byte(`$1"T"`))
	fmt.Fprintf(out, "\n%s\n\n", bytes.TrimSpace(body))
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *rewrite {
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}
