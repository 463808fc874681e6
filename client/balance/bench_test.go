package balance

import (
	"fmt"
	"testing"
	"time"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// fleet returns n passing instances, in three zones of one region, of two weights if weighted; every tenth is of version 2.
func fleet(n int, weighted bool) []*registryv1.Instance {
	out := make([]*registryv1.Instance, n)
	for i := range out {
		out[i] = &registryv1.Instance{
			Namespace: "default", Service: "payment", Id: fmt.Sprintf("payment-%d", i), Address: "10.0.0.1",
			Ports:  []*registryv1.Port{{Name: "http", Number: 8080}},
			Region: "eu", Zone: fmt.Sprintf("eu-%d", i%3), Incarnation: 1, Health: registryv1.Health_HEALTH_PASSING,
			Metadata: map[string]string{"version": "1"},
		}
		if i%10 == 0 {
			out[i].Metadata["version"] = "2"
		}
		if weighted {
			out[i].Weight = uint32(50 + 100*(i%2))
		}
	}
	return out
}

// policies are all policies, each in the forms that take different paths.
func policies() map[string]Policy {
	canary := HasMetadata("version", "2")
	return map[string]Policy{
		"round_robin":          RoundRobin(),
		"weighted_round_robin": WeightedRoundRobin(),
		"random":               Random(),
		"weighted_random":      WeightedRandom(),
		"least_requests":       LeastRequests(),
		"rendezvous":           Rendezvous(),
		"ring":                 Ring(),
		"bounded_ring":         BoundedRing(1.25),
		"local":                Local("eu", "eu-1", LeastRequests()),
		"subset":               Subset("client-1", 20, LeastRequests()),
		"split":                Split(0.05, canary, LeastRequests()),
		"nested":               Local("eu", "eu-1", Subset("client-1", 20, Split(0.05, canary, WeightedRoundRobin()))),
	}
}

// guarded returns a balancer with both guards on.
func guarded(tb testing.TB, policy Policy, instances []*registryv1.Instance) *Balancer {
	tb.Helper()
	b, err := New(policy, WithBreaker(Breaker{}), WithEjection(Ejection{SuccessRate: true}))
	if err != nil {
		tb.Fatal(err)
	}
	b.Update(instances)
	return b
}

// BenchmarkPick measures Pick alone with breakers, ejection, mixed weights and three zones. No key comes twice. The picks are
// given back outside the measured time in blocks, so that calls are in flight as in life.
func BenchmarkPick(b *testing.B) {
	for name, policy := range policies() {
		for _, n := range []int{100, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				benchmarkPick(b, policy, n, func(turn uint64) uint64 { return (turn + 1) * golden })
			})
		}
	}
}

// BenchmarkPickKnownKeys measures as BenchmarkPick does with 500 keys that come again and again.
func BenchmarkPickKnownKeys(b *testing.B) {
	for name, policy := range map[string]Policy{"rendezvous": Rendezvous(), "ring": Ring(), "bounded_ring": BoundedRing(1.25)} {
		for _, n := range []int{100, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				benchmarkPick(b, policy, n, func(turn uint64) uint64 { return (turn%500 + 1) * golden })
			})
		}
	}
}

// benchmarkPick measures picks among n instances with the keys that a function gives.
func benchmarkPick(b *testing.B, policy Policy, n int, key func(turn uint64) uint64) {
	balancer := guarded(b, policy, fleet(n, true))
	picks := make([]Pick, 0, 1024)
	turn := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		p, err := balancer.Pick(Request{Hash: key(turn)})
		turn++
		if err != nil {
			b.Fatal(err)
		}
		if picks = append(picks, p); len(picks) == cap(picks) {
			b.StopTimer()
			for i := range picks {
				picks[i].Done(Success)
			}
			picks = picks[:0]
			b.StartTimer()
		}
	}
}

// BenchmarkPickParallel measures Pick and Done on all processors.
func BenchmarkPickParallel(b *testing.B) {
	for name, policy := range policies() {
		for _, n := range []int{100, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				balancer := guarded(b, policy, fleet(n, true))
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					key := mix(uint64(time.Now().UnixNano()))
					for pb.Next() {
						key += golden
						p, err := balancer.Pick(Request{Hash: key})
						if err != nil {
							b.Error(err)
							return
						}
						p.Done(Success)
					}
				})
			})
		}
	}
}

// BenchmarkUpdate measures an update in which one instance is replaced by another.
func BenchmarkUpdate(b *testing.B) {
	for name, policy := range policies() {
		for _, n := range []int{100, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				instances := fleet(n+1, true)
				balancer := guarded(b, policy, instances[:n])
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					instances[i%n], instances[n] = instances[n], instances[i%n]
					balancer.Update(instances[:n])
					i++
				}
			})
		}
	}
}
