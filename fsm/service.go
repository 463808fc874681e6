package fsm

import (
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Service is a service at one time: its instances, how many of them are how fit, and when it last changed. A service
// exists while it has instances. It never changes; what its methods return is of one State.
type Service struct {
	at       *pair
	revision uint64
	counts   ServiceCounts
	records  table[*Record] // by id
	owner    *mark          // who may change this Service in place: only the transaction that made it
}

// ServiceCounts says how many instances of a service are how fit.
type ServiceCounts struct {
	// Instances in all.
	Instances uint32
	// Of them, by aggregate health.
	Passing, Warning, Starting, Draining, Critical, Maintenance uint32
}

// of returns the counter of a health.
func (c *ServiceCounts) of(health registryv1.Health) *uint32 {
	switch health {
	case registryv1.Health_HEALTH_PASSING:
		return &c.Passing
	case registryv1.Health_HEALTH_WARNING:
		return &c.Warning
	case registryv1.Health_HEALTH_STARTING:
		return &c.Starting
	case registryv1.Health_HEALTH_DRAINING:
		return &c.Draining
	case registryv1.Health_HEALTH_CRITICAL:
		return &c.Critical
	default:
		return &c.Maintenance
	}
}

// Namespace returns the namespace.
func (s *Service) Namespace() string { return s.at.namespace() }

// Name returns the name.
func (s *Service) Name() string { return s.at.name() }

// Len returns the number of instances.
func (s *Service) Len() int { return s.records.len() }

// Revision returns the revision of the last change to any instance of the service, including one that is gone.
func (s *Service) Revision() uint64 { return s.revision }

// Counts returns how many instances are how fit.
func (s *Service) Counts() ServiceCounts { return s.counts }

// Instance returns the instance of that id, nil if there is none.
func (s *Service) Instance(id string) *Record {
	r, _ := s.records.get(id)
	return r
}

// Ascend calls fn for the instances with ids after the given one, in order of id, until fn returns false. An empty id
// begins with the first.
func (s *Service) Ascend(afterID string, fn func(*Record) bool) {
	s.records.after(afterID, fn)
}

// appendService encodes a service as it is hashed and kept in a snapshot: what its instances do not tell.
func appendService(b []byte, s *Service) []byte {
	b = appendString(b, 1, s.Namespace())
	b = appendString(b, 2, s.Name())
	return appendUint(b, 3, s.revision)
}

// any returns one of the records, nil if there is none.
func (s *Service) any() *Record {
	if s.records.tree == nil {
		return nil
	}
	_, r, _ := s.records.tree.Min()
	return r
}
