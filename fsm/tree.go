package fsm

import (
	"strings"

	"github.com/tidwall/btree"
)

// degree of all trees: 31 items a node, which measured best between search, copying and garbage.
const degree = 16

// mark identifies a transaction, or a part of one. A tree whose owner is the mark at hand was copied by it already and
// is changed in place; all others are copied first. It is a pointer, so that a mark can never come twice, and not of
// size zero, so that two marks differ.
type mark struct{ _ byte }

// table is a copy-on-write map ordered by its string key. Copying the struct shares the tree; the copy that is changed
// first forks. Invariant: a tree is changed only under the mark that forked it, so a published one never changes.
type table[V any] struct {
	tree  *btree.Map[string, V]
	owner *mark
}

// own forks the tree unless the mark has done so already. The library's Copy writes to its source (it gives both
// sides a new isolation id), so the source is a private copy of the tree's head: what readers hold is only read.
func (tb *table[V]) own(m *mark) {
	switch {
	case tb.tree == nil:
		tb.tree = btree.NewMap[string, V](degree)
	case tb.owner != m:
		head := *tb.tree
		tb.tree = head.Copy()
	}
	tb.owner = m
}

func (tb *table[V]) set(m *mark, key string, value V) {
	tb.own(m)
	tb.tree.Set(key, value)
}

// load is set for keys that come in ascending order.
func (tb *table[V]) load(m *mark, key string, value V) {
	tb.own(m)
	tb.tree.Load(key, value)
}

func (tb *table[V]) delete(m *mark, key string) {
	tb.own(m)
	tb.tree.Delete(key)
}

func (tb *table[V]) get(key string) (V, bool) {
	if tb.tree == nil {
		var none V
		return none, false
	}
	return tb.tree.Get(key)
}

func (tb *table[V]) len() int {
	if tb.tree == nil {
		return 0
	}
	return tb.tree.Len()
}

// ascend calls fn for the keys from the given one on, itself included, until fn returns false.
func (tb *table[V]) ascend(from string, fn func(key string, value V) bool) {
	if tb.tree != nil {
		tb.tree.Ascend(from, fn)
	}
}

// after is ascend without the given key itself.
func (tb *table[V]) after(key string, fn func(value V) bool) {
	tb.ascend(key, func(k string, value V) bool {
		return k == key || fn(value)
	})
}

// first returns the smallest key.
func (tb *table[V]) first() (string, bool) {
	if tb.tree == nil {
		return "", false
	}
	key, _, ok := tb.tree.Min()
	return key, ok
}

// last returns the largest key.
func (tb *table[V]) last() (string, bool) {
	if tb.tree == nil {
		return "", false
	}
	key, _, ok := tb.tree.Max()
	return key, ok
}

// iter returns an iterator before the first item; Next moves to it.
func (tb *table[V]) iter() btree.MapIter[string, V] {
	if tb.tree == nil {
		var none btree.MapIter[string, V]
		return none
	}
	return tb.tree.Iter()
}

// pair is the name of a service or a lock: a namespace and a name in it.
type pair struct {
	key   string // pairKey
	split int    // length of the namespace
}

// pairKey is the key of a (namespace, name) pair in a table. Neither part holds a NUL, so the order of keys is the
// order of pairs.
func pairKey(namespace, name string) string {
	return namespace + "\x00" + name
}

func newPair(namespace, name string) *pair {
	return &pair{key: pairKey(namespace, name), split: len(namespace)}
}

func (p *pair) namespace() string { return p.key[:p.split] }

func (p *pair) name() string { return p.key[p.split+1:] }

// ident is the identity of an instance (in a service), a lock (in its pair, without an id), a session or a lease (with
// an id only). There is one for as long as the thing exists, whatever becomes of its records, so that indexes and
// records point at it.
type ident struct {
	in *pair
	id string
}

func (a *ident) compare(b *ident) int {
	switch {
	case a == b:
		return 0
	case a == nil || a.in == nil && b != nil && b.in != nil:
		return -1
	case b == nil || b.in == nil && a.in != nil:
		return 1
	case a.in != b.in:
		if c := strings.Compare(a.in.key, b.in.key); c != 0 {
			return c
		}
	}
	return strings.Compare(a.id, b.id)
}

// text returns the id of a session or lease, empty for none.
func (a *ident) text() string {
	if a == nil {
		return ""
	}
	return a.id
}

// link says that something hangs on a session or a lease. Nothing sorts first.
type link struct{ owner, at *ident }

func lessLink(a, b link) bool {
	if c := a.owner.compare(b.owner); c != 0 {
		return c < 0
	}
	return a.at.compare(b.at) < 0
}

// links is a copy-on-write index of what hangs on whom. It points at identities, never at records, so that a change of
// a record does not touch it.
type links struct {
	tree  *btree.BTreeG[link]
	owner *mark
}

func (l *links) own(m *mark) {
	switch {
	case l.tree == nil:
		l.tree = btree.NewBTreeGOptions(lessLink, btree.Options{Degree: degree, NoLocks: true})
	case l.owner != m:
		head := *l.tree
		l.tree = head.Copy()
	}
	l.owner = m
}

// add and remove ignore a missing owner: who hangs on nobody is not indexed.
func (l *links) add(m *mark, owner, at *ident) {
	if owner == nil {
		return
	}
	l.own(m)
	l.tree.Set(link{owner, at})
}

func (l *links) remove(m *mark, owner, at *ident) {
	if owner == nil {
		return
	}
	l.own(m)
	l.tree.Delete(link{owner, at})
}

// of calls fn for what hangs on the owner, in order of identity, until fn returns false.
func (l *links) of(owner *ident, fn func(at *ident) bool) {
	if l.tree == nil {
		return
	}
	l.tree.Ascend(link{owner: owner}, func(item link) bool {
		return item.owner.compare(owner) == 0 && fn(item.at)
	})
}

// collect returns what hangs on the owner, for callers that change the index while they walk.
func (l *links) collect(owner *ident) []*ident {
	var all []*ident
	l.of(owner, func(at *ident) bool {
		all = append(all, at)
		return true
	})
	return all
}

// count returns how many hang on the owner.
func (l *links) count(owner *ident) uint32 {
	var n uint32
	l.of(owner, func(*ident) bool {
		n++
		return true
	})
	return n
}

func (l *links) len() int {
	if l.tree == nil {
		return 0
	}
	return l.tree.Len()
}
