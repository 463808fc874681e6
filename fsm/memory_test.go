//go:build !race

package fsm_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/google/uuid"

	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// ownSessions returns a state of n instances of 205 encoded bytes, in a thousand services, each with its own session, and
// what heap it takes for each.
func ownSessions(tb testing.TB, n int) (st *fsm.State, perInstance float64) {
	tb.Helper()
	inUse := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := inUse()
	st = fsm.New()
	const together = 64
	for i := 0; i < n; i += together {
		var opens, registers [][]byte
		for k := i; k < min(n, i+together); k++ {
			id := uuid.NewString()
			opens = append(opens, encode(tb, openSession(id)))
			registers = append(registers, encode(tb, register(tb, &registryv1.Instance{
				Namespace: "default", Service: fmt.Sprintf("s%d", k%1000), Id: fmt.Sprint(k), SessionId: id,
				Address: "10.1.2.3", Zone: "eu-central-1a", Region: "eu-central-1",
				Ports: []*registryv1.Port{{Name: "http", Number: 8080}}, Tags: []string{"v2", "canary"},
				Metadata: map[string]string{
					"version": "2.14.3", "commit": fmt.Sprintf("%08x", k), "team": "payments", "lang": "go",
				},
			})))
		}
		st = benchApply(tb, st, fsm.AppendEntry(nil, 1_700_000_000_000, opens))
		st = benchApply(tb, st, fsm.AppendEntry(nil, 1_700_000_000_000, registers))
	}
	return st, float64(inUse()-before) / float64(n)
}

func TestAnInstanceWithItsSessionTakesLittleMemory(t *testing.T) {
	st, bytes := ownSessions(t, 20_000)
	if most := 720.0; bytes > most {
		t.Errorf("%.0f bytes of heap an instance, want at most %.0f", bytes, most)
	}
	runtime.KeepAlive(st)
}

// BenchmarkMemoryOwnSession reports the bytes that a state keeps for each instance that has a session of its own.
func BenchmarkMemoryOwnSession(b *testing.B) {
	for range b.N {
		st, bytes := ownSessions(b, benchInstances)
		b.ReportMetric(bytes, "B/instance")
		runtime.KeepAlive(st)
	}
}
