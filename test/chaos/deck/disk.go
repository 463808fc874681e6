package deck

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"go.etcd.io/bbolt" //nolint:depguard // To damage an entry, one has to find where it lies.

	"github.com/regd-io/regd/test/chaos/internal/disksim"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// Exit codes that nodes must end with.
const (
	exitCorrupt = 73
	exitSync    = 75
)

// spaceLeft is what a full disk has left: less than a node needs to take writes, enough to stop in order.
const spaceLeft = 1 << 20

// diskFaults are done to the file systems of nodes.
func diskFaults() []fault {
	loss := func(list ...*nodes.Node) undo {
		nodes.LosePower(list...) // It fails unless every journal has to be replayed.
		return func() done {
			for _, n := range list {
				n.Start()
			}
			return to(fmt.Sprintf("journals replayed: %d", len(list)), list...)
		}
	}
	return []fault{
		{kind: "power loss of the leader", begin: func(w *world) undo { return loss(w.c.Leader()) }},
		{kind: "power loss of all", alone: true, stops: true, begin: func(w *world) undo { return loss(w.c.Nodes()...) }},
		{kind: "stalled disk of the leader", begin: func(w *world) undo { return w.stall(w.c.Leader()) }},
		{kind: "stalled disk of a follower", begin: func(w *world) undo { return w.stall(w.follower()) }},
		{kind: "slow disk of the leader", begin: func(w *world) undo { return w.slowDisk(w.c.Leader()) }},
		{kind: "failed fsync of the leader", begin: func(w *world) undo { return w.failSync(w.c.Leader()) }},
		{kind: "full disk of the leader", begin: func(w *world) undo { return w.fill(w.c.Leader()) }},
		{kind: "full disk of a follower", begin: func(w *world) undo { return w.fill(w.follower()) }},
		{kind: "flipped bit in the log", alone: true, begin: func(w *world) undo { return w.corrupt(w.follower()) }},
		{kind: "truncated log", alone: true, begin: func(w *world) undo { return w.truncate(w.follower()) }},
	}
}

func (w *world) stall(n *nodes.Node) undo {
	w.must(n.Disk.Freeze())
	return func() done {
		stalled, err := n.Disk.Thaw()
		w.must(err)
		return to(fmt.Sprintf("writes stalled for %v", stalled.Round(time.Millisecond)), n)
	}
}

func (w *world) slowDisk(n *nodes.Node) undo {
	slow, err := disksim.SlowSync(n.PID(), time.Duration(50+w.rng.IntN(250))*time.Millisecond)
	w.must(err)
	return func() done {
		w.must(slow.Stop())
		return hits("syncs delayed", slow, n)
	}
}

func (w *world) failSync(n *nodes.Node) undo {
	failing, err := disksim.SyncErrors(n.PID())
	w.must(err)
	return func() done {
		code := n.WaitEnd(10 * time.Second) // It writes all the time, so it has ended, or is about to.
		w.must(failing.Stop())
		if code != exitSync {
			w.fault("fsync", "%s ended with %s after a failed fsync, want exit code %d", n.Name, n.Ended(), exitSync)
		}
		n.Start()
		return hits("syncs failed", failing, n)
	}
}

func hits(what string, i *disksim.Injection, n *nodes.Node) done {
	if i.Hits() == 0 {
		return to("", n)
	}
	return to(fmt.Sprintf("%s: %d, then %s", what, i.Hits(), n.Ended()), n)
}

func (w *world) fill(n *nodes.Node) undo {
	left, err := n.Disk.Fill(spaceLeft)
	w.must(err)
	return func() done {
		w.must(n.Disk.Free())
		return to(fmt.Sprintf("%d KiB left", left>>10), n)
	}
}

// corrupt flips a byte in the middle of a stopped node's log, where entries are.
func (w *world) corrupt(n *nodes.Node) undo {
	n.Kill()
	path := w.logFile(n)
	offset, err := entryOffset(path)
	w.must(err)
	w.must(disksim.FlipByte(path, offset))
	return w.refused(n, path)
}

func (w *world) truncate(n *nodes.Node) undo {
	n.Kill()
	path := w.logFile(n)
	w.must(disksim.Truncate(path, 3*4096+100))
	return w.refused(n, path)
}

// refused starts a node on a damaged file: it must refuse, and say which. Then it comes back as a new member.
func (w *world) refused(n *nodes.Node, path string) undo {
	n.Start()
	code, said := n.WaitEnd(20*time.Second), n.Log(3)
	if code != exitCorrupt || !strings.Contains(said, path) || damageOf(said) == "" {
		w.fault("corrupt", "%s on a damaged %s: %s, and said %q; want exit code %d and the file", n.Name, path, n.Ended(), said, exitCorrupt)
	}
	ended := n.Ended()
	return func() done {
		n.Wipe()
		n.Start()
		return to(ended+": "+damageOf(said), n)
	}
}

// damageOf is the part of a refusal that says where the damage is.
func damageOf(said string) string {
	_, where, found := strings.Cut(said, " is damaged at ")
	if !found {
		return ""
	}
	where, _, _ = strings.Cut(where, "; to repair")
	return "damaged at " + where
}

// logFile is the file with the newest entries of a node's log.
func (w *world) logFile(n *nodes.Node) string {
	segments, err := filepath.Glob(filepath.Join(n.Dir, "wal", "*.wal"))
	w.must(err)
	if len(segments) == 0 {
		return filepath.Join(n.Dir, "raft.db")
	}
	slices.Sort(segments) // Their names begin with an index of 20 digits.
	return segments[len(segments)-1]
}

// entryOffset is where in the file of a log the newest entry lies.
func entryOffset(path string) (int64, error) {
	if filepath.Base(path) == "raft.db" {
		return databaseOffset(path)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	written := int64(len(bytes.TrimRight(content, "\x00"))+7) &^ 7
	if written == 0 {
		return 0, fmt.Errorf("%s is empty", path)
	}
	return written - 20, nil // It ends with a commit frame of 8 bytes, after an entry of at least 24.
}

// databaseOffset is where in a database of raft-boltdb the middle of the newest log entry lies.
func databaseOffset(path string) (offset int64, err error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return 0, err
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		logs := tx.Bucket([]byte("logs"))
		if logs == nil {
			return fmt.Errorf("%s has no log", path)
		}
		key, value := logs.Cursor().Last()
		if key == nil {
			return fmt.Errorf("the log of %s is empty", path)
		}
		middle := uintptr(unsafe.Pointer(&value[len(value)/2])) //nolint:gosec // The pages are mapped as they lie in the file.
		offset = int64(middle - db.Info().Data)
		return nil
	})
	return offset, err
}
