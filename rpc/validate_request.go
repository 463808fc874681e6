package rpc

import (
	"slices"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/regd-io/regd/cluster"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// key checks the name of an instance and fills the default namespace in.
func (f *faults) key(field string, in *apiv1.InstanceKey) *raftlogv1.Key {
	if in == nil {
		f.add(field, "is required")
		return nil
	}
	f.place.enter(field)
	defer f.place.leave()
	out := &raftlogv1.Key{
		Namespace: f.namespace("namespace", in.GetNamespace()),
		Service:   in.GetService(),
		Id:        in.GetId(),
	}
	f.service(in.GetService())
	f.path("id", in.GetId(), MaxInstanceIDLen)
	return out
}

// identified is a request that may carry a request id.
type identified interface {
	proto.Message
	GetRequestId() *apiv1.RequestID
}

// request checks the request id of a write, and returns it as the log carries it: with a hash of everything else in the
// request, so that another request under the same id is noticed. nil: the request has no id.
func (f *faults) request(req identified) *raftlogv1.RequestID {
	id := f.requestID(req.GetRequestId())
	if id != nil {
		id.BodyHash = bodyHash(req)
	}
	return id
}

// requestID checks a request id, nil for none.
func (f *faults) requestID(id *apiv1.RequestID) *raftlogv1.RequestID {
	if id == nil {
		return nil
	}
	f.word("request_id.client_id", id.GetClientId(), MaxIDLen, nameChars)
	if id.GetSequence() == 0 {
		f.add("request_id.sequence", "must be at least 1")
	}
	if id.GetAnsweredBelow() > id.GetSequence() {
		f.add("request_id.answered_below", "is %d, above the sequence %d", id.GetAnsweredBelow(), id.GetSequence())
	}
	return &raftlogv1.RequestID{
		ClientId: id.GetClientId(), Sequence: id.GetSequence(), AnsweredBelow: id.GetAnsweredBelow(),
	}
}

// bodyHash hashes a request without its request id, together with its type. The request was decoded, so it can be encoded:
// what can't, text that is not UTF-8, does not get that far.
func bodyHash(req proto.Message) uint64 {
	m := req.ProtoReflect()
	body := m.New()
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		if field.Name() != "request_id" {
			body.Set(field, value)
		}
		return true
	})
	data, _ := proto.MarshalOptions{Deterministic: true}.MarshalAppend(
		append([]byte(m.Descriptor().FullName()), 0), body.Interface())
	return xxh3.Hash(data)
}

// freshness checks how fresh a read shall be.
func (f *faults) freshness(in *apiv1.Freshness) cluster.Freshness {
	switch in.GetMode() {
	case apiv1.Mode_MODE_UNSPECIFIED, apiv1.Mode_MODE_LINEARIZABLE:
		return cluster.Freshness{Mode: cluster.ModeLinearizable}
	case apiv1.Mode_MODE_BOUNDED:
		bound := f.duration("freshness.max_staleness", in.GetMaxStaleness(), span{least: MinStaleness, most: MaxStaleness})
		return cluster.Freshness{Mode: cluster.ModeBounded, MaxStaleness: bound}
	case apiv1.Mode_MODE_AT_LEAST:
		return cluster.Freshness{Mode: cluster.ModeAtLeast, MinRevision: in.GetMinRevision()}
	case apiv1.Mode_MODE_STALE:
		return cluster.Freshness{Mode: cluster.ModeStale}
	default:
		f.add("freshness.mode", "is unknown: %d", in.GetMode())
		return cluster.Freshness{}
	}
}

// pageSize checks the number of items on a page.
func (f *faults) pageSize(n int32) int {
	switch {
	case n < 0:
		f.add("page_size", "must not be negative, is %d", n)
		return 0
	case n == 0 || n > MaxPageSize:
		return MaxPageSize
	default:
		return int(n)
	}
}

// anyNamespace checks a namespace that may be "*".
func (f *faults) anyNamespace(field, value string) string {
	if value == allNamespaces {
		return value
	}
	return f.namespace(field, value)
}

// allNamespaces stands for all namespaces in a filter.
const allNamespaces = "*"

// filter checks a filter and returns its canonical form: equal filters become equal messages.
func (f *faults) filter(in *apiv1.Filter) *apiv1.Filter {
	f.place.enter("filter")
	defer f.place.leave()
	out := &apiv1.Filter{
		Namespace: f.anyNamespace("namespace", in.GetNamespace()),
		Service:   in.GetService(),
		MinHealth: in.GetMinHealth(),
		Tags:      slices.Compact(f.tags("tags", in.GetTags(), MaxFilterTerms)),
		Zone:      in.GetZone(),
		Metadata:  f.metadata("metadata", in.GetMetadata(), MaxFilterTerms),
	}
	if out.GetService() != "" {
		f.service(out.GetService())
	}
	if _, known := registryv1.Health_name[int32(in.GetMinHealth())]; !known {
		f.add("min_health", "is unknown: %d", in.GetMinHealth())
	}
	f.text("zone", in.GetZone(), MaxZoneLen)
	return out
}

// ids checks the ids of sessions or leases.
func (f *faults) ids(field string, ids []string) {
	if !f.count(field, len(ids), MaxRenewals) {
		return
	}
	for i, id := range ids {
		f.place.enterItem(field, i)
		f.word("", id, MaxIDLen, nameChars)
		f.place.leave()
	}
}

// lock checks the name of a lock and fills the default namespace in.
func (f *faults) lock(namespace, name string) (string, string) {
	namespace = f.namespace("namespace", namespace)
	f.path("name", name, MaxLockNameLen)
	return namespace, name
}
