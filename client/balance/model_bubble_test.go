package balance

import (
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// mayBePicked is the rule of who can be picked, written down naively: the ids of those among whom a pick without key, filter
// or subset chooses, given what the registry says and whose breaker is open and who is ejected.
func mayBePicked(instances []*registryv1.Instance, open, ejected map[string]bool, least registryv1.Health, panicAt float64) []string {
	ids := func(keep func(in *registryv1.Instance) bool) (out []string) {
		for _, in := range instances {
			away := in.GetDraining() || in.GetMaintenance() || in.GetHealth() == registryv1.Health_HEALTH_DRAINING ||
				in.GetHealth() == registryv1.Health_HEALTH_MAINTENANCE
			if !away && keep(in) {
				out = append(out, in.GetId())
			}
		}
		return out
	}
	present := ids(func(*registryv1.Instance) bool { return true })
	fit := func(in *registryv1.Instance) bool {
		return in.GetHealth() >= least && !open[in.GetId()] && !ejected[in.GetId()]
	}
	warning := func(in *registryv1.Instance) bool {
		return in.GetHealth() == registryv1.Health_HEALTH_WARNING && !open[in.GetId()] && !ejected[in.GetId()]
	}
	enough := func(out []string) bool { return float64(len(out)) >= panicAt*float64(len(present)) }
	out := ids(fit)
	if panicAt > 0 && !enough(out) {
		if out = ids(func(in *registryv1.Instance) bool { return fit(in) || warning(in) }); !enough(out) {
			out = ids(func(in *registryv1.Instance) bool { return !open[in.GetId()] })
		}
	}
	if len(out) == 0 {
		out = ids(warning)
	}
	return out
}

// TestAgainstModel has instances change, fail and recover at random, and compares who is picked with the naive rule, and who
// is ejected with the ceiling.
func TestAgainstModel(t *testing.T) {
	for seed := range uint64(150 / fewer) {
		synctest.Test(t, func(t *testing.T) { // where time stands still but for time.Sleep
			rng := rand.New(rand.NewPCG(seed, 7))
			panicAt := []float64{0, 0.3, 0.7}[rng.IntN(3)]
			least := []registryv1.Health{registryv1.Health_HEALTH_PASSING, registryv1.Health_HEALTH_WARNING}[rng.IntN(2)]
			share := []float64{0.1, 0.34, 1}[rng.IntN(3)]
			opts := []Option{
				WithMinHealth(least), WithEjection(Ejection{ConsecutiveFailures: 2, MaxShare: share}),
				WithBreaker(Breaker{ConsecutiveFailures: 4, MinCalls: 1 << 30}),
			}
			if panicAt > 0 {
				opts = append(opts, WithPanicThreshold(panicAt))
			}
			all := fleet(2+rng.IntN(12), rng.IntN(2) == 0)
			b := balancer(t, Random(), all, opts...)
			current := all
			for range 60 {
				switch rng.IntN(5) {
				case 0:
					time.Sleep(time.Duration(rng.IntN(40)) * time.Second)
				case 1:
					current = shuffledHealth(rng, all)
					b.Update(current)
				default:
					for range rng.IntN(8) {
						if p, err := b.Pick(Request{}); err == nil {
							p.Done(Outcome(rng.IntN(3) / 2)) // a third fail
						}
					}
				}
				checkAgainstModel(t, b, current, least, panicAt, share)
			}
		})
	}
}

// shuffledHealth returns some of the instances in any order, with any health.
func shuffledHealth(rng *rand.Rand, all []*registryv1.Instance) []*registryv1.Instance {
	var out []*registryv1.Instance
	for _, i := range rng.Perm(len(all))[:1+rng.IntN(len(all))] {
		in := clone(all[i])
		in.Health = registryv1.Health_HEALTH_PASSING
		if rng.IntN(3) == 0 {
			in.Health = registryv1.Health(rng.IntN(7))
		}
		in.Draining, in.Maintenance = rng.IntN(10) == 0, rng.IntN(10) == 0
		out = append(out, in)
	}
	return out
}

// checkAgainstModel compares a balancer with the naive rule.
func checkAgainstModel(
	t *testing.T, b *Balancer, current []*registryv1.Instance, least registryv1.Health, panicAt, share float64,
) {
	t.Helper()
	e := b.Explain(Request{}) // first, for it does what is due
	open, ejected := map[string]bool{}, map[string]bool{}
	healthy, healthyOut := 0, 0
	for _, m := range b.members {
		gate := m.track.gate.Load()
		open[m.id.id] = gate&gateOpen != 0
		ejected[m.id.id] = gate&gateEjected != 0
		if b.cfg.healthReason(m.instance) == ReasonNone {
			healthy++
			if gate&gateEjected != 0 {
				healthyOut++
			}
		}
	}
	if limit := max(1, int(share*float64(healthy))); healthyOut > limit || healthyOut > 0 && healthyOut == healthy {
		t.Fatalf("%d of %d healthy instances are ejected, at most %d may be, and never all", healthyOut, healthy, limit)
	}
	want := mayBePicked(current, open, ejected, least, panicAt)
	slices.Sort(want)
	var explained []string
	for _, s := range e.Instances {
		if s.Share > 0 {
			explained = append(explained, s.Instance.GetId())
		}
		if (s.Share > 0) != (s.Reason == ReasonNone) {
			t.Fatalf("%s: share %v and reason %v", s.Instance.GetId(), s.Share, s.Reason)
		}
	}
	slices.Sort(explained)
	if !slices.Equal(explained, want) {
		t.Fatalf("explained %v, want %v; open %v, ejected %v, of %v", explained, want, open, ejected, current)
	}
	if (e.Err == nil) != (len(want) > 0) {
		t.Fatalf("explained error %v, with %d to pick from", e.Err, len(want))
	}
	for range 20 {
		p, err := b.Pick(Request{})
		if (err == nil) != (len(want) > 0) {
			t.Fatalf("pick: %v, with %d to pick from", err, len(want))
		}
		if err != nil {
			return
		}
		if p.Done(Neutral); !slices.Contains(want, p.Instance().GetId()) {
			t.Fatalf("picked %s, want one of %v", p.Instance().GetId(), want)
		}
	}
}
