package sim

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/internal/history"
	"github.com/regd-io/regd/test/internal/workload"
)

// restoreSeeds is the number of restores that are tried.
const restoreSeeds = 2

// A restore replaces what the log has made, so that what comes before it and what comes after it are judged apart.
func TestARestoreBeginsAnEpochThatAllShare(t *testing.T) {
	for seed := range uint64(restoreSeeds) {
		t.Run(fmt.Sprint(seed+1), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := newOptions(seed+1, *callsEvery)
				o.nodes, o.counts = 3, workload.Counts{Pinned: 2, Roaming: 1, Sessions: 1, Leases: 1, Lockers: 2, Watchers: 3}
				o.pause = 7 * *callsEvery
				restore(t, o)
			})
		})
	}
}

func restore(t *testing.T, o options) {
	w := newWorld(t, o)
	defer w.tell()
	before := w.newLoad("a-")
	defer before.Close()
	stop := w.start(before)
	time.Sleep(6 * time.Second)
	w.snapshot()
	time.Sleep(6 * time.Second)
	stop()
	settled := w.settle(before, o.founders())
	first, _ := w.judge(w.recorder.History(), fsm.New(), settled)
	if len(w.saved) == 0 {
		t.Fatal("no snapshot was saved")
	}
	was, snapshot := first.Final(), w.saved[0]
	now := w.restoreTo(snapshot)
	if now.GetEpoch() <= was.Epoch() || now.GetRevision() < was.Revision() {
		w.fault("restore", "epoch %d, revision %d after epoch %d, revision %d", now.GetEpoch(), now.GetRevision(), was.Epoch(), was.Revision())
	}
	w.add(o.names()[o.nodes]) // It must not be given the log without the restore.
	w.Ready()
	w.Wait("all nodes to be in the new epoch", func() bool {
		return !slices.ContainsFunc(w.Nodes(), func(n *cluster.Node) bool { return n.Feed().State().Epoch() != now.GetEpoch() })
	})
	from := w.recorder.Now()
	after := w.newLoad("b-")
	defer after.Close()
	stop = w.start(after)
	time.Sleep(10 * time.Second)
	stop()
	settled = w.settle(after, w.Names())
	_, figures := w.judge(w.since(from, was), fsm.Rebase(snapshot, was), settled)
	if figures.Watch.Cuts["RESTORED"] == 0 {
		t.Error("no watch lived through the restore")
	}
}

// restoreTo restores a snapshot.
func (w *world) restoreTo(st *fsm.State) *apiv1.ResponseHeader {
	w.t.Helper()
	var snapshot bytes.Buffer
	if err := st.WriteSnapshot(&snapshot, nil); err != nil {
		w.t.Fatal(err)
	}
	resp, err := w.operator.Cluster().RestoreSnapshot(w.t.Context(), &snapshot, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.note("restored the snapshot of revision %d: epoch %d, revision %d", st.Revision(), resp.GetHeader().GetEpoch(), resp.GetHeader().GetRevision())
	return resp.GetHeader()
}

// since is the history from a time after a restore on, judged as one that begins with the restored registry. Of the
// streams from before only watches are left: see afterRestore.
func (w *world) since(from time.Duration, before *fsm.State) *history.History {
	all, h := w.recorder.History(), &history.History{}
	for _, c := range all.Calls {
		if c.Begun >= from {
			h.Calls = append(h.Calls, c)
		}
	}
	streams := map[int64][]history.Message{}
	for _, m := range all.Messages {
		streams[m.Stream] = append(streams[m.Stream], m)
	}
	for _, stream := range streams {
		switch method := stream[0].Method; {
		case stream[0].At >= from:
			h.Messages = append(h.Messages, stream...)
		case method == apiv1.RegistryService_Watch_FullMethodName || method == apiv1.RegistryService_WatchService_FullMethodName:
			h.Messages = append(h.Messages, w.afterRestore(stream, from, before)...)
		}
	}
	slices.SortStableFunc(h.Messages, func(a, b history.Message) int { return cmp.Compare(a.At, b.At) })
	return h
}

// afterRestore is what a watch from before the restore is after it: one that resumes from the state before, and is told
// all that there is.
func (w *world) afterRestore(stream []history.Message, from time.Duration, before *fsm.State) []history.Message {
	restored := slices.IndexFunc(stream, func(m history.Message) bool {
		b, ok := m.Body.(interface{ GetCut() *apiv1.Cut })
		return ok && b.GetCut().GetReason() == apiv1.CutReason_CUT_REASON_RESTORED
	})
	if restored < 0 {
		if !slices.ContainsFunc(stream, func(m history.Message) bool { return m.Direction == history.Ended && m.At < from }) {
			told := fmt.Sprintf("stream %d of %s at %s was never told of it", stream[0].Stream, stream[0].Client, stream[0].Node)
			w.fault("restore", "%s\n%s", told, evidence(told, &history.History{Messages: stream}, nil))
		}
		return nil
	}
	ended := map[uint32]bool{}
	for _, m := range stream[:restored] {
		if b, ok := m.Body.(interface {
			GetEnded() *apiv1.SubscriptionEnded
		}); ok && b.GetEnded() != nil {
			ended[b.GetEnded().GetSubscriptionId()] = true
		}
	}
	point := &apiv1.ResumePoint{ClusterId: before.ClusterID(), Epoch: before.Epoch(), Revision: before.Revision()}
	kept := []history.Message{stream[0]}
	for _, m := range stream[1:restored] {
		switch req := proto.Clone(m.Body).(type) {
		case *apiv1.WatchServiceRequest:
			req.Resume, m.Body = point, req
			kept = append(kept, m)
		case *apiv1.WatchRequest:
			if s := req.GetSubscribe(); s != nil && !ended[s.GetSubscriptionId()] {
				s.Resume, m.Body = point, req
				kept = append(kept, m)
			}
		}
	}
	return append(kept, stream[restored:]...)
}
