// Package health decides who is alive. While a node leads, it keeps the deadlines of sessions, leases and TTL checks and
// runs the active checks (HTTP, TCP, gRPC health). What it finds becomes fenced commands: nothing changes until the state
// machine has applied them, and they change nothing in another term or for another incarnation.
//
// It never writes anything down itself, never judges by wall clock, and never ends a lease before the time that an
// acknowledged renewal promised. A new leader starts every deadline afresh.
//
// Start from [Monitor] and [Config]. How a verdict is reached is told in DESIGN.md.
package health
