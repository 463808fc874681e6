package fsm

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Audit recomputes everything that a State keeps incrementally or twice, from its records alone, and says what differs.
func Audit(s *State) error {
	want := State{
		index: s.index, term: s.term, revision: s.revision, epoch: s.epoch, number: s.number, time: s.time, leaps: s.leaps,
		clusterID: s.clusterID, chain: s.chain,
	}
	a := audit{s: s, want: &want}
	a.owners()
	a.services()
	a.locks()
	a.clients()
	s.members.ascend("", func(_ string, m *registryv1.Member) bool {
		want.sums[tableMembers].add(hashRecord(tableMembers, appendMember(nil, m)))
		return true
	})
	a.access()
	a.history()
	a.keys()
	switch {
	case a.err != nil:
		return a.err
	case want.sums != s.sums:
		return fmt.Errorf("sums are %x, from scratch %x", s.sums, want.sums)
	case want.Hash() != s.Hash() || want.ContentHash() != s.ContentHash():
		return fmt.Errorf("hash differs from that from scratch")
	case want.instances != s.instances:
		return fmt.Errorf("%d instances, counted %d", want.instances, s.instances)
	case a.sessionLinks != s.bySession.len() || a.leaseLinks != s.byLease.len() ||
		a.leaseOwners != s.sessionLeases.len() || a.lockLinks != s.sessionLocks.len():
		return fmt.Errorf("an index holds more than there is")
	case s.idle.len() != s.clients.len():
		return fmt.Errorf("%d clients, %d of them in order of last use", s.clients.len(), s.idle.len())
	}
	return nil
}

type audit struct {
	s, want                                          *State
	sessionLinks, leaseLinks, leaseOwners, lockLinks int
	err                                              error
}

func (a *audit) failf(format string, args ...any) {
	if a.err == nil {
		a.err = fmt.Errorf(format, args...)
	}
}

func (a *audit) owners() {
	a.s.Sessions("", func(v *Session) bool {
		a.want.sums[tableSessions].add(hashRecord(tableSessions, v.append(nil)))
		a.s.SessionInstances(v.ID(), func(r *Record) bool {
			if r == nil || r.SessionID() != v.ID() {
				a.failf("index of session %s holds %v", v.ID(), r)
			}
			return true
		})
		a.s.SessionLocks(v.ID(), func(l *Lock) bool {
			if l == nil || l.OwnedBy(v.ID()) == nil && l.waiter(v.ID()) < 0 {
				a.failf("index of session %s holds %v", v.ID(), l)
			}
			return true
		})
		return true
	})
	a.s.Leases("", func(v *Lease) bool {
		a.want.sums[tableLeases].add(hashRecord(tableLeases, v.append(nil)))
		if v.SessionID() != "" {
			a.leaseOwners++
		}
		a.s.LeaseInstances(v.ID(), func(r *Record) bool {
			if r == nil || r.LeaseID() != v.ID() {
				a.failf("index of lease %s holds %v", v.ID(), r)
			}
			return true
		})
		return true
	})
}

func (a *audit) services() {
	a.s.Services("", "", func(v *Service) bool {
		a.want.sums[tableServices].add(hashRecord(tableServices, appendService(nil, v)))
		var counts ServiceCounts
		v.Ascend("", func(r *Record) bool {
			a.want.instances++
			a.want.sums[tableInstances].add(hashRecord(tableInstances, r.Encoded()))
			counts.Instances++
			*counts.of(r.Health())++
			if r.SessionID() != "" {
				a.sessionLinks++
			}
			if r.LeaseID() != "" {
				a.leaseLinks++
			}
			if r.Namespace() != v.Namespace() || r.Service() != v.Name() || a.s.Instance(v.Namespace(), v.Name(), r.ID()) != r {
				a.failf("record %s/%s/%s is in service %s/%s", r.Namespace(), r.Service(), r.ID(), v.Namespace(), v.Name())
			}
			return true
		})
		if counts != v.Counts() || v.Len() != int(counts.Instances) || v.Len() == 0 {
			a.failf("service %s/%s counts %+v, has %+v", v.Namespace(), v.Name(), v.Counts(), counts)
		}
		return true
	})
}

func (a *audit) locks() {
	a.s.Locks("", "", func(v *Lock) bool {
		a.want.sums[tableLocks].add(hashRecord(tableLocks, v.appendHead(nil)))
		for i := range v.Waiters {
			a.want.sums[tableLocks].add(hashBytes(v.appendPlace(nil, i), seedPlace))
		}
		a.lockLinks += 1 + len(v.Others) + len(v.Waiters)
		return true
	})
}

func (a *audit) access() {
	a.want.access = a.s.access
	if a.s.access == nil {
		return
	}
	a.s.access.policies.ascend("", func(_ string, p *policy) bool {
		a.want.sums[tablePolicies].add(hashRecord(tablePolicies, appendPolicy(nil, p.message)))
		if again, malformed := newPolicy(p.message, KVLevel); malformed != "" || again.actions != p.actions || !slices.Equal(again.rules, p.rules) {
			a.failf("policy %s is not what it says", p.message.GetName())
		}
		return true
	})
	a.s.access.tokens.ascend("", func(_ string, v *Token) bool {
		a.want.sums[tableTokens].add(hashRecord(tableTokens, v.append(nil)))
		return true
	})
	a.s.access.grants.ascend("", func(_ string, g *registryv1.Grant) bool {
		a.want.sums[tableGrants].add(hashRecord(tableGrants, appendGrant(nil, g)))
		return true
	})
	a.want.sums[tableAccess].add(hashRecord(tableAccess, a.s.access.record.append(nil)))
	if r := a.s.access.record.revision; r == 0 || r > a.s.revision {
		a.failf("access revision is %d at revision %d", r, a.s.revision)
	}
}

func (a *audit) history() {
	h := &a.s.history
	a.want.history = *h
	if !h.begun {
		return
	}
	a.s.Namespaces("", func(n *Namespace) bool {
		a.want.sums[tableNamespaces].add(hashRecord(tableNamespaces, appendNamespace(nil, n.message)))
		var use NamespaceUse
		a.s.Services("", "", func(svc *Service) bool {
			if svc.Namespace() == n.message.GetName() {
				use.Instances += uint64(svc.Len())
			}
			return true
		})
		a.s.Locks("", "", func(l *Lock) bool {
			if l.Namespace == n.message.GetName() {
				use.Locks += uint64(1 + len(l.Others) + len(l.Waiters))
			}
			return true
		})
		if use != n.use {
			a.failf("namespace %s counts %+v, has %+v", n.message.GetName(), n.use, use)
		}
		return true
	})
	a.want.sums[tableHistory].add(hashRecord(tableHistory, h.record.append(nil)))
	var count uint64
	for _, b := range slices.Concat(h.closed, openChunk(h)) {
		whole := eachTransition(b, func(encoded []byte) bool {
			scratch := append(make([]byte, 8), encoded...)
			a.want.sums[tableTransitions].add(hashTransition(h.record.dropped+count, scratch))
			count++
			return true
		})
		if !whole || len(b) == 0 {
			a.failf("a chunk of the history is malformed")
		}
	}
	if count != h.count || h.len() > HistoryChunks || h.record.after > a.s.revision {
		a.failf("%d transitions, counted %d, in %d chunks, after revision %d", count, h.count, h.len(), h.record.after)
	}
}

func (a *audit) keys() {
	store := a.s.keyspace
	if a.want.keyspace = store; store == nil {
		return
	}
	if !a.s.history.begun {
		a.failf("keys without a history")
	}
	var counted keyspace
	namespaces, owned, empty := map[string]kvNamespace{}, 0, 0
	store.keys.ascend("", func(at string, k *KeyValue) bool {
		h, _ := k.hash(nil)
		a.want.sums[tableKeys].add(h)
		n := namespaces[k.Namespace]
		n.keys++
		n.bytes += uint64(len(k.Key) + len(k.Value))
		counted.bytes += uint64(len(k.Key) + len(k.Value))
		namespaces[k.Namespace] = n
		if k.SessionID != "" {
			owned++
			if _, delayed := a.s.LockDelayed(k.Namespace, k.Key); delayed || a.s.Session(k.SessionID) == nil {
				a.failf("key %q is owned by %q, which must not be", at, k.SessionID)
			}
		}
		if at != k.Namespace+"\x00"+k.Key || a.s.Key(k.Namespace, k.Key) != k || k.ModifyRevision > a.s.revision ||
			k.CreateRevision > k.ModifyRevision || k.Version == 0 || k.ModifyRevision-k.CreateRevision < k.Version-1 {
			a.failf("key %q is %+v", at, k)
		}
		return true
	})
	a.s.Sessions("", func(s *Session) bool {
		a.s.SessionKeys(s.ID(), func(k *KeyValue) bool {
			owned--
			if k == nil || k.SessionID != s.ID() {
				a.failf("index of session %s holds key %+v", s.ID(), k)
			}
			return true
		})
		return true
	})
	store.namespaces.ascend("", func(name string, n *kvNamespace) bool {
		if n.deleted != 0 {
			a.want.sums[tableKVNamespaces].add(hashRecord(tableKVNamespaces, appendKVNamespace(nil, name, n.deleted)))
		}
		if want := namespaces[name]; want.keys != n.keys || want.bytes != n.bytes || n.keys == 0 && n.deleted == 0 {
			a.failf("namespace %s counts %+v keys, has %+v", name, n, want)
		}
		if delete(namespaces, name); n.keys == 0 {
			empty++
		}
		return true
	})
	store.delays.ascend("", func(at string, until int64) bool {
		a.want.sums[tableLockDelays].add(hashRecord(tableLockDelays, appendLockDelay(nil, at, until)))
		if _, ok := store.delayEnds.get(delayEnd(at, until)); !ok {
			a.failf("lock delay of %q is not in the order of ends", at)
		}
		return true
	})
	a.want.sums[tableKV].add(hashRecord(tableKV, store.appendRecord(nil)))
	if counted.bytes != store.bytes || empty != store.empty || owned != 0 || len(namespaces) > 0 ||
		store.delays.len() != store.delayEnds.len() {
		a.failf("keyspace counts %d bytes and %d empty namespaces, has %d and %d; %d owned keys too many, namespaces %v missing",
			store.bytes, store.empty, counted.bytes, empty, owned, namespaces)
	}
}

// HasKeyspace reports whether a command of KVLevel was applied.
func HasKeyspace(s *State) bool { return s.keyspace != nil }

// LockDelays returns the lock delays, those that are over included, by end.
func LockDelays(s *State) []string {
	var all []string
	s.store().delayEnds.ascend("", func(end string, _ struct{}) bool {
		all = append(all, fmt.Sprintf("%s until %d", strings.ReplaceAll(end[8:], "\x00", "/"), binary.BigEndian.Uint64([]byte(end[:8]))))
		return true
	})
	return all
}

// Deletions returns what is known of when keys were deleted last, by namespace, empty for all others.
func Deletions(s *State) map[string]uint64 {
	all := map[string]uint64{"": s.store().deleted}
	s.store().namespaces.ascend("", func(name string, n *kvNamespace) bool {
		if n.deleted > 0 {
			all[name] = n.deleted
		}
		return true
	})
	return all
}

// WithKeys returns a state that has n keys, "key-0000000" and so on, with values of so many bytes.
func WithKeys(n, size int) *State {
	st := New()
	st.beginHistory()
	st.beginKeys()
	t := begin(st, Entry{Index: 1, Term: 1}, 1)
	for i := range n {
		t.setKey(KeyValue{Namespace: "default", Key: fmt.Sprintf("key-%07d", i), Value: make([]byte, size)}, nil)
	}
	return t.st
}

func openChunk(h *history) [][]byte {
	if h.open == nil {
		return nil
	}
	return [][]byte{h.open.bytes[:h.used]}
}

// AllTransitions returns the whole history, oldest first, as messages.
func AllTransitions(s *State) []*registryv1.Transition {
	var all []*registryv1.Transition
	for _, b := range slices.Concat(s.history.closed, openChunk(&s.history)) {
		eachTransition(b, func(encoded []byte) bool {
			m := new(registryv1.Transition)
			if err := proto.Unmarshal(encoded, m); err != nil {
				panic(err)
			}
			all = append(all, m)
			return true
		})
	}
	return all
}

func (a *audit) clients() {
	a.s.clients.ascend("", func(_ string, c *client) bool {
		a.want.sums[tableClients].add(hashRecord(tableClients, c.appendHead(nil)))
		for i := range c.outcomes {
			a.want.sums[tableClients].add(hashBytes(c.outcomes[i].appendKeyed(nil, c.id), seedOutcome))
		}
		if _, ok := a.s.idle.get(c.idleKey()); !ok {
			a.failf("client %s is not in the order of last use", c.id)
		}
		return true
	})
}

// RememberedClient is what a State remembers of a client, for tests.
type RememberedClient struct {
	ID            string
	Last          int64
	AnsweredBelow uint64
	Sequences     []uint64
	Outcomes      []Outcome
}

// Clients returns what is remembered of clients, by id.
func Clients(s *State) []RememberedClient {
	var all []RememberedClient
	s.clients.ascend("", func(_ string, c *client) bool {
		r := RememberedClient{ID: c.id, Last: c.last, AnsweredBelow: c.answeredBelow}
		for _, o := range c.outcomes {
			r.Sequences = append(r.Sequences, o.sequence)
			r.Outcomes = append(r.Outcomes, o.outcome)
		}
		all = append(all, r)
		return true
	})
	return all
}

// WithClients returns a state that remembers one request of each of n clients, all of the same time.
func WithClients(n int, last int64) *State {
	l := &loader{st: New(), mark: new(mark), table: tableClients}
	l.st.time = last
	for i := range n {
		c := &client{id: fmt.Sprintf("c%06d", i), last: last, outcomes: []remembered{{sequence: 1}}}
		l.add(c.appendHead(nil))
		l.st.sums[tableClients].add(hashBytes(c.outcomes[0].appendKeyed(nil, c.id), seedOutcome))
		l.st.clients.load(l.mark, c.id, c)
		l.st.idle.load(l.mark, c.idleKey(), struct{}{})
	}
	return l.st
}

// WithTransitions returns a state in whose history so many transitions were noted, one a revision.
func WithTransitions(n int) *State {
	s := New()
	s.beginHistory()
	var scratch []byte
	for i := range n {
		s.revision++
		s.time += 10
		at := &ident{in: newPair("default", fmt.Sprintf("service-%05d", i%1000)), id: fmt.Sprintf("instance-%07d", i%50_000)}
		scratch = s.note(&transition{
			at: at, revision: s.revision, timeMs: s.time, cause: registryv1.Cause_CAUSE_CHECK,
			health: registryv1.Health_HEALTH_PASSING, incarnation: uint64(i), actor: "payments",
			reason: reason{check: "ttl", status: registryv1.CheckStatus_CHECK_STATUS_PASSING},
		}, scratch)
	}
	return s
}

// Leaps returns how much of the log time does not count as silence.
func Leaps(s *State) int64 { return s.leaps }

// LastNumber returns the last incarnation or token given.
func LastNumber(s *State) uint64 { return s.number }

// DecodeSpec decodes a specification and returns the name of what is wrong with it.
func DecodeSpec(b []byte) string {
	var sp spec
	return sp.decode(b)
}

// DecodeStatus decodes an encoded status and encodes it again.
func DecodeStatus(b []byte) ([]byte, bool) {
	var st status
	ok := st.decode(b)
	return st.append(nil), ok
}

// HashChanges replaces one record by another in a sum, n times.
func HashChanges(n int, old, next []byte) {
	var total sum
	for range n {
		total.sub(hashRecord(tableInstances, old))
		total.add(hashRecord(tableInstances, next))
	}
}
