package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster/storage"
	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// ErrNoRemains says that there is nothing in a folder from which a cluster could be recovered.
var ErrNoRemains = errors.New("the folder holds nothing to recover from")

// Remains are what the data folder of a stopped node holds of a cluster that has lost a majority of its disks.
type Remains struct {
	// State is what the node's log leads to, to its last entry. It may hold writes that nobody was told were done, as
	// nobody is left to say which were; it has every acknowledged one that had reached this disk.
	State *fsm.State
	// Self is the node, and Voters are all who voted, itself among them, by the newest configuration that it has.
	Self   *registryv1.Member
	Voters []*registryv1.Member
	// Index and Term are those of its last entry: of several remains the one with the largest term, then index, has most.
	Index, Term uint64

	dir      string
	logStore storage.LogStore
	log      *slog.Logger
}

// ReadRemains reads the folder of a node that is stopped; it changes nothing that the node's own start would not. Errors are
// those of storage.Open (ErrLocked: the node runs), ErrTooOld and ErrNoRemains.
func ReadRemains(dir string, logStore storage.LogStore, log *slog.Logger) (*Remains, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrNoRemains, err) // Opening it would make one.
	}
	store, err := storage.Open(storage.Config{Dir: dir, LogStore: logStore, Logger: log})
	if err != nil {
		return nil, err
	}
	r := &Remains{State: fsm.New(), dir: dir, logStore: logStore, log: log}
	if err = errors.Join(r.read(store), store.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	return r, nil
}

func (r *Remains) read(store *storage.Store) error {
	servers, err := r.readSnapshot(store.Snapshots())
	if err != nil {
		return err
	}
	last, err := store.Logs().LastIndex()
	if err != nil {
		return err
	}
	for i := r.Index + 1; i <= last; i++ {
		var e raft.Log
		if err = store.Logs().GetLog(i, &e); err != nil {
			return fmt.Errorf("log entry %d: %w", i, err)
		}
		r.Index, r.Term = e.Index, e.Term
		switch e.Type { //nolint:exhaustive // The others mean nothing to a registry.
		case raft.LogConfiguration:
			servers = raft.DecodeConfiguration(e.Data).Servers
		case raft.LogCommand:
			if r.State, _, err = r.State.Apply(fsm.Entry{Index: e.Index, Term: e.Term, Data: e.Data}); err != nil {
				return tooOldToApply(fmt.Errorf("apply log entry %d of term %d: %w", e.Index, e.Term, err))
			}
		}
	}
	self := store.Identity().NodeID
	if r.Self = r.State.Member(self); r.Self == nil {
		return fmt.Errorf("%w: its node %s is not a member of a cluster", ErrNoRemains, self)
	}
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			m := r.State.Member(string(s.ID))
			if m == nil { // It has not said yet who it is.
				m = &registryv1.Member{Id: string(s.ID), Name: string(s.ID), PeerAddress: string(s.Address)}
			}
			r.Voters = append(r.Voters, m)
		}
	}
	return nil
}

// readSnapshot begins with the newest snapshot, if there is one.
func (r *Remains) readSnapshot(snapshots raft.SnapshotStore) ([]raft.Server, error) {
	list, err := snapshots.List()
	if err != nil || len(list) == 0 {
		return nil, err
	}
	meta, content, err := snapshots.Open(list[0].ID)
	if err != nil {
		return nil, err
	}
	defer func() { _ = content.Close() }() // Only read.
	if r.State, err = fsm.ReadSnapshot(content); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", meta.ID, err)
	}
	r.Index, r.Term = meta.Index, meta.Term
	return meta.Configuration.Servers, nil
}

// Recover makes the folder that of a new cluster with the node as its only member, and the State as its content. The
// cluster and the node have new ids: no node of the former cluster is heard any more. It returns the id of the cluster, and
// where the folder as it was is kept, beside the new one. The registry begins a new epoch, as after Node.Restore.
func (r *Remains) Recover() (clusterID, kept string, err error) {
	made, kept := r.dir+".recovered", r.dir+".before-recovery"
	if _, err = os.Lstat(kept); err == nil {
		return "", "", fmt.Errorf("recover %s: %s is of a recovery before: move it away: %w", r.dir, kept, fs.ErrExist)
	}
	if err = os.RemoveAll(made); err != nil { // Of a recovery that did not come to its end.
		return "", "", fmt.Errorf("recover %s: %w", r.dir, err)
	}
	clusterID = uuid.NewString()
	if err = r.make(made, clusterID); err == nil {
		err = sameOwner(r.dir, made)
	}
	if err == nil {
		err = os.Rename(r.dir, kept)
	}
	if err == nil {
		err = os.Rename(made, r.dir)
	}
	if err != nil {
		return "", "", fmt.Errorf("recover %s: %w", r.dir, err)
	}
	return clusterID, kept, nil
}

// make writes the folder of the new cluster: a snapshot, and who it is.
func (r *Remains) make(dir, clusterID string) (err error) {
	store, err := storage.Open(storage.Config{Dir: dir, LogStore: r.logStore, Logger: r.log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	self := proto.CloneOf(r.Self)
	self.Id, self.NonVoter = store.Identity().NodeID, false
	founded, err := newborn(clusterID, self)
	if err != nil {
		return err
	}
	st := fsm.Rebase(r.State, founded)
	servers := raft.Configuration{Servers: []raft.Server{
		{ID: raft.ServerID(self.GetId()), Address: raft.ServerAddress(self.GetPeerAddress())},
	}}
	_, encoder := raft.NewInmemTransport("") // Only to encode the member, as the first versions of Raft had it.
	sink, err := store.Snapshots().Create(raft.SnapshotVersionMax, st.Index(), st.Term(), servers, st.Index(), encoder)
	if err != nil {
		return err
	}
	if err = st.WriteSnapshot(sink, nil); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err = sink.Close(); err != nil {
		return err
	}
	if err = store.Stable().SetUint64([]byte("CurrentTerm"), st.Term()); err != nil { // Raft's name.
		return err
	}
	return store.SetClusterID(clusterID)
}

// newborn is the State of a cluster with one member.
func newborn(clusterID string, self *registryv1.Member) (*fsm.State, error) {
	var commands [][]byte
	for _, cmd := range []*raftlogv1.Command{
		{Kind: &raftlogv1.Command_InitCluster{InitCluster: &raftlogv1.InitCluster{ClusterId: clusterID}}},
		{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{Member: self}}},
	} {
		b, err := proto.Marshal(cmd)
		if err != nil {
			return nil, fmt.Errorf("encode command: %w", err)
		}
		commands = append(commands, b)
	}
	entry := fsm.Entry{Index: 1, Term: 1, Data: fsm.AppendEntry(nil, time.Now().UnixMilli(), commands)}
	st, result, err := fsm.New().Apply(entry)
	for _, o := range result.Outcomes {
		err = errors.Join(err, o.Err())
	}
	return st, err
}

// sameOwner gives a new folder to the owner of another: root may recover what belongs to the user that runs regd.
func sameOwner(of, dir string) error {
	info, err := os.Stat(of)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
}

// Quorum is how many of the voters have to be there for the cluster to go on by itself.
func (r *Remains) Quorum() int { return len(r.Voters)/2 + 1 }

// Without are the voters that are not among those with these names or ids. A name that no voter has is ErrMemberNotFound.
func (r *Remains) Without(nodes []string) ([]*registryv1.Member, error) {
	rest := slices.Clone(r.Voters)
	for _, node := range nodes {
		named := func(m *registryv1.Member) bool { return m.GetName() == node || m.GetId() == node }
		if !slices.ContainsFunc(r.Voters, named) {
			return nil, fmt.Errorf("%w: no voter is named %q", ErrMemberNotFound, node)
		}
		rest = slices.DeleteFunc(rest, named)
	}
	return rest, nil
}
