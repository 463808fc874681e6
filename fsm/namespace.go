package fsm

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Namespace is what was said about a namespace, with what is in it. It never changes; what its methods return is of one
// State.
type Namespace struct {
	message *registryv1.Namespace
	use     NamespaceUse // without keys, which each namespace has counted
	owner   *mark        // who may change this Namespace in place: only the transaction that made it
}

// NamespaceUse says how much there is in a namespace.
type NamespaceUse struct {
	// Instances over all services.
	Instances uint64
	// Locks counts each slot that is owned and each place in a queue.
	Locks uint64
	// Keys, and the bytes of these with their values.
	Keys, KVBytes uint64
}

// Proto returns what was said. It must not be changed.
func (n *Namespace) Proto() *registryv1.Namespace { return n.message }

// Quota returns the limits, nil if there are none. It must not be changed.
func (n *Namespace) Quota() *registryv1.Quota { return n.message.GetQuota() }

// Namespace returns what was said about a namespace, nil if nothing: then it is unlimited. It allocates nothing.
func (s *State) Namespace(name string) *Namespace {
	n, _ := s.namespaces.get(name)
	return n
}

// Namespaces calls fn for the namespaces about which something was said and whose names come after the given one, in order
// of name, until fn returns false.
func (s *State) Namespaces(after string, fn func(*Namespace) bool) {
	s.namespaces.after(after, fn)
}

// Quota returns the limits of a namespace, nil if there are none. It must not be changed.
func (s *State) Quota(namespace string) *registryv1.Quota { return s.Namespace(namespace).limits() }

// Governed reports whether anything was said about any namespace.
func (s *State) Governed() bool { return s.namespaces.len() > 0 }

// NamespaceUse returns how much there is in a namespace, whether something was said about it or not. Without that it takes
// as long as there are services and locks in it.
func (s *State) NamespaceUse(name string) NamespaceUse {
	use := s.countedUse(name)
	use.Keys, use.KVBytes = s.KVUse(name)
	return use
}

// countedUse is NamespaceUse without keys.
func (s *State) countedUse(name string) NamespaceUse {
	if n := s.Namespace(name); n != nil {
		return n.use
	}
	var use NamespaceUse
	s.Services(name, "", func(svc *Service) bool {
		if svc.Namespace() != name {
			return false
		}
		use.Instances += uint64(svc.Len())
		return true
	})
	s.Locks(name, "", func(l *Lock) bool {
		if l.Namespace != name {
			return false
		}
		use.Locks += l.places()
		return true
	})
	return use
}

// NextNamespace returns the first namespace after the given one that holds instances, locks or keys, or about which something was
// said, and false if there is none. It takes the same time however much is in them.
func (s *State) NextNamespace(after string) (name string, ok bool) {
	least := func(other string) {
		if !ok || other < name {
			name, ok = other, true
		}
	}
	// Neither names nor namespaces hold a NUL, so that this is behind all pairs of the namespace and before those of any other.
	behind := after + "\x01"
	if after == "" {
		behind = ""
	}
	s.services.ascend(behind, func(_ string, svc *Service) bool { least(svc.Namespace()); return false })
	s.locks.ascend(behind, func(_ string, l *Lock) bool { least(l.Namespace); return false })
	s.store().keys.ascend(behind, func(_ string, k *KeyValue) bool { least(k.Namespace); return false })
	s.namespaces.after(after, func(n *Namespace) bool { least(n.message.GetName()); return false })
	return name, ok
}

// Resources that a quota bounds in the state machine.
const (
	// QuotaInstances is bounded by Quota.max_instances.
	QuotaInstances = "instances"
	// QuotaLocks is bounded by Quota.max_locks.
	QuotaLocks = "locks"
)

// Quota is what a CODE_QUOTA is about.
type Quota struct {
	// Namespace is where.
	Namespace string
	// Resource is QuotaInstances, QuotaLocks, QuotaKeys or QuotaKVBytes.
	Resource string
	// Used is how much there is, and Limit how much there may be.
	Used, Limit uint64
}

// refuse is the outcome of a command that would make it more.
func (q Quota) refuse() Outcome {
	return refuse(raftlogv1.Code_CODE_QUOTA, q.Resource+" "+strconv.FormatUint(q.Used, 10)+" "+
		strconv.FormatUint(q.Limit, 10)+" "+q.Namespace)
}

// Quota returns what a CODE_QUOTA is about, false for every other error.
func (e *Error) Quota() (q Quota, ok bool) {
	if e.Code != raftlogv1.Code_CODE_QUOTA {
		return Quota{}, false
	}
	parts := strings.SplitN(e.Subject, " ", 4)
	if len(parts) != 4 {
		return Quota{}, false
	}
	var usedErr, limitErr error
	q = Quota{Resource: parts[0], Namespace: parts[3]}
	q.Used, usedErr = strconv.ParseUint(parts[1], 10, 64)
	q.Limit, limitErr = strconv.ParseUint(parts[2], 10, 64)
	return q, usedErr == nil && limitErr == nil
}

// newNamespace makes an entry of an order, of which it copies what commands of the level know, or names what is malformed.
func newNamespace(from *registryv1.Namespace, level uint64) (made *registryv1.Namespace, malformed string) {
	switch {
	case !validName(from.GetName()):
		return nil, "name"
	case len(from.GetDescription()) > MaxDescriptionBytes:
		return nil, "description"
	}
	made = &registryv1.Namespace{
		Name: from.GetName(), Description: from.GetDescription(), ModifyRevision: from.GetModifyRevision(),
	}
	q := from.GetQuota()
	limits := &registryv1.Quota{
		MaxInstances: q.GetMaxInstances(), MaxLocks: q.GetMaxLocks(),
		MaxWatches: q.GetMaxWatches(), MaxWritesPerSecond: q.GetMaxWritesPerSecond(),
	}
	if level >= KVLevel {
		limits.MaxKeys, limits.MaxKvBytes = q.GetMaxKeys(), q.GetMaxKvBytes()
	}
	if len(appendQuota(nil, limits)) > 0 {
		made.Quota = limits
	}
	return made, ""
}

// appendNamespace encodes an entry by hand, as appendPolicy does a policy. What is in the namespace is not part of it.
func appendNamespace(b []byte, n *registryv1.Namespace) []byte {
	b = appendString(b, 1, n.GetName())
	b = appendString(b, 2, n.GetDescription())
	var space [6 * (1 + 10)]byte
	b = appendBytes(b, 3, appendQuota(space[:0], n.GetQuota()))
	return appendUint(b, 4, n.GetModifyRevision())
}

func appendQuota(b []byte, q *registryv1.Quota) []byte {
	b = appendUint(b, 1, q.GetMaxInstances())
	b = appendUint(b, 2, q.GetMaxLocks())
	b = appendUint(b, 3, q.GetMaxWatches())
	b = appendUint(b, 4, q.GetMaxWritesPerSecond())
	b = appendUint(b, 5, q.GetMaxKeys())
	return appendUint(b, 6, q.GetMaxKvBytes())
}

// putNamespace says something about a namespace, in place of what was said before.
func (t *txn) putNamespace(cmd *raftlogv1.PutNamespace) Outcome {
	message, malformed := newNamespace(cmd.GetNamespace(), t.level)
	if malformed != "" {
		return refuse(raftlogv1.Code_CODE_INVALID, malformed)
	}
	old := t.st.Namespace(message.GetName())
	switch {
	case old != nil:
		message.ModifyRevision = old.message.GetModifyRevision()
		if proto.Equal(old.message, message) {
			return Outcome{}
		}
		t.subNamespace(old)
	case t.st.namespaces.len() >= MaxNamespaces:
		return refuse(raftlogv1.Code_CODE_LIMIT, "namespaces")
	}
	message.ModifyRevision = t.change()
	next := &Namespace{message: message, use: t.st.countedUse(message.GetName()), owner: t.mark}
	t.scratch = appendNamespace(t.scratch[:0], message)
	t.addSum(tableNamespaces, t.scratch)
	t.st.namespaces.set(t.mark, message.GetName(), next)
	t.namespaceEvent(message.GetName(), true)
	return Outcome{}
}

// deleteNamespace takes back what was said about a namespace. What is in it stays. If nothing was said that is done already.
func (t *txn) deleteNamespace(cmd *raftlogv1.DeleteNamespace) Outcome {
	old := t.st.Namespace(cmd.GetName())
	if old == nil {
		return Outcome{}
	}
	t.change()
	t.subNamespace(old)
	t.st.namespaces.delete(t.mark, cmd.GetName())
	t.namespaceEvent(cmd.GetName(), false)
	return Outcome{}
}

func (t *txn) subNamespace(n *Namespace) {
	t.scratch = appendNamespace(t.scratch[:0], n.message)
	t.subSum(tableNamespaces, t.scratch)
}

func (t *txn) namespaceEvent(name string, created bool) {
	t.events = append(t.events, Event{Kind: EventNamespace, Created: created, Revision: t.st.revision, Name: name})
}

// usage returns the counters of a namespace for changing in place, nil if nothing was said about it: then nobody counts.
func (t *txn) usage(name string) *NamespaceUse {
	n := t.st.Namespace(name)
	switch {
	case n == nil:
		return nil
	case n.owner != t.mark:
		fork := *n
		n = &fork
		n.owner = t.mark
		t.st.namespaces.set(t.mark, name, n)
	}
	return &n.use
}

// countInstances and countLocks note that there are more or, by a negative number, fewer.
func (t *txn) countInstances(namespace string, more int) {
	if t.st.namespaces.len() == 0 {
		return
	}
	if use := t.usage(namespace); use != nil {
		use.Instances += uint64(more)
	}
}

func (t *txn) countLocks(namespace string, more int) {
	if more == 0 || t.st.namespaces.len() == 0 {
		return
	}
	if use := t.usage(namespace); use != nil {
		use.Locks += uint64(more)
	}
}

// fullOfInstances refuses a new instance in a namespace that may not have one more. In a batch that is judged at its end, by
// what it leaves: so one that replaces instances by others never needs room for both.
func (t *txn) fullOfInstances(namespace []byte) (Outcome, bool) {
	if t.st.namespaces.len() == 0 {
		return Outcome{}, false
	}
	n := t.st.Namespace(string(namespace))
	limit := n.limits().GetMaxInstances()
	switch {
	case limit == 0 || n.use.Instances < limit:
		return Outcome{}, false
	case t.batch:
		if name := n.message.GetName(); len(t.overfull) == 0 || t.overfull[len(t.overfull)-1] != name {
			t.overfull = append(t.overfull, name)
		}
		return Outcome{}, false
	}
	return Quota{n.message.GetName(), QuotaInstances, n.use.Instances, limit}.refuse(), true
}

// limits is Quota of a namespace about which perhaps nothing was said.
func (n *Namespace) limits() *registryv1.Quota {
	if n == nil {
		return nil
	}
	return n.message.GetQuota()
}

// overfilled refuses a batch that leaves a namespace with more instances than it may have, unless there were as many before.
func (t *txn) overfilled(before *State) (Outcome, bool) {
	for _, name := range t.overfull {
		n, old := t.st.Namespace(name), before.Namespace(name)
		if limit := n.limits().GetMaxInstances(); n.use.Instances > limit && n.use.Instances > old.use.Instances {
			return Quota{name, QuotaInstances, old.use.Instances, limit}.refuse(), true
		}
	}
	return Outcome{}, false
}

// fullOfLocks refuses one more owner of a lock, or place in its queue, in a namespace that may not have it.
func (t *txn) fullOfLocks(namespace string) (Outcome, bool) {
	if t.st.namespaces.len() == 0 {
		return Outcome{}, false
	}
	n := t.st.Namespace(namespace)
	if limit := n.limits().GetMaxLocks(); limit > 0 && n.use.Locks >= limit {
		return Quota{namespace, QuotaLocks, n.use.Locks, limit}.refuse(), true
	}
	return Outcome{}, false
}

// namespace loads what was said about a namespace. It comes after what is in it, which is counted.
func (l *loader) namespace(m *registryv1.Namespace) error {
	made, malformed := newNamespace(m, KVLevel)
	if malformed != "" || made.GetModifyRevision() == 0 {
		return errMalformed
	}
	l.add(appendNamespace(l.scratch[:0], made))
	next := &Namespace{message: made, use: l.st.countedUse(made.GetName())}
	return load(l, &l.st.namespaces, made.GetName(), next)
}

// rebaseNamespaces takes what was said about namespaces from the snapshot, with what is in them; but of a snapshot of
// before there was any such thing it takes nothing, and counts anew.
func (s *State) rebaseNamespaces(snapshot, onto *State) {
	if snapshot.history.begun {
		return
	}
	m := new(mark)
	s.namespaces, s.sums[tableNamespaces] = table[*Namespace]{}, onto.sums[tableNamespaces]
	onto.Namespaces("", func(n *Namespace) bool {
		s.namespaces.load(m, n.message.GetName(), &Namespace{message: n.message, use: s.countedUse(n.message.GetName())})
		return true
	})
}

// String says it for people.
func (q Quota) String() string {
	return fmt.Sprintf("namespace %s may have %d %s, and has %d", q.Namespace, q.Limit, q.Resource, q.Used)
}
