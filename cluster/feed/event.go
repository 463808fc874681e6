package feed

import (
	"cmp"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Event is one change, shared by all who read it and never modified.
type Event struct {
	fsm.Event
}

// Key names what an event is about.
type Key struct {
	Kind fsm.EventKind
	// Namespace of an instance, a lock or a key.
	Namespace string
	// Name is the service of an instance, the name of a lock, the key itself, the id of all else.
	Name string
	// ID is the id of an instance.
	ID string
}

// Compare orders keys by kind, namespace, name and id.
func (k Key) Compare(other Key) int {
	return cmp.Or(
		cmp.Compare(k.Kind, other.Kind),
		cmp.Compare(k.Namespace, other.Namespace),
		cmp.Compare(k.Name, other.Name),
		cmp.Compare(k.ID, other.ID),
	)
}

// Topic chooses events. Instances have the namespace and name of their service.
type Topic struct {
	Kind fsm.EventKind
	// Namespace, AnyNamespace for all. Sessions, leases and members have none.
	Namespace string
	// Name, empty for all.
	Name string
	// Prefix: Name is what names begin with.
	Prefix bool
}

// AnyNamespace is the Topic.Namespace for all.
const AnyNamespace = "*"

// Compare orders topics by kind, namespace and name; of one name a prefix comes last.
func (t Topic) Compare(other Topic) int {
	byPrefix := 0
	switch {
	case t.Prefix == other.Prefix:
	case t.Prefix:
		byPrefix = 1
	default:
		byPrefix = -1
	}
	return cmp.Or(
		cmp.Compare(t.Kind, other.Kind),
		cmp.Compare(t.Namespace, other.Namespace),
		cmp.Compare(t.Name, other.Name),
		byPrefix,
	)
}

// covers tells whether the topic is about the event.
func (t Topic) covers(e *Event) bool {
	namespace, name := e.Subject()
	return t.Kind == e.Kind && t.coversName(name) && (t.Namespace == AnyNamespace || t.Namespace == namespace)
}

// coversName tells whether the topic is about a name.
func (t Topic) coversName(name string) bool {
	return t.Name == "" || t.Name == name || t.Prefix && strings.HasPrefix(name, t.Name)
}

// unchanged tells that nothing of the topic has changed after the revision, as far as the State shows: it does not for a
// service that is gone, nor for more than one.
func (t Topic) unchanged(st *fsm.State, after uint64) bool {
	if t.Kind != fsm.EventInstance || t.Namespace == AnyNamespace || t.Name == "" || t.Prefix {
		return false
	}
	svc := st.Service(t.Namespace, t.Name)
	return svc != nil && svc.Revision() <= after
}

// Record returns the instance after the event or, for a deletion, before it. Nil for what is not about an instance.
func (e *Event) Record() *fsm.Record {
	if e.New != nil {
		return e.New
	}
	return e.Old
}

// Subject returns the namespace and name that topics are matched with.
func (e *Event) Subject() (namespace, name string) {
	if r := e.Record(); r != nil {
		return r.Namespace(), r.Service()
	}
	return e.Namespace, e.Name
}

// Key returns what the event is about.
func (e *Event) Key() Key {
	if r := e.Record(); r != nil {
		return instanceKey(r)
	}
	return Key{Kind: e.Kind, Namespace: e.Namespace, Name: e.Name}
}

func instanceKey(r *fsm.Record) Key {
	return Key{Kind: fsm.EventInstance, Namespace: r.Namespace(), Name: r.Service(), ID: r.ID()}
}

// eventOverhead is about what an event takes besides the encoded instances.
const eventOverhead = 128

// Size is about the bytes that the event holds on to.
func (e *Event) Size() int {
	n := eventOverhead
	if e.New != nil {
		n += len(e.New.Encoded())
	}
	if e.Old != nil {
		n += len(e.Old.Encoded())
	}
	return n
}

// Numbers of the fields of registryv1.Event and of the identity in registryv1.Instance. A test compares them with the
// generated code.
const (
	eventType     protowire.Number = 1
	eventRevision protowire.Number = 2
	eventInstance protowire.Number = 3
	eventCause    protowire.Number = 4

	instanceNamespace   protowire.Number = 1
	instanceService     protowire.Number = 2
	instanceID          protowire.Number = 3
	instanceIncarnation protowire.Number = 20
)

// PutSize is the length of what AppendPut appends.
func (e *Event) PutSize() int {
	return e.size(registryv1.EventType_EVENT_TYPE_PUT, len(e.New.Encoded()))
}

// AppendPut appends the encoded registryv1.Event that says that the instance is now New, which must not be nil. The
// instance's own encoding is copied: nothing is encoded anew, however many read the event.
func (e *Event) AppendPut(dst []byte) []byte {
	dst = e.appendHead(dst, registryv1.EventType_EVENT_TYPE_PUT)
	dst = protowire.AppendTag(dst, eventInstance, protowire.BytesType)
	dst = protowire.AppendBytes(dst, e.New.Encoded())
	return e.appendTail(dst)
}

// DeleteSize is the length of what AppendDelete appends.
func (e *Event) DeleteSize() int {
	return e.size(registryv1.EventType_EVENT_TYPE_DELETE, identitySize(e.known()))
}

// AppendDelete appends the encoded registryv1.Event that says that the instance is gone, or is for this reader as it no
// longer matches. It names the incarnation that the reader knew.
func (e *Event) AppendDelete(dst []byte) []byte {
	r := e.known()
	dst = e.appendHead(dst, registryv1.EventType_EVENT_TYPE_DELETE)
	dst = protowire.AppendTag(dst, eventInstance, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(identitySize(r)))
	dst = appendString(dst, instanceNamespace, r.Namespace())
	dst = appendString(dst, instanceService, r.Service())
	dst = appendString(dst, instanceID, r.ID())
	dst = protowire.AppendTag(dst, instanceIncarnation, protowire.VarintType)
	dst = protowire.AppendVarint(dst, r.Incarnation())
	return e.appendTail(dst)
}

// known returns the record that a reader knew before.
func (e *Event) known() *fsm.Record {
	if e.Old != nil {
		return e.Old
	}
	return e.New
}

func (e *Event) size(t registryv1.EventType, instance int) int {
	return varintFieldSize(eventType, uint64(t)) +
		varintFieldSize(eventRevision, e.Revision) +
		protowire.SizeTag(eventInstance) + protowire.SizeBytes(instance) +
		varintFieldSize(eventCause, uint64(e.Cause))
}

func (e *Event) appendHead(dst []byte, t registryv1.EventType) []byte {
	dst = protowire.AppendTag(dst, eventType, protowire.VarintType)
	dst = protowire.AppendVarint(dst, uint64(t))
	dst = protowire.AppendTag(dst, eventRevision, protowire.VarintType)
	return protowire.AppendVarint(dst, e.Revision)
}

func (e *Event) appendTail(dst []byte) []byte {
	dst = protowire.AppendTag(dst, eventCause, protowire.VarintType)
	return protowire.AppendVarint(dst, uint64(e.Cause))
}

func identitySize(r *fsm.Record) int {
	return stringFieldSize(instanceNamespace, r.Namespace()) +
		stringFieldSize(instanceService, r.Service()) +
		stringFieldSize(instanceID, r.ID()) +
		varintFieldSize(instanceIncarnation, r.Incarnation())
}

func varintFieldSize(n protowire.Number, v uint64) int {
	return protowire.SizeTag(n) + protowire.SizeVarint(v)
}

func stringFieldSize(n protowire.Number, s string) int {
	return protowire.SizeTag(n) + protowire.SizeBytes(len(s))
}

func appendString(dst []byte, n protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(dst, n, protowire.BytesType), s)
}
