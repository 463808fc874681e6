package discovery

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Layout of a file: magic, version, body, CRC32C of all before (4 bytes, big endian). The body is a row of fields, each
// with its length before it as an unsigned varint:
//
//	namespace
//	service
//	time of sync, Unix milliseconds as a varint
//	ListInstancesResponse: the point in its header, and what the registry listed there
//	ListInstancesResponse: the protected instances
//
// and for each of those the time since when it is lost, as the time above. A reader refuses versions that it does not know:
// a cache is lost then, nothing more.
const (
	fileMagic   = "regdview"
	fileVersion = 1
	// maxFileBytes bounds a file: what is larger is neither written nor read.
	maxFileBytes = 64 << 20
)

// stored is what a file has.
type stored struct {
	name     name
	point    client.ResumePoint
	syncedAt time.Time
	live     []*registryv1.Instance // sorted by id
	lost     []suspect              // sorted by id, none of them in live
}

// encode returns the file.
func (s *stored) encode() ([]byte, error) {
	b := append([]byte(fileMagic), fileVersion)
	b = appendField(b, []byte(s.name.namespace))
	b = appendField(b, []byte(s.name.service))
	b = appendTime(b, s.syncedAt)
	live := &apiv1.ListInstancesResponse{Instances: s.live, Header: &apiv1.ResponseHeader{
		ClusterId: s.point.ClusterID, Epoch: s.point.Epoch, Revision: s.point.Revision,
	}}
	lost := &apiv1.ListInstancesResponse{}
	for _, l := range s.lost {
		lost.Instances = append(lost.Instances, l.instance)
	}
	for _, m := range []proto.Message{live, lost} {
		field, err := proto.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("encode: %w", err)
		}
		b = appendField(b, field)
	}
	for _, l := range s.lost {
		b = appendTime(b, l.since)
	}
	if len(b) > maxFileBytes-crc32.Size {
		return nil, fmt.Errorf("%d bytes: at most %d are kept", len(b), maxFileBytes-crc32.Size)
	}
	return binary.BigEndian.AppendUint32(b, checksum(b)), nil
}

// errCorrupt says that a file is not as it was written.
var errCorrupt = errors.New("corrupt")

// decode reads a file.
func decode(b []byte) (*stored, error) {
	body := len(b) - crc32.Size
	switch {
	case body < len(fileMagic)+1 || !bytes.HasPrefix(b, []byte(fileMagic)):
		return nil, fmt.Errorf("%w: not a view", errCorrupt)
	case b[len(fileMagic)] != fileVersion:
		return nil, fmt.Errorf("version %d: only %d is known", b[len(fileMagic)], fileVersion)
	case binary.BigEndian.Uint32(b[body:]) != checksum(b[:body]):
		return nil, fmt.Errorf("%w: the checksum does not fit", errCorrupt)
	}
	r := fieldReader{rest: b[len(fileMagic)+1 : body]}
	s := &stored{name: name{namespace: string(r.field()), service: string(r.field())}, syncedAt: r.time()}
	var live, lost apiv1.ListInstancesResponse
	r.message(&live)
	r.message(&lost)
	for _, i := range lost.GetInstances() {
		s.lost = append(s.lost, suspect{instance: i, since: r.time()})
	}
	if r.failed || len(r.rest) > 0 {
		return nil, fmt.Errorf("%w: fields are missing, or too many", errCorrupt)
	}
	h := live.GetHeader()
	s.point = client.ResumePoint{ClusterID: h.GetClusterId(), Epoch: h.GetEpoch(), Revision: h.GetRevision()}
	s.live = live.GetInstances()
	return s, s.check()
}

// check tells whether what was read can be a view: what it is used for relies on that.
func (s *stored) check() error {
	if s.point.ClusterID == "" || s.point.Revision == 0 {
		return fmt.Errorf("%w: no point in it", errCorrupt)
	}
	all := slices.Clone(s.live)
	for _, l := range s.lost {
		all = append(all, l.instance)
	}
	for _, i := range all {
		if (name{namespace: i.GetNamespace(), service: i.GetService()}) != s.name {
			return fmt.Errorf("%w: an instance of another service in it", errCorrupt)
		}
	}
	slices.SortFunc(all, byID)
	rising := func(list []*registryv1.Instance) bool {
		for n := 1; n < len(list); n++ {
			if list[n-1].GetId() >= list[n].GetId() {
				return false
			}
		}
		return true
	}
	if !rising(s.live) || !rising(all) {
		return fmt.Errorf("%w: instances out of order", errCorrupt)
	}
	return nil
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func appendField(b, field []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(field))), field...)
}

// appendTime appends a time, which is after 1970.
func appendTime(b []byte, t time.Time) []byte {
	return binary.AppendUvarint(b, uint64(max(0, t.UnixMilli())))
}

// fieldReader reads a body. After a failure it returns zero values.
type fieldReader struct {
	rest   []byte
	failed bool
}

func (r *fieldReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.failed = true
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *fieldReader) field() []byte {
	n := r.uvarint()
	if r.failed || n > uint64(len(r.rest)) {
		r.failed = true
		return nil
	}
	field := r.rest[:n]
	r.rest = r.rest[n:]
	return field
}

func (r *fieldReader) time() time.Time {
	return time.UnixMilli(int64(min(r.uvarint(), math.MaxInt64)))
}

func (r *fieldReader) message(m proto.Message) {
	if field := r.field(); !r.failed && proto.Unmarshal(field, m) != nil {
		r.failed = true
	}
}
