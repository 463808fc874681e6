package rpc

import (
	"github.com/prometheus/client_golang/prometheus"
)

// limitCollectors are the metrics of the limits of the server that fill up: what is used of each, and what it is, so that one
// rule watches over all of them.
func (s *Server) limitCollectors() []prometheus.Collector {
	var all []prometheus.Collector
	for _, l := range []struct {
		resource string
		limit    int
		used     func() int
	}{
		{"calls_in_flight", s.cfg.MaxInFlight, func() int { return int(s.core.admission.inFlight.Load()) }},
		{"connections", s.cfg.MaxConns, func() int { total, _ := s.conns.used(); return total }},
		{"connections_per_address", s.cfg.MaxConnsPerIP, func() int { _, perIP := s.conns.used(); return perIP }},
		{"lock_waiters", s.cfg.MaxLockWaiters, func() int { return len(s.core.lockWaiters) }},
		{"watches", s.cfg.MaxWatches, func() int { return len(s.core.watches) }},
	} {
		labels := prometheus.Labels{"resource": l.resource}
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "regd_limit", Help: "What this node takes at most, by resource: a setting.", ConstLabels: labels,
		}, func() float64 { return float64(l.limit) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "regd_limit_used", ConstLabels: labels,
			Help: "What is used of regd_limit, by resource. Of connections_per_address: by the address that has most.",
		}, func() float64 { return float64(l.used()) }))
	}
	all = append(all, prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "regd_connection_holds_total",
		Help: "Number of times that a connection was not read from for up to half a second, as its calls were refused.",
	}, func() float64 { return float64(s.conns.held.Load()) }))
	for resource, refused := range map[string]func() uint64{
		"connections":             func() uint64 { total, _ := s.conns.refusals(); return total },
		"connections_per_address": func() uint64 { _, perIP := s.conns.refusals(); return perIP },
	} {
		all = append(all, prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "regd_connections_refused_total", ConstLabels: prometheus.Labels{"resource": resource},
			Help: "Connections of clients that were closed at once because of a limit, by resource.",
		}, func() float64 { return float64(refused()) }))
	}
	return all
}
