package health

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// ErrNotLeading says that this node does not keep the deadlines in the term that was asked for: nothing was renewed.
var ErrNotLeading = errors.New("not leading in this term")

// Proposer puts commands into the replicated log.
type Proposer interface {
	// Propose returns the outcome once the command was applied and the feed shows it. An error means that it was not
	// applied, or that nobody knows. Safe for concurrent use.
	Propose(ctx context.Context, cmd *raftlogv1.Command) (fsm.Outcome, error)
}

// Monitor keeps deadlines and runs checks while this node leads. All methods may be called from any goroutine.
type Monitor struct {
	cfg      Config
	feed     *feed.Feed
	proposer Proposer
	stats    *metrics
	state    func() *fsm.State
	probe    func(context.Context, *plan) result

	tenure atomic.Pointer[tenure] // Nil while this node does not lead.
}

// tenure is what runs in one term.
type tenure struct {
	term   uint64
	ledger *ledger
	prober *prober
}

// New returns a Monitor that reads f and proposes to p. It does nothing until Lead.
func New(cfg Config, f *feed.Feed, p Proposer) (*Monitor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("health: %w", err)
	}
	m := &Monitor{cfg: cfg, feed: f, proposer: p, state: f.State, probe: newProbes(cfg).run}
	m.stats = newMetrics(m)
	return m, nil
}

// Lead keeps deadlines and runs checks until ctx ends, and returns when all that it started has ended. It is called once
// for a term, when the State holds everything that was committed in earlier terms. All deadlines start afresh.
func (m *Monitor) Lead(ctx context.Context, term uint64) {
	w := m.feed.Watch(
		feed.Topic{Kind: fsm.EventSession},
		feed.Topic{Kind: fsm.EventLease},
		feed.Topic{Kind: fsm.EventInstance, Namespace: feed.AnyNamespace},
	)
	defer w.Close()
	began := time.Now()
	t := &tenure{
		term:   term,
		ledger: newLedger(m, term),
		prober: newProber(m, term),
	}
	tracker := newTracker(t.ledger, t.prober, m.cfg.Logger)
	st := m.state()
	t.ledger.update(func() {
		tracker.load(st)
		t.ledger.revision = st.Revision()
	})
	m.tenure.Store(t)
	defer m.tenure.CompareAndSwap(t, nil)
	m.cfg.Logger.Info("keeping deadlines and running checks", "term", term, "took", time.Since(began))

	var wg sync.WaitGroup
	defer wg.Wait()
	e := &expirer{ledger: t.ledger, cfg: m.cfg, p: m.proposer, stats: m.stats}
	wg.Go(func() { e.run(ctx) })
	wg.Go(func() { t.prober.run(ctx) })
	tracker.follow(ctx, m.feed, w)
}

// Renew moves the deadlines of what is listed to taken plus its time-to-live, and returns what is unknown or has ended;
// for a TTL check also what is critical, and wants a report instead. Everything else is guaranteed until then. Taken
// must be before a round in which the leadership of this node in term was confirmed, and have a monotonic reading.
//
// The error is ErrNotLeading, and then nothing was renewed.
func (m *Monitor) Renew(term uint64, taken time.Time, renewals []*peerv1.Renewals) (ended []*peerv1.Renewals, err error) {
	t := m.tenure.Load()
	if t == nil || t.term != term {
		return nil, fmt.Errorf("renew in term %d: %w", term, ErrNotLeading)
	}
	for _, r := range renewals {
		k, ok := renewKind(r.GetKind())
		if !ok {
			ended = append(ended, r)
			continue
		}
		if ids := t.ledger.renew(k, r.GetIds(), taken); len(ids) > 0 {
			ended = append(ended, &peerv1.Renewals{Kind: r.GetKind(), Ids: ids})
		}
	}
	return ended, nil
}

func renewKind(k peerv1.RenewKind) (kind, bool) {
	switch k {
	case peerv1.RenewKind_RENEW_KIND_SESSION:
		return ofSession, true
	case peerv1.RenewKind_RENEW_KIND_LEASE:
		return ofLease, true
	case peerv1.RenewKind_RENEW_KIND_CHECK:
		return ofReport, true
	default:
		return 0, false
	}
}

// Collectors returns the metrics of the Monitor, to be registered once.
func (m *Monitor) Collectors() []prometheus.Collector { return m.stats.collectors() }
