package fsm

import (
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// ownKeys returns the keyspace, for loading.
func (l *loader) ownKeys() *keyspace {
	if l.st.keyspace == nil {
		l.st.keyspace = &keyspace{}
	}
	return l.st.keyspace
}

// kvNamespace returns what there is of a namespace besides its keys, for loading.
func (l *loader) kvNamespace(name string) *kvNamespace {
	store := l.ownKeys()
	n, ok := store.namespaces.get(name)
	if !ok {
		n = &kvNamespace{}
		store.namespaces.set(l.mark, name, n)
	}
	return n
}

func (l *loader) key(m *registryv1.KeyValue) error {
	at := pairKey(m.GetNamespace(), m.GetKey())
	k := &KeyValue{
		Namespace: at[:len(m.GetNamespace())], Key: at[len(m.GetNamespace())+1:], Value: m.GetValue(), Flags: m.GetFlags(),
		CreateRevision: m.GetCreateRevision(), ModifyRevision: m.GetModifyRevision(), Version: m.GetVersion(),
		LockIndex: m.GetLockIndex(), SessionID: m.GetSessionId(),
	}
	if !validName(k.Namespace) || !validKey(k.Key) || len(k.Value) > MaxValueBytes || k.CreateRevision == 0 ||
		k.ModifyRevision < k.CreateRevision || k.ModifyRevision > l.st.revision || k.Version == 0 {
		return errMalformed
	}
	store := l.ownKeys()
	if k.SessionID != "" {
		s := l.st.Session(k.SessionID)
		if s == nil {
			return errDangling
		}
		k.SessionID = s.ID()
		store.sessions.add(l.mark, &s.at, k.at())
	}
	n := l.kvNamespace(k.Namespace)
	n.keys++
	n.bytes += k.bytes()
	store.bytes += k.bytes()
	var h sum
	h, l.scratch = k.hash(l.scratch)
	l.st.sums[tableKeys].add(h)
	return load(l, &store.keys, at, k)
}

// kvDeletion loads when a key of a namespace was last deleted.
func (l *loader) kvDeletion(m *raftlogv1.KVNamespaceRecord) error {
	n := l.kvNamespace(m.GetNamespace())
	if !validName(m.GetNamespace()) || m.GetDeletedRevision() == 0 || m.GetDeletedRevision() > l.st.revision {
		return errMalformed
	}
	if n.deleted != 0 || m.GetNamespace() <= l.lastDeletion {
		return errOrder
	}
	n.deleted, l.lastDeletion = m.GetDeletedRevision(), m.GetNamespace()
	if n.keys == 0 {
		l.ownKeys().empty++
	}
	l.add(appendKVNamespace(l.scratch[:0], m.GetNamespace(), n.deleted))
	return nil
}

func (l *loader) lockDelay(m *raftlogv1.LockDelayRecord) error {
	until := m.GetUntilUnixMs()
	if !validName(m.GetNamespace()) || !validKey(m.GetKey()) || until <= 0 || until > l.st.time+MaxLockDelayMs {
		return errMalformed
	}
	at := pairKey(m.GetNamespace(), m.GetKey())
	store := l.ownKeys()
	store.delayEnds.set(l.mark, delayEnd(at, until), struct{}{})
	l.add(appendLockDelay(l.scratch[:0], at, until))
	return load(l, &store.delays, at, until)
}

// kvRecord loads what there is once about keys. It comes last.
func (l *loader) kvRecord(m *raftlogv1.KVRecord) error {
	if l.keysLoaded || m.GetDeletedRevision() > l.st.revision {
		return errMalformed
	}
	store := l.ownKeys()
	store.deleted, l.keysLoaded = m.GetDeletedRevision(), true
	l.add(store.appendRecord(l.scratch[:0]))
	return nil
}
