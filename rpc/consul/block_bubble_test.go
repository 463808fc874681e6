package consul

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/cluster"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// waiting is a query that waits in the background.
type waiting struct {
	w      *world
	cancel context.CancelFunc
	began  time.Time
	done   chan *httptest.ResponseRecorder
}

func (w *world) wait(path string) *waiting {
	ctx, cancel := context.WithCancel(context.Background())
	q := &waiting{w: w, cancel: cancel, began: time.Now(), done: make(chan *httptest.ResponseRecorder, 1)}
	go func() { q.done <- w.askCtx(ctx, http.MethodGet, path, "") }()
	synctest.Wait()
	return q
}

// blocked says that the query still waits.
func (q *waiting) blocked(t *testing.T, why string) {
	t.Helper()
	synctest.Wait()
	select {
	case rec := <-q.done:
		t.Fatalf("%s: the query was answered after %v: %d %s", why, time.Since(q.began), rec.Code, rec.Body)
	default:
	}
}

// answered returns the answer, which must be there now.
func (q *waiting) answered(t *testing.T, why string) *httptest.ResponseRecorder {
	t.Helper()
	synctest.Wait()
	select {
	case rec := <-q.done:
		return rec
	default:
		t.Fatalf("%s: the query still waits after %v", why, time.Since(q.began))
		return nil
	}
}

func index(t *testing.T, rec *httptest.ResponseRecorder) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(rec.Header().Get("X-Consul-Index"), 10, 64)
	if err != nil || rec.Code != http.StatusOK {
		t.Fatalf("%d, index %q: %s", rec.Code, rec.Header().Get("X-Consul-Index"), rec.Body)
	}
	return n
}

func after(path string, index uint64) string { return fmt.Sprintf("%s?index=%d", path, index) }

func bubble(t *testing.T, fn func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { fn(t, newWorld(t)) })
}

func TestOnlyAChangeOfItsTopicWakesAQuery(t *testing.T) {
	health := func(w *world) { w.ok("PUT", "agent/check/fail/service:web-1", "") }
	tag := func(w *world) {
		w.ok("PUT", "agent/service/register", `{"Name":"web","ID":"web-2","Address":"10.0.0.2","Tags":["v3"]}`)
	}
	other := func(w *world) { w.ok("PUT", "agent/service/register", `{"Name":"other","ID":"o"}`) }
	gone := func(w *world) {
		w.ok("PUT", "agent/service/deregister/web-1", "")
		w.ok("PUT", "agent/service/deregister/web-2", "")
	}
	elsewhere := func(w *world) {
		w.register(&registryv1.Instance{Service: "far", Id: "f", Address: "10.9.9.9", Tags: []string{"t"}})
	}
	foreign := func(w *world) {
		w.register(&registryv1.Instance{Namespace: "other", Service: "web", Id: "f", Address: "10.9.9.9"})
	}
	for _, tc := range []struct {
		path          string
		sleeps, wakes []func(*world)
	}{
		{"health/service/web", []func(*world){other, elsewhere, foreign}, []func(*world){health, tag, gone}},
		{"catalog/service/web", []func(*world){other, elsewhere, foreign}, []func(*world){health, tag, gone}},
		{"health/checks/web", []func(*world){other, elsewhere, foreign}, []func(*world){health, gone}},
		{"health/service/none", []func(*world){other, elsewhere, health, gone}, nil},
		{"health/service/far", []func(*world){other, health}, []func(*world){elsewhere}},
		{"catalog/services", []func(*world){health, foreign}, []func(*world){tag, other, gone, elsewhere}},
		{"catalog/nodes", []func(*world){health, tag, other, foreign}, []func(*world){elsewhere}},
		{"catalog/node/here", []func(*world){elsewhere, foreign}, []func(*world){tag, other, health, gone}},
		{"health/node/here", []func(*world){elsewhere, foreign}, []func(*world){health, gone}},
		{"health/node/10.9.9.9", []func(*world){health, other, foreign}, []func(*world){elsewhere}},
		{"health/state/any", []func(*world){foreign}, []func(*world){health, other, elsewhere}},
	} {
		for n, wake := range append(tc.wakes, nil) {
			t.Run(fmt.Sprintf("%s/%d", tc.path, n), func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					before := index(t, w.ask("GET", tc.path, ""))
					q := w.wait(after(tc.path, before))
					defer q.cancel()
					for n, sleep := range tc.sleeps {
						sleep(w)
						q.blocked(t, fmt.Sprintf("change %d of something else", n))
					}
					if wake == nil {
						return
					}
					wake(w)
					rec := q.answered(t, "change")
					now := index(t, rec)
					if now <= before {
						t.Errorf("index %d after the change, %d before", now, before)
					}
					// One that makes several changes may have been told of the first only.
					again := w.wait(after(tc.path, max(now, index(t, w.ask("GET", tc.path, "")))))
					defer again.cancel()
					if tc.path != "health/state/any" {
						again.blocked(t, "nothing more")
					}
				})
			})
		}
	}
}

func TestQueryIsAnsweredWhenItsTimeIsOver(t *testing.T) {
	for _, tc := range []struct {
		path        string
		least, most time.Duration
	}{
		{"&wait=10s", 10 * time.Second, 10*time.Second + 10*time.Second/16},
		{"&wait=1s", time.Second, time.Second + time.Second/16},
		{"", 5 * time.Minute, 5*time.Minute + 5*time.Minute/16},
		{"&wait=1h", 10 * time.Minute, 10*time.Minute + 10*time.Minute/16},
	} {
		bubble(t, func(t *testing.T, w *world) {
			before := w.ask("GET", "health/service/web", "")
			q := w.wait(after("health/service/web", index(t, before)) + tc.path)
			rec := <-q.done
			if took := time.Since(q.began); took < tc.least || took > tc.most {
				t.Errorf("%s: answered after %v, want %v to %v", tc.path, took, tc.least, tc.most)
			}
			if index(t, rec) != index(t, before) || rec.Body.String() != before.Body.String() {
				t.Errorf("%s: the answer differs though nothing has changed", tc.path)
			}
		})
	}
}

// A client that has been told an index must never be told a smaller one, whatever becomes of the service.
func TestIndexNeverFalls(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		last := uint64(0)
		look := func(step string) {
			now := index(t, w.ask("GET", "health/service/web", ""))
			if now < last {
				t.Errorf("%s: index %d after %d", step, now, last)
			}
			last = now
		}
		look("there")
		w.ok("PUT", "agent/service/deregister/web-1", "")
		look("one gone")
		w.ok("PUT", "agent/service/deregister/web-2", "")
		look("all gone")
		for n := range maxTombs / 100 {
			w.ok("PUT", "agent/service/register", fmt.Sprintf(`{"Name":"other-%d"}`, n))
		}
		before := last
		if look("others came"); last != before {
			t.Errorf("others moved the index of a service that is gone from %d to %d", before, last)
		}
		w.ok("PUT", "agent/service/register", `{"Name":"web"}`)
		look("back")
		q := w.wait(after("health/service/web", last) + "&wait=1s")
		if now := index(t, <-q.done); now != last {
			t.Errorf("index %d after a wait for nothing, %d before", now, last)
		}
	})
}

// Another node may know a larger index of a service that this one has never seen.
func TestIndexOfAnotherNodeIsKept(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		for n := range 5 {
			w.ok("PUT", "agent/service/register", fmt.Sprintf(`{"Name":"other-%d"}`, n))
		}
		known := w.state().Revision()
		q := w.wait(after("health/service/none", known) + "&wait=1s")
		if now := index(t, <-q.done); now != known {
			t.Errorf("index %d, want that of the client, %d", now, known)
		}
		// It is of no revision that there is: the client begins anew.
		rec := w.wait(after("health/service/none", known+1000)).answered(t, "an index from nowhere")
		if now := index(t, rec); now > known {
			t.Errorf("index %d at revision %d", now, known)
		}
		// Without a leader nobody can tell: the node may be behind. So it is not said that less has happened.
		w.mu.Lock()
		w.err = cluster.ErrNoLeader
		w.mu.Unlock()
		if rec := w.ask("GET", after("health/service/none", known+1)+"&stale", ""); rec.Code != http.StatusInternalServerError || rec.Body.String() != noLeader {
			t.Errorf("an index that is ahead, without a leader: %d %s", rec.Code, rec.Body)
		}
	})
}

func TestRestoreWakesEverybody(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.ok("PUT", "agent/check/register", `{"Name":"disk","TTL":"30s"}`)
		old := w.state()
		w.ok("PUT", "agent/service/register", `{"Name":"web","ID":"web-3"}`)
		paths := []string{"health/service/web", "health/service/none", "catalog/services", "catalog/nodes", "health/node/here", "health/state/any"}
		var queries []*waiting
		var before []uint64
		for _, path := range paths {
			before = append(before, index(t, w.ask("GET", path, "")))
			queries = append(queries, w.wait(after(path, before[len(before)-1])))
		}
		if err := w.Restore(t.Context(), old); err != nil {
			t.Fatal(err)
		}
		for n, q := range queries {
			rec := q.answered(t, paths[n])
			if now := index(t, rec); now <= before[n] {
				t.Errorf("%s: index %d after a restore, %d before", paths[n], now, before[n])
			}
			if strings.Contains(rec.Body.String(), "web-3") {
				t.Errorf("%s: the answer is of before the restore", paths[n])
			}
			again := w.wait(after(paths[n], index(t, rec)))
			again.blocked(t, paths[n]+" after the restore")
			again.cancel()
		}
		// A node that starts after a restore does not know what clients saw before it.
		w.server = w.another()
		for n, path := range paths {
			if now := index(t, w.ask("GET", path, "")); now <= before[n] {
				t.Errorf("%s: index %d at a node that started after the restore, %d before it", path, now, before[n])
			}
		}
	})
}

// A node that has just started does not know what went before: a client that comes from another one is answered.
func TestNodeThatStartsDoesNotKnowWhatHasGone(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		paths := []string{"health/node/here", "catalog/services", "catalog/nodes", "health/state/any", "health/service/db"}
		var before []uint64
		for _, path := range paths {
			before = append(before, index(t, w.ask("GET", path, "")))
		}
		w.ok("PUT", "agent/service/deregister/web-2", "")
		w.ok("PUT", "agent/service/deregister/db", "")
		w.server = w.another()
		for n, path := range paths {
			if now := index(t, w.ask("GET", path, "")); now <= before[n] {
				t.Errorf("%s: index %d at a node that started after a change, %d before", path, now, before[n])
			}
		}
	})
}

func TestWaitingNeedsNoLeaderButAnAnswerDoes(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		at := index(t, w.ask("GET", "health/service/web", ""))
		def, stale := w.wait(after("health/service/web", at)+"&wait=10s"), w.wait(after("health/service/web", at)+"&wait=10s&stale")
		w.mu.Lock()
		w.err = cluster.ErrNoLeader
		w.mu.Unlock()
		def.blocked(t, "no leader")
		late := w.wait(after("health/service/web", at) + "&wait=1s")
		late.blocked(t, "no leader")
		if rec := <-def.done; rec.Code != http.StatusInternalServerError || rec.Body.String() != "No cluster leader" {
			t.Errorf("without a leader: %d %s", rec.Code, rec.Body)
		}
		rec := <-stale.done
		if index(t, rec) != at || rec.Header().Get("X-Consul-KnownLeader") != "false" {
			t.Errorf("a stale query without a leader: %d, known leader %s", rec.Code, rec.Header().Get("X-Consul-KnownLeader"))
		}
		if rec := w.ask("GET", "health/service/web", ""); rec.Code != http.StatusInternalServerError {
			t.Errorf("a query without a leader: %d", rec.Code)
		}
		if rec := w.ask("PUT", "agent/service/register", `{"Name":"x"}`); rec.Code != http.StatusInternalServerError || rec.Body.String() != "No cluster leader" {
			t.Errorf("a write without a leader: %d %s", rec.Code, rec.Body)
		}
	})
}

func TestNodeThatHasJustStartedSaysNothing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		behind := func(age time.Duration) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.age = age
		}
		refused := func(query string) {
			t.Helper()
			if rec := w.ask("GET", "health/service/web?"+query, ""); rec.Code != http.StatusServiceUnavailable || rec.Header().Get("X-Consul-Index") != "" {
				t.Errorf("%s: %d %s, want a refusal", query, rec.Code, rec.Body)
			}
		}
		w.server.current.Store(false) // As after a start.
		behind(-1)
		for _, query := range []string{"stale", "cached", "stale&index=1"} {
			refused(query)
		}
		behind(time.Minute)
		refused("stale")
		behind(time.Second)
		at := index(t, w.ask("GET", "health/service/web?stale", ""))
		behind(-1)
		if now := index(t, w.ask("GET", "health/service/web?stale", "")); now != at {
			t.Errorf("index %d, want %d", now, at)
		}
		w.server.current.Store(false)
		index(t, w.ask("GET", "health/service/web?index=1", "")) // It asks for what is current, and this shows it to be.
		index(t, w.ask("GET", "health/service/web?stale", ""))
	})
}

func TestHashWaitsForOtherContent(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		rec := w.ask("GET", "agent/service/web-1", "")
		hash := rec.Header().Get("X-Consul-ContentHash")
		if hash == "" || !strings.Contains(rec.Body.String(), hash) {
			t.Fatalf("hash %q of %s", hash, rec.Body)
		}
		q := w.wait("agent/service/web-1?hash=" + hash)
		w.ok("PUT", "agent/check/fail/service:web-1", "")
		w.ok("PUT", "agent/service/register", `{"Name":"web","ID":"web-9"}`)
		q.blocked(t, "the content is the same")
		w.ok("PUT", "agent/service/register", `{"Name":"web","ID":"web-1","Port":9}`)
		if rec = q.answered(t, "other content"); rec.Header().Get("X-Consul-ContentHash") == hash || rec.Code != http.StatusOK {
			t.Errorf("%d, hash %s", rec.Code, rec.Header().Get("X-Consul-ContentHash"))
		}
		rec = w.ask("GET", "agent/service/web-1", "")
		q = w.wait("agent/service/web-1?wait=10s&hash=" + rec.Header().Get("X-Consul-ContentHash"))
		w.ok("PUT", "agent/service/deregister/web-1", "")
		if rec = q.answered(t, "gone"); rec.Code != http.StatusNotFound {
			t.Errorf("a service that is gone: %d", rec.Code)
		}
	})
}

func TestShutdownAnswersWhoWaits(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		at := index(t, w.ask("GET", "health/service/web", ""))
		q := w.wait(after("health/service/web", at))
		gone := w.wait(after("health/service/web", at))
		gone.cancel()
		gone.answered(t, "the client has gone")
		if err := w.server.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if rec := q.answered(t, "shutdown"); index(t, rec) != at {
			t.Errorf("%d %s", rec.Code, rec.Body)
		}
		if n := w.metric("regd_requests_in_flight"); len(w.server.waiters) != 0 || n != 0 {
			t.Errorf("%d waiters and %v places are still taken", len(w.server.waiters), n)
		}
	})
}

// A report of what stands already costs no log entry, and the check's time begins anew.
func TestRepeatedReportOnlyRenews(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		before := w.state().Index()
		w.ok("PUT", "agent/check/pass/service:web-1", "")
		if now := w.state().Index(); now != before {
			t.Errorf("%d entries for a repeated report", now-before)
		}
		if len(w.renewed) != 1 || w.renewed[0] != "default/web/web-1/service" {
			t.Errorf("renewed: %q", w.renewed)
		}
	})
}

// What others do between a look and the write is not lost.
func TestChecksAreAddedToWhatIsThere(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		once := true
		w.before = func() {
			if once {
				once = false
				w.must(&raftlogv1.Command{Kind: &raftlogv1.Command_SetDraining{SetDraining: &raftlogv1.SetDraining{
					Key: &raftlogv1.Key{Namespace: "default", Service: "web", Id: "web-1"}, Draining: true,
				}}})
			}
		}
		w.ok("PUT", "agent/check/register", `{"Name":"extra","ServiceID":"web-1","TTL":"30s"}`)
		if n := strings.Count(w.ok("GET", "health/checks/web?filter=ServiceID+%3D%3D+%22web-1%22", "").Body.String(), `"CheckID"`); n != 2 {
			t.Errorf("%d checks, want the two that were registered", n)
		}
	})
}

func TestNewMemberWakesWhoLooksAtNodes(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		q := w.wait(after("catalog/nodes", index(t, w.ask("GET", "catalog/nodes", ""))))
		w.must(&raftlogv1.Command{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{
			Member: &registryv1.Member{Id: "id-n4", Name: "n4", GrpcAddress: "n4.example:7400"},
		}}})
		if rec := q.answered(t, "a new member"); !strings.Contains(rec.Body.String(), `"n4"`) {
			t.Errorf("the new member is not there: %s", rec.Body)
		}
	})
}

// What changes between the look at a State and its answer is a change after it: the client must come to hear of it.
func TestIndexIsThatOfTheContent(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.shown = w.state()
		w.ok("PUT", "agent/service/register", `{"Name":"late"}`, "X-Regd-Node", "other")
		synctest.Wait()
		for _, path := range []string{"catalog/nodes", "health/node/other", "health/state/any"} {
			rec := w.ask("GET", path, "")
			if now := index(t, rec); strings.Contains(rec.Body.String(), "late") || now > w.shown.Revision() {
				t.Errorf("%s: index %d of a State of revision %d", path, now, w.shown.Revision())
			}
		}
	})
}

// Whoever adds a check while its service is registered again does not lose it.
func TestCheckThatComesMeanwhileStays(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		once := true
		w.before = func() {
			if once {
				once = false
				w.ok("PUT", "agent/check/register", `{"Name":"meanwhile","ServiceID":"web-1","TTL":"30s"}`)
			}
		}
		w.ok("PUT", "agent/service/register", `{"Name":"web","ID":"web-1","Check":{"TTL":"10s"}}`)
		if body := w.ok("GET", "health/checks/web", "").Body.String(); !strings.Contains(body, `"meanwhile"`) {
			t.Errorf("the check is lost: %s", body)
		}
	})
}
