package cluster

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/regd-io/regd/cluster/storage"
	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// The feature level of a cluster is that of its oldest member; commands of that level are in its log as soon as a client
// writes. So it may rise but not fall: whoever can't apply them neither joins, nor starts, nor goes on.

// reached is the level that a cluster has reached. Unlike State.FeatureLevel it may be above what this version knows.
func reached(st *fsm.State) uint32 {
	members := st.Members()
	if len(members) == 0 {
		return st.FeatureLevel()
	}
	lowest := levelOf(members[0])
	for _, m := range members {
		lowest = min(lowest, levelOf(m))
	}
	return max(lowest, st.FeatureLevel())
}

// levelOf is the level of a member: the first versions did not say that they had one.
func levelOf(m *registryv1.Member) uint32 { return max(m.GetFeatureLevel(), 1) }

// levelError returns ErrFeatureLevel for a command of a level that not all members can apply.
func levelError(st *fsm.State, level uint32) error {
	highest := st.FeatureLevel()
	if level <= highest {
		return nil
	}
	err := fmt.Errorf("%w: the command needs feature level %d, the cluster has %d", ErrFeatureLevel, level, highest)
	for _, m := range st.Members() {
		if levelOf(m) == highest {
			return fmt.Errorf("%w, by its member %s of version %q: upgrade it", err, m.GetName(), m.GetVersion())
		}
	}
	return err
}

// tooOldToJoin returns ErrMembership for a node that could not apply the log of the cluster.
func tooOldToJoin(st *fsm.State, m *registryv1.Member) error {
	if has := reached(st); levelOf(m) < has {
		return fmt.Errorf("%w: node %s at %s, of version %q, knows feature level %d and the cluster has reached %d, "+
			"so that node can't apply its log: start the version of the other nodes there, or a newer one",
			ErrMembership, m.GetName(), m.GetPeerAddress(), m.GetVersion(), levelOf(m), has)
	}
	return nil
}

// tooOldToStay returns ErrTooOld for a member that was started in a version that the cluster has left behind.
func tooOldToStay(st *fsm.State, level uint32) error {
	if has := reached(st); level < has {
		return fmt.Errorf("%w: it knows up to level %d, the cluster has reached feature level %d", ErrTooOld, level, has)
	}
	return nil
}

// tooOldToStart returns ErrTooOld for a log with a command above a level, whether or not that was committed: the node
// would take part in votes, perhaps lead, and then stop at that entry. It reads what would be applied again, which is
// what the newest snapshot lacks.
func tooOldToStart(store *storage.Store, level uint32) error {
	logs := store.Logs()
	last, err := logs.LastIndex()
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	first, err := logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	snapshots, err := store.Snapshots().List()
	if err != nil {
		return fmt.Errorf("list the snapshots: %w", err)
	}
	if len(snapshots) > 0 {
		first = max(first, snapshots[0].Index+1)
	}
	for i := max(first, 1); i <= last; i++ {
		var e raft.Log
		if err := logs.GetLog(i, &e); err != nil {
			return fmt.Errorf("read log entry %d: %w", i, err)
		}
		if needs := highestLevel(e.Data); e.Type == raft.LogCommand && needs > uint64(level) {
			return fmt.Errorf("%w: log entry %d of %d has a command of feature level %d, this version knows up to level %d",
				ErrTooOld, i, last, needs, level)
		}
	}
	return nil
}

// tooOldToApply adds ErrTooOld to what the state machine says of an entry of a later version.
func tooOldToApply(err error) error {
	if errors.Is(err, fsm.ErrUnknownCommand) {
		return fmt.Errorf("%w: %w", ErrTooOld, err)
	}
	return err
}

// highestLevel is the highest level that the commands of an encoded raftlogv1.Entry need. What can't be read needs none:
// the state machine says what is wrong with it.
func highestLevel(entry []byte) uint64 {
	var highest uint64
	eachField(entry, func(number protowire.Number, _ uint64, command []byte) {
		if number != 3 { // commands
			return
		}
		var level uint64
		eachField(command, func(number protowire.Number, value uint64, _ []byte) {
			switch {
			case number == 1:
				level = value
			case number == 2 && value != 0: // may_skip
				level = 0 // It stands behind the level.
			}
		})
		highest = max(highest, level)
	})
	return highest
}

// eachField visits the fields of an encoded message, up to the first that can't be read.
func eachField(b []byte, visit func(number protowire.Number, value uint64, content []byte)) {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		var value uint64
		var content []byte
		size := 0
		switch kind {
		case protowire.VarintType:
			value, size = protowire.ConsumeVarint(b[n:])
		case protowire.BytesType:
			content, size = protowire.ConsumeBytes(b[n:])
		default:
			size = protowire.ConsumeFieldValue(number, kind, b[n:])
		}
		if size < 0 {
			return
		}
		visit(number, value, content)
		b = b[n+size:]
	}
}
