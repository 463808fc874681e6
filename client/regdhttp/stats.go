package regdhttp

import (
	"cmp"
	"slices"
	"time"

	"github.com/regd-io/regd/client/balance"
)

// Stats are figures of a service that was called, for metrics.
type Stats struct {
	// Scheme of the URLs, "http" or "https".
	Scheme string
	// Namespace of the service, "" for the client's own.
	Namespace string
	// Service name.
	Service string
	// Requests of the last 10 s, and Retries, which are not among them.
	Requests, Retries int
	// Instances and how they do, by id.
	Instances []balance.Status
}

// Stats returns the figures of all services that are kept ready, by namespace, service and scheme.
func (t *Transport) Stats() []Stats {
	t.mu.Lock()
	services := make([]*service, 0, len(t.services))
	for _, s := range t.services {
		services = append(services, s)
	}
	t.mu.Unlock()
	slices.SortFunc(services, func(a, b *service) int {
		return cmp.Or(cmp.Compare(a.target.namespace, b.target.namespace), cmp.Compare(a.target.service, b.target.service),
			cmp.Compare(a.target.scheme, b.target.scheme), cmp.Compare(a.target.serverName, b.target.serverName))
	})
	stats := make([]Stats, 0, len(services))
	for _, s := range services {
		requests, retries := s.budget.sums(time.Since(t.start))
		stats = append(stats, Stats{
			Scheme: s.target.scheme, Namespace: s.target.namespace, Service: s.target.service,
			Requests: requests, Retries: retries, Instances: s.balancer.Stats(),
		})
	}
	return stats
}
