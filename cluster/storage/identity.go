package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/uuid"
)

// The version of the folder's layout, checksums included. A folder with the log
// in raft.db is of the first one: also an older regd may open it.
const (
	format    = 2
	formatWAL = 2
)

// Identity is who the node is, for as long as its folder lives.
type Identity struct {
	// NodeID is a UUID made at the first start.
	NodeID string
	// ClusterID is the cluster the node belongs to; "" until SetClusterID.
	ClusterID string
	// LogStore is what keeps the log.
	LogStore LogStore
}

// identityRecord is node.json.
type identityRecord struct {
	Format    int    `json:"format"`
	NodeID    string `json:"node_id"`
	ClusterID string `json:"cluster_id"`
	LogStore  string `json:"log_store,omitempty"` // since format 2
	Checksum  string `json:"checksum"`
}

func (r identityRecord) sum() string {
	text := fmt.Sprintf("%d %q %q", r.Format, r.NodeID, r.ClusterID)
	if r.LogStore != "" {
		text += fmt.Sprintf(" %q", r.LogStore)
	}
	return fmt.Sprintf("%08x", crc32.Checksum([]byte(text), castagnoli()))
}

// readIdentity returns fs.ErrNotExist when the folder is not made yet.
func readIdentity(dir string) (Identity, error) {
	path := filepath.Join(dir, identityFile)
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Identity{}, err
	}
	if err != nil {
		return Identity{}, accessError(err)
	}
	var r identityRecord
	if err := json.Unmarshal(content, &r); err != nil {
		return Identity{}, corrupt(dir, identityFile, "its JSON", err)
	}
	switch {
	case r.Format > format:
		return Identity{}, fmt.Errorf("%w: %s has format %d, this version reads up to %d", ErrNewerFormat, path, r.Format, format)
	case r.Checksum != r.sum():
		err := fmt.Errorf("checksum is %q, the content has %q", r.Checksum, r.sum())
		return Identity{}, corrupt(dir, identityFile, "its checksum", err)
	case r.Format < 1, (r.Format >= formatWAL) != (r.LogStore == string(LogStoreWAL)), uuid.Validate(r.NodeID) != nil:
		err := fmt.Errorf("format %d, log store %q, node id %q", r.Format, r.LogStore, r.NodeID)
		return Identity{}, corrupt(dir, identityFile, "its content", err)
	}
	id := Identity{NodeID: r.NodeID, ClusterID: r.ClusterID, LogStore: LogStoreBoltDB}
	if r.LogStore != "" {
		id.LogStore = LogStore(r.LogStore)
	}
	return id, nil
}

func writeIdentity(dir string, id Identity) error {
	r := identityRecord{Format: 1, NodeID: id.NodeID, ClusterID: id.ClusterID}
	if id.LogStore == LogStoreWAL {
		r.Format, r.LogStore = formatWAL, string(LogStoreWAL)
	}
	r.Checksum = r.sum()
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	path := filepath.Join(dir, identityFile)
	if err := writeFile(path, append(content, '\n')); err != nil {
		return fmt.Errorf("write %s: %w", path, accessError(err))
	}
	return nil
}

// corrupt makes a CorruptError for a file of the folder. A damaged node can't
// be mended in place, because it may have forgotten a vote or an entry that it
// acknowledged: it comes back empty, as a new member.
func corrupt(dir, file, where string, cause error) *CorruptError {
	return &CorruptError{
		File:  filepath.Join(dir, file),
		Where: where,
		Repair: fmt.Sprintf("'mv %s %s.damaged', start the node again so that it joins empty as a new member, "+
			"and take the old member out with 'regd members remove'", dir, dir),
		Err: cause,
	}
}
