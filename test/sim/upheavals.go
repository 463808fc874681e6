package sim

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// These faults end nodes, or change who is a member.

// kill kills a node.
func (w *world) kill() ([]string, string, func()) {
	name := w.victim()
	if name == "" {
		return nil, "", nil
	}
	return w.killed(name)
}

// killSeveral kills more than one node, at the cost of the quorum.
func (w *world) killSeveral() ([]string, string, func()) {
	names := w.Names()
	if len(names) < 3 {
		return nil, "", nil
	}
	w.rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return w.killed(names[:2+w.rng.IntN(len(names)-2)]...)
}

// killAll kills all nodes.
func (w *world) killAll() ([]string, string, func()) {
	if len(w.Names()) == 0 {
		return nil, "", nil
	}
	return w.killed(w.Names()...)
}

func (w *world) killed(names ...string) ([]string, string, func()) {
	for _, name := range names {
		w.crash(name)
	}
	return names, "stopped", func() {
		for _, name := range names {
			w.restart(name)
		}
	}
}

// rolling restarts one node after the other, in order.
func (w *world) rolling() ([]string, string, func()) {
	names := w.Names()
	for _, name := range names {
		w.leave(name)
		time.Sleep(w.o.heartbeat)
		w.restart(name)
		time.Sleep(2 * w.o.heartbeat)
	}
	return names, "restarted", nil
}

// operate gives the operator time for one order. It tells whether it was carried out.
func (w *world) operate(what string, order func(context.Context) error) bool {
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	if err := order(ctx); err != nil {
		w.note("%s: %v", what, err)
		return false
	}
	w.note("%s: done", what)
	return true
}

// transfer hands leadership over.
func (w *world) transfer() ([]string, string, func()) {
	var to string
	ok := w.operate("transfer", func(ctx context.Context) error {
		resp, err := w.operator.Cluster().TransferLeadership(ctx, "")
		to = resp.GetLeader()
		return err
	})
	if !ok {
		return nil, "", nil
	}
	return []string{to}, "leads now", nil
}

// members are the names of those that vote and answer, and of all others that belong to the cluster.
func (w *world) members() (voters, rest []string, ok bool) {
	ok = w.operate("status", func(ctx context.Context) error {
		resp, err := w.operator.Cluster().Status(ctx)
		for _, m := range resp.GetMembers() {
			if m.GetSuffrage() == apiv1.Suffrage_SUFFRAGE_VOTER && m.GetReachable() {
				voters = append(voters, m.GetMember().GetName())
			} else {
				rest = append(rest, m.GetMember().GetName())
			}
		}
		return err
	})
	slices.Sort(voters)
	return voters, rest, ok
}

// whole tells whether the founders and nobody else are members, vote and answer: the loss of one costs nothing then.
func (w *world) whole() bool {
	voters, rest, ok := w.members()
	return ok && len(rest) == 0 && slices.Equal(voters, w.o.founders())
}

// wipe kills a node and takes its disk away. It comes back empty.
func (w *world) wipe() ([]string, string, func()) {
	if !w.whole() {
		return nil, "", nil
	}
	name := w.victim()
	w.crash(name)
	w.Wipe(name)
	return []string{name}, "stopped and wiped", func() { w.restart(name) }
}

// demote takes a node's vote away.
func (w *world) demote() ([]string, string, func()) {
	if !w.whole() {
		return nil, "", nil
	}
	name := w.victim()
	ok := w.operate("demote "+name, func(ctx context.Context) error {
		_, err := w.operator.Cluster().Demote(ctx, name)
		return err
	})
	if !ok {
		return nil, "", nil
	}
	return []string{name}, "does not vote", func() {
		w.operate("promote "+name, func(ctx context.Context) error {
			_, err := w.operator.Cluster().Promote(ctx, name)
			return err
		})
	}
}

// remove removes a node, which comes back empty.
func (w *world) remove() ([]string, string, func()) {
	if !w.whole() {
		return nil, "", nil
	}
	name := w.victim()
	ok := w.operate("remove "+name, func(ctx context.Context) error {
		_, err := w.operator.Cluster().Remove(ctx, name, false)
		return err
	})
	if !ok {
		return nil, "", nil
	}
	return []string{name}, "removed", func() {
		w.crash(name)
		w.Wipe(name)
		w.restart(name)
	}
}

// join adds a node, and removes it later.
func (w *world) join() ([]string, string, func()) {
	names := w.o.names()
	name := names[len(names)-1]
	if w.Node(name) != nil || !w.whole() {
		return nil, "", nil
	}
	w.add(name)
	return []string{name}, "added", func() {
		w.operate("remove "+name, func(ctx context.Context) error {
			_, err := w.operator.Cluster().Remove(ctx, name, true)
			return err
		})
		w.crash(name)
		w.Wipe(name)
	}
}

// snapshot saves a snapshot, which must be what it claims to be.
func (w *world) snapshot() ([]string, string, func()) {
	var saved bytes.Buffer
	var info *apiv1.SnapshotInfo
	ok := w.operate("save a snapshot", func(ctx context.Context) error {
		var err error
		info, err = w.operator.Cluster().SaveSnapshot(ctx, &saved, nil)
		return err
	})
	if !ok {
		return nil, "", nil
	}
	st, err := fsm.ReadSnapshot(bufio.NewReader(&saved))
	if err != nil {
		w.t.Errorf("read the snapshot that was saved: %v", err)
		return nil, "", nil
	}
	if hash := st.ContentHash(); !bytes.Equal(hash[:], info.GetContentHash()) {
		w.t.Errorf("the snapshot that was saved has hash %x, it claims %x", hash, info.GetContentHash())
	}
	w.saved = append(w.saved, st)
	return w.Names(), fmt.Sprintf("saved at revision %d", st.Revision()), nil
}

// reunite waits until the founders and nobody else are members and vote. It repeats orders of the operator that failed.
func (w *world) reunite() {
	for end := time.Now().Add(reunion); !w.whole(); time.Sleep(time.Second) {
		if time.Now().After(end) {
			w.fault("liveness", "%v after the last fault the founders are not all members that vote", reunion)
			return
		}
		voters, rest, _ := w.members()
		for _, name := range append(voters, rest...) {
			switch {
			case !slices.Contains(w.o.founders(), name):
				w.operate("remove "+name, func(ctx context.Context) error {
					_, err := w.operator.Cluster().Remove(ctx, name, true)
					return err
				})
			case slices.Contains(rest, name):
				w.operate("promote "+name, func(ctx context.Context) error {
					_, err := w.operator.Cluster().Promote(ctx, name)
					return err
				})
			}
		}
		for _, name := range w.Names() {
			if w.Node(name).Info().Removed {
				w.crash(name)
				w.Wipe(name)
				w.restart(name)
			}
		}
	}
}
