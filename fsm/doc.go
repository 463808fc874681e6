// Package fsm is the state machine of regd: the registry as a value.
//
// A [State] never changes. [State.Apply] takes one log entry and returns the next State, one [Outcome] per command and
// the [Event]s that lead from the old State to the new one. Whoever holds a State may read it from any goroutine for as
// long as it likes: a read is a pointer, a snapshot is a pointer kept, a restore is a pointer swapped.
//
// The package is pure: no clock, no goroutine, no input or output besides the reader and writer of a snapshot, no log,
// no randomness, no package state and no map. What differs between nodes (time, random ids) comes in with the entry, so
// that equal entries give equal states, byte for byte, on every node and for ever.
//
// Instances live in two levels of copy-on-write trees: services by (namespace, name), and in each service its [Record]s
// by id. There is no index by tag on purpose: whoever filters by tag knows the service, and scanning a service costs
// less than keeping a third tree up to date with every registration. Indexes by session and by lease exist since an
// ending session or lease must find what hangs on it.
//
// Start with [State] and [Record]; DESIGN.md says why it is built this way.
package fsm
