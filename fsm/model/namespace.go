package model

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

const (
	quotaInstances = "instances"
	quotaLocks     = "locks"
)

// Used counts what a namespace has of a resource.
func (m *Registry) Used(namespace, resource string) uint64 {
	n := 0
	if resource == quotaInstances {
		for key := range m.Instances {
			if key.Namespace == namespace {
				n++
			}
		}
		return uint64(n)
	}
	if resource == quotaKeys || resource == quotaKVBytes {
		for at, k := range m.Keys {
			switch {
			case at.Namespace != namespace:
			case resource == quotaKeys:
				n++
			default:
				n += len(at.Name) + len(k.GetValue())
			}
		}
		return uint64(n)
	}
	for name, lock := range m.Locks {
		if name.Namespace == namespace {
			n += len(owners(lock)) + len(lock.GetWaiters())
		}
	}
	return uint64(n)
}

func (m *Registry) limit(namespace, resource string) uint64 {
	q := m.Namespaces[namespace].GetQuota()
	return map[string]uint64{
		quotaInstances: q.GetMaxInstances(), quotaLocks: q.GetMaxLocks(),
		quotaKeys: q.GetMaxKeys(), quotaKVBytes: q.GetMaxKvBytes(),
	}[resource]
}

func exceeded(namespace, resource string, used, limit uint64) *raftlogv1.Outcome {
	return fail(raftlogv1.Code_CODE_QUOTA, fmt.Sprintf("%s %d %d %s", resource, used, limit, namespace))
}

// noRoom refuses one more of a resource where there must not be any.
func (m *Registry) noRoom(namespace, resource string) *raftlogv1.Outcome {
	used, limit := m.Used(namespace, resource), m.limit(namespace, resource)
	if limit == 0 || used < limit {
		return nil
	}
	return exceeded(namespace, resource, used, limit)
}

// overfilled refuses a batch after which a namespace has more instances than it may have and than it had. If there are several
// such namespaces it names the one that got beyond its limit first.
func (m *Registry) overfilled(b *raftlogv1.Batch, before *Registry) *raftlogv1.Outcome {
	there := map[Key]bool{}
	for key := range before.Instances {
		there[key] = true
	}
	count, order := map[string]uint64{}, []string(nil)
	for _, r := range b.GetRegister() {
		var i registryv1.Instance
		if err := proto.Unmarshal(r.GetInstance(), &i); err != nil {
			continue
		}
		ns, key := i.GetNamespace(), Key{i.GetNamespace(), i.GetService(), i.GetId()}
		if _, ok := count[ns]; !ok {
			count[ns] = before.Used(ns, quotaInstances)
		}
		if there[key] {
			continue
		}
		there[key] = true
		if count[ns]++; count[ns] > m.limit(ns, quotaInstances) {
			order = append(order, ns)
		}
	}
	for _, ns := range order {
		used, limit, had := m.Used(ns, quotaInstances), m.limit(ns, quotaInstances), before.Used(ns, quotaInstances)
		if limit > 0 && used > limit && used > had {
			return exceeded(ns, quotaInstances, had, limit)
		}
	}
	return nil
}

func (m *Registry) putNamespace(n *registryv1.Namespace) (bool, *raftlogv1.Outcome) {
	switch {
	case !name(n.GetName()):
		return false, fail(raftlogv1.Code_CODE_INVALID, "name")
	case len(n.GetDescription()) > maxName:
		return false, fail(raftlogv1.Code_CODE_INVALID, "description")
	}
	next := proto.CloneOf(n)
	next.ModifyRevision = m.Revision
	if m.level < 4 && next.GetQuota() != nil {
		next.Quota.MaxKeys, next.Quota.MaxKvBytes = 0, 0
	}
	if proto.Equal(next.GetQuota(), &registryv1.Quota{}) {
		next.Quota = nil
	}
	if old := m.Namespaces[n.GetName()]; old != nil {
		was := proto.CloneOf(old)
		was.ModifyRevision = m.Revision
		if proto.Equal(was, next) {
			return false, done()
		}
	} else if len(m.Namespaces) == maxNamespaces {
		return false, fail(raftlogv1.Code_CODE_LIMIT, "namespaces")
	}
	m.Namespaces[n.GetName()] = next
	return true, done()
}

// judgedBy begins what there is to say of a change that a leader ordered, if one did.
func judgedBy(node string, term uint64) *registryv1.Transition {
	if term == 0 {
		return &registryv1.Transition{}
	}
	return &registryv1.Transition{Judge: node, Term: term}
}

// criticalSince is when the first of the checks that are critical turned so.
func criticalSince(i *registryv1.Instance) int64 {
	var since int64
	for _, c := range i.GetCheckStates() {
		at := c.GetChangedUnixMs()
		if c.GetStatus() == registryv1.CheckStatus_CHECK_STATUS_CRITICAL && (since == 0 || at < since) {
			since = at
		}
	}
	return since
}

// beginHistory begins the history with the first command of level 3.
func (m *Registry) beginHistory(level uint32) {
	if level >= 3 && !m.HistoryBegun {
		m.HistoryBegun, m.HistoryAfter = true, m.Revision
	}
}

// note adds a change of an instance to the history.
func (m *Registry) note(key Key, i *registryv1.Instance, cause registryv1.Cause, health registryv1.Health) {
	if !m.HistoryBegun {
		return
	}
	t := proto.CloneOf(m.why)
	t.Id, t.Service, t.Namespace = key.ID, key.Service, key.Namespace
	t.Revision, t.TimeUnixMs, t.Cause, t.Health = m.Revision, m.Time, cause, health
	t.Incarnation = i.GetIncarnation()
	if identity, ok := m.Identity(m.actor.credential); ok && identity != "anonymous" {
		t.Actor = identity
	}
	m.History = append(m.History, t)
}
