package regdhttp

import (
	"cmp"
	"slices"
	"time"

	"github.com/regd-io/regd/client/balance"
)

// Stats are figures of a service that was called, for metrics. Totals and Counts only grow, and begin again when the
// service has made room for another one.
type Stats struct {
	// Scheme of the URLs, "http" or "https".
	Scheme string
	// Namespace of the service.
	Namespace string
	// Service name.
	Service string
	// Requests of the last 10 s, and Retries, which are not among them.
	Requests, Retries int
	// TotalRequests since the service was first called, and TotalRetries, which are not among them.
	TotalRequests, TotalRetries uint64
	// DeniedRetries are those that the budget did not allow.
	DeniedRetries uint64
	// Counts of the attempts on all instances.
	Counts balance.Counts
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
		requests, retries, total := s.budget.sums(time.Since(t.start))
		stats = append(stats, Stats{
			Scheme: s.target.scheme, Namespace: s.handle.Namespace(), Service: s.target.service,
			Requests: requests, Retries: retries,
			TotalRequests: total.requests, TotalRetries: total.retries, DeniedRetries: total.denied,
			Counts: s.balancer.Counts(), Instances: s.balancer.Stats(),
		})
	}
	return stats
}
