package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// ErrBadSnapshot says that a snapshot is damaged, incomplete, not one, or of a later format.
var ErrBadSnapshot = errors.New("bad snapshot")

// A snapshot is a row of blocks. Each block is
//
//	length of the payload, 4 bytes, little endian
//	CRC32C of the payload, 4 bytes, little endian
//	payload
//
// The payload of the first block is a magic string and an encoded raftlogv1.SnapshotHeader. That of every other block is
// the number of a table, one byte, and records of that table in order of their keys, each with its length as a varint
// before it. Tables come in the order of their numbers. Blocks stand for themselves, so that they can be checked and
// decoded apart and damage can be told to the byte.
const (
	snapshotVersion = 1
	snapshotMagic   = "regd snapshot\n"
	blockHeadBytes  = 8
	// blockBytes is the size that blocks are filled to.
	blockBytes = 256 << 10
	// maxBlockBytes is the size of a block that holds a single large record: a lock with a full queue has 1.3 MB, a key 513 KiB.
	maxBlockBytes = 2 << 20
)

// WriteSnapshot writes the state. pace, which may be nil, is called between blocks of up to 256 KiB, so that the caller
// can spread the work over time. States of equal hash and chain at equal index write equal bytes.
func (s *State) WriteSnapshot(w io.Writer, pace func()) error {
	header, err := proto.MarshalOptions{Deterministic: true}.Marshal(s.header())
	if err != nil {
		return fmt.Errorf("encode snapshot header: %w", err)
	}
	bw := &blockWriter{w: w, pace: pace, block: make([]byte, blockHeadBytes, blockBytes+blockHeadBytes)}
	bw.block = append(bw.block, snapshotMagic...)
	bw.block = append(bw.block, header...)
	bw.flush()

	bw.table(tableSessions)
	s.sessions.ascend("", func(_ string, v *Session) bool { return bw.record(v.append(bw.next())) })
	bw.table(tableLeases)
	s.leases.ascend("", func(_ string, v *Lease) bool { return bw.record(v.append(bw.next())) })
	bw.table(tableServices)
	s.services.ascend("", func(_ string, v *Service) bool { return bw.record(appendService(bw.next(), v)) })
	bw.table(tableInstances)
	s.services.ascend("", func(_ string, v *Service) bool {
		v.Ascend("", func(r *Record) bool { return bw.record(appendInstance(bw.next(), r)) })
		return bw.err == nil
	})
	bw.table(tableLocks)
	s.locks.ascend("", func(_ string, v *Lock) bool { return bw.record(v.append(bw.next())) })
	bw.table(tableClients)
	s.clients.ascend("", func(_ string, v *client) bool { return bw.record(v.append(bw.next())) })
	bw.table(tableMembers)
	s.members.ascend("", func(_ string, v *registryv1.Member) bool { return bw.record(appendMember(bw.next(), v)) })
	s.writeAccess(bw)
	s.writeHistory(bw)
	s.writeKeys(bw)
	bw.flush()
	if bw.err != nil {
		return fmt.Errorf("write snapshot: %w", bw.err)
	}
	return nil
}

// writeAccess writes the tables of access control.
func (s *State) writeAccess(bw *blockWriter) {
	if s.access == nil {
		return
	}
	bw.table(tablePolicies)
	s.access.policies.ascend("", func(_ string, v *policy) bool { return bw.record(appendPolicy(bw.next(), v.message)) })
	bw.table(tableTokens)
	s.access.tokens.ascend("", func(_ string, v *Token) bool { return bw.record(v.append(bw.next())) })
	bw.table(tableGrants)
	s.access.grants.ascend("", func(_ string, v *registryv1.Grant) bool { return bw.record(appendGrant(bw.next(), v)) })
	bw.table(tableAccess)
	bw.record(s.access.record.append(bw.next()))
}

// writeHistory writes the tables of [HistoryLevel].
func (s *State) writeHistory(bw *blockWriter) {
	if !s.history.begun {
		return
	}
	bw.table(tableNamespaces)
	s.Namespaces("", func(n *Namespace) bool { return bw.record(appendNamespace(bw.next(), n.message)) })
	bw.table(tableHistory)
	bw.record(s.history.record.append(bw.next()))
	bw.table(tableTransitions)
	for _, b := range s.history.closed {
		bw.record(append(bw.next(), b...))
	}
	if s.history.open != nil {
		bw.record(append(bw.next(), s.history.open.bytes[:s.history.used]...))
	}
}

// appendInstance encodes a record as a raftlogv1.InstanceRecord.
func appendInstance(b []byte, r *Record) []byte {
	b = appendBytes(b, 1, r.Spec())
	return appendBytes(b, 2, r.status())
}

// header returns the header of the state's snapshot.
func (s *State) header() *raftlogv1.SnapshotHeader {
	hash, chain := s.Hash(), s.Chain()
	h := &raftlogv1.SnapshotHeader{
		Version:    snapshotVersion,
		ClusterId:  s.clusterID,
		Index:      s.index,
		Term:       s.term,
		Revision:   s.revision,
		Epoch:      s.epoch,
		TimeUnixMs: s.time,
		LeapsMs:    s.leaps,
		LastNumber: s.number,
		StateHash:  hash[:],
		Chain:      chain[:],
	}
	counts := s.tableCounts()
	for id := range s.tablesInUse() {
		h.TableHashes = append(h.TableHashes, s.sums[id].append(nil))
		h.TableCounts = append(h.TableCounts, uint64(counts[id]))
	}
	return h
}

func (s *State) tableCounts() [tableCount]int {
	counts := [tableCount]int{
		tableSessions:  s.sessions.len(),
		tableLeases:    s.leases.len(),
		tableServices:  s.services.len(),
		tableInstances: s.instances,
		tableLocks:     s.locks.len(),
		tableClients:   s.clients.len(),
		tableMembers:   s.members.len(),
	}
	if s.access != nil {
		counts[tablePolicies] = s.access.policies.len()
		counts[tableTokens] = s.access.tokens.len()
		counts[tableGrants] = s.access.grants.len()
		counts[tableAccess] = 1
	}
	if s.history.begun {
		counts[tableNamespaces] = s.namespaces.len()
		counts[tableHistory] = 1
		counts[tableTransitions] = s.history.len()
	}
	if store := s.keyspace; store != nil {
		counts[tableKeys] = store.keys.len()
		counts[tableKVNamespaces] = store.deletions()
		counts[tableLockDelays] = store.delays.len()
		counts[tableKV] = 1
	}
	return counts
}

// blockWriter gathers records into blocks. After an error it does nothing.
type blockWriter struct {
	w       io.Writer
	pace    func()
	block   []byte // head, table, records
	scratch []byte // the record that is being encoded
	id      tableID
	blocks  int
	err     error
}

// table ends the block under way: the next record begins one of another table.
func (bw *blockWriter) table(id tableID) {
	bw.flush()
	bw.id = id
}

// next returns the space to encode the next record into.
func (bw *blockWriter) next() []byte { return bw.scratch[:0] }

// record adds an encoded record and reports whether to go on.
func (bw *blockWriter) record(encoded []byte) bool {
	bw.scratch = encoded
	empty := len(bw.block) == blockHeadBytes
	if !empty && len(bw.block)+protowire.SizeBytes(len(encoded)) > blockBytes {
		bw.flush()
		empty = true
	}
	if empty {
		bw.block = append(bw.block, byte(bw.id))
	}
	bw.block = protowire.AppendBytes(bw.block, encoded)
	return bw.err == nil
}

// flush writes the block under way, if there is anything in it.
func (bw *blockWriter) flush() {
	if len(bw.block) == blockHeadBytes || bw.err != nil {
		return
	}
	if bw.blocks > 0 && bw.pace != nil {
		bw.pace()
	}
	bw.blocks++
	payload := bw.block[blockHeadBytes:]
	binary.LittleEndian.PutUint32(bw.block[0:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(bw.block[4:], crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli)))
	_, bw.err = bw.w.Write(bw.block)
	bw.block = bw.block[:blockHeadBytes]
}

// blockReader reads blocks one by one and checks them.
type blockReader struct {
	r      io.Reader
	block  []byte
	number int   // of the block read last, from 1
	offset int64 // of that block
	end    int64
}

// next returns the payload of the next block, valid until the one after, or io.EOF after the last.
func (br *blockReader) next() ([]byte, error) {
	var head [blockHeadBytes]byte
	br.offset = br.end
	n, err := io.ReadFull(br.r, head[:])
	br.end += int64(n)
	if errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	br.number++
	if err != nil {
		return nil, br.bad("read its head: %w", err)
	}
	size := binary.LittleEndian.Uint32(head[0:])
	if size == 0 || size > maxBlockBytes {
		return nil, br.bad("length %d", size)
	}
	if cap(br.block) < int(size) {
		br.block = make([]byte, max(size, blockBytes))
	}
	payload := br.block[:size]
	n, err = io.ReadFull(br.r, payload)
	br.end += int64(n)
	if err != nil {
		return nil, br.bad("read its %d bytes: %w", size, err)
	}
	if crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(head[4:]) {
		return nil, br.bad("checksum does not match")
	}
	return payload, nil
}

// header reads the first block.
func (br *blockReader) header() (*raftlogv1.SnapshotHeader, error) {
	payload, err := br.next()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: empty", ErrBadSnapshot)
	}
	if err != nil {
		return nil, err
	}
	if len(payload) < len(snapshotMagic) || string(payload[:len(snapshotMagic)]) != snapshotMagic {
		return nil, fmt.Errorf("%w: not a snapshot of regd", ErrBadSnapshot)
	}
	h := new(raftlogv1.SnapshotHeader)
	if err := proto.Unmarshal(payload[len(snapshotMagic):], h); err != nil {
		return nil, br.bad("decode header: %w", err)
	}
	if h.GetVersion() != snapshotVersion {
		return nil, fmt.Errorf("%w: format %d, this version reads %d", ErrBadSnapshot, h.GetVersion(), snapshotVersion)
	}
	tables := len(h.GetTableHashes())
	known := []int{int(tablePolicies), int(tableNamespaces), int(tableKeys), int(tableCount)}
	if tables != len(h.GetTableCounts()) || !slices.Contains(known, tables) {
		return nil, br.bad("header names %d tables, not one of %v", tables, known)
	}
	if len(h.GetStateHash()) != 16 || len(h.GetChain()) != 16 {
		return nil, br.bad("header without hashes")
	}
	return h, nil
}

// bad says what is wrong with the block read last, and where it is.
func (br *blockReader) bad(format string, args ...any) error {
	return fmt.Errorf("%w: block %d at byte %d: %w", ErrBadSnapshot, br.number, br.offset, fmt.Errorf(format, args...))
}

// ReadSnapshotHeader reads the header of a snapshot and no more than its first block.
func ReadSnapshotHeader(r io.Reader) (*raftlogv1.SnapshotHeader, error) {
	br := &blockReader{r: r}
	return br.header()
}
