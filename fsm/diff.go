package fsm

import (
	"bytes"

	"github.com/tidwall/btree"
)

// Diff calls fn for each instance that differs between two states, sorted by namespace, service and id, until fn returns
// false. The old record is nil for an instance that came to be, the new one for an instance that is gone. Services that
// the states share are skipped as a whole, so states of one history differ at the cost of what changed and a glance at
// each service.
func Diff(before, after *State, fn func(before, after *Record) bool) {
	merge(&before.services, &after.services, func(old, changed *Service) bool {
		var oldRecords, newRecords table[*Record]
		if old != nil {
			oldRecords = old.records
		}
		if changed != nil {
			newRecords = changed.records
		}
		return merge(&oldRecords, &newRecords, func(a, b *Record) bool {
			return (a != nil && b != nil && bytes.Equal(a.encoded, b.encoded)) || fn(a, b)
		})
	})
}

// DiffKeys calls fn for each key that differs between two states, sorted by namespace and key, until fn returns false. The old
// one is nil for a key that came to be, the new one for a key that is gone.
func DiffKeys(before, after *State, fn func(before, after *KeyValue) bool) {
	merge(&before.store().keys, &after.store().keys, func(a, b *KeyValue) bool {
		return (a != nil && b != nil && a.equal(b)) || fn(a, b)
	})
}

// merge calls fn for each pair of values, by key, that are not one and the same, with nil for a side that lacks the key,
// until fn returns false, and reports whether it never did.
func merge[V comparable](left, right *table[V], fn func(left, right V) bool) bool {
	if left.tree == right.tree {
		return true
	}
	var none V
	l, r := left.iter(), right.iter()
	inLeft, inRight := next(&l), next(&r)
	for inLeft || inRight {
		a, b := none, none
		takeLeft := inLeft && (!inRight || l.Key() <= r.Key())
		takeRight := inRight && (!inLeft || r.Key() <= l.Key())
		if takeLeft {
			a = l.Value()
		}
		if takeRight {
			b = r.Value()
		}
		if a != b && !fn(a, b) {
			return false
		}
		if takeLeft {
			inLeft = next(&l)
		}
		if takeRight {
			inRight = next(&r)
		}
	}
	return true
}

func next[V any](it *btree.MapIter[string, V]) bool { return it.Next() }
