package fsm

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Lock is a held lock at one time. A lock that nobody holds does not exist: its tokens grow over all locks, so nothing
// of it needs to be remembered. It must not be changed.
type Lock struct {
	// Namespace and Name name it.
	Namespace, Name string
	// Owner is who holds it, the oldest of them if it has several slots.
	Owner
	// Slots is how many may own it at once, at least 1.
	Slots uint32
	// Others are the owners besides the oldest, by growing token. There is nobody in the queue while a slot is free.
	Others []Owner
	// Waiters is the queue, first come first.
	Waiters []Waiter

	at *ident
}

// Owner is a session that holds a lock, or one of its slots.
type Owner struct {
	// SessionID is who holds it.
	SessionID string
	// Token is its fencing token, larger than any given before.
	Token uint64
	// Value is what the owner says of itself.
	Value []byte
	// AcquireRevision is the revision at which the owner got it.
	AcquireRevision uint64
}

// Waiter is a place in the queue of a lock.
type Waiter struct {
	// SessionID is who waits.
	SessionID string
	// Value is what it will publish as owner.
	Value []byte
}

// OwnedBy returns what a session owns of the lock, nil if nothing. It must not be changed.
func (l *Lock) OwnedBy(session string) *Owner {
	if l.SessionID == session {
		return &l.Owner
	}
	if i := l.other(session); i >= 0 {
		return &l.Others[i]
	}
	return nil
}

// other returns the place of a session among the owners besides the oldest, negative if it has none.
func (l *Lock) other(session string) int {
	return slices.IndexFunc(l.Others, func(o Owner) bool { return o.SessionID == session })
}

// Proto returns the lock as a message of the caller's own; only the values are shared and must not be changed.
func (l *Lock) Proto() *registryv1.Lock {
	waiters := make([]string, len(l.Waiters))
	for i := range l.Waiters {
		waiters[i] = l.Waiters[i].SessionID
	}
	var slots uint32
	if l.Slots > 1 {
		slots = l.Slots
	}
	var others []*registryv1.LockOwner
	for _, o := range l.Others {
		others = append(others, &registryv1.LockOwner{
			SessionId: o.SessionID, Token: o.Token, Value: o.Value, AcquireRevision: o.AcquireRevision,
		})
	}
	return &registryv1.Lock{
		Namespace:       l.Namespace,
		Name:            l.Name,
		SessionId:       l.SessionID,
		Token:           l.Token,
		Value:           l.Value,
		AcquireRevision: l.AcquireRevision,
		Waiters:         waiters,
		Slots:           slots,
		Others:          others,
	}
}

// append encodes the lock as a raftlogv1.LockRecord.
func (l *Lock) append(b []byte) []byte {
	b = l.appendHead(b)
	for i := range l.Waiters {
		w := &l.Waiters[i]
		size := 1 + protowire.SizeBytes(len(w.SessionID))
		if len(w.Value) > 0 {
			size += 1 + protowire.SizeBytes(len(w.Value))
		}
		b = protowire.AppendTag(b, 7, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(size))
		b = appendString(b, 1, w.SessionID)
		b = appendBytes(b, 2, w.Value)
	}
	return b
}

// appendHead encodes the lock without its queue.
func (l *Lock) appendHead(b []byte) []byte {
	b = appendString(b, 1, l.Namespace)
	b = appendString(b, 2, l.Name)
	b = appendString(b, 3, l.SessionID)
	b = appendUint(b, 4, l.Token)
	b = appendBytes(b, 5, l.Value)
	b = appendUint(b, 6, l.AcquireRevision)
	if l.Slots > 1 { // Locks of one slot are encoded as they were before there were others.
		b = appendUint(b, 8, uint64(l.Slots))
	}
	for i := range l.Others {
		b = l.Others[i].append(b)
	}
	return b
}

// append encodes an owner as one of the others of a raftlogv1.LockRecord.
func (o *Owner) append(b []byte) []byte {
	b = protowire.AppendTag(b, 9, protowire.BytesType)
	at := len(b)
	b = appendString(b, 1, o.SessionID)
	b = appendUint(b, 2, o.Token)
	b = appendBytes(b, 3, o.Value)
	b = appendUint(b, 4, o.AcquireRevision)
	var size [binary.MaxVarintLen64]byte
	return slices.Insert(b, at, protowire.AppendVarint(size[:0], uint64(len(b)-at))...)
}

// appendPlace encodes a place in the queue, as it is hashed: with the session before it, so that the places together
// say the order.
func (l *Lock) appendPlace(b []byte, i int) []byte {
	before := ""
	if i > 0 {
		before = l.Waiters[i-1].SessionID
	}
	b = protowire.AppendString(b, l.at.in.key)
	b = protowire.AppendString(b, before)
	b = protowire.AppendString(b, l.Waiters[i].SessionID)
	return protowire.AppendBytes(b, l.Waiters[i].Value)
}

// places returns how many sessions own a slot of the lock or wait for one. nil: nobody.
func (l *Lock) places() uint64 {
	if l == nil {
		return 0
	}
	return uint64(1 + len(l.Others) + len(l.Waiters))
}

// waiter returns the place of a session in the queue, negative if it has none.
func (l *Lock) waiter(session string) int {
	return slices.IndexFunc(l.Waiters, func(w Waiter) bool { return w.SessionID == session })
}

// acquireLock takes a lock, or a place in its queue.
func (t *txn) acquireLock(cmd *raftlogv1.AcquireLock) Outcome {
	if outcome, denied := t.denied(registryv1.Action_ACTION_LOCK, cmd.GetNamespace(), cmd.GetName()); denied {
		return outcome
	}
	switch {
	case !validName(cmd.GetNamespace()):
		return refuse(raftlogv1.Code_CODE_INVALID, "namespace")
	case !validName(cmd.GetName()):
		return refuse(raftlogv1.Code_CODE_INVALID, "name")
	case len(cmd.GetValue()) > MaxLockValueBytes:
		return refuse(raftlogv1.Code_CODE_INVALID, "value")
	case cmd.GetSlots() > MaxLockSlots:
		return refuse(raftlogv1.Code_CODE_INVALID, "slots")
	}
	session := t.st.Session(cmd.GetSessionId())
	if session == nil {
		return refuse(raftlogv1.Code_CODE_SESSION_NOT_FOUND, cmd.GetSessionId())
	}
	if outcome, denied := t.deniedSession(cmd.GetSessionId()); denied {
		return outcome
	}
	return t.takePlace(cmd, session)
}

// takePlace makes a session an owner of a lock, or gives it a place in the queue, unless it has either.
func (t *txn) takePlace(cmd *raftlogv1.AcquireLock, session *Session) Outcome {
	slots := max(cmd.GetSlots(), 1)
	want := Waiter{SessionID: cmd.GetSessionId(), Value: cmd.GetValue()}
	old, ok := t.st.locks.get(pairKey(cmd.GetNamespace(), cmd.GetName()))
	free := !ok || 1+len(old.Others) < int(old.Slots)
	switch {
	case ok && old.Slots != slots:
		return refuse(raftlogv1.Code_CODE_SLOTS_MISMATCH, strconv.FormatUint(uint64(old.Slots), 10))
	case ok && old.OwnedBy(want.SessionID) != nil:
		return Outcome{Number: old.OwnedBy(want.SessionID).Token}
	case free:
	case !cmd.GetWait():
		return refuse(raftlogv1.Code_CODE_LOCK_HELD, old.SessionID)
	case old.waiter(want.SessionID) >= 0:
		return Outcome{}
	case len(old.Waiters) >= MaxLockWaiters:
		return refuse(raftlogv1.Code_CODE_LIMIT, "lock waiters")
	}
	if outcome, full := t.fullOfLocks(cmd.GetNamespace()); full {
		return outcome
	}
	var next Lock
	if ok {
		next = *old
	} else {
		at := &ident{in: newPair(cmd.GetNamespace(), cmd.GetName())}
		next = Lock{Namespace: at.in.namespace(), Name: at.in.name(), Slots: slots, at: at}
	}
	var token uint64
	if free {
		token = t.own(&next, want)
	} else {
		next.Waiters = append(slices.Clip(next.Waiters), want)
	}
	t.setLock(&next, old)
	t.joinLock(&next, &session.at)
	return Outcome{Number: token}
}

// releaseLock gives a lock, or a place in its queue, back.
func (t *txn) releaseLock(cmd *raftlogv1.ReleaseLock) Outcome {
	if outcome, denied := t.denied(registryv1.Action_ACTION_LOCK, cmd.GetNamespace(), cmd.GetName()); denied {
		return outcome
	}
	if outcome, denied := t.deniedSession(cmd.GetSessionId()); denied {
		return outcome
	}
	l, ok := t.st.locks.get(pairKey(cmd.GetNamespace(), cmd.GetName()))
	if !ok {
		return refuse(raftlogv1.Code_CODE_LOCK_NOT_HELD, "")
	}
	owner := l.OwnedBy(cmd.GetSessionId())
	switch {
	case owner != nil && cmd.GetWaitingOnly():
		return Outcome{Number: owner.Token}
	case owner != nil:
		if cmd.GetToken() != 0 && cmd.GetToken() != owner.Token {
			return refuse(raftlogv1.Code_CODE_STALE, strconv.FormatUint(owner.Token, 10))
		}
	case cmd.GetToken() != 0 || l.waiter(cmd.GetSessionId()) < 0:
		return refuse(raftlogv1.Code_CODE_LOCK_NOT_HELD, l.SessionID)
	}
	t.leaveLock(l, &ident{id: cmd.GetSessionId()})
	return Outcome{}
}

// own makes a session an owner of a lock that is being made, and returns its token.
func (t *txn) own(l *Lock, w Waiter) uint64 {
	o := Owner{SessionID: w.SessionID, Value: w.Value, AcquireRevision: t.change(), Token: t.nextNumber()}
	if l.SessionID == "" {
		l.Owner = o
	} else {
		l.Others = append(slices.Clip(l.Others), o)
	}
	return o.Token
}

// leaveLock takes a session out of a lock that it owns or waits for. The next in the queue owns what it leaves at once.
func (t *txn) leaveLock(old *Lock, session *ident) {
	t.st.sessionLocks.remove(t.mark, session, old.at)
	next := *old
	if old.OwnedBy(session.id) == nil {
		at := old.waiter(session.id)
		next.Waiters = slices.Concat(old.Waiters[:at], old.Waiters[at+1:])
		t.setLock(&next, old)
		return
	}
	next.vacate(session.id)
	if len(old.Waiters) > 0 {
		next.Waiters = old.Waiters[1:]
		t.own(&next, old.Waiters[0])
	}
	if next.SessionID == "" {
		t.setLock(nil, old)
		return
	}
	t.setLock(&next, old)
}

// vacate takes an owner out of a lock that is being made. The oldest of those that are left comes first.
func (l *Lock) vacate(session string) {
	switch at := l.other(session); {
	case at >= 0:
		l.Others = slices.Concat(l.Others[:at], l.Others[at+1:])
	case len(l.Others) > 0:
		l.Owner, l.Others = l.Others[0], l.Others[1:]
	default:
		l.Owner = Owner{}
	}
}

// joinLock notes that a session holds or waits for a lock.
func (t *txn) joinLock(l *Lock, session *ident) {
	t.st.sessionLocks.add(t.mark, session, l.at)
}

// setLock puts next, nil for none, in the place of old, nil for none.
func (t *txn) setLock(next, old *Lock) {
	revision := t.change()
	from, shared := sharedPlaces(next, old)
	if old != nil {
		t.st.sums[tableLocks].sub(t.hashLock(old, from, len(old.Waiters)-shared))
	}
	named := next
	if next != nil {
		t.st.sums[tableLocks].add(t.hashLock(next, from, len(next.Waiters)-shared))
		t.st.locks.set(t.mark, next.at.in.key, next)
	} else {
		named = old
		t.st.locks.delete(t.mark, old.at.in.key)
	}
	t.countLocks(named.Namespace, int(next.places())-int(old.places()))
	t.events = append(t.events, Event{
		Kind: EventLock, Created: next != nil, Revision: revision, Namespace: named.Namespace, Name: named.Name,
	})
}

// hashLock is the part of the table's sum that comes from a lock: its head, and the places from the given one up to the
// given one, itself included, since it knows who is before it.
func (t *txn) hashLock(l *Lock, from, to int) sum {
	t.scratch = l.appendHead(t.scratch[:0])
	total := hashRecord(tableLocks, t.scratch)
	for i := from; i <= to && i < len(l.Waiters); i++ {
		t.scratch = l.appendPlace(t.scratch[:0], i)
		total.add(hashBytes(t.scratch, seedPlace))
	}
	return total
}

// sharedPlaces returns how many places at the beginning, and how many at the end, are the same in two queues. A queue is
// long and a change of it small: hashing it whole would make its end cost the square of its length.
func sharedPlaces(a, b *Lock) (first, last int) {
	if a == nil || b == nil {
		return 0, 0
	}
	same := func(x, y Waiter) bool { return x.SessionID == y.SessionID && bytes.Equal(x.Value, y.Value) }
	n, m := len(a.Waiters), len(b.Waiters)
	for first < min(n, m) && same(a.Waiters[first], b.Waiters[first]) {
		first++
	}
	for last < min(n, m)-first && same(a.Waiters[n-1-last], b.Waiters[m-1-last]) {
		last++
	}
	return first, last
}
