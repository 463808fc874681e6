package storage

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/raft"
)

// stable is the raft.StableStore: a checksum over key and value around the
// database. raft knows a key that was never set by the text of the error, so
// the database's own goes through untouched.
type stable struct {
	inner raft.StableStore
	guard *guard
}

var _ raft.StableStore = (*stable)(nil)

// Set makes the value of a key durable.
func (s *stable) Set(key, value []byte) error {
	sealed := sealValue(key, value)
	return s.guard.write(databaseFile, "store the vote or the term", func() error { return s.inner.Set(key, sealed) })
}

// Get returns the value of a key. The error for one never set says "not found".
func (s *stable) Get(key []byte) (value []byte, err error) {
	err = s.guard.read(func() (string, string) { return databaseFile, fmt.Sprintf("key %q", key) }, func() error {
		if value, err = s.inner.Get(key); err != nil {
			return err
		}
		value, err = unsealValue(key, value)
		return err
	})
	return value, err
}

// SetUint64 is Set of a number.
func (s *stable) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 is Get of a number.
func (s *stable) GetUint64(key []byte) (uint64, error) {
	value, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, s.guard.damaged(databaseFile, fmt.Sprintf("key %q", key), fmt.Errorf("%d bytes are not a number", len(value)))
	}
	return binary.BigEndian.Uint64(value), nil
}
