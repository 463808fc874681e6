package storage

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// lockWait is how long bbolt tries to lock its file. Nobody else should have it.
const lockWait = time.Second

// boltLog is the log in raft.db, beside term and vote.
type boltLog struct{ raft.LogStore }

func (boltLog) file(uint64) string { return databaseFile }

// Close does nothing: term and vote need the database for longer.
func (boltLog) Close() error { return nil }

// openDatabase opens a file that is new or was checked. The list of free pages
// is not written with each commit but read from the tree at the start.
func openDatabase(path string, noSync bool) (db *raftboltdb.BoltStore, err error) {
	err = caught(func() error {
		db, err = raftboltdb.New(raftboltdb.Options{
			Path:   path,
			NoSync: noSync,
			BoltOptions: &bbolt.Options{
				Timeout:        lockWait,
				NoFreelistSync: true,
				FreelistType:   bbolt.FreelistMapType,
			},
		})
		return err
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("%w: %s is open in another process", ErrLocked, path)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", path, accessError(err))
	}
	return db, nil
}
