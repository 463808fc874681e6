package main

import (
	"os"
	"runtime"
	"runtime/metrics"
	"testing"
)

// TestHeapFloorPutsOffCollections looks at how large the heap may become before it is collected.
func TestHeapFloorPutsOffCollections(t *testing.T) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		t.Skip("GOGC or GOMEMLIMIT is set: nothing is held")
	}
	release := holdHeapFloor()
	goal := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}}
	runtime.GC()
	metrics.Read(goal)
	release()
	if got := goal[0].Value.Uint64(); got < 2*heapFloor {
		t.Errorf("heap is collected at %d bytes, want at least twice %d", got, heapFloor)
	}
}
