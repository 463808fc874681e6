// Added to regd by test/chaos/internal/build, for chaos runs only.

package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/regd-io/regd/cluster"
)

// chaosOpen is cluster.Open, with what the environment says.
func chaosOpen(cfg cluster.Config) (*cluster.Node, error) {
	number := func(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }
	err := errors.Join(
		chaosSet("REGD_CHAOS_SNAPSHOT_THRESHOLD", &cfg.SnapshotThreshold, number),
		chaosSet("REGD_CHAOS_SNAPSHOT_INTERVAL", &cfg.SnapshotInterval, time.ParseDuration),
		chaosSet("REGD_CHAOS_TRAILING_LOGS", &cfg.TrailingLogs, number),
		chaosSet("REGD_CHAOS_MIN_FREE_BYTES", &cfg.MinFreeBytes, number),
		chaosSet("REGD_CHAOS_FEED_EVENTS", &cfg.FeedLimits.Events, strconv.Atoi),
		chaosSet("REGD_CHAOS_FEED_BYTES", &cfg.FeedLimits.Bytes, strconv.Atoi),
		chaosSet("REGD_CHAOS_QUEUE_EVENTS", &cfg.FeedLimits.QueueEvents, strconv.Atoi),
		chaosSet("REGD_CHAOS_APPLIED", &cfg.Applied, chaosApplied),
	)
	if err != nil {
		return nil, err
	}
	return cluster.Open(cfg)
}

// chaosSet sets a field to what a variable says, if it is set.
func chaosSet[T any](variable string, field *T, parse func(string) (T, error)) error {
	text := os.Getenv(variable)
	if text == "" {
		return nil
	}
	value, err := parse(text)
	if err != nil {
		return fmt.Errorf("%s=%q: %w", variable, text, err)
	}
	*field = value
	return nil
}
