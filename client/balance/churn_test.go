package balance

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// owners returns the instance of each of n keys.
func owners(t *testing.T, b *Balancer, n int) []string {
	t.Helper()
	out := make([]string, n)
	for key := range out {
		out[key] = mustPick(t, b, Request{Hash: Hash(fmt.Sprintf("user-%d", key))}).GetId()
	}
	return out
}

// TestKeysStay checks that whoever joins, leaves, fails or changes its weight moves only keys that it gets or had.
func TestKeysStay(t *testing.T) {
	const keys = 5000
	for _, policy := range []Policy{Rendezvous(), Ring()} {
		for _, weighted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v/weighted=%v", policy, weighted), func(t *testing.T) {
				all := fleet(31, weighted)
				b := balancer(t, policy, all[:30])
				before := owners(t, b, keys)
				check := func(what, id string, share float64) {
					t.Helper()
					now := owners(t, b, keys)
					moved := 0
					for key := range now {
						if now[key] != before[key] {
							moved++
							if now[key] != id && before[key] != id {
								t.Fatalf("%s: key %d moved from %s to %s", what, key, before[key], now[key])
							}
						}
					}
					// The share of an instance on the ring is itself random, with a tenth for deviation; of the keys, binomial.
					limit := keys*share*1.5 + 5*math.Sqrt(keys*share)
					if moved == 0 || float64(moved) > limit {
						t.Errorf("%s: %d of %d keys moved, want some and at most %.0f", what, moved, keys, limit)
					}
				}
				share := func(in *registryv1.Instance) float64 { return newMember(in).weightOf(all) }
				b.Update(all)
				check("join", all[30].GetId(), share(all[30]))
				b.Update(all[1:31])
				before2 := owners(t, balancer(t, policy, all[1:31]), keys)
				if !slices.Equal(before2, owners(t, b, keys)) {
					t.Error("a balancer that has changed disagrees with a new one")
				}
				b.Update(all[:30])
				if !slices.Equal(before, owners(t, b, keys)) {
					t.Error("the instances are as before, the owners of keys are not")
				}
				sick := clone(all[3])
				sick.Health = registryv1.Health_HEALTH_CRITICAL
				b.Update(append([]*registryv1.Instance{sick}, slices.Delete(slices.Clone(all[:30]), 3, 4)...))
				check("failure", sick.GetId(), share(sick))
				b.Update(all[:30])
				light := clone(all[3])
				light.Weight = max(all[3].GetWeight(), 100) / 2
				b.Update(append([]*registryv1.Instance{light}, slices.Delete(slices.Clone(all[:30]), 3, 4)...))
				check("weight", light.GetId(), share(all[3]))
			})
		}
	}
}

// subsetOf returns the ids in a client's subset.
func subsetOf(t *testing.T, client string, size int, instances []*registryv1.Instance) []string {
	t.Helper()
	var ids []string
	for _, s := range balancer(t, Subset(client, size, Random()), instances).Explain(Request{}).Instances {
		if s.Share > 0 {
			ids = append(ids, s.Instance.GetId())
		} else if s.Reason != ReasonSubset {
			t.Fatalf("%s: reason %v, want %v", s.Instance.GetId(), s.Reason, ReasonSubset)
		}
	}
	slices.Sort(ids)
	return ids
}

// TestSubset checks size, even load over clients, and that one place at most changes when an instance leaves.
func TestSubset(t *testing.T) {
	const clients, size, n = 1000, 10, 50
	all := fleet(n, false)
	counts := map[string]int{}
	changed := 0
	for i := range clients {
		client := fmt.Sprintf("client-%d", i)
		ids := subsetOf(t, client, size, all)
		if len(ids) != size {
			t.Fatalf("a subset of %d instances, want %d", len(ids), size)
		}
		for _, id := range ids {
			counts[id]++
		}
		without := subsetOf(t, client, size, all[1:])
		gone := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return slices.Contains(without, id) })
		if len(gone) > 1 || len(gone) == 1 && gone[0] != all[0].GetId() {
			t.Fatalf("%s left, and the subset lost %v", all[0].GetId(), gone)
		}
		changed += len(gone)
	}
	// Each client draws 10 of 50 without repeats: the variance of a count is clients*p*(1-p), and chi-square over n-1 degrees
	// of freedom is had by scaling with 1-p.
	chi, p := 0.0, float64(size)/n
	for _, in := range all {
		diff := float64(counts[in.GetId()]) - clients*p
		chi += diff * diff / (clients * p * (1 - p)) * (n - 1) / n
	}
	if chi > chiSquareLimit(n-1) {
		t.Errorf("chi-square %.1f over the instances, limit %.1f: %v", chi, chiSquareLimit(n-1), counts)
	}
	if changed != counts[all[0].GetId()] {
		t.Errorf("%d subsets changed, %d had the instance that left", changed, counts[all[0].GetId()])
	}
}

// TestStateSurvivesUpdates checks that calls in flight and counts stay with an incarnation, and only with it.
func TestStateSurvivesUpdates(t *testing.T) {
	instances := fleet(1, false)
	b := balancer(t, RoundRobin(), instances)
	p, err := b.Pick(Request{})
	if err != nil {
		t.Fatal(err)
	}
	moved := clone(instances[0])
	moved.Address = "10.0.0.2"
	b.Update([]*registryv1.Instance{nil, moved})
	if s := b.Stats()[0]; s.InFlight != 1 || s.Instance != moved {
		t.Errorf("after an update: %d in flight at %v, want 1 at the new address", s.InFlight, s.Instance.GetAddress())
	}
	p.Done(Failure)
	if s := b.Stats()[0]; s.InFlight != 0 || s.Calls != 1 || s.Failures != 1 {
		t.Errorf("after the call: %+v", s)
	}
	successor := clone(moved)
	successor.Incarnation++
	b.Update([]*registryv1.Instance{successor, moved}) // the older one is no more
	if s := b.Stats(); len(s) != 1 || s[0].Calls != 0 || s[0].Instance != successor {
		t.Errorf("a new incarnation: %+v, want one that starts afresh", s)
	}
}

// weightOf returns the member's part of the weight of all.
func (m *member) weightOf(all []*registryv1.Instance) float64 {
	total := uint64(0)
	for _, in := range all {
		total += newMember(in).weight
	}
	return float64(m.weight) / float64(total)
}

// clone copies an instance.
func clone(in *registryv1.Instance) *registryv1.Instance {
	return proto.Clone(in).(*registryv1.Instance)
}
