package main

import (
	"github.com/spf13/pflag"

	"github.com/regd-io/regd/rpc"
)

// limitSettings are how much of each a node takes from its clients. What is beyond is refused; regd_limit_used tells how near
// it is.
type limitSettings struct {
	Connections, ConnectionsPerAddress, Streams, InFlight, Watches, LockWaiters int
}

// maxLimit bounds every limit: more than a node has memory for is no limit.
const maxLimit = 1_000_000

func defaultLimits() limitSettings {
	return limitSettings{
		Connections: rpc.DefaultMaxConns, ConnectionsPerAddress: rpc.DefaultMaxConnsPerIP, Streams: rpc.DefaultMaxStreams,
		InFlight: rpc.DefaultMaxInFlight, Watches: rpc.DefaultMaxWatches, LockWaiters: rpc.DefaultMaxLockWaiters,
	}
}

// limitSetting is a limit as a setting.
type limitSetting struct {
	flag  string
	value *int
	usage string
}

func (c *limitSettings) all() []limitSetting {
	return []limitSetting{
		{"max-connections", &c.Connections, "connections of clients in all; each takes an open file"},
		{"max-connections-per-address", &c.ConnectionsPerAddress, "connections from one IP address; more where clients share one"},
		{"max-streams", &c.Streams, "calls and streams that one connection may have open"},
		{"max-in-flight", &c.InFlight, "calls that are worked on at once; reads and registrations get a part of them"},
		{"max-watches", &c.Watches, "watch streams that are open at once"},
		{"max-lock-waiters", &c.LockWaiters, "calls that wait for a lock at once"},
	}
}

func (c *limitSettings) addFlags(fs *pflag.FlagSet) {
	*c = defaultLimits()
	for _, l := range c.all() {
		fs.IntVar(l.value, l.flag, *l.value, l.usage)
	}
}

// validate reports limits that are none.
func (c *limitSettings) validate(bad func(string, ...any)) {
	for _, l := range c.all() {
		if *l.value < 1 || *l.value > maxLimit {
			bad("--%s %d: must be 1 to %d", l.flag, *l.value, maxLimit)
		}
	}
}

// apply sets the limits of the server.
func (c *limitSettings) apply(cfg *rpc.Config) {
	cfg.MaxConns, cfg.MaxConnsPerIP, cfg.MaxStreams = c.Connections, c.ConnectionsPerAddress, c.Streams
	cfg.MaxInFlight, cfg.MaxWatches, cfg.MaxLockWaiters = c.InFlight, c.Watches, c.LockWaiters
}
