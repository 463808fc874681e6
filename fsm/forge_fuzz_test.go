package fsm

import (
	"encoding/binary"
	"hash/crc32"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// Forge returns the snapshot with counts, hashes and checksums that are right for whatever records it has; false when
// the records can't be loaded. Without it a changed snapshot fails at its first wrong sum, and what lies behind the sums
// is never tried.
func Forge(snapshot []byte) ([]byte, bool) {
	l := &loader{mark: new(mark), st: new(State)}
	var forged []byte
	for rest := snapshot; len(rest) >= blockHeadBytes; {
		size := min(uint64(binary.LittleEndian.Uint32(rest)), uint64(len(rest)-blockHeadBytes))
		payload := rest[blockHeadBytes : blockHeadBytes+size]
		switch {
		case len(rest) == len(snapshot):
			l.st.claim(payload)
		case size == 0 || l.block(payload) != nil:
			return nil, false
		default:
			forged = appendBlock(forged, payload)
		}
		rest = rest[blockHeadBytes+size:]
	}
	header, err := proto.Marshal(l.st.header())
	return append(appendBlock(nil, append([]byte(snapshotMagic), header...)), forged...), err == nil
}

// claim takes from a header, as far as it can be read, what can't be worked out from the records.
func (s *State) claim(payload []byte) {
	var h raftlogv1.SnapshotHeader
	if len(payload) < len(snapshotMagic) || proto.Unmarshal(payload[len(snapshotMagic):], &h) != nil {
		return
	}
	s.index, s.term, s.revision, s.epoch = h.GetIndex(), h.GetTerm(), h.GetRevision(), h.GetEpoch()
	s.number, s.time, s.clusterID = h.GetLastNumber(), h.GetTimeUnixMs(), h.GetClusterId()
	s.leaps = h.GetLeapsMs()
}

// ChangeRecords returns the snapshot with what change makes of each of its records.
func ChangeRecords(snapshot []byte, change func(table byte, record []byte) [][]byte) []byte {
	var out []byte
	for rest := snapshot; len(rest) >= blockHeadBytes; {
		size := binary.LittleEndian.Uint32(rest)
		payload := rest[blockHeadBytes : blockHeadBytes+size]
		if len(out) == 0 {
			out = appendBlock(nil, payload)
		} else {
			next := payload[:1:1]
			for records := payload[1:]; len(records) > 0; {
				record, n := protowire.ConsumeBytes(records)
				records = records[n:]
				for _, b := range change(payload[0], record) {
					next = protowire.AppendBytes(next, b)
				}
			}
			out = appendBlock(out, next)
		}
		rest = rest[blockHeadBytes+size:]
	}
	return out
}

func appendBlock(b, payload []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli)))
	return append(b, payload...)
}
