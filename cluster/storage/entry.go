package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/hashicorp/raft"
)

// sumSize is how many bytes of checksum end an entry's extensions and a value
// of the stable store.
const sumSize = 4

var errShort = errors.New("too short to hold a checksum")

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // made once, by the library

// entrySum is the CRC32C over all of an entry: a flipped bit in any field shows.
func entrySum(e *raft.Log, extensions []byte) uint32 {
	var head [8 + 8 + 1 + 8 + 4 + 8]byte
	binary.BigEndian.PutUint64(head[0:], e.Index)
	binary.BigEndian.PutUint64(head[8:], e.Term)
	head[16] = byte(e.Type)
	binary.BigEndian.PutUint64(head[17:], uint64(e.AppendedAt.Unix()))
	binary.BigEndian.PutUint32(head[25:], uint32(e.AppendedAt.Nanosecond()))
	binary.BigEndian.PutUint64(head[29:], uint64(len(e.Data)))
	table := castagnoli()
	sum := crc32.Update(0, table, head[:])
	sum = crc32.Update(sum, table, e.Data)
	return crc32.Update(sum, table, extensions)
}

// seal returns copies of the entries with their checksums appended to the
// extensions. raft's own entries stay as they are: they also go to followers.
func seal(entries []*raft.Log) []*raft.Log {
	size := 0
	for _, e := range entries {
		size += len(e.Extensions) + sumSize
	}
	buf := make([]byte, 0, size)
	copies := make([]raft.Log, len(entries))
	sealed := make([]*raft.Log, len(entries))
	for i, e := range entries {
		start := len(buf)
		buf = append(buf, e.Extensions...)
		buf = binary.BigEndian.AppendUint32(buf, entrySum(e, e.Extensions))
		copies[i] = *e
		copies[i].Extensions = buf[start:len(buf):len(buf)]
		sealed[i] = &copies[i]
	}
	return sealed
}

// unseal verifies an entry read at index and takes its checksum off.
func unseal(index uint64, e *raft.Log) error {
	if e.Index != index {
		return fmt.Errorf("entry says it has index %d", e.Index)
	}
	split := len(e.Extensions) - sumSize
	if split < 0 {
		return errShort
	}
	stored := binary.BigEndian.Uint32(e.Extensions[split:])
	if sum := entrySum(e, e.Extensions[:split]); sum != stored {
		return fmt.Errorf("checksum is %08x, the entry has %08x", stored, sum)
	}
	e.Extensions = e.Extensions[:split:split]
	if split == 0 {
		e.Extensions = nil
	}
	return nil
}

// sealValue and unsealValue do the same for the stable store. The key is part
// of it, because a damaged key would read as "never voted".
func sealValue(key, value []byte) []byte {
	sealed := make([]byte, 0, len(value)+sumSize)
	sealed = append(sealed, value...)
	return binary.BigEndian.AppendUint32(sealed, valueSum(key, value))
}

func unsealValue(key, sealed []byte) ([]byte, error) {
	split := len(sealed) - sumSize
	if split < 0 {
		return nil, errShort
	}
	stored := binary.BigEndian.Uint32(sealed[split:])
	if sum := valueSum(key, sealed[:split]); sum != stored {
		return nil, fmt.Errorf("checksum is %08x, the value has %08x", stored, sum)
	}
	return sealed[:split:split], nil
}

func valueSum(key, value []byte) uint32 {
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(len(key)))
	sum := crc32.Update(0, castagnoli(), size[:])
	sum = crc32.Update(sum, castagnoli(), key)
	return crc32.Update(sum, castagnoli(), value)
}
