package balance

import (
	"fmt"
	"slices"
	"strings"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Filter selects instances, for a Request or a Split. Make one once and use it for every pick: a Balancer recognises it and
// keeps a plan for it, which a new Filter for each pick would have to make again each time.
type Filter struct {
	name  string
	match func(*registryv1.Instance) bool
}

// FilterFunc returns the filter that a function decides. It must be pure, and answer for the same instance as long as that
// is not updated the same. The name is what errors and explanations call it.
func FilterFunc(name string, match func(*registryv1.Instance) bool) *Filter {
	return &Filter{name: name, match: match}
}

// HasTag selects instances with the tag.
func HasTag(tag string) *Filter {
	return FilterFunc(fmt.Sprintf("tag %q", tag), func(i *registryv1.Instance) bool { return slices.Contains(i.GetTags(), tag) })
}

// HasMetadata selects instances whose metadata has the value under the key.
func HasMetadata(key, value string) *Filter {
	return FilterFunc(fmt.Sprintf("metadata %s=%q", key, value), func(i *registryv1.Instance) bool {
		have, ok := i.GetMetadata()[key]
		return ok && have == value
	})
}

// All selects instances that every one of the filters does.
func All(filters ...*Filter) *Filter {
	names := make([]string, len(filters))
	for i, f := range filters {
		names[i] = f.name
	}
	return FilterFunc(strings.Join(names, " and "), func(i *registryv1.Instance) bool {
		return !slices.ContainsFunc(filters, func(f *Filter) bool { return !f.match(i) })
	})
}

// Not selects instances that the filter does not.
func Not(f *Filter) *Filter {
	return FilterFunc("not ("+f.name+")", func(i *registryv1.Instance) bool { return !f.match(i) })
}

// String returns the filter in words.
func (f *Filter) String() string { return f.name }
