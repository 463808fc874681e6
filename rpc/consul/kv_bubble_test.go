package consul

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// session creates a session.
func (w *world) session(body string) string {
	w.tb.Helper()
	var created struct{ ID string }
	if err := json.Unmarshal(w.ok("PUT", "session/create", body).Body.Bytes(), &created); err != nil {
		w.tb.Fatal(err)
	}
	return created.ID
}

// indexAny is index also of what is not there.
func indexAny(t *testing.T, rec *httptest.ResponseRecorder) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(rec.Header().Get("X-Consul-Index"), 10, 64)
	if err != nil || n == 0 || rec.Code != http.StatusOK && rec.Code != http.StatusNotFound {
		t.Fatalf("%d, index %q: %s", rec.Code, rec.Header().Get("X-Consul-Index"), rec.Body)
	}
	return n
}

func TestOnlyItsKeysWakeAQuery(t *testing.T) {
	do := func(method, path, body string) func(*world) { return func(w *world) { w.ok(method, path, body) } }
	put := func(key string) func(*world) { return do("PUT", "kv/"+key, "x") }
	del := func(key string) func(*world) { return do("DELETE", "kv/"+key, "") }
	owner := func(w *world) string { return w.state().Key("default", "app/a").SessionID }
	ends := func(w *world) { w.ok("PUT", "session/destroy/"+owner(w), "") }
	opens := func(w *world) { w.session("") }
	for _, tc := range []struct {
		path          string
		sleeps, wakes []func(*world)
	}{
		{"kv/app/a", []func(*world){put("app/b"), put("app/aa"), del("app/b"), put("app"), put("app/a?ns=other"), del("none"), opens}, []func(*world){put("app/a"), del("app/a"), del("?recurse"), ends}},
		{"kv/none", []func(*world){put("app/a"), del("app/a"), del("app/?recurse"), put("non"), put("none/x")}, []func(*world){put("none")}},
		{"kv/app/?recurse", []func(*world){put("app"), put("apple"), del("apple"), put("app/a?ns=other"), opens}, []func(*world){put("app/a"), put("app/new/x"), del("app/a"), del("app/?recurse"), ends}},
		{"kv/app/?keys&separator=/", []func(*world){put("other"), del("other")}, []func(*world){put("app/new"), del("app/a")}},
		{"kv/?keys", []func(*world){put("app/a?ns=other")}, []func(*world){put("x"), del("app/a")}},
		{"session/list", []func(*world){put("app/a"), put("x")}, []func(*world){opens, ends}},
		{"session/info/$", []func(*world){opens, put("app/a")}, []func(*world){ends}},
		{"health/service/web", []func(*world){put("app/a"), opens, ends}, nil},
	} {
		for n, wake := range append(tc.wakes, nil) {
			t.Run(fmt.Sprintf("%s/%d", tc.path, n), func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					id := w.session(`{"LockDelay":"0s"}`)
					path := strings.Replace(tc.path, "$", id, 1)
					w.ok("PUT", "kv/app/a?acquire="+id, "1")
					w.ok("PUT", "kv/app/b", "2")
					after := func(index uint64) string {
						return path + map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")] + fmt.Sprintf("index=%d", index)
					}
					before := indexAny(t, w.ask("GET", path, ""))
					q := w.wait(after(before))
					defer q.cancel()
					for n, sleep := range tc.sleeps {
						sleep(w)
						q.blocked(t, fmt.Sprintf("change %d of something else", n))
					}
					if counter(t, w.server.metrics.wakes) > 0 {
						t.Error("the query was woken")
					}
					if wake == nil {
						return
					}
					if w.state().Key("default", "app/a") == nil { // Something else has taken it.
						return
					}
					wake(w)
					if now := indexAny(t, q.answered(t, "change")); now <= before {
						t.Errorf("index %d after the change, %d before", now, before)
					}
					again := w.wait(after(indexAny(t, w.ask("GET", path, ""))))
					again.blocked(t, "nothing more")
					again.cancel()
					synctest.Wait()
					if l := w.server.ledger; len(l.prefixes) > 0 || len(l.topics) > 30 {
						t.Errorf("prefixes %v and %d topics are kept for nobody", l.prefixes, len(l.topics))
					}
				})
			})
		}
	}
}

// Whatever happens to keys: the index of a query never falls, and grows whenever its answer is another one.
func TestIndexOfKeysGrowsWithEachChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(1, 2))
		w := bareWorld(t)
		keys := []string{"a", "a/b", "a/b/c", "a/d", "e"}
		paths := []string{"kv/a", "kv/a/b", "kv/none", "kv/a/?recurse", "kv/?recurse", "kv/a/?keys", "kv/x/?recurse"}
		last, bodies := make([]uint64, len(paths)), make([]string, len(paths))
		id := w.session(`{"LockDelay":"0s"}`)
		saved := w.state()
		for range 2000 {
			key := keys[rnd.IntN(len(keys))]
			switch rnd.IntN(7) {
			case 0, 1:
				w.ok("PUT", "kv/"+key, fmt.Sprint(rnd.IntN(3)))
			case 2, 3:
				w.ok("DELETE", "kv/"+key, "")
			case 4:
				w.ok("DELETE", "kv/a/?recurse", "")
			case 5:
				w.ok("PUT", "kv/"+key+"?acquire="+id, "owned")
			default:
				w.ok("PUT", "session/destroy/"+id, "")
				id = w.session(fmt.Sprintf(`{"LockDelay":"0s","Behavior":"%s"}`, []string{"release", "delete"}[rnd.IntN(2)]))
			}
			switch rnd.IntN(100) {
			case 0:
				saved = w.state()
			case 1:
				if err := w.Restore(t.Context(), saved); err != nil {
					t.Fatal(err)
				}
				id = w.session(`{"LockDelay":"0s"}`)
			}
			for n, path := range paths {
				rec := w.ask("GET", path, "")
				now, body := indexAny(t, rec), rec.Body.String()
				if now < last[n] || now == last[n] && body != bodies[n] {
					t.Fatalf("%s: index %d after %d; answer %s after %s", path, now, last[n], body, bodies[n])
				}
				last[n], bodies[n] = now, body
			}
		}
	})
}

// A write of one key wakes nobody who waits for another one, however many they are.
func TestManyWaitForKeysOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := bareWorld(t)
		var queries []*waiting
		for n := range 1000 {
			w.ok("PUT", fmt.Sprintf("kv/k/%d", n), "x")
			queries = append(queries, w.wait(fmt.Sprintf("kv/k/%d?index=%d", n, w.state().Revision())))
		}
		for n := range 1000 {
			w.ok("PUT", fmt.Sprintf("kv/other/%d", n), "x")
		}
		w.ok("PUT", "kv/k/7", "y")
		queries[7].answered(t, "its key")
		if woken := counter(t, w.server.metrics.wakes); woken != 1 {
			t.Errorf("%v queries were woken, want 1", woken)
		}
		for _, q := range queries {
			q.cancel()
		}
		synctest.Wait()
	})
}

// model is keys and values, and nothing else.
type model map[string]string

// tree is what begins with a prefix.
func (m model) tree(prefix string) (listed []string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if strings.HasPrefix(k, prefix) {
			listed = append(listed, k+"="+m[k])
		}
	}
	return listed
}

// run does a transaction, and returns what it reads and whether it is done.
func (m model) run(ops []kvOperation) (read []string, done bool) {
	next := maps.Clone(m)
	for _, op := range ops {
		value, there := next[op.Key]
		switch op.Verb {
		case "set":
			next[op.Key] = string(op.Value)
			read = append(read, op.Key)
		case "delete":
			delete(next, op.Key)
		case "delete-tree":
			maps.DeleteFunc(next, func(k, _ string) bool { return strings.HasPrefix(k, op.Key) })
		case "check-not-exists":
			if there {
				return nil, false
			}
		case "get":
			if !there {
				return nil, false
			}
			read = append(read, op.Key+"="+value)
		case "get-or-empty":
			read = append(read, op.Key+"="+value)
		case "get-tree":
			read = append(read, next.tree(op.Key)...)
		}
	}
	clear(m)
	maps.Copy(m, next)
	return read, true
}

// What a transaction reads is what was there in its place, also when others write between its look and its turn: then what it reads of
// single keys is what they have left.
func TestTransactionsReadWhatIsThereInTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(3, 4))
		w, m := bareWorld(t), model{}
		keys := []string{"a", "a/b", "a/c", "d"}
		committed, refused, retried := 0, 0, 0
		for range 3000 {
			var ops []kvOperation
			tree := false
			for range 1 + rnd.IntN(6) {
				op := kvOperation{
					Verb: []string{"set", "get", "get-or-empty", "get-tree", "delete", "delete-tree", "check-not-exists"}[rnd.IntN(7)],
					Key:  keys[rnd.IntN(len(keys))], Value: fmt.Append(nil, rnd.IntN(1000)),
				}
				tree = tree || op.Verb == "get-tree"
				ops = append(ops, op)
			}
			var requests []map[string]kvOperation
			for _, op := range ops {
				requests = append(requests, map[string]kvOperation{"KV": op})
			}
			body, err := json.Marshal(requests)
			if err != nil {
				t.Fatal(err)
			}
			meddled := false
			if rnd.IntN(2) == 0 && !tree {
				w.before = func() {
					if meddled {
						return
					}
					meddled = true
					key, value := keys[rnd.IntN(len(keys))], fmt.Sprint("by another ", rnd.IntN(1000))
					op := &raftlogv1.KVOp{Kind: raftlogv1.KVOpKind_KV_OP_KIND_SET, Key: key, Value: []byte(value)}
					if m[key] = value; rnd.IntN(2) == 0 {
						op.Kind = raftlogv1.KVOpKind_KV_OP_KIND_DELETE
						delete(m, key)
					}
					w.must(transaction("default", op))
				}
			}
			rec := w.ask("PUT", "txn", string(body))
			w.before = nil
			if rec.Code == http.StatusBadRequest && strings.Contains(rec.Body.String(), "change the same key") {
				continue
			}
			if meddled {
				retried++
			}
			want, done := m.run(ops)
			if committed++; !done {
				committed--
				refused++
			}
			if done != (rec.Code == http.StatusOK) || !done && rec.Code != http.StatusConflict {
				t.Fatalf("%s: %d %s; done in the model: %t", body, rec.Code, rec.Body, done)
			}
			var answer txnAnswer
			decode(t, rec.Body.Bytes(), &answer)
			var got []string
			next := 0
			for _, r := range answer.Results { // What was set comes without its value.
				for next < len(want) && !strings.Contains(want[next], "=") && want[next] != r.KV.Key {
					next++
				}
				text := r.KV.Key
				if next < len(want) && strings.Contains(want[next], "=") {
					text += "=" + string(r.KV.Value)
				} else if len(r.KV.Value) > 0 {
					text += " with its value"
				}
				next++
				got = append(got, text)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%s: read %q, want %q", body, got, want)
			}
			var pairs []kvPair
			if rec := w.ask("GET", "kv/?recurse", ""); rec.Code == http.StatusOK {
				decode(t, rec.Body.Bytes(), &pairs)
			}
			var kept []string
			for _, p := range pairs {
				kept = append(kept, p.Key+"="+string(p.Value))
			}
			if have := m.tree(""); !slices.Equal(have, kept) {
				t.Fatalf("%s: there is %q, want %q", body, kept, have)
			}
		}
		if committed < 500 || refused < 500 || retried < 200 {
			t.Errorf("%d done, %d refused, %d disturbed: too few to say anything", committed, refused, retried)
		}
	})
}

// What this node does not have yet may be there: before a transaction fails for that, it looks at a State that is sure to be current.
func TestNodeThatIsBehindRefusesNoTransaction(t *testing.T) {
	w := bareWorld(t)
	w.ok("PUT", "kv/a", "x")
	w.behind = true
	w.must(transaction("default", &raftlogv1.KVOp{Kind: raftlogv1.KVOpKind_KV_OP_KIND_SET, Key: "b", Value: []byte("new")}))
	rec := w.ok("PUT", "txn", `[{"KV":{"Verb":"get","Key":"b"}},{"KV":{"Verb":"set","Key":"c"}}]`)
	var answer txnAnswer
	if decode(t, rec.Body.Bytes(), &answer); len(answer.Results) != 2 || string(answer.Results[0].KV.Value) != "new" {
		t.Errorf("the answer: %s", rec.Body)
	}
	if rec = w.ask("PUT", "txn", `[{"KV":{"Verb":"get","Key":"none"}},{"KV":{"Verb":"set","Key":"d"}}]`); rec.Code != http.StatusConflict {
		t.Errorf("a key that is not there: %d %s", rec.Code, rec.Body)
	}
}
