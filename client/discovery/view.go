package discovery

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Errors of this package.
var (
	// ErrNoSuchService says that the registry lists no instance of the service, and has not since it was first asked.
	ErrNoSuchService = errors.New("no such service")
	// ErrNoneHealthy says that the service has no instance that can serve.
	ErrNoneHealthy = errors.New("no healthy instance")
	// ErrStale says that the view may be older than WithMaxStale allows.
	ErrStale = errors.New("stale beyond bound")
	// ErrTooManyServices says that as many services are in use as WithMaxServices allows.
	ErrTooManyServices = errors.New("too many services")
)

// Source says where a view comes from.
type Source int

const (
	// SourceLive: a node keeps the view current.
	SourceLive Source = iota + 1
	// SourceCached: the view was live, but no node keeps it current now.
	SourceCached
	// SourceFile: the view was read from a file after a restart, and the registry has not answered since.
	SourceFile
)

// String returns "live", "cached" or "file".
func (s Source) String() string {
	switch s {
	case SourceLive:
		return "live"
	case SourceCached:
		return "cached"
	case SourceFile:
		return "file"
	default:
		return fmt.Sprintf("Source(%d)", int(s))
	}
}

// View is a service as of one revision. It is shared: do not modify it, nor what it points to.
type View struct {
	// Namespace of the service.
	Namespace string
	// Service name.
	Service string
	// Instances sorted by id: all that the registry lists, whatever their health, and the protected ones.
	Instances []*registryv1.Instance
	// Healthy are those of Instances that can serve: passing or warning.
	Healthy []*registryv1.Instance
	// Protected are the ids, sorted, of those of Instances that the registry no longer lists. Each is given as it was last.
	Protected []string
	// Point is the revision that the view shows, and in which history.
	Point client.ResumePoint
	// SyncedAt is when a node last confirmed that nothing up to Point is missing. While one serves the watch it does so
	// every few seconds.
	SyncedAt time.Time
	// Staleness is how old the node's own state was at SyncedAt, at most, as it last said, or client.UnknownStaleness.
	Staleness time.Duration
	// Node that served the view, by name.
	Node string
	// Source of the view.
	Source Source

	list    *list // where the lists above are from. Views with the same one differ only in how fresh they are.
	fault   error // what View returns along with it
	trouble error // why it is not live
}

// Age is how long ago the view was known to be current. In a view that is kept it grows; ask the Service for another one.
func (v *View) Age() time.Duration {
	return max(0, time.Since(v.SyncedAt))
}

// Instance returns an instance by its id, or nil.
func (v *View) Instance(id string) *registryv1.Instance {
	if i, ok := search(v.Instances, id); ok {
		return v.Instances[i]
	}
	return nil
}

// judge returns what is to be said about a view: that it is older than the bound (0: none), or what it shows.
func (v *View) judge(bound time.Duration) error {
	if bound == 0 {
		return v.fault
	}
	age := v.Age() + max(0, v.Staleness)
	if age <= bound {
		return v.fault
	}
	err := fmt.Errorf("service %s/%s: %w: last known to be current %s ago, allowed are %s",
		v.Namespace, v.Service, ErrStale, age.Round(time.Millisecond), bound)
	if v.trouble != nil {
		err = fmt.Errorf("%w: %w", err, v.trouble)
	}
	return err
}

// with returns a copy of the view that shows a list.
func (v View) with(l *list) *View {
	v.list, v.Instances, v.Healthy, v.Protected = l, l.instances, l.healthy, l.protected
	return &v
}

// list is what a view lists.
type list struct {
	live      []*registryv1.Instance // that the registry lists, sorted by id
	lost      []suspect              // that are protected, sorted by id
	instances []*registryv1.Instance // all of them, sorted by id
	healthy   []*registryv1.Instance
	protected []string
	number    uint64 // of the lists that were shown, from 1 on; set when it is
}

// newList makes a list. It keeps its arguments.
func newList(live []*registryv1.Instance, lost []suspect) *list {
	l := &list{live: live, lost: lost, instances: live}
	if len(lost) > 0 {
		l.instances = slices.Clone(live)
		for _, s := range lost {
			l.instances = append(l.instances, s.instance)
			l.protected = append(l.protected, s.instance.GetId())
		}
		slices.SortFunc(l.instances, byID)
	}
	fit := 0
	for _, i := range l.instances {
		if healthy(i) {
			fit++
		}
	}
	if l.healthy = l.instances; fit < len(l.instances) {
		l.healthy = make([]*registryv1.Instance, 0, fit)
		for _, i := range l.instances {
			if healthy(i) {
				l.healthy = append(l.healthy, i)
			}
		}
	}
	return l
}

func healthy(i *registryv1.Instance) bool {
	return i.GetHealth() >= registryv1.Health_HEALTH_WARNING
}

func byID(a, b *registryv1.Instance) int { return cmp.Compare(a.GetId(), b.GetId()) }

// search finds an id in a sorted list, or its place.
func search(sorted []*registryv1.Instance, id string) (int, bool) {
	return slices.BinarySearchFunc(sorted, id, func(i *registryv1.Instance, id string) int {
		return cmp.Compare(i.GetId(), id)
	})
}
