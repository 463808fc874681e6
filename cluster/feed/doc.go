// Package feed is what is visible of the registry: the current State, and what has changed of late.
//
// The applier puts each State in with Publish, or with Reset when a snapshot replaced the State without telling the
// steps between. Everybody else takes out: the State itself, a State that has reached an index or a revision, the
// events of topics as they happen (Watcher), the events since a revision that is not long ago (Since).
//
// The applier never waits for a reader. Publish stores a pointer and hands the events to one dispatcher goroutine,
// which finds the watchers by topic and puts shared events into their bounded queues. A reader slower than its queue
// loses no change, only the steps: its queue becomes the set of keys that changed, for it to look up in the State.
//
// The package knows no clock and does no I/O. Start with Feed and Watcher.
package feed
