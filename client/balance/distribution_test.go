package balance

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// seeded makes a balancer's choices repeatable.
func seeded(seed uint64) Option {
	return func(c *config) error {
		c.random = rand.New(rand.NewPCG(seed, 1)).Uint64
		return nil
	}
}

// balancer returns a balancer with a fixed seed.
func balancer(tb testing.TB, policy Policy, instances []*registryv1.Instance, opts ...Option) *Balancer {
	tb.Helper()
	b, err := New(policy, append([]Option{seeded(1)}, opts...)...)
	if err != nil {
		tb.Fatal(err)
	}
	b.Update(instances)
	return b
}

// mustPick picks, and has the call end at once.
func mustPick(tb testing.TB, b *Balancer, r Request) *registryv1.Instance {
	tb.Helper()
	p, err := b.Pick(r)
	if err != nil {
		tb.Fatal(err)
	}
	p.Done(Neutral)
	return p.Instance()
}

// chiSquareLimit returns what chi-square exceeds with a probability of about one in a million, by the approximation of Wilson and
// Hilferty; 4.7534 is that quantile of the normal distribution.
func chiSquareLimit(freedom int) float64 {
	k := float64(freedom)
	return k * math.Pow(1-2/(9*k)+4.7534*math.Sqrt(2/(9*k)), 3)
}

// checkShares fails unless the counts are plausible for the probabilities. Those with less than 5 expected are taken
// together, as the test demands.
func checkShares(t *testing.T, counts map[string]int, shares map[string]float64) {
	t.Helper()
	total := 0
	for id, n := range counts {
		total += n
		if shares[id] == 0 {
			t.Errorf("%s was picked %d times, its probability is 0", id, n)
		}
	}
	var chi, rareWant, rareGot float64
	freedom := -1
	add := func(got, want float64) {
		chi += (got - want) * (got - want) / want
		freedom++
	}
	for id, share := range shares {
		got, want := float64(counts[id]), share*float64(total)
		if want < 5 {
			rareWant, rareGot = rareWant+want, rareGot+got
			continue
		}
		add(got, want)
	}
	if rareWant >= 5 {
		add(rareGot, rareWant)
	}
	if freedom > 0 && chi > chiSquareLimit(freedom) {
		t.Errorf("chi-square %.1f over %d degrees of freedom, limit %.1f:\ncounts %v\nshares %v", chi, freedom, chiSquareLimit(freedom),
			counts, shares)
	}
}

// TestChiSquareLimit checks the approximation against the exact distribution, which for an even number of degrees of freedom
// is a finite sum.
func TestChiSquareLimit(t *testing.T) {
	for _, freedom := range []int{2, 4, 10, 48, 100} {
		x := chiSquareLimit(freedom) / 2
		term := math.Exp(-x)
		p := 0.0
		for j := range freedom / 2 {
			p += term
			term *= x / float64(j+1)
		}
		if p < 0.2e-6 || p > 1.5e-6 {
			t.Errorf("chiSquareLimit(%d) is exceeded with probability %.3g, want about 1e-6", freedom, p)
		}
	}
}

// TestExplainTellsTheTruth picks often with every policy and compares with the probabilities of Explain.
func TestExplainTellsTheTruth(t *testing.T) {
	unfit := func(all []*registryv1.Instance) {
		for i, in := range all {
			switch {
			case i%3 == 1 && i%2 == 1: // half of the zone eu-1
				in.Health = registryv1.Health_HEALTH_CRITICAL
			case i%7 == 0:
				in.Draining = true
			}
		}
	}
	for name, policy := range policies() {
		for _, weighted := range []bool{false, true} {
			for _, with := range []string{"", "filter", "avoid"} {
				t.Run(fmt.Sprintf("%s/weighted=%v/%s", name, weighted, with), func(t *testing.T) {
					instances := fleet(60, weighted)
					unfit(instances)
					b := balancer(t, policy, instances)
					r := Request{}
					switch with {
					case "filter":
						r.Filter = Not(HasMetadata("version", "2"))
					case "avoid":
						for range 3 {
							p, err := b.Pick(Request{})
							if err != nil {
								t.Fatal(err)
							}
							r.Avoid.Add(p) // and stays in flight, so that loads differ
						}
					}
					compareWithExplain(t, b, r)
				})
			}
		}
	}
}

// compareWithExplain checks picks against Explain, whose probabilities must add up.
func compareWithExplain(t *testing.T, b *Balancer, r Request) {
	t.Helper()
	e := b.Explain(r)
	shares, sum := map[string]float64{}, 0.0
	for i, s := range e.Instances {
		if s.Share > 0 {
			shares[s.Instance.GetId()] = s.Share
		}
		if s.Share > 0 && s.Reason != ReasonNone || i > 0 && s.Share > e.Instances[i-1].Share {
			t.Errorf("place %d: %s has share %v and reason %v", i, s.Instance.GetId(), s.Share, s.Reason)
		}
		sum += s.Share
	}
	if math.Abs(sum-1) > 1e-9 {
		t.Fatalf("the shares add up to %v", sum)
	}
	counts := map[string]int{}
	for range 20_000 / fewer {
		counts[mustPick(t, b, r).GetId()]++
	}
	checkShares(t, counts, shares)
}

// TestKeyedExplain checks that with a key Explain names the pick, and the order in which others would take its place.
func TestKeyedExplain(t *testing.T) {
	for name, policy := range policies() {
		switch name {
		case "rendezvous", "ring", "bounded_ring":
		default:
			continue
		}
		t.Run(name, func(t *testing.T) {
			b := balancer(t, policy, fleet(20, true))
			for key := range uint64(100) {
				r := Request{Hash: key + 1}
				want := b.Explain(r).Instances
				if want[0].Share != 1 || want[1].Share != 0 {
					t.Fatalf("key %d: shares %v and %v, want 1 and 0", key, want[0].Share, want[1].Share)
				}
				for place := range maxAvoid {
					p, err := b.Pick(r)
					if err != nil || p.Instance() != want[place].Instance {
						t.Fatalf("key %d, place %d: picked %v (%v), explained %v", key, place, p.Instance().GetId(), err,
							want[place].Instance.GetId())
					}
					p.Done(Neutral)
					r.Avoid.Add(p)
				}
			}
		})
	}
}

// TestRendezvousIsExact compares picks with the definition: the least cost of all that can be picked. Keys are asked for
// about three times each, for what was found may be remembered, and forgotten for another.
func TestRendezvousIsExact(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 5))
	weights := map[string]func(i int) uint32{
		"equal":     func(int) uint32 { return 0 },
		"few":       func(i int) uint32 { return []uint32{1, 100, 101, math.MaxUint32}[i%4] },
		"all":       func(i int) uint32 { return uint32(100 + i) },
		"geometric": func(i int) uint32 { return 1 << (i % 32) },
	}
	for name, weight := range weights {
		for _, n := range []int{1, 2, 3, 4, 5, 8, 9, 31, 64, 100, 257, 1023} {
			instances := fleet(n, false)
			for i, in := range instances {
				in.Weight = weight(i)
			}
			b := balancer(t, Rendezvous(), instances)
			b.members[rng.IntN(n)].track.gate.Or(gateEjected)
			keys := make([]uint64, 1000)
			for i := range keys {
				keys[i] = rng.Uint64() | 1
			}
			for range 3 * len(keys) {
				key := keys[rng.IntN(len(keys))]
				best, least := (*member)(nil), math.Inf(1)
				for _, m := range b.members {
					if c := cost(unit(pair(mix(key), m.hash)), 1/float64(m.weight)); m.track.gate.Load() == 0 && c < least {
						best, least = m, c
					}
				}
				p, err := b.Pick(Request{Hash: key})
				if (err == nil) != (best != nil) || best != nil && p.Instance() != best.instance {
					t.Fatalf("%s weights, %d instances, key %d: picked %v (%v), want %v", name, n, key, p.Instance(), err, best)
				}
			}
		}
	}
}

func TestRoundRobinIsExact(t *testing.T) {
	for _, policy := range []Policy{RoundRobin(), WeightedRoundRobin()} {
		b := balancer(t, policy, fleet(7, false))
		var first []string
		for turn := range 21 {
			id := mustPick(t, b, Request{}).GetId()
			if turn < 7 {
				if slices.Contains(first, id) {
					t.Fatalf("%v: turn %d is %s again: %v", policy, turn, id, first)
				}
				first = append(first, id)
			} else if id != first[turn%7] {
				t.Fatalf("%v: turn %d is %s, want %s", policy, turn, id, first[turn%7])
			}
		}
	}
}

// TestWeightedRoundRobinIsSmooth checks what is known of the golden ratio: the distance of two turns of an instance takes at
// most three values, of which the greatest is the sum of the others (the three gap theorem), and N picks are its due but for
// twice the star discrepancy of the sequence, N D* <= 3 + (1/ln(phi) + 1/ln(2)) ln(N) (Kuipers and Niederreiter: Uniform
// distribution of sequences, 1974, theorem 2.3.4).
func TestWeightedRoundRobinIsSmooth(t *testing.T) {
	instances := fleet(6, false)
	total := 0.0
	for i, w := range []uint32{1, 3, 10, 70, 400, 65535} {
		instances[i].Weight = w
		total += float64(w)
	}
	b := balancer(t, WeightedRoundRobin(), instances)
	const n = 1_000_000 / fewer
	counts, last, gaps := map[*registryv1.Instance]float64{}, map[*registryv1.Instance]int{}, map[*registryv1.Instance]map[int]bool{}
	for turn := range n {
		in := mustPick(t, b, Request{})
		if counts[in]++; counts[in] > 1 {
			if gaps[in] == nil {
				gaps[in] = map[int]bool{}
			}
			gaps[in][turn-last[in]] = true
		}
		last[in] = turn
	}
	bound := 2 * (3 + (1/math.Log(math.Phi)+1/math.Ln2)*math.Log(n))
	for _, in := range instances {
		want := n * float64(in.GetWeight()) / total
		if math.Abs(counts[in]-want) > bound {
			t.Errorf("weight %d: %v turns of %d, want %.1f and at most %.0f more or less", in.GetWeight(), counts[in], n, want, bound)
		}
		g := slices.Sorted(maps.Keys(gaps[in]))
		if len(g) > 3 || len(g) == 3 && g[2] != g[0]+g[1] {
			t.Errorf("weight %d: distances %v, want at most three, the greatest the sum of the others", in.GetWeight(), g)
		}
	}
}

func TestLeastRequestsPrefersTheIdle(t *testing.T) {
	b := balancer(t, LeastRequests(), fleet(2, false))
	busy, err := b.Pick(Request{})
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if in := mustPick(t, b, Request{}); in == busy.Instance() {
			t.Fatal("of two instances the busy one was picked")
		}
	}
	busy.Done(Success)
	busy.Done(Success) // does nothing
	compareWithExplain(t, b, Request{})
	for _, s := range b.Stats() {
		if s.InFlight != 0 {
			t.Errorf("%s: %d calls in flight, want none", s.Instance.GetId(), s.InFlight)
		}
	}
}

// TestBoundedRing has all calls ask for one key, and checks the bound after each.
func TestBoundedRing(t *testing.T) {
	instances := fleet(10, true)
	total := 0.0
	for _, in := range instances {
		total += float64(in.GetWeight())
	}
	b := balancer(t, BoundedRing(1.25), instances)
	var picks []Pick
	for n := range 500 {
		if n == 200 {
			b.Update(instances) // the count of calls in flight goes on
		}
		p, err := b.Pick(Request{Hash: 42})
		if err != nil {
			t.Fatal(err)
		}
		picks = append(picks, p)
		for _, s := range b.Stats() {
			bound := math.Ceil(1.25 * float64(n+1) * float64(s.Instance.GetWeight()) / total)
			if float64(s.InFlight) > bound {
				t.Fatalf("after %d calls %s has %d, bound %v", n+1, s.Instance.GetId(), s.InFlight, bound)
			}
		}
	}
	home := picks[0].Instance()
	for i := range picks {
		picks[i].Done(Success)
	}
	if in := mustPick(t, b, Request{Hash: 42}); in != home {
		t.Errorf("idle again, the key goes to %s, want %s as at first", in.GetId(), home.GetId())
	}
}

// TestLocalSpill has the examples of Envoy's documentation of priorities.
func TestLocalSpill(t *testing.T) {
	for _, row := range []struct{ fit, local float64 }{{100, 1}, {72, 1}, {71, 0.994}, {50, 0.7}, {25, 0.35}, {0, 0}} {
		got := levelLoads([levels]float64{row.fit, 0, 100}, [levels]float64{100, 0, 100})
		if math.Abs(got[0]-row.local) > 1e-9 || math.Abs(got[2]-(1-row.local)) > 1e-9 {
			t.Errorf("%v %% fit: loads %v, want %v here", row.fit, got, row.local)
		}
	}
	// Too little everywhere: 25 % and 25 % fit count for 35 % each, scaled up to a half.
	if got := levelLoads([levels]float64{25, 0, 25}, [levels]float64{100, 0, 100}); math.Abs(got[0]-0.5) > 1e-9 {
		t.Errorf("loads %v, want a half each", got)
	}
}

func TestSplitIsSticky(t *testing.T) {
	instances := fleet(50, false)
	canary := HasMetadata("version", "2")
	onCanary := func(share float64, key uint64) bool {
		return canary.match(mustPick(t, balancer(t, Split(share, canary, Random()), instances), Request{Hash: key}))
	}
	few := 0
	for key := uint64(1); key <= 2000; key++ {
		if onCanary(0.05, key) {
			few++
			if !onCanary(0.5, key) {
				t.Fatalf("key %d left the canary as its share grew", key)
			}
		}
	}
	// Binomial(2000, 0.05): mean 100, standard deviation 9.75; five of those either way.
	if few < 52 || few > 148 {
		t.Errorf("%d of 2,000 keys on the canary, want 100 +- 48", few)
	}
}

// TestFewOfDifferentWeights checks the draw of two different instances where the second depends most on the first.
func TestFewOfDifferentWeights(t *testing.T) {
	instances := fleet(3, false)
	for i, w := range []uint32{90, 30, 10} {
		instances[i].Weight = w
	}
	b := balancer(t, LeastRequests(), instances)
	compareWithExplain(t, b, Request{})
	if _, err := b.Pick(Request{}); err != nil { // stays in flight
		t.Fatal(err)
	}
	compareWithExplain(t, b, Request{})
}

// TestLocalInsideSubset checks that what is outside the subset doesn't count as lost.
func TestLocalInsideSubset(t *testing.T) {
	for _, s := range balancer(t, Subset("client-1", 20, Local("eu", "eu-1", Random())), fleet(60, false)).Explain(Request{}).Instances {
		if s.Share > 0 && s.Instance.GetZone() != "eu-1" {
			t.Fatalf("%s in zone %s has share %v, though all instances are fit", s.Instance.GetId(), s.Instance.GetZone(), s.Share)
		}
	}
}
