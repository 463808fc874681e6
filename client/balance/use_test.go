package balance

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// TestConcurrentUse picks, reports, updates and explains from all sides, for the race detector; in the end nothing is in
// flight.
func TestConcurrentUse(t *testing.T) {
	filters := []*Filter{nil, HasMetadata("version", "2"), Not(HasMetadata("version", "2"))}
	for name, policy := range policies() {
		t.Run(name, func(t *testing.T) {
			all := fleet(30, true)
			b := guarded(t, policy, all)
			var wg sync.WaitGroup
			for worker := range uint64(4) {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(worker, 3))
					for range 1500 {
						r := Request{Hash: rng.Uint64N(50), Filter: filters[rng.IntN(len(filters))]}
						for range 3 {
							p, err := b.Pick(r)
							if err != nil {
								break
							}
							p.Done(Outcome(rng.IntN(3)))
							r.Avoid.Add(p)
						}
					}
				})
			}
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(9, 9))
				for range 60 {
					b.Update(shuffledHealth(rng, all))
					b.Explain(Request{Hash: 7})
					b.Stats()
				}
			})
			wg.Wait()
			for _, s := range b.Stats() {
				if s.InFlight != 0 {
					t.Errorf("%s: %d calls in flight, all have ended", s.Instance.GetId(), s.InFlight)
				}
			}
		})
	}
}

// TestPickAllocatesNothing checks every policy, with both guards on, with key, filter and avoided instances, at success and
// failure, and where there is nothing to pick.
func TestPickAllocatesNothing(t *testing.T) {
	filter := Not(HasMetadata("version", "3"))
	for name, policy := range policies() {
		t.Run(name, func(t *testing.T) {
			b := guarded(t, policy, fleet(100, true))
			n := uint64(0)
			check := func(what string, do func()) {
				t.Helper()
				if got := testing.AllocsPerRun(500, do); got != 0 {
					t.Errorf("%s: %v allocations, want none", what, got)
				}
			}
			check("pick, retry and report", func() {
				n++
				r := Request{Hash: n, Filter: filter}
				first, err := b.Pick(r)
				if err != nil {
					t.Fatal(err)
				}
				first.Done(Neutral)
				r.Avoid.Add(first)
				second, err := b.Pick(r)
				if err != nil {
					t.Fatal(err)
				}
				second.Done(Outcome(n % 2 * (n % 4 / 2))) // a quarter fail, too few in a row for the guards
			})
			b.Update(nil)
			check("nothing to pick", func() {
				if _, err := b.Pick(Request{}); err == nil {
					t.Fatal("picked from nothing")
				}
			})
		})
	}
}

// FuzzUpdate feeds instances that no registry would have, and checks that picks stay within them and shares within reason.
func FuzzUpdate(f *testing.F) {
	f.Add(uint64(1), uint32(0), uint32(1), "", "eu-1", byte(6))
	f.Add(uint64(2), uint32(1<<32-1), uint32(1<<32-1), "-1", "\xff", byte(200))
	f.Add(uint64(3), uint32(1<<32-1), uint32(1), "eu-1", "eu-1", byte(0))
	f.Fuzz(func(t *testing.T, seed uint64, w1, w2 uint32, zone1, zone2 string, health byte) {
		rng := rand.New(rand.NewPCG(seed, 5))
		instances := fleet(1+rng.IntN(20), false)
		for _, in := range instances {
			in.Weight, in.Zone = []uint32{w1, w2, 1}[rng.IntN(3)], []string{zone1, zone2}[rng.IntN(2)]
			if rng.IntN(2) == 0 {
				in.Health = registryv1.Health(health)
			}
			if rng.IntN(10) == 0 {
				in.Namespace, in.Service, in.Id = zone1, zone2, ""
			}
		}
		for name, policy := range policies() {
			b := balancer(t, policy, instances)
			b.Update(append(instances, nil))
			for _, r := range []Request{{}, {Hash: seed}, {Filter: HasMetadata("version", "2")}} {
				sum := 0.0
				e := b.Explain(r)
				for _, s := range e.Instances {
					if !(s.Share >= 0 && s.Share <= 1+1e-9) {
						t.Fatalf("%s: share %v", name, s.Share)
					}
					sum += s.Share
				}
				p, err := b.Pick(r)
				if (err == nil) != (e.Err == nil) || err == nil && !(sum > 1-1e-6 && sum < 1+1e-6) {
					t.Fatalf("%s: pick: %v, explained: %v with shares of %v", name, err, e.Err, sum)
				}
				if err == nil && !slices.Contains(instances, p.Instance()) {
					t.Fatalf("%s: picked %v", name, p.Instance())
				}
			}
		}
	})
}
