package main

import (
	"context"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// collectors are the metrics of a node: those of its packages, and what the cluster's status tells.
func (s *server) collectors() []prometheus.Collector {
	all := []prometheus.Collector{newClusterCollector(s.node), buildCollector(s.cfg.Build)}
	all = append(all, s.node.Collectors()...)
	all = append(all, s.node.Feed().Collectors()...)
	all = append(all, s.monitor.Collectors()...)
	all = append(all, s.tls.collectors()...)
	all = append(all, s.traces.collectors()...)
	all = append(all, s.backups.collectors()...)
	all = append(all, s.routes...)
	for _, d := range s.doors {
		all = append(all, d.Collectors()...)
	}
	return append(all, s.api.Collectors()...)
}

// statusNode is what the metrics ask.
type statusNode interface {
	Status(ctx context.Context, local bool) (*apiv1.StatusResponse, error)
	Info() cluster.Info
	Feed() *feed.Feed
}

// sample is what one scrape sees.
type sample struct {
	status *apiv1.StatusResponse
	self   *apiv1.MemberStatus
	info   cluster.Info
	keys   uint64 // of all namespaces
	bytes  uint64 // of these with their values
}

// clusterMetric is a metric that is read from the node's status.
type clusterMetric struct {
	name, help string
	value      func(s sample) float64
}

func clusterMetrics() []clusterMetric {
	return []clusterMetric{
		{"regd_has_leader", "1 when this node knows a leader.", func(s sample) float64 { return one(s.info.LeaderID != "") }},
		{"regd_is_leader", "1 when this node leads.", func(s sample) float64 { return one(s.info.Leading) }},
		{"regd_is_voter", "1 when this node votes.", func(s sample) float64 {
			return one(s.self.GetSuffrage() == apiv1.Suffrage_SUFFRAGE_VOTER)
		}},
		{"regd_staleness_seconds", "Age of this node's state at most. +Inf: not known, as it has not heard of a leader.", func(s sample) float64 {
			if s.self.GetStaleness() == nil {
				return math.Inf(1)
			}
			return s.self.GetStaleness().AsDuration().Seconds()
		}},
		{"regd_term", "Raft term that this node knows.", func(s sample) float64 { return float64(s.self.GetTerm()) }},
		{"regd_applied_index", "Raft index that this node has applied.", func(s sample) float64 { return float64(s.self.GetAppliedIndex()) }},
		{"regd_revision", "Revision of this node's state.", func(s sample) float64 { return float64(s.self.GetRevision()) }},
		{"regd_instances", "Instances that are registered.", func(s sample) float64 { return float64(s.status.GetInstances()) }},
		{"regd_services", "Services with an instance.", func(s sample) float64 { return float64(s.status.GetServices()) }},
		{"regd_sessions", "Sessions that are open.", func(s sample) float64 { return float64(s.status.GetSessions()) }},
		{"regd_leases", "Leases that are granted.", func(s sample) float64 { return float64(s.status.GetLeases()) }},
		{"regd_locks", "Locks that are held.", func(s sample) float64 { return float64(s.status.GetLocks()) }},
		{"regd_keys", "Keys that have a value.", func(s sample) float64 { return float64(s.keys) }},
		{"regd_kv_bytes", "Bytes of the keys with their values.", func(s sample) float64 { return float64(s.bytes) }},
		{"regd_voters", "Voters of the cluster.", func(s sample) float64 { return float64(s.status.GetVoters()) }},
		{"regd_disk_free_bytes", "Free space of the disk with the data folder.", func(s sample) float64 { return float64(s.self.GetDiskFreeBytes()) }},
	}
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// statusTimeout bounds what a scrape waits for the status of this node.
const statusTimeout = time.Second

// clusterCollector reads the metrics of a node from its status, once a scrape.
type clusterCollector struct {
	node    statusNode
	metrics []clusterMetric
	descs   []*prometheus.Desc
	appends *prometheus.Desc
	store   *prometheus.Desc
}

func newClusterCollector(node statusNode) *clusterCollector {
	c := &clusterCollector{node: node, metrics: clusterMetrics()}
	for _, m := range c.metrics {
		c.descs = append(c.descs, prometheus.NewDesc(m.name, m.help, nil, nil))
	}
	c.appends = prometheus.NewDesc("regd_log_append_seconds", "Time of recent log appends, fsync included.", []string{"quantile"}, nil)
	c.store = prometheus.NewDesc("regd_log_store_info", "1, with what keeps the log of this node.", []string{"log_store"}, nil)
	return c
}

// Describe implements prometheus.Collector.
func (c *clusterCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
	ch <- c.appends
	ch <- c.store
}

// Collect implements prometheus.Collector.
func (c *clusterCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), statusTimeout) // The interface has no context.
	defer cancel()
	status, err := c.node.Status(ctx, true)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.descs[0], err)
		return
	}
	s := sample{status: status, info: c.node.Info()}
	s.keys, s.bytes = c.node.Feed().State().KVTotal()
	for _, m := range status.GetMembers() {
		if m.GetMember().GetId() == s.info.NodeID {
			s.self = m
		}
	}
	for i, m := range c.metrics {
		ch <- prometheus.MustNewConstMetric(c.descs[i], prometheus.GaugeValue, m.value(s))
	}
	p50, p99 := s.self.GetAppendP50().AsDuration(), s.self.GetAppendP99().AsDuration()
	ch <- prometheus.MustNewConstMetric(c.appends, prometheus.GaugeValue, p50.Seconds(), "0.5")
	ch <- prometheus.MustNewConstMetric(c.appends, prometheus.GaugeValue, p99.Seconds(), "0.99")
	ch <- prometheus.MustNewConstMetric(c.store, prometheus.GaugeValue, 1, s.self.GetLogStore())
}

// buildCollector tells which binary this is.
func buildCollector(b buildInfo) prometheus.Collector {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "regd_build_info", Help: "1, with the version, commit and Go version of this binary.",
	}, []string{"version", "commit", "go_version"})
	g.WithLabelValues(b.Version, b.Commit, b.Go).Set(1)
	return g
}
