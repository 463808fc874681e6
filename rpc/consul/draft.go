package consul

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// draft is what a transaction reads and changes on top of a State.
type draft struct {
	*request
	*txn
	st      *fsm.State
	changed map[string]*kvPair // by key; nil: deleted
	results []drafted
	errors  []txnError
}

// drafted is a result. What it shows may get its revision later.
type drafted struct {
	pair  *kvPair
	value bool // is shown, too
}

// at returns a key as the operations so far have left it, nil if it is not there, and whether one of them has changed it.
func (d *draft) at(key string) (pair *kvPair, mine bool) {
	if pair, mine = d.changed[key]; mine {
		return pair, true
	}
	if k := d.st.Key(d.txn.namespace, key); k != nil {
		found := pairOf(k)
		return &found, false
	}
	return nil, false
}

func (d *draft) set(key string, pair *kvPair) {
	if d.changed == nil {
		d.changed = map[string]*kvPair{}
	}
	d.changed[key] = pair
}

func (d *draft) fail(i int, format string, args ...any) {
	d.errors = append(d.errors, txnError{i, fmt.Sprintf(format, args...)})
}

func (d *draft) show(pair *kvPair, value bool) { d.results = append(d.results, drafted{pair, value}) }

// do does the i-th operation, and returns what has the state machine do it, or refuse if the State was not right; nil if there is no
// such thing.
func (d *draft) do(i int) *raftlogv1.KVOp {
	op := d.ops[i]
	key := op.GetKey()
	switch {
	case d.verbs[i] == verbGetTree:
		for _, pair := range d.tree(key) {
			d.show(pair, true)
		}
		return nil
	case op.GetKind() == 0:
		return d.get(i, key)
	case op.GetKind() == raftlogv1.KVOpKind_KV_OP_KIND_DELETE_PREFIX:
		for _, pair := range d.all(key) {
			d.set(pair.Key, nil)
		}
		return op
	case isWrite(op.GetKind()):
		d.write(op)
		return op
	default:
		d.check(i, op)
		return op
	}
}

// get reads a key.
func (d *draft) get(i int, key string) *raftlogv1.KVOp {
	pair, mine := d.at(key)
	switch {
	case pair != nil:
		d.show(pair, true)
		if mine {
			return nil
		}
		return &raftlogv1.KVOp{Kind: raftlogv1.KVOpKind_KV_OP_KIND_CHECK_REVISION, Key: key, ExpectedRevision: pair.ModifyIndex}
	case d.verbs[i] == verbGet:
		d.fail(i, "key %q doesn't exist", key)
		return nil
	default:
		d.show(&kvPair{Key: key}, true)
		if mine {
			return nil
		}
		return &raftlogv1.KVOp{Kind: raftlogv1.KVOpKind_KV_OP_KIND_CHECK_ABSENT, Key: key}
	}
}

// write notes what an operation leaves, if it succeeds.
func (d *draft) write(op *raftlogv1.KVOp) {
	key := op.GetKey()
	if op.GetKind() == raftlogv1.KVOpKind_KV_OP_KIND_DELETE || op.GetKind() == raftlogv1.KVOpKind_KV_OP_KIND_DELETE_IF {
		d.set(key, nil)
		return
	}
	next := &kvPair{Key: key, Flags: op.GetFlags()}
	if len(op.GetValue()) > 0 {
		next.Value = op.GetValue()
	}
	if before, _ := d.at(key); before != nil {
		next.LockIndex, next.Session, next.CreateIndex = before.LockIndex, before.Session, before.CreateIndex
	}
	switch op.GetKind() {
	case raftlogv1.KVOpKind_KV_OP_KIND_ACQUIRE:
		if next.Session != op.GetSessionId() {
			next.Session = op.GetSessionId()
			next.LockIndex++
		}
	case raftlogv1.KVOpKind_KV_OP_KIND_RELEASE:
		next.Session = ""
	default:
	}
	d.set(key, next)
	d.show(next, false)
}

// check judges a condition, which of a transaction that writes the state machine does, and shows the key.
func (d *draft) check(i int, op *raftlogv1.KVOp) {
	pair, _ := d.at(op.GetKey())
	if pair != nil && op.GetKind() != raftlogv1.KVOpKind_KV_OP_KIND_CHECK_ABSENT {
		d.show(pair, false)
	}
	if d.writes() {
		return
	}
	var why fsm.KVFailure
	var holds bool
	switch op.GetKind() {
	case raftlogv1.KVOpKind_KV_OP_KIND_CHECK_REVISION:
		if pair != nil {
			why.Number = pair.ModifyIndex
		}
		holds = why.Number == op.GetExpectedRevision()
	case raftlogv1.KVOpKind_KV_OP_KIND_CHECK_SESSION:
		holds = pair != nil && pair.Session == op.GetSessionId()
	default:
		holds = pair == nil
	}
	if !holds {
		d.fail(i, "%s", whyFailed(nil, why, op))
	}
}

// all returns the keys that begin with a prefix, sorted.
func (d *draft) all(prefix string) []*kvPair {
	var pairs []*kvPair
	d.st.Keys(d.txn.namespace, prefix, "", func(k *fsm.KeyValue) bool {
		if _, mine := d.changed[k.Key]; !mine {
			found := pairOf(k)
			pairs = append(pairs, &found)
		}
		return true
	})
	for key, pair := range d.changed {
		if pair != nil && strings.HasPrefix(key, prefix) {
			pairs = append(pairs, pair)
		}
	}
	slices.SortFunc(pairs, func(a, b *kvPair) int { return cmp.Compare(a.Key, b.Key) })
	return pairs
}

// tree is all, without what the caller may not see.
func (d *draft) tree(prefix string) []*kvPair {
	return slices.DeleteFunc(d.all(prefix), func(p *kvPair) bool {
		return !d.st.Allowed(d.credential, registryv1.Action_ACTION_KV_READ, d.txn.namespace, p.Key)
	})
}

// answer returns what is answered for a transaction that was done at a revision. after is a State that has it, nil if none is at
// hand.
func (d *draft) answer(revision uint64, after *fsm.State) txnAnswer {
	if len(d.errors) > 0 {
		return txnAnswer{Errors: d.errors}
	}
	for key, pair := range d.changed {
		if pair == nil {
			continue
		}
		pair.ModifyIndex = revision
		pair.CreateIndex = cmp.Or(pair.CreateIndex, revision)
		if after == nil {
			continue
		}
		if k := after.Key(d.txn.namespace, key); k != nil && k.ModifyRevision == revision { // Nobody has changed it since.
			*pair = pairOf(k)
		}
	}
	results := make([]txnResult, 0, len(d.results))
	for _, r := range d.results {
		shown := *r.pair
		if !r.value {
			shown.Value = nil
		}
		results = append(results, txnResult{&shown})
	}
	return txnAnswer{Results: results}
}
