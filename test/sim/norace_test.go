//go:build !race

package sim

import "time"

const (
	leastSeeds = 50
	lasting    = time.Minute
)
