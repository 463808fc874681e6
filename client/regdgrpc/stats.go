package regdgrpc

import (
	"cmp"
	"slices"

	"github.com/regd-io/regd/client/balance"
)

// Stats are figures of a channel to a service, for metrics. Only channels with the policy regd_balance have some.
type Stats struct {
	// Namespace of the service.
	Namespace string
	// Service name.
	Service string
	// Counts of the calls on all instances. They only grow, and begin again when the channel was idle.
	Counts balance.Counts
	// Instances and how they do, by id. Those without a connection count as draining.
	Instances []balance.Status
}

// Stats returns the figures of all open channels, by namespace and service.
func (b *Builder) Stats() []Stats {
	b.mu.Lock()
	channels := make([]*channel, 0, len(b.channels))
	for c := range b.channels {
		channels = append(channels, c)
	}
	b.mu.Unlock()
	stats := make([]Stats, len(channels))
	for i, c := range channels {
		stats[i] = c.stats()
	}
	slices.SortStableFunc(stats, func(s, t Stats) int {
		return cmp.Or(cmp.Compare(s.Namespace, t.Namespace), cmp.Compare(s.Service, t.Service))
	})
	return stats
}

// stats returns the figures of the channel.
func (b *channel) stats() Stats {
	b.mu.Lock()
	from, choice := b.origin, b.choice
	b.mu.Unlock()
	return Stats{Namespace: from.namespace, Service: from.service, Counts: choice.Counts(), Instances: choice.Stats()}
}

// add counts a channel in. Again does nothing.
func (b *Builder) add(c *channel) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.channels[c] = struct{}{}
}

// remove counts it out.
func (b *Builder) remove(c *channel) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.channels, c)
}
