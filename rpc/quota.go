package rpc

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// ErrRateLimited says that a namespace writes more than its quota lets a node take.
var ErrRateLimited = errors.New("the namespace writes more than its quota allows")

// rateError is an ErrRateLimited that knows when to come back.
type rateError struct{ after time.Duration }

func (e *rateError) Error() string        { return ErrRateLimited.Error() }
func (e *rateError) Is(target error) bool { return target == ErrRateLimited }

// quotas holds at this node those limits of namespaces that are no matter of what all replicas know: how much is written, and
// how many watch. The limits themselves are in the State. The zero value holds nobody back.
type quotas struct {
	mu      sync.Mutex
	meters  map[string]*meter // by namespace with a limit of writes; at most fsm.MaxNamespaces
	watches map[string]uint64 // by namespace, those that are open
}

// meter is a generic cell rate algorithm in its form of virtual scheduling (ITU-T I.371, Annex A). Other than a bucket of
// tokens it takes a batch that is larger than what may come at once, and has those wait that come after it.
type meter struct{ due time.Time }

// take lets so many writes in, or says after how long to come back.
func (m *meter) take(now time.Time, writes, perSecond uint64) (after time.Duration) {
	each := time.Duration(float64(time.Second) / float64(perSecond))
	if m.due.Before(now) {
		m.due = now
	}
	if after = m.due.Sub(now) - (time.Second - each); after > 0 {
		return after
	}
	m.due = m.due.Add(time.Duration(float64(time.Second) * float64(writes) / float64(perSecond)))
	return 0
}

// write lets a command in that writes to namespaces, or fails with ErrRateLimited. What frees is always let in.
func (q *quotas) write(st *fsm.State, cmd *raftlogv1.Command) error {
	if !st.Governed() {
		return nil
	}
	if batch := cmd.GetBatch(); batch != nil {
		return q.writeBatch(st, batch)
	}
	switch kind := cmd.GetKind().(type) {
	case *raftlogv1.Command_Register:
		return q.writeOne(st, namespaceOf(kind.Register.GetInstance()), 1)
	case *raftlogv1.Command_SetCheck:
		return q.writeOne(st, kind.SetCheck.GetKey().GetNamespace(), 1)
	case *raftlogv1.Command_SetDraining:
		return q.writeOne(st, kind.SetDraining.GetKey().GetNamespace(), 1)
	case *raftlogv1.Command_SetMaintenance:
		return q.writeOne(st, kind.SetMaintenance.GetKey().GetNamespace(), 1)
	case *raftlogv1.Command_AcquireLock:
		return q.writeOne(st, kind.AcquireLock.GetNamespace(), 1)
	case *raftlogv1.Command_KvTransaction:
		return q.writeKeys(st, kind.KvTransaction)
	default:
		return nil
	}
}

// writeBatch lets a batch in. Each of its registrations is a write in its namespace.
func (q *quotas) writeBatch(st *fsm.State, batch *raftlogv1.Batch) error {
	writes := map[string]uint64{}
	for _, r := range batch.GetRegister() {
		writes[namespaceOf(r.GetInstance())]++
	}
	for namespace, n := range writes {
		if err := q.writeOne(st, namespace, n); err != nil {
			return err
		}
	}
	return nil
}

// writeKeys lets a transaction in. Each value that it puts is a write, but for those with which a key is released.
func (q *quotas) writeKeys(st *fsm.State, tx *raftlogv1.KVTransaction) error {
	var puts uint64
	for _, op := range tx.GetOps() {
		switch op.GetKind() {
		case raftlogv1.KVOpKind_KV_OP_KIND_SET, raftlogv1.KVOpKind_KV_OP_KIND_SET_IF, raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE:
			puts++
		default:
		}
	}
	if puts == 0 {
		return nil
	}
	return q.writeOne(st, tx.GetNamespace(), puts)
}

func (q *quotas) writeOne(st *fsm.State, namespace string, writes uint64) error {
	limit := st.Quota(namespace).GetMaxWritesPerSecond()
	if limit == 0 {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	m := q.meters[namespace]
	if m == nil {
		q.forgetMeters(st)
		m = new(meter)
		q.meters[namespace] = m
	}
	after := m.take(time.Now(), writes, limit)
	if after == 0 {
		return nil
	}
	per := strconv.FormatUint(limit, 10)
	return explain(&rateError{after}, "namespace "+namespace+" may write "+per+" times a second at each node",
		"namespace", namespace, "resource", "writes_per_second", "limit", per)
}

// forgetMeters makes room for one more, if there may be many of namespaces that have no limit any more.
func (q *quotas) forgetMeters(st *fsm.State) {
	if q.meters == nil || len(q.meters) >= fsm.MaxNamespaces {
		kept := map[string]*meter{}
		for namespace, m := range q.meters {
			if st.Quota(namespace).GetMaxWritesPerSecond() > 0 {
				kept[namespace] = m
			}
		}
		q.meters = kept
	}
}

// watch lets a watch of a namespace in, or fails with fsm.ErrQuota. Whoever was let in calls unwatch in the end.
func (q *quotas) watch(st *fsm.State, namespace string) error {
	if namespace == allNamespaces {
		return nil
	}
	limit := st.Quota(namespace).GetMaxWatches()
	q.mu.Lock()
	defer q.mu.Unlock()
	if used := q.watches[namespace]; limit > 0 && used >= limit {
		what := fmt.Sprintf("namespace %s may have %d watches at each node, and has %d at this one", namespace, limit, used)
		return explain(fsm.ErrQuota, what, quotaFacts(fsm.Quota{Namespace: namespace, Resource: "watches", Used: used, Limit: limit})...)
	}
	if q.watches == nil {
		q.watches = map[string]uint64{}
	}
	q.watches[namespace]++
	return nil
}

// unwatch gives back what watch let in.
func (q *quotas) unwatch(namespace string) {
	if namespace == allNamespaces {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.watches[namespace]--; q.watches[namespace] == 0 {
		delete(q.watches, namespace)
	}
}

// watching returns how many watches of a namespace are open here.
func (q *quotas) watching(namespace string) uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.watches[namespace]
}

// explainQuota adds what a quota of the state machine's refusal is about. Other errors stay as they are.
func explainQuota(err error) error {
	var refused *fsm.Error
	if !errors.As(err, &refused) {
		return err
	}
	quota, ok := refused.Quota()
	if !ok {
		return err
	}
	return explain(fsm.ErrQuota, quota.String(), quotaFacts(quota)...)
}

func quotaFacts(q fsm.Quota) []string {
	return []string{
		"namespace", q.Namespace, "resource", q.Resource,
		"used", strconv.FormatUint(q.Used, 10), "limit", strconv.FormatUint(q.Limit, 10),
	}
}

// namespaceOf returns the namespace of an encoded specification, which has it as its first field.
func namespaceOf(spec []byte) string {
	number, kind, n := protowire.ConsumeTag(spec)
	if n < 0 || number != 1 || kind != protowire.BytesType {
		return ""
	}
	namespace, _ := protowire.ConsumeBytes(spec[n:])
	return string(namespace)
}

// quotaMetrics are the metrics of the namespaces that have a quota, read from the State when somebody asks.
type quotaMetrics struct{ core *core }

//nolint:gochecknoglobals // Descriptions that nobody changes.
var (
	namespaceUsed = prometheus.NewDesc("regd_namespace_used",
		"What there is in a namespace that has a quota, by resource: instances, locks, keys, kv_bytes, and watches at this node.",
		[]string{"namespace", "resource"}, nil)
	namespaceLimit = prometheus.NewDesc("regd_namespace_limit",
		"What a namespace may have by its quota, by resource. A resource without a limit has none.",
		[]string{"namespace", "resource"}, nil)
)

// Describe implements [prometheus.Collector].
func (m quotaMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- namespaceUsed
	ch <- namespaceLimit
}

// Collect implements [prometheus.Collector].
func (m quotaMetrics) Collect(ch chan<- prometheus.Metric) {
	st := m.core.node.Feed().State()
	st.Namespaces("", func(n *fsm.Namespace) bool {
		q := n.Quota()
		if q == nil {
			return true
		}
		name := n.Proto().GetName()
		use := st.NamespaceUse(name)
		for _, row := range [...]struct {
			resource    string
			limit, used uint64
			counted     bool
		}{
			{fsm.QuotaInstances, q.GetMaxInstances(), use.Instances, true},
			{fsm.QuotaLocks, q.GetMaxLocks(), use.Locks, true},
			{fsm.QuotaKeys, q.GetMaxKeys(), use.Keys, true},
			{fsm.QuotaKVBytes, q.GetMaxKvBytes(), use.KVBytes, true},
			{"watches", q.GetMaxWatches(), m.core.quotas.watching(name), true},
			{"writes_per_second", q.GetMaxWritesPerSecond(), 0, false},
		} {
			if row.counted {
				ch <- prometheus.MustNewConstMetric(namespaceUsed, prometheus.GaugeValue, float64(row.used), name, row.resource)
			}
			if row.limit > 0 {
				ch <- prometheus.MustNewConstMetric(namespaceLimit, prometheus.GaugeValue, float64(row.limit), name, row.resource)
			}
		}
		return true
	})
}

// quota checks the limits of a namespace and returns what the registry keeps of them.
func (f *faults) quota(q *registryv1.Quota) *registryv1.Quota {
	return &registryv1.Quota{
		MaxInstances: f.limit("max_instances", q.GetMaxInstances()), MaxLocks: f.limit("max_locks", q.GetMaxLocks()),
		MaxWatches:         f.limit("max_watches", q.GetMaxWatches()),
		MaxWritesPerSecond: f.limit("max_writes_per_second", q.GetMaxWritesPerSecond()),
		MaxKeys:            f.limit("max_keys", q.GetMaxKeys()),
		MaxKvBytes:         f.limit("max_kv_bytes", q.GetMaxKvBytes()),
	}
}

// limit checks one limit: a larger one bounds nothing that a cluster could hold, and is a mistake.
func (f *faults) limit(field string, n uint64) uint64 {
	if n > MaxQuota {
		f.add(field, "must be at most %d, is %d; 0 is unlimited", uint64(MaxQuota), n)
	}
	return n
}
