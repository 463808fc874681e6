package health

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

const (
	// maxExpire bounds the sessions and leases of one command: each may take many instances with it.
	maxExpire = 128
	// maxMoves bounds the deadlines that are moved under one lock: those which were renewed since they were put there.
	maxMoves = 4096
	// firstBackoff and lastBackoff bound the wait before a proposal that failed is made again.
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 5 * time.Second
)

// expirer carries out what the ledger finds overdue.
type expirer struct {
	ledger *ledger
	cfg    Config
	p      Proposer
	stats  *metrics
}

// verdict is a command and the deadlines that it ends: several sessions and leases, or one of another kind.
type verdict struct {
	deadlines []*deadline
	command   *raftlogv1.Command
}

// run judges until ctx ends, and returns when its proposals have.
func (e *expirer) run(ctx context.Context) {
	ticker := time.NewTicker(tickEvery(e.cfg.Grace))
	defer ticker.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	under := 0 // Proposals under way.
	settled := make(chan struct{}, e.cfg.MaxExpirations)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-settled:
			under--
		}
		for more := true; more; {
			var verdicts []*verdict
			verdicts, more = e.ledger.overdue(e.cfg.MaxExpirations - under)
			under += len(verdicts)
			for _, v := range verdicts {
				wg.Go(func() {
					e.propose(ctx, v)
					settled <- struct{}{} // Has room for all.
				})
			}
		}
	}
}

// propose carries out one verdict and settles it with the ledger.
func (e *expirer) propose(ctx context.Context, v *verdict) {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.ProposeTimeout)
	defer cancel()
	outcome, err := e.p.Propose(ctx, v.command)
	unapplied := err != nil && e.cfg.Unapplied != nil && e.cfg.Unapplied(err)
	if err == nil {
		err = outcome.Err()
		unapplied = err != nil // Refused, once and for all.
	}
	if err != nil {
		e.ledger.fail(v.deadlines, unapplied)
		e.cfg.Logger.Debug("a verdict waits", "deadlines", len(v.deadlines), "err", err)
		return
	}
	e.ledger.settle(v.deadlines)
	if outcome.Changed {
		for _, d := range v.deadlines {
			e.stats.expirations[d.kind].Inc()
		}
	}
}

// overdue takes up to limit verdicts that are to be proposed. Whatever is beyond the limit stays in the queue and may be
// renewed. More says that it has not looked at all that it should, so that renewals get in between.
func (l *ledger) overdue(limit int) (verdicts []*verdict, more bool) {
	st := l.state() // It may be a little older than the entries: then a verdict is needless, not wrong.
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.tick()
	var batch *verdict // Of sessions and leases, being filled.
	for moved := 0; len(l.queue) > 0 && l.queue[0].at <= now; {
		d := l.queue[0]
		if until := l.reprieve(d, st, now); until > now {
			if moved++; moved > maxMoves {
				more = true
				break
			}
			l.queue.set(d, until)
			continue
		}
		v := batch
		if d.of != nil || batch == nil || len(batch.deadlines) == maxExpire {
			if len(verdicts) == limit {
				break
			}
			v = &verdict{}
			verdicts = append(verdicts, v)
			if d.of == nil {
				batch = v
			}
		}
		v.deadlines = append(v.deadlines, d)
		d.deciding = true
		l.queue.remove(d)
	}
	for _, v := range verdicts {
		v.command = l.command(v.deadlines, now)
		sign(v.command, st, l.node)
	}
	return verdicts, more
}

// command is what ends the deadlines. Called with mu held.
func (l *ledger) command(deadlines []*deadline, now time.Duration) *raftlogv1.Command {
	first := deadlines[0]
	switch first.kind {
	case ofReport:
		return setCheck(first.of.key, &raftlogv1.SetCheck{
			Incarnation: first.of.incarnation,
			Check:       first.of.check,
			Status:      registryv1.CheckStatus_CHECK_STATUS_CRITICAL,
			Output:      silent(first.ttl),
			Term:        l.term,
		})
	case ofCritical:
		return &raftlogv1.Command{Kind: &raftlogv1.Command_Deregister{Deregister: &raftlogv1.Deregister{
			Key:         first.of.key.proto(),
			Incarnation: first.of.incarnation,
			Cause:       registryv1.Cause_CAUSE_CRITICAL_TOO_LONG,
			Term:        l.term,
		}}}
	default:
		expire := &raftlogv1.Expire{Term: l.term}
		for _, d := range deadlines {
			silence := uint64((now - d.due + d.ttl).Milliseconds()) //nolint:gosec // It is overdue.
			if d.kind == ofSession {
				expire.Sessions = append(expire.Sessions, d.id)
				expire.SessionSilenceMs = append(expire.SessionSilenceMs, silence)
			} else {
				expire.Leases = append(expire.Leases, d.id)
				expire.LeaseSilenceMs = append(expire.LeaseSilenceMs, silence)
			}
		}
		return &raftlogv1.Command{Kind: &raftlogv1.Command_Expire{Expire: expire}}
	}
}

// sign puts into a command who judged, and takes out what was measured where a member of the cluster does not know of it.
func sign(cmd *raftlogv1.Command, st *fsm.State, node string) {
	if st.FeatureLevel() < fsm.HistoryLevel {
		if expire := cmd.GetExpire(); expire != nil {
			expire.SessionSilenceMs, expire.LeaseSilenceMs = nil, nil
		}
		return
	}
	cmd.Level = fsm.HistoryLevel
	switch kind := cmd.GetKind().(type) {
	case *raftlogv1.Command_Expire:
		kind.Expire.Node = node
	case *raftlogv1.Command_SetCheck:
		kind.SetCheck.Node = node
	case *raftlogv1.Command_Deregister:
		kind.Deregister.Node = node
	}
}

// reprieve returns until when d needs no verdict; now or earlier when it does. Called with mu held.
func (l *ledger) reprieve(d *deadline, st *fsm.State, now time.Duration) time.Duration {
	if d.deciding || d.refused {
		return now // Decided earlier; this is another try.
	}
	if end := d.due + l.grace; end > now {
		return end
	}
	// What the State no longer has, or has changed since, is the tracker's to sort out first.
	var behind bool
	switch d.kind {
	case ofSession:
		behind = st.Session(d.id) == nil
	case ofLease:
		behind = st.Lease(d.id) == nil
	default:
		rec := d.of.key.in(st)
		behind = rec == nil || rec.ModifyRevision() > l.revision
	}
	if behind {
		return now + tickEvery(l.grace)
	}
	return now
}

// settle forgets deadlines whose end was applied.
func (l *ledger) settle(deadlines []*deadline) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range deadlines {
		if l.entries[d.kind][d.id] == d {
			l.disarm(d.kind, d.id)
		}
	}
}

// fail puts deadlines whose proposal failed back, to be judged again after a while. Unapplied says that the command is
// certain to have no effect, now or later. What is known of one try says nothing about an earlier one.
func (l *ledger) fail(deadlines []*deadline, unapplied bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for _, d := range deadlines {
		if l.entries[d.kind][d.id] != d {
			continue
		}
		d.unknown = d.unknown || !unapplied
		d.deciding = d.unknown && d.of == nil
		backoff := min(firstBackoff<<min(d.attempts, 10), lastBackoff)
		d.attempts++
		l.queue.set(d, now+backoff/2+rand.N(backoff))
	}
}

func setCheck(key instanceKey, verdict *raftlogv1.SetCheck) *raftlogv1.Command {
	verdict.Key = key.proto()
	return &raftlogv1.Command{Kind: &raftlogv1.Command_SetCheck{SetCheck: verdict}}
}
