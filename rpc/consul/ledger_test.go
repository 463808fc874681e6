package consul

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// content is what a ledger has found out, in a form that can be compared.
func (l *ledger) content() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[string]string{}
	for namespace, in := range l.census {
		for kind, named := range in.located {
			for name := range named {
				at := locator{kind, namespace, name}
				sorted := l.census.find(at)
				slices.SortFunc(sorted, compareRefs)
				all[fmt.Sprint("located ", at)] = fmt.Sprint(sorted)
			}
		}
		for name, n := range in.services {
			all["service "+namespace+"/"+name] = fmt.Sprint(n.instances, n.tags)
		}
	}
	for t, s := range l.topics {
		if s.instances > 0 {
			all[fmt.Sprint("instances ", t)] = fmt.Sprint(s.instances)
		}
	}
	return all
}

// TestLedgerIsWhatTheStateSays: after any history a ledger that followed it knows what one knows that reads the State, an answer that
// changed has an index that grew, and one that did not kept it.
func TestLedgerIsWhatTheStateSays(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := bareWorld(t)
			random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // Not a secret.
			paths := []string{"health/service/s0", "catalog/service/s1", "catalog/services", "catalog/nodes", "health/node/10.0.0.1", "catalog/node/10.0.0.2"}
			body, at := map[string]string{}, map[string]uint64{}
			for step := range 120 {
				w.step(random)
				for _, path := range paths {
					rec := w.ok("GET", path, "")
					now, text := index(t, rec), rec.Body.String()
					if text != body[path] && now <= at[path] && step > 0 {
						t.Fatalf("step %d: %s changed, its index went from %d to %d", step, path, at[path], now)
					}
					if now < at[path] || now > w.state().Revision() {
						t.Fatalf("step %d: %s: index %d after %d, at revision %d", step, path, now, at[path], w.state().Revision())
					}
					if text == body[path] && now != at[path] && path == "catalog/services" {
						t.Fatalf("step %d: %s stayed, its index went from %d to %d", step, path, at[path], now)
					}
					body[path], at[path] = text, now
				}
			}
			if diff := cmp.Diff(newLedger(w.feed).content(), w.server.ledger.content()); diff != "" {
				t.Errorf("the ledger (-as the State says +as it is):\n%s", diff)
			}
		})
	}
}

// step makes one change, or none, by one door or the other.
func (w *world) step(random *rand.Rand) {
	w.tb.Helper()
	service, id := fmt.Sprintf("s%d", random.IntN(3)), fmt.Sprintf("i%d", random.IntN(4))
	from := []string{"From", fmt.Sprintf("10.0.0.%d", 1+random.IntN(3))}
	switch random.IntN(8) {
	case 0:
		w.register(&registryv1.Instance{Service: service, Id: id, Address: from[1], Tags: []string{fmt.Sprintf("t%d", random.IntN(3))}})
	case 1, 2, 3:
		w.ask("PUT", "agent/service/register", fmt.Sprintf(`{"Name":%q,"ID":%q,"Tags":["t%d"],"Checks":[{"CheckID":"c-%s","TTL":"10s"}]}`,
			service, id, random.IntN(3), id), from...)
	case 4, 5:
		w.ask("PUT", "agent/service/deregister/"+id, "", from...)
	case 6:
		w.ask("PUT", "agent/check/pass/c-"+id, "", from...)
	case 7:
		w.ask("PUT", "agent/service/maintenance/"+id+"?enable=true", "", from...)
	}
}
