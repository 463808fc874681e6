package dns

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/regd-io/regd/fsm"
)

// index finds what a State has no order for: services by names in another case or by the end of their names, and
// instances by address. Each of its tables is made when it is first needed, and again when the State has changed, but not more often
// than its period: so a service with capital letters, and what has an address, may be found that much later. What is
// found is looked up in the State at hand. Its methods may be called from any goroutine.
type index struct {
	odd   lazy[oddNames]
	addrs lazy[map[netip.Addr][]identity]
}

func newIndex() *index {
	const names, addresses = 250 * time.Millisecond, time.Second // The latter takes 100 times as long.
	return &index{
		odd:   lazy[oddNames]{period: names, build: indexNames},
		addrs: lazy[map[netip.Addr][]identity]{period: addresses, build: indexAddresses},
	}
}

// lazy is a table made from a State.
type lazy[T any] struct {
	period time.Duration
	build  func(*fsm.State) T

	mu           sync.Mutex
	table        T
	epoch, index uint64 // of the State that it was made from
	made         time.Time
}

// of returns the table of a State, or one that is at most a period older.
func (l *lazy[T]) of(st *fsm.State) T {
	l.mu.Lock()
	defer l.mu.Unlock()
	current := l.index == st.Index() && l.epoch == st.Epoch()
	if l.made.IsZero() || !current && time.Since(l.made) >= l.period {
		l.table, l.epoch, l.index, l.made = l.build(st), st.Epoch(), st.Index(), time.Now()
	}
	return l.table
}

// serviceKey is a service by its name in lower case.
type serviceKey struct{ namespace, name string }

// oddNames are services that are not found by their name in lower case.
type oddNames struct {
	folded   map[serviceKey]string   // names with capital letters, by the same without
	branches map[serviceKey][]string // names with dots, by what is behind one of them
}

func indexNames(st *fsm.State) oddNames {
	odd := oddNames{folded: map[serviceKey]string{}, branches: map[serviceKey][]string{}}
	st.Services("", "", func(svc *fsm.Service) bool {
		namespace, name := svc.Namespace(), svc.Name()
		lower := strings.ToLower(name)
		if key := (serviceKey{namespace, lower}); lower != name && odd.folded[key] == "" {
			odd.folded[key] = name
		}
		for rest := lower; ; {
			_, after, dotted := strings.Cut(rest, ".")
			if !dotted {
				return true
			}
			rest = after
			key := serviceKey{namespace, rest}
			odd.branches[key] = append(odd.branches[key], name)
		}
	})
	return odd
}

// service returns the service of a name in lower case: that one, else the first that is written with capital letters.
func (x *index) service(st *fsm.State, namespace, name string) *fsm.Service {
	if svc := st.Service(namespace, name); svc != nil {
		return svc
	}
	if written := x.odd.of(st).folded[serviceKey{namespace, name}]; written != "" {
		return st.Service(namespace, written)
	}
	return nil
}

// branch tells whether the name of a visible service ends in this one.
func (x *index) branch(st *fsm.State, namespace, name string) bool {
	if name == "" {
		return false
	}
	return slices.ContainsFunc(x.odd.of(st).branches[serviceKey{namespace, name}], func(service string) bool {
		return st.Service(namespace, service) != nil && visible(st, namespace, service)
	})
}

// identity is that of an instance.
type identity struct{ namespace, service, id string }

func indexAddresses(st *fsm.State) map[netip.Addr][]identity {
	table := make(map[netip.Addr][]identity, st.Counts().Instances)
	st.Services("", "", func(svc *fsm.Service) bool {
		svc.Ascend("", func(r *fsm.Record) bool {
			if e := newEndpoint(r, ""); e.addr.IsValid() {
				table[e.addr] = append(table[e.addr], identity{r.Namespace(), r.Service(), r.ID()})
			}
			return true
		})
		return true
	})
	return table
}

// maxNames is how many names of one address are answered.
const maxNames = 16

// names returns the names of the nodes and the visible instances that have an address.
func (x *index) names(st *fsm.State, addr netip.Addr, d *domain) (names []string, denied bool) {
	for _, m := range st.Members() {
		if memberEndpoint(m).addr == addr {
			if !mayObserve(st) {
				denied = true
				continue
			}
			names = append(names, strings.ToLower(m.GetName())+"."+wordNode+"."+d.name)
		}
	}
	for _, at := range x.addrs.of(st)[addr] {
		r := st.Instance(at.namespace, at.service, at.id)
		switch {
		case len(names) == maxNames:
			return names, denied
		case r == nil || newEndpoint(r, "").addr != addr:
		case !visible(st, at.namespace, at.service):
			denied = true
		default:
			if name := instanceName(r, d); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names, denied
}

// instanceName is the name of an instance, or of its service where the id is too long for one.
func instanceName(r *fsm.Record, d *domain) string {
	zone := d.name
	if r.Namespace() != defaultNamespace {
		zone = r.Namespace() + "." + wordNS + "." + zone
	}
	name := r.ID() + "." + r.Service() + "." + wordInstance + "." + zone
	if _, ok := miekg.IsDomainName(name); !ok {
		return r.Service() + "." + wordService + "." + zone
	}
	return name
}
