package fsm

import (
	"bytes"
	"encoding/binary"
	"strings"
	"unicode/utf8"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// How keys are kept.
//
// All of it hangs on one pointer in the State, nil before the first command of [KVLevel]. Keys are one table, by namespace and
// key, so that what begins alike stands together. Beside it each namespace that has keys, or had some, has its counts and the
// revision of the last deletion, which can't be told from the keys that are there; and a key that was torn from its owner has a
// lock delay.

// KeyValue is a key at one time. It never changes, and must not be changed.
type KeyValue struct {
	// Namespace and Key name it.
	Namespace, Key string
	// Value is what is kept under it.
	Value []byte
	// Flags are the client's own.
	Flags uint64
	// CreateRevision and ModifyRevision are those of the first and of the last change.
	CreateRevision, ModifyRevision uint64
	// Version is the number of changes, the one that created the key included.
	Version uint64
	// LockIndex is how often a session took the key that nobody owned.
	LockIndex uint64
	// SessionID is who owns it, empty if nobody does.
	SessionID string
}

// Proto returns the key as a message of the caller's own; only the value is shared and must not be changed.
func (k *KeyValue) Proto() *registryv1.KeyValue {
	return &registryv1.KeyValue{
		Namespace:      k.Namespace,
		Key:            k.Key,
		Value:          k.Value,
		Flags:          k.Flags,
		CreateRevision: k.CreateRevision,
		ModifyRevision: k.ModifyRevision,
		Version:        k.Version,
		LockIndex:      k.LockIndex,
		SessionId:      k.SessionID,
	}
}

// bytes is how much of the limits the key takes.
func (k *KeyValue) bytes() uint64 { return uint64(len(k.Key) + len(k.Value)) }

// equal reports whether two keys of one name say the same.
func (k *KeyValue) equal(other *KeyValue) bool {
	return k.ModifyRevision == other.ModifyRevision && k.CreateRevision == other.CreateRevision &&
		k.Version == other.Version && k.LockIndex == other.LockIndex && k.Flags == other.Flags &&
		k.SessionID == other.SessionID && bytes.Equal(k.Value, other.Value)
}

// at returns the identity of the key for the index of what sessions own.
func (k *KeyValue) at() *ident { return &ident{in: newPair(k.Namespace, k.Key)} }

// append encodes the key as a registryv1.KeyValue.
func (k *KeyValue) append(b []byte) []byte {
	b = appendString(b, 1, k.Namespace)
	b = appendString(b, 2, k.Key)
	b = appendBytes(b, 3, k.Value)
	return k.appendTail(b)
}

func (k *KeyValue) appendTail(b []byte) []byte {
	b = appendUint(b, 4, k.Flags)
	b = appendUint(b, 5, k.CreateRevision)
	b = appendUint(b, 6, k.ModifyRevision)
	b = appendUint(b, 7, k.Version)
	b = appendUint(b, 8, k.LockIndex)
	return appendString(b, 9, k.SessionID)
}

// hash hashes the key as a record, with the hash of its value in the place of the value, which may be large and would have to be
// copied. The scratch buffer is for reuse.
func (k *KeyValue) hash(scratch []byte) (sum, []byte) {
	scratch = appendString(scratch[:0], 1, k.Namespace)
	scratch = appendString(scratch, 2, k.Key)
	scratch = appendBytes(scratch, 3, hashBytes(k.Value, seedValue).append(nil))
	scratch = k.appendTail(scratch)
	return hashRecord(tableKeys, scratch), scratch
}

// keyspace is all keys with what is kept beside them. It never changes once its transaction has ended.
type keyspace struct {
	keys       table[*KeyValue]    // by pairKey
	namespaces table[*kvNamespace] // by name: those that have keys, and those that had some not too long ago
	delays     table[int64]        // by pairKey: until when nobody may acquire the key, unix ms
	delayEnds  table[struct{}]     // by end, then pairKey: what is over first
	sessions   links               // session -> keys that it owns
	bytes      uint64              // of all keys and values
	empty      int                 // namespaces without keys
	deleted    uint64              // revision up to which keys of namespaces that are not in the table may have been deleted
	owner      *mark               // who may change this keyspace in place: only the transaction that made it
}

// kvNamespace is what there is of a namespace besides its keys.
type kvNamespace struct {
	keys, bytes uint64
	deleted     uint64 // revision of the last deletion, 0: none
	owner       *mark  // as that of the keyspace
}

// store returns the keyspace, never nil. It must not be changed.
func (s *State) store() *keyspace {
	if s.keyspace == nil {
		return new(keyspace)
	}
	return s.keyspace
}

// Key returns a key, nil if it is not there. It allocates no more than the name takes.
func (s *State) Key(namespace, key string) *KeyValue {
	if s.keyspace == nil {
		return nil
	}
	k, _ := s.keyspace.keys.get(pairKey(namespace, key))
	return k
}

// Keys calls fn for the keys of a namespace that begin with the prefix and come after the given one, in order of their bytes,
// until fn returns false. An empty prefix stands for all keys.
func (s *State) Keys(namespace, prefix, after string, fn func(*KeyValue) bool) {
	if s.keyspace == nil {
		return
	}
	from, first := pairKey(namespace, max(prefix, after)), pairKey(namespace, prefix)
	s.keyspace.keys.ascend(from, func(at string, k *KeyValue) bool {
		if !strings.HasPrefix(at, first) {
			return false
		}
		return after != "" && k.Key == after || fn(k)
	})
}

// KeysDeleted returns a revision after which no key of the namespace was deleted, that of the last deletion if it was not long
// ago; 0: none ever was. Together with the modify revisions of some keys it makes an index that grows with each change of them,
// deletions included. Revisions compare only within one epoch.
func (s *State) KeysDeleted(namespace string) uint64 {
	store := s.store()
	n, ok := store.namespaces.get(namespace)
	if !ok {
		return store.deleted
	}
	return max(n.deleted, store.deleted)
}

// SessionKeys calls fn for the keys that a session owns, sorted by namespace and key, until fn returns false.
func (s *State) SessionKeys(session string, fn func(*KeyValue) bool) {
	store := s.store()
	store.sessions.of(&ident{id: session}, func(at *ident) bool {
		k, _ := store.keys.get(at.in.key)
		return fn(k)
	})
}

// KVUse returns how many keys there are in a namespace, and the bytes of these with their values.
func (s *State) KVUse(namespace string) (keys, bytes uint64) {
	n, ok := s.store().namespaces.get(namespace)
	if !ok {
		return 0, 0
	}
	return n.keys, n.bytes
}

// KVTotal returns how many keys there are in all namespaces, and the bytes of these with their values.
func (s *State) KVTotal() (keys, bytes uint64) {
	store := s.store()
	return uint64(store.keys.len()), store.bytes
}

// LockDelayed returns until when nobody may acquire a key because its last owner ended, in milliseconds since the Unix epoch,
// and false if no lock delay runs by [State.Time].
func (s *State) LockDelayed(namespace, key string) (untilUnixMs int64, ok bool) {
	until, ok := s.store().delays.get(pairKey(namespace, key))
	return until, ok && until > s.time
}

// beginKeys makes a State one that may have keys.
func (s *State) beginKeys() {
	if s.keyspace != nil {
		return
	}
	s.keyspace = &keyspace{}
	s.sums[tableKV] = hashRecord(tableKV, nil)
}

// ownKeys returns the keyspace for changing in place.
func (t *txn) ownKeys() *keyspace {
	if t.st.keyspace.owner != t.mark {
		fork := *t.st.keyspace
		fork.owner = t.mark
		t.st.keyspace = &fork
	}
	return t.st.keyspace
}

// kvNamespace returns what there is of a namespace besides its keys, for changing in place.
func (t *txn) kvNamespace(name string) *kvNamespace {
	store := t.ownKeys()
	n, ok := store.namespaces.get(name)
	switch {
	case !ok:
		n = &kvNamespace{owner: t.mark}
		store.empty++
	case n.owner != t.mark:
		fork := *n
		n = &fork
		n.owner = t.mark
	default:
		return n
	}
	store.namespaces.set(t.mark, strings.Clone(name), n)
	return n
}

// setKey puts next, which has neither revisions nor version yet, in the place of old, nil for none.
func (t *txn) setKey(next KeyValue, old *KeyValue) {
	store, n := t.ownKeys(), t.kvNamespace(next.Namespace)
	next.ModifyRevision = t.change()
	next.CreateRevision, next.Version = next.ModifyRevision, 1
	at := ""
	if old != nil {
		at = pairKey(old.Namespace, old.Key)
		next.CreateRevision, next.Version = old.CreateRevision, old.Version+1
		t.subKey(old)
		n.bytes -= old.bytes()
		store.bytes -= old.bytes()
		if old.SessionID != next.SessionID {
			store.sessions.remove(t.mark, ownerOf(old.SessionID), old.at())
		}
	} else {
		at = pairKey(next.Namespace, next.Key)
		if n.keys == 0 {
			store.empty--
		}
		n.keys++
	}
	next.Namespace, next.Key = at[:len(next.Namespace)], at[len(next.Namespace)+1:]
	n.bytes += next.bytes()
	store.bytes += next.bytes()
	if next.SessionID != "" && (old == nil || old.SessionID != next.SessionID) {
		s := t.st.Session(next.SessionID)
		next.SessionID = s.ID()
		store.sessions.add(t.mark, &s.at, next.at())
	}
	var h sum
	h, t.scratch = next.hash(t.scratch)
	t.st.sums[tableKeys].add(h)
	store.keys.set(t.mark, at, &next)
	t.keyEvent(&next, true)
}

// ownerOf returns the identity of the session that owns something, nil if none does.
func ownerOf(session string) *ident {
	if session == "" {
		return nil
	}
	return &ident{id: session}
}

// deleteKey deletes a key.
func (t *txn) deleteKey(k *KeyValue) {
	store, n, revision := t.ownKeys(), t.kvNamespace(k.Namespace), t.change()
	t.subKey(k)
	store.keys.delete(t.mark, pairKey(k.Namespace, k.Key))
	store.sessions.remove(t.mark, ownerOf(k.SessionID), k.at())
	n.keys--
	n.bytes -= k.bytes()
	store.bytes -= k.bytes()
	if n.deleted != revision {
		t.subDeleted(k.Namespace, n)
		n.deleted = revision
		t.addSum(tableKVNamespaces, appendKVNamespace(t.scratch[:0], k.Namespace, revision))
	}
	t.keyEvent(k, false)
	if n.keys == 0 {
		store.empty++
		t.forgetEmpty()
	}
}

// forgetEmpty forgets which namespaces had keys when there are too many: from then on all deletions are as late as this one.
func (t *txn) forgetEmpty() {
	store := t.ownKeys()
	if store.empty <= MaxEmptyKVNamespaces {
		return
	}
	var names []string
	store.namespaces.ascend("", func(name string, n *kvNamespace) bool {
		if n.keys == 0 {
			names = append(names, name)
			t.subDeleted(name, n)
		}
		return true
	})
	for _, name := range names {
		store.namespaces.delete(t.mark, name)
	}
	store.empty = 0
	t.subSum(tableKV, store.appendRecord(t.scratch[:0]))
	store.deleted = t.st.revision
	t.addSum(tableKV, store.appendRecord(t.scratch[:0]))
}

func (t *txn) subKey(k *KeyValue) {
	var h sum
	h, t.scratch = k.hash(t.scratch)
	t.st.sums[tableKeys].sub(h)
}

// subDeleted takes the last deletion of a namespace, if there was one, out of the hash.
func (t *txn) subDeleted(name string, n *kvNamespace) {
	if n.deleted != 0 {
		t.subSum(tableKVNamespaces, appendKVNamespace(t.scratch[:0], name, n.deleted))
	}
}

func (t *txn) keyEvent(k *KeyValue, there bool) {
	t.events = append(t.events, Event{
		Kind: EventKey, Created: there, Revision: t.st.revision, Namespace: k.Namespace, Name: k.Key,
	})
}

// appendRecord encodes what there is once about keys as a raftlogv1.KVRecord.
func (k *keyspace) appendRecord(b []byte) []byte { return appendUint(b, 1, k.deleted) }

// appendKVNamespace encodes the last deletion of a namespace as a raftlogv1.KVNamespaceRecord.
func appendKVNamespace(b []byte, name string, deleted uint64) []byte {
	b = appendString(b, 1, name)
	return appendUint(b, 2, deleted)
}

// appendLockDelay encodes a lock delay, whose key is that of its table, as a raftlogv1.LockDelayRecord.
func appendLockDelay(b []byte, at string, until int64) []byte {
	namespace, key, _ := strings.Cut(at, "\x00")
	b = appendString(b, 1, namespace)
	b = appendString(b, 2, key)
	return appendUint(b, 3, uint64(until))
}

// delayEnd orders lock delays by their ends. The time never is negative in a state, and big endian sorts as numbers do.
func delayEnd(at string, until int64) string {
	return string(binary.BigEndian.AppendUint64(make([]byte, 0, 8), uint64(until))) + at
}

// leaveKeys releases or deletes the keys of a session that ends. Nobody may acquire them for as long as the session wanted.
func (t *txn) leaveKeys(s *Session) {
	if t.st.keyspace == nil {
		return
	}
	for _, at := range t.st.keyspace.sessions.collect(&s.at) {
		k, _ := t.st.keyspace.keys.get(at.in.key)
		if delay := s.LockDelayMs(); delay > 0 {
			t.delayKey(at.in.key, t.st.time+int64(delay))
		}
		if s.Behavior() == registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE {
			t.deleteKey(k)
			continue
		}
		next := *k
		next.SessionID = ""
		t.setKey(next, k)
	}
}

// delayKey begins a lock delay.
func (t *txn) delayKey(at string, until int64) {
	t.endDelay(at)
	store := t.ownKeys()
	store.delays.set(t.mark, at, until)
	store.delayEnds.set(t.mark, delayEnd(at, until), struct{}{})
	t.scratch = appendLockDelay(t.scratch[:0], at, until)
	t.addSum(tableLockDelays, t.scratch)
}

// endDelay forgets the lock delay of a key, if it has one.
func (t *txn) endDelay(at string) {
	until, ok := t.st.keyspace.delays.get(at)
	if !ok {
		return
	}
	store := t.ownKeys()
	store.delays.delete(t.mark, at)
	store.delayEnds.delete(t.mark, delayEnd(at, until))
	t.scratch = appendLockDelay(t.scratch[:0], at, until)
	t.subSum(tableLockDelays, t.scratch)
}

// sweepDelays forgets the lock delays that are over, a bounded number at a time.
func (t *txn) sweepDelays() {
	if t.st.keyspace == nil {
		return
	}
	for range MaxSwept {
		end, ok := t.st.keyspace.delayEnds.first()
		if !ok || int64(binary.BigEndian.Uint64([]byte(end[:8]))) > t.st.time {
			return
		}
		t.endDelay(end[8:])
	}
}

// validKey accepts a key: not empty, not too long, UTF-8, without control characters.
func validKey(key string) bool { return key != "" && validKeyPrefix(key) }

func validKeyPrefix(prefix string) bool {
	if len(prefix) > MaxKeyBytes || !utf8.ValidString(prefix) {
		return false
	}
	for i := range len(prefix) {
		if prefix[i] < ' ' || prefix[i] == 0x7f {
			return false
		}
	}
	return true
}

// writeKeys writes the tables of [KVLevel].
func (s *State) writeKeys(bw *blockWriter) {
	store := s.keyspace
	if store == nil {
		return
	}
	bw.table(tableKeys)
	store.keys.ascend("", func(_ string, k *KeyValue) bool { return bw.record(k.append(bw.next())) })
	bw.table(tableKVNamespaces)
	store.namespaces.ascend("", func(name string, n *kvNamespace) bool {
		return n.deleted == 0 || bw.record(appendKVNamespace(bw.next(), name, n.deleted))
	})
	bw.table(tableLockDelays)
	store.delays.ascend("", func(at string, until int64) bool { return bw.record(appendLockDelay(bw.next(), at, until)) })
	bw.table(tableKV)
	bw.record(store.appendRecord(bw.next()))
}

// deletions returns how many namespaces there are of which it is known when a key was last deleted.
func (k *keyspace) deletions() int {
	count := 0
	k.namespaces.ascend("", func(_ string, n *kvNamespace) bool {
		if n.deleted != 0 {
			count++
		}
		return true
	})
	return count
}

// rebaseKeys takes the keys from the snapshot. All that is not there counts as deleted now.
func (s *State) rebaseKeys(snapshot, onto *State) {
	if snapshot.keyspace == nil && onto.keyspace == nil {
		return
	}
	next, m := *snapshot.store(), new(mark)
	next.owner, next.deleted, next.empty = nil, s.revision, 0
	next.namespaces = table[*kvNamespace]{}
	snapshot.store().namespaces.ascend("", func(name string, n *kvNamespace) bool {
		if n.keys > 0 {
			next.namespaces.load(m, name, &kvNamespace{keys: n.keys, bytes: n.bytes})
		}
		return true
	})
	s.keyspace = &next
	s.sums[tableKVNamespaces] = sum{}
	s.sums[tableKV] = hashRecord(tableKV, next.appendRecord(nil))
}
