package discovery

import (
	"sync/atomic"
	"time"

	"github.com/regd-io/regd/client"
)

// counts are what a follower has lived through.
type counts struct {
	changes, resyncs, stalls, protections atomic.Uint64
}

// Stats are figures of one service, for metrics. Counts only grow, and begin again when the service is no longer watched.
type Stats struct {
	// Namespace of the service.
	Namespace string
	// Service name.
	Service string
	// Users is the number of open handles.
	Users int
	// Lookups counts views that were asked for, by View and Healthy.
	Lookups uint64
	// Misses counts those of Lookups that had to wait for a first view.
	Misses uint64
	// FirstSync is how long the registry's first answer took. 0: it has not come.
	FirstSync time.Duration
	// Changes counts views with other lists than the one before.
	Changes uint64
	// Resyncs counts changes that were made out by comparing, as the history was lost.
	Resyncs uint64
	// Stalls counts how often the watch was no longer served.
	Stalls uint64
	// Protections counts how often instances began to be protected.
	Protections uint64
	// Source of the view. 0: there is none.
	Source Source
	// Age of the view.
	Age time.Duration
	// Staleness of the node's own state, the watch's lag, or client.UnknownStaleness.
	Staleness time.Duration
	// Instances in the view.
	Instances int
	// Healthy among them.
	Healthy int
	// Protected among them.
	Protected int
	// Err is why the view is not live. nil: it is, or the registry has not been heard of yet.
	Err error
}

// Stats returns the figures of all services that are watched, by namespace and name.
func (d *Discovery) Stats() []Stats {
	all := d.all()
	stats := make([]Stats, 0, len(all))
	for _, f := range all {
		s := f.stats()
		d.mu.Lock()
		s.Users = f.users
		d.mu.Unlock()
		stats = append(stats, s)
	}
	return stats
}

func (f *follower) stats() Stats {
	s := Stats{
		Namespace: f.name.namespace, Service: f.name.service,
		Lookups: f.lookups.Load(), Misses: f.waits.Load(), FirstSync: time.Duration(f.firstSync.Load()),
		Changes: f.counts.changes.Load(), Resyncs: f.counts.resyncs.Load(),
		Stalls: f.counts.stalls.Load(), Protections: f.counts.protections.Load(),
		Staleness: client.UnknownStaleness, Err: f.unwell(),
	}
	if v := f.current.Load(); v != nil {
		s.Source, s.Age, s.Staleness = v.Source, v.Age(), v.Staleness
		s.Instances, s.Healthy, s.Protected = len(v.Instances), len(v.Healthy), len(v.Protected)
	}
	return s
}
