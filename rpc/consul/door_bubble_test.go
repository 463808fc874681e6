package consul

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"
)

// busy is a world of ten places whose log does not move on until it is told to.
func busy(t *testing.T) (w *world, goOn func()) {
	t.Helper()
	w = worldWith(t, rpc.Config{MaxInFlight: 10})
	w.ok("PUT", "agent/service/register", `{"Name":"web","Check":{"TTL":"10s","Status":"passing"}}`)
	gate := make(chan struct{})
	w.before = func() { <-gate }
	return w, func() { w.before = nil; close(gate) }
}

// ask asks in the background.
func (w *world) later(method, path, body string) *waiting {
	q := &waiting{w: w, began: time.Now(), cancel: func() {}, done: make(chan *httptest.ResponseRecorder, 1)}
	go func() { q.done <- w.ask(method, path, body) }()
	synctest.Wait()
	return q
}

// What the API would refuse is refused here, in the same order: five registrations take the places of their class.
func TestOverloadRefusesWhatMattersLeast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, goOn := busy(t)
		var under []*waiting
		for n := range 5 {
			under = append(under, w.later("PUT", "agent/service/register", fmt.Sprintf(`{"Name":"s%d"}`, n)))
		}
		if n := w.metric("regd_requests_in_flight"); n != 5 {
			t.Errorf("%v requests in flight, want 5", n)
		}
		refused := func(method, path, body string) {
			t.Helper()
			rec := w.ask(method, path, body)
			if rec.Code != http.StatusTooManyRequests || rec.Header().Get("Retry-After") != "1" || !strings.Contains(rec.Body.String(), "try again later or against a different server") {
				t.Errorf("%s %s: %d %s, Retry-After %q", method, path, rec.Code, rec.Body, rec.Header().Get("Retry-After"))
			}
		}
		refused("PUT", "agent/service/register", `{"Name":"one-more"}`)
		refused("GET", "health/service/web", "")
		w.ok("PUT", "agent/check/pass/service:web", "") // It is alive, and must stay so.
		for range 4 {                                   // What takes away has nine places.
			under = append(under, w.later("PUT", "agent/service/deregister/web", ""))
		}
		refused("PUT", "agent/service/deregister/web", "")
		w.ok("PUT", "agent/check/pass/service:web", "")
		w.ok("GET", "status/leader", "") // An operator may be there to end it.
		if n := w.metric("regd_admission_rejected_total"); n != 3 {
			t.Errorf("%v are counted as refused, want 3", n)
		}
		goOn()
		for n, q := range under {
			if rec := q.answered(t, "the log goes on"); rec.Code != http.StatusOK && rec.Code != http.StatusNotFound {
				t.Errorf("request %d: %d %s", n, rec.Code, rec.Body)
			}
		}
		if n := w.metric("regd_requests_in_flight"); n != 0 {
			t.Errorf("%v places are still taken", n)
		}
	})
}

// Who waits for a change takes no place; who is woken is answered, however many they are.
func TestWaitingTakesNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := worldWith(t, rpc.Config{MaxInFlight: 10})
		w.ok("PUT", "agent/service/register", `{"Name":"web"}`)
		at := index(t, w.ask("GET", "health/service/web", ""))
		var queries []*waiting
		for range 100 {
			queries = append(queries, w.wait(after("health/service/web", at)))
		}
		if n := w.metric("regd_requests_in_flight"); n != 0 {
			t.Errorf("100 queries that wait hold %v places", n)
		}
		gate := make(chan struct{})
		w.before = func() { <-gate }
		for range 5 { // Who comes now and reads is refused.
			w.later("PUT", "agent/service/register", `{"Name":"web"}`)
		}
		w.register(&registryv1.Instance{Service: "web", Id: "elsewhere", Address: "10.0.0.9"})
		for _, q := range queries {
			if rec := q.answered(t, "a change"); rec.Code != http.StatusOK {
				t.Errorf("%d %s", rec.Code, rec.Body)
			}
		}
		close(gate)
		synctest.Wait()
		if n := w.metric("regd_requests_in_flight"); n != 0 {
			t.Errorf("%v places are still taken", n)
		}
	})
}

// Reads that come together wait for each other, for a moment.
func TestReadsWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := worldWith(t, rpc.Config{MaxInFlight: 10}) // Three of which are for reads.
		gate := make(chan struct{})
		w.viewing = func() { <-gate }
		var queries []*waiting
		for range 5 {
			queries = append(queries, w.later("GET", "catalog/nodes", ""))
		}
		if n := w.metric("regd_requests_in_flight"); n != 3 {
			t.Errorf("%v reads are worked on, want 3", n)
		}
		time.Sleep(4 * time.Second)
		for _, q := range queries {
			q.blocked(t, "nothing moves on")
		}
		late := w.later("GET", "catalog/nodes", "")
		time.Sleep(2 * time.Second)
		refused := 0
		for _, q := range queries {
			select {
			case rec := <-q.done:
				if refused++; rec.Code != http.StatusTooManyRequests {
					t.Errorf("%d %s", rec.Code, rec.Body)
				}
			default:
			}
		}
		if refused != 2 {
			t.Errorf("%d were refused after their patience, want 2", refused)
		}
		close(gate)
		if rec := late.answered(t, "reads go on"); rec.Code != http.StatusOK {
			t.Errorf("who had patience left: %d %s", rec.Code, rec.Body)
		}
	})
}

func TestQuotaOfWritesHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := bareWorld(t)
		w.govern("default", &registryv1.Quota{MaxWritesPerSecond: 1})
		w.ok("PUT", "agent/service/register", `{"Name":"web","ID":"web-1"}`)
		rec := w.ask("PUT", "agent/service/register", `{"Name":"web","ID":"web-2"}`)
		if rec.Code != http.StatusTooManyRequests || rec.Header().Get("Retry-After") != "1" || !strings.Contains(rec.Body.String(), "may write 1 times a second") {
			t.Errorf("a second write: %d %s, Retry-After %q", rec.Code, rec.Body, rec.Header().Get("Retry-After"))
		}
		w.ok("PUT", "agent/service/deregister/web-1", "") // What frees is let in.
		w.ok("PUT", "agent/service/register?ns=other", `{"Name":"web","ID":"web-2"}`)
		time.Sleep(time.Second)
		w.ok("PUT", "agent/service/register", `{"Name":"web","ID":"web-2"}`)
		if rec = w.ask("PUT", "kv/a", "x"); rec.Code != http.StatusTooManyRequests {
			t.Errorf("a key after that: %d %s", rec.Code, rec.Body)
		}
		w.govern("default", &registryv1.Quota{MaxKeys: 1})
		w.ok("PUT", "kv/a", "x")
		if rec = w.ask("PUT", "kv/b", "x"); rec.Code != http.StatusInternalServerError || !strings.Contains(rec.Body.String(), "keys") {
			t.Errorf("a second key: %d %s", rec.Code, rec.Body)
		}
		w.ok("PUT", "kv/a", "y")
	})
}
