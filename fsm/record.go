package fsm

import (
	"bytes"
	"fmt"
	"unique"

	"google.golang.org/protobuf/proto"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Record is one instance at one time. It never changes: a change makes a new Record. It keeps the encoded bytes, which
// are what is hashed, written to snapshots and served, and beside them decoded only what rules and filters need.
type Record struct {
	at           *ident
	session      *ident // nil: none
	lease        *ident // nil: none
	zone, region unique.Handle[string]
	tags         []string
	encoded      []byte // specification, then status
	specLen      uint32
	weight       uint32

	incarnation    uint64
	createRevision uint64
	modifyRevision uint64
	health         registryv1.Health
	draining       bool
	maintenance    bool
	hasChecks      bool
}

// CheckHeader is the name and verdict of a check.
type CheckHeader struct {
	// Name of the check, unique within the instance.
	Name string
	// Status is its verdict.
	Status registryv1.CheckStatus
}

// Namespace returns the namespace.
func (r *Record) Namespace() string { return r.at.in.namespace() }

// Service returns the name of the service.
func (r *Record) Service() string { return r.at.in.name() }

// ID returns the id, unique within the service.
func (r *Record) ID() string { return r.at.id }

// SessionID returns the session that owns the instance, empty if none does.
func (r *Record) SessionID() string { return r.session.text() }

// LeaseID returns the lease that the instance hangs on, empty if none.
func (r *Record) LeaseID() string { return r.lease.text() }

// Zone returns the zone.
func (r *Record) Zone() string { return r.zone.Value() }

// Region returns the region.
func (r *Record) Region() string { return r.region.Value() }

// Tags returns the tags as registered. The slice is shared between records and must not be changed.
func (r *Record) Tags() []string { return r.tags }

// Weight returns the weight as registered; 0 means the default.
func (r *Record) Weight() uint32 { return r.weight }

// Incarnation returns the number of the registration. It grows with each over all instances.
func (r *Record) Incarnation() uint64 { return r.incarnation }

// CreateRevision returns the revision that created the instance.
func (r *Record) CreateRevision() uint64 { return r.createRevision }

// ModifyRevision returns the revision of the last change.
func (r *Record) ModifyRevision() uint64 { return r.modifyRevision }

// Health returns the aggregate health.
func (r *Record) Health() registryv1.Health { return r.health }

// Draining reports whether the instance announced its end.
func (r *Record) Draining() bool { return r.draining }

// Maintenance reports whether an operator took the instance out of service.
func (r *Record) Maintenance() bool { return r.maintenance }

// HasChecks reports whether the instance has checks.
func (r *Record) HasChecks() bool { return r.hasChecks }

// Encoded returns the complete encoded registryv1.Instance. It must not be changed; it never changes, so it may be kept
// and written to any number of streams.
func (r *Record) Encoded() []byte { return r.encoded }

// Spec returns the encoded specification as it was registered, fields 1 to 19. It must not be changed.
func (r *Record) Spec() []byte { return r.encoded[:r.specLen:r.specLen] }

// status returns the encoded fields 20 and up.
func (r *Record) status() []byte { return r.encoded[r.specLen:] }

// Checks returns names and verdicts of the checks, in the order in which they were registered.
func (r *Record) Checks() []CheckHeader {
	if !r.hasChecks {
		return nil
	}
	var st status
	st.decode(r.status())
	headers := make([]CheckHeader, len(st.checks))
	for i := range st.checks {
		headers[i] = CheckHeader{Name: string(st.checks[i].name), Status: st.checks[i].status}
	}
	return headers
}

// CriticalSince returns when the instance turned critical, in milliseconds since the Unix epoch: when the check did
// that has been critical for longest. It is 0 unless the health is critical.
func (r *Record) CriticalSince() int64 {
	if r.health != registryv1.Health_HEALTH_CRITICAL {
		return 0
	}
	var st status
	st.decode(r.status())
	var since int64
	for i := range st.checks {
		critical := st.checks[i].status == registryv1.CheckStatus_CHECK_STATUS_CRITICAL
		if critical && (since == 0 || st.checks[i].changedMs < since) {
			since = st.checks[i].changedMs
		}
	}
	return since
}

// Metadata returns the value of a metadata key. It walks the encoded bytes.
func (r *Record) Metadata(key string) (value string, ok bool) {
	for b := r.Spec(); len(b) > 0; {
		var f field
		n := f.consume(b)
		if n < 0 {
			break
		}
		b = b[n:]
		if f.number != fieldMetadata {
			continue
		}
		if k, v := decodePair(f.bytes); string(k) == key {
			value, ok = string(v), true // as for every map, the last of equal keys counts
		}
	}
	return value, ok
}

func decodePair(b []byte) (key, value []byte) {
	for len(b) > 0 {
		var f field
		n := f.consume(b)
		if n < 0 {
			break
		}
		b = b[n:]
		switch f.number {
		case 1:
			key = f.bytes
		case 2:
			value = f.bytes
		}
	}
	return key, value
}

// Proto decodes the instance into a message of the caller's own.
func (r *Record) Proto() (*registryv1.Instance, error) {
	instance := new(registryv1.Instance)
	if err := proto.Unmarshal(r.encoded, instance); err != nil {
		return nil, fmt.Errorf("decode instance %s/%s/%s: %w", r.Namespace(), r.Service(), r.ID(), err)
	}
	return instance, nil
}

// newRecord makes a record of a valid specification, without what it hangs on and without its bytes. like, which may be
// nil, is any record of the same service: what is equal to its own is shared instead of copied, as replicas of a service
// mostly differ in little.
func newRecord(at *ident, sp *spec, like *Record) *Record {
	r := &Record{at: at, weight: sp.weight, hasChecks: len(sp.checks) > 0}
	if like != nil && like.Zone() == string(sp.zone) {
		r.zone = like.zone
	} else {
		r.zone = unique.Make(string(sp.zone))
	}
	if like != nil && like.Region() == string(sp.region) {
		r.region = like.region
	} else {
		r.region = unique.Make(string(sp.region))
	}
	if like != nil && equalTags(like.tags, sp.tags) {
		r.tags = like.tags
	} else {
		r.tags = copyTags(sp.tags)
	}
	return r
}

// with returns the record with another status and the same specification.
func (r *Record) with(st *status, scratch []byte) (*Record, []byte) {
	next := *r
	return &next, next.encode(r.Spec(), st, scratch)
}

// encode sets the bytes and all that comes from the status. The scratch buffer, which is returned for reuse, serves to
// allocate the exact size.
func (r *Record) encode(encodedSpec []byte, st *status, scratch []byte) []byte {
	scratch = st.append(scratch[:0])
	encoded := make([]byte, 0, len(encodedSpec)+len(scratch))
	encoded = append(encoded, encodedSpec...)
	r.encoded = append(encoded, scratch...)
	r.specLen = uint32(len(encodedSpec))
	r.incarnation = st.incarnation
	r.createRevision = st.createRevision
	r.modifyRevision = st.modifyRevision
	r.health = st.health
	r.draining = st.draining
	r.maintenance = st.maintenance
	return scratch
}

func equalTags(have []string, want [][]byte) bool {
	if len(have) != len(want) {
		return false
	}
	for i := range have {
		if have[i] != string(want[i]) {
			return false
		}
	}
	return true
}

// copyTags copies tags into one string, so that they cost two allocations however many they are.
func copyTags(tags [][]byte) []string {
	if len(tags) == 0 {
		return nil
	}
	joined := string(bytes.Join(tags, nil))
	out := make([]string, len(tags))
	for i := range tags {
		out[i], joined = joined[:len(tags[i])], joined[len(tags[i]):]
	}
	return out
}
