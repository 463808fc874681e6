package main

import (
	"os"
	"runtime"
)

// heapFloor is how much garbage a node may have at least before it is collected, in bytes.
const heapFloor = 8 << 20

// holdHeapFloor keeps a node with a small registry from collecting garbage all the time, until release is called. Go collects
// when there is as much garbage as there is that is kept, or 4 MB: every 400 reads of a small registry, which is a tenth
// of their CPU time. So something large is kept of which no page is ever touched: it takes addresses and no memory (the
// "ballast" of other services in Go). To a large heap it makes no difference.
//
// Who has set GOGC or GOMEMLIMIT has decided otherwise: then nothing is held.
func holdHeapFloor() (release func()) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return func() {}
	}
	floor := make([]byte, heapFloor)
	return func() { runtime.KeepAlive(floor) }
}
