package feed

import "github.com/prometheus/client_golang/prometheus"

// counters count what the dispatcher does.
type counters struct {
	delivered prometheus.Counter
	overruns  prometheus.Counter
	resyncs   *prometheus.CounterVec
}

func (c *counters) init() {
	c.delivered = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "regd_watch_events_total",
		Help: "Events put into watchers' queues.",
	})
	c.overruns = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "regd_feed_overruns_total",
		Help: "Times that the dispatcher was so far behind that it compared States instead of delivering events.",
	})
	c.resyncs = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "regd_resyncs_total",
		Help: "Watchers that had to read the State instead of following events.",
	}, []string{"reason"})
	for _, r := range []Reason{ReasonSlowReader, ReasonSkipped, ReasonRestored} {
		c.resyncs.WithLabelValues(r.String()) // So that each shows from the start.
	}
}

// Collectors returns the feed's metrics, to be registered by the owner.
func (f *Feed) Collectors() []prometheus.Collector {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	return []prometheus.Collector{
		f.counters.delivered, f.counters.overruns, f.counters.resyncs,
		gauge("regd_watchers", "Watchers, one for each open watch stream and each of the node's own.", func() float64 {
			return float64(f.topics.count())
		}),
		gauge("regd_feed_history_events", "Events kept for watches that resume.", func() float64 {
			events, _ := f.history.size()
			return float64(events)
		}),
		gauge("regd_feed_history_bytes", "Bytes of the events kept for watches that resume.", func() float64 {
			_, bytes := f.history.size()
			return float64(bytes)
		}),
		gauge("regd_feed_pending_events", "Events that wait for the dispatcher.", func() float64 {
			f.mu.Lock()
			defer f.mu.Unlock()
			return float64(f.events)
		}),
	}
}
