package health

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// tracker brings what the State has to the ledger and the prober. Events only tell it where to look: what counts is
// always the newest State, so it may see several changes as one.
type tracker struct {
	ledger *ledger
	prober *prober
	log    *slog.Logger

	instances map[instanceKey]*instance // Those with checks.
}

// instance is what runs for an instance.
type instance struct {
	checks  map[string]*check // Active checks by name.
	reports map[string]string // Ids of the deadlines of TTL checks, by name.
}

func newTracker(l *ledger, p *prober, log *slog.Logger) *tracker {
	return &tracker{ledger: l, prober: p, log: log, instances: map[instanceKey]*instance{}}
}

// follow runs until ctx or the feed ends.
func (t *tracker) follow(ctx context.Context, f *feed.Feed, w *feed.Watcher) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.Ready():
		}
		taken := w.Take()
		if taken.Closed {
			<-ctx.Done()
			return
		}
		t.take(f.State(), taken)
	}
}

// maxLook bounds the keys that are looked up under one lock, so that renewals get in between.
const maxLook = 256

// take looks up what has changed in st, which is no older than what was taken.
func (t *tracker) take(st *fsm.State, taken feed.Taken) {
	var keys []feed.Key
	switch resync := taken.Resync; {
	case resync == nil:
		for _, e := range taken.Events {
			keys = append(keys, e.Key())
		}
	case resync.Reason == feed.ReasonRestored:
		t.ledger.update(func() {
			t.forget()
			t.load(st)
		})
	case resync.Full:
		t.ledger.update(func() {
			t.sweep(st)
			t.load(st)
		})
	default:
		keys = resync.Keys
	}
	for some := range slices.Chunk(keys, maxLook) {
		t.ledger.update(func() {
			for _, key := range some {
				t.look(st, key)
			}
		})
	}
	t.ledger.update(func() { t.ledger.revision = taken.Revision })
}

// load takes up all that st has. Called with the ledger's lock held, as all below.
func (t *tracker) load(st *fsm.State) {
	st.Sessions("", func(s *fsm.Session) bool {
		t.ledger.arm(sessionDeadline(s))
		return true
	})
	st.Leases("", func(l *fsm.Lease) bool {
		t.ledger.arm(leaseDeadline(l))
		return true
	})
	st.Services("", "", func(s *fsm.Service) bool {
		s.Ascend("", func(r *fsm.Record) bool {
			if r.HasChecks() {
				t.see(instanceKey{r.Namespace(), r.Service(), r.ID()}, r, true)
			}
			return true
		})
		return true
	})
}

// sweep drops what st no longer has.
func (t *tracker) sweep(st *fsm.State) {
	for id := range t.ledger.entries[ofSession] {
		if st.Session(id) == nil {
			t.ledger.disarm(ofSession, id)
		}
	}
	for id := range t.ledger.entries[ofLease] {
		if st.Lease(id) == nil {
			t.ledger.disarm(ofLease, id)
		}
	}
	for key := range t.instances {
		if key.in(st) == nil {
			t.drop(key)
		}
	}
}

// forget drops everything: after a restore, all begins anew.
func (t *tracker) forget() {
	for key := range t.instances {
		t.drop(key)
	}
	t.ledger.clear()
}

// look brings one key up to date.
func (t *tracker) look(st *fsm.State, key feed.Key) {
	switch key.Kind {
	case fsm.EventSession:
		if s := st.Session(key.Name); s != nil {
			t.ledger.arm(sessionDeadline(s))
		} else {
			t.ledger.disarm(ofSession, key.Name)
		}
	case fsm.EventLease:
		if l := st.Lease(key.Name); l != nil {
			t.ledger.arm(leaseDeadline(l))
		} else {
			t.ledger.disarm(ofLease, key.Name)
		}
	case fsm.EventInstance:
		k := instanceKey{key.Namespace, key.Name, key.ID}
		if rec := k.in(st); rec != nil && rec.HasChecks() {
			t.see(k, rec, false)
		} else {
			t.drop(k)
		}
	case fsm.EventLock, fsm.EventMember, fsm.EventAccess, fsm.EventNamespace, fsm.EventKey:
	}
}

// see brings an instance that has checks up to date. What is found by load was there before: then the first verdict on a
// check is not hurried.
func (t *tracker) see(key instanceKey, rec *fsm.Record, found bool) {
	in, err := rec.Proto()
	if err != nil {
		t.log.Error("an instance cannot be decoded, its checks do not run", "instance", key.String(), "err", err)
		t.drop(key)
		return
	}
	have := t.instances[key]
	if have == nil {
		have = &instance{checks: map[string]*check{}, reports: map[string]string{}}
		t.instances[key] = have
	}
	states := map[string]*registryv1.CheckState{}
	for _, s := range in.GetCheckStates() {
		states[s.GetName()] = s
	}
	named := map[string]bool{}
	for _, c := range in.GetChecks() {
		named[c.GetName()] = true
		if c.GetTtl() != nil {
			t.seeReport(key, have, in, c, states[c.GetName()])
		} else {
			t.seeCheck(key, have, in, c, states[c.GetName()].GetStatus(), found)
		}
	}
	for name := range have.checks {
		if !named[name] {
			t.dropCheck(have, name)
		}
	}
	for name := range have.reports {
		if !named[name] {
			t.dropReport(have, name)
		}
	}
	t.seeHealth(key, rec, in)
}

// seeReport keeps the deadline of a TTL check: there is one unless it is critical already.
func (t *tracker) seeReport(
	key instanceKey, have *instance, in *registryv1.Instance, c *registryv1.Check, state *registryv1.CheckState,
) {
	t.dropCheck(have, c.GetName()) // It may have been an active one.
	if state.GetStatus() == registryv1.CheckStatus_CHECK_STATUS_CRITICAL {
		t.dropReport(have, c.GetName())
		return
	}
	id := CheckID(key.namespace, key.service, key.id, c.GetName())
	have.reports[c.GetName()] = id
	t.ledger.arm(&deadline{
		kind: ofReport, id: id, ttl: c.GetTtl().GetTtl().AsDuration(), since: state.GetChangedRevision(),
		of: &subject{key: key, check: c.GetName(), incarnation: in.GetIncarnation()},
	})
}

// firstProbe is the part of its interval within which a check of a new instance is first probed.
const firstProbe = 10

// seeCheck keeps an active check running. It starts anew only when it asks something else than before.
func (t *tracker) seeCheck(
	key instanceKey, have *instance, in *registryv1.Instance, c *registryv1.Check, status registryv1.CheckStatus, found bool,
) {
	t.dropReport(have, c.GetName())
	p := newPlan(in, c)
	if running := have.checks[c.GetName()]; running != nil {
		if running.plan.same(p) {
			t.prober.update(running, in.GetIncarnation(), status)
			return
		}
		t.dropCheck(have, c.GetName())
	}
	spread := p.interval
	if !found {
		spread /= firstProbe
	}
	added := &check{
		key: key, name: c.GetName(), plan: p, incarnation: in.GetIncarnation(), status: status,
		trend: trend{inherited: found && serving(status)},
	}
	have.checks[c.GetName()] = added
	t.prober.add(added, spread)
}

// seeHealth keeps the deadline of an instance that is to go when it stays critical.
func (t *tracker) seeHealth(key instanceKey, rec *fsm.Record, in *registryv1.Instance) {
	after := in.GetDeregisterCriticalAfter().AsDuration()
	if after <= 0 || rec.Health() != registryv1.Health_HEALTH_CRITICAL {
		t.ledger.disarm(ofCritical, key.String())
		return
	}
	t.ledger.arm(&deadline{
		kind: ofCritical, id: key.String(), ttl: after, since: uint64(rec.CriticalSince()),
		of: &subject{key: key, incarnation: rec.Incarnation()},
	})
}

// drop ends all that runs for an instance.
func (t *tracker) drop(key instanceKey) {
	have := t.instances[key]
	if have == nil {
		return
	}
	delete(t.instances, key)
	for name := range have.checks {
		t.dropCheck(have, name)
	}
	for name := range have.reports {
		t.dropReport(have, name)
	}
	t.ledger.disarm(ofCritical, key.String())
}

func (t *tracker) dropCheck(have *instance, name string) {
	if c := have.checks[name]; c != nil {
		t.prober.remove(c)
		delete(have.checks, name)
	}
}

func (t *tracker) dropReport(have *instance, name string) {
	if id, ok := have.reports[name]; ok {
		t.ledger.disarm(ofReport, id)
		delete(have.reports, name)
	}
}

func sessionDeadline(s *fsm.Session) *deadline {
	return &deadline{kind: ofSession, id: s.ID(), ttl: millis(s.TTLMs), since: s.CreateRevision}
}

func leaseDeadline(l *fsm.Lease) *deadline {
	return &deadline{kind: ofLease, id: l.ID(), ttl: millis(l.TTLMs), since: l.CreateRevision}
}

func millis(ms uint64) time.Duration { return time.Duration(ms) * time.Millisecond }
