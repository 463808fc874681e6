package consul

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"

	"github.com/regd-io/regd/fsm"
)

// census has for each namespace what a State has no order for: instances by their node, service id or check id, and which tags
// a service has. The ledger keeps it, and guards it.
type census map[string]*space

// space is what a namespace holds.
type space struct {
	located  map[locatorKind]map[string][]ref // in no order
	services map[string]*tally
	names    map[string][]string // what was made of services last; nil: it has changed since
}

// tally counts the instances of a service, and how many of them have a tag.
type tally struct {
	instances int
	tags      map[string]int
}

// locator is what an instance is looked up by.
type locator struct {
	kind            locatorKind
	namespace, name string
}

type locatorKind uint8

const (
	byNode locatorKind = iota + 1
	byID
	byCheck
)

// ref names an instance in its namespace.
type ref struct{ service, id string }

func compareRefs(a, b ref) int {
	return cmp.Or(cmp.Compare(a.service, b.service), cmp.Compare(a.id, b.id))
}

// count adds an instance, or takes it away, and tells whether a service or a tag has come or gone by it.
func (c census) count(r *fsm.Record, at place, by int) (changed bool) {
	in := c[r.Namespace()]
	if in == nil {
		in = &space{located: map[locatorKind]map[string][]ref{byNode: {}, byID: {}, byCheck: {}}, services: map[string]*tally{}}
		c[r.Namespace()] = in
	}
	here := ref{r.Service(), r.ID()}
	in.locate(byNode, at.node, here, by)
	if at.door {
		for _, check := range r.Checks() {
			var fact checkFact
			if text, ok := r.Metadata(factCheck + check.Name); ok && json.Unmarshal([]byte(text), &fact) == nil && fact.ID != "" {
				in.locate(byCheck, fact.ID, here, by)
			}
		}
	}
	if r.Service() != nodeService {
		in.locate(byID, at.id, here, by)
		if changed = in.tally(r, by); changed {
			in.names = nil
		}
	}
	if len(in.located[byNode]) == 0 {
		delete(c, r.Namespace())
	}
	return changed
}

// locate adds an instance where it is looked up, or takes it away.
func (s *space) locate(kind locatorKind, name string, here ref, by int) {
	refs := s.located[kind][name]
	if by > 0 {
		s.located[kind][name] = append(refs, here)
		return
	}
	i := slices.Index(refs, here)
	if i < 0 {
		return
	}
	last := len(refs) - 1
	refs[i] = refs[last]
	refs[last] = ref{}
	if last == 0 {
		delete(s.located[kind], name)
		return
	}
	s.located[kind][name] = refs[:last]
}

// tally counts an instance and its tags, and tells whether the service or a tag has come or gone by it.
func (s *space) tally(r *fsm.Record, by int) (changed bool) {
	n := s.services[r.Service()]
	if n == nil {
		n = &tally{}
		s.services[r.Service()] = n
		changed = true
	}
	n.instances += by
	for _, tag := range r.Tags() {
		if n.tags == nil {
			n.tags = map[string]int{}
		}
		n.tags[tag] += by
		changed = changed || by > 0 && n.tags[tag] == by || n.tags[tag] == 0
		if n.tags[tag] == 0 {
			delete(n.tags, tag)
		}
	}
	if n.instances == 0 {
		delete(s.services, r.Service())
		changed = true
	}
	return changed
}

// find returns the instances of a locator, in no order. The caller may change the slice.
func (c census) find(at locator) []ref {
	if in := c[at.namespace]; in != nil {
		return slices.Clone(in.located[at.kind][at.name])
	}
	return nil
}

// nodes returns the names of the nodes of a namespace, sorted.
func (c census) nodes(namespace string) []string {
	in := c[namespace]
	if in == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(in.located[byNode]))
}

// names returns the services of a namespace with their tags. Nobody may change the map.
func (c census) names(namespace string) map[string][]string {
	in := c[namespace]
	if in == nil {
		return map[string][]string{}
	}
	if in.names == nil {
		in.names = make(map[string][]string, len(in.services))
		for name, n := range in.services {
			in.names[name] = slices.AppendSeq(make([]string, 0, len(n.tags)), maps.Keys(n.tags))
			slices.Sort(in.names[name])
		}
	}
	return in.names
}
