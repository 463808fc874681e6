package dns

import (
	"sync"

	miekg "github.com/miekg/dns"

	"github.com/regd-io/regd/fsm"
)

// cache remembers answers about services. An entry counts for the State that it was made from; for another one the name is
// resolved again, but the records are kept while the service is the same. It keeps no State, only what tells one from
// another. Its methods may be called from any goroutine.
type cache struct {
	mu      sync.RWMutex
	entries map[cacheKey]*cached
	size    int
}

type cacheKey struct {
	domain *domain
	rest   string
	qtype  uint16
}

// cached is an entry. It never changes.
type cached struct {
	epoch, index uint64 // of the State
	from         source
	answer       *answer
}

// Limits of the cache. Beyond them it is emptied: what is asked often is soon there again.
const (
	maxCached      = 4096
	maxCachedBytes = 16 << 20
	// recordOverhead is about what a record takes besides its bytes, and an entry.
	recordOverhead = 160
)

func newCache() *cache { return &cache{entries: make(map[cacheKey]*cached)} }

// answer answers a question whose domain is one of ours.
func (c *cache) answer(t *translator, st *fsm.State, q *question) *answer {
	c.mu.RLock()
	e := c.entries[cacheKey{q.domain, string(q.rest), q.qtype}]
	c.mu.RUnlock()
	var known source
	if e != nil {
		if e.index == st.Index() && e.epoch == st.Epoch() {
			return e.answer
		}
		known = e.from
	}
	rest := string(q.rest)
	a, from := t.translate(st, q.domain, rest, q.qtype, known)
	if a == nil {
		a = e.answer
	}
	if from.service != "" && cacheable(q.qtype) {
		c.put(cacheKey{q.domain, rest, q.qtype}, &cached{st.Epoch(), st.Index(), from, a})
	}
	return a
}

// cacheable tells whether a type is worth it. Others are refused or empty.
func cacheable(qtype uint16) bool {
	return qtype == miekg.TypeA || qtype == miekg.TypeAAAA || qtype == miekg.TypeSRV || qtype == miekg.TypeTXT
}

func (c *cache) put(key cacheKey, e *cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.entries[key]; old != nil {
		c.size -= old.bytes()
	}
	if len(c.entries) >= maxCached || c.size+e.bytes() > maxCachedBytes {
		clear(c.entries)
		c.size = 0
	}
	c.entries[key] = e
	c.size += e.bytes()
}

func (e *cached) bytes() int {
	return e.answer.size + (1+len(e.answer.records))*recordOverhead
}
