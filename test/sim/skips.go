package sim

import (
	"time"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/internal/history"
	"github.com/regd-io/regd/test/internal/oracle"
)

// life is a node from one start to the next, as the entries that it applied tell.
type life struct {
	node    string
	since   time.Duration
	indexes []uint64
}

// skip is a stretch of revisions, from (not included) to (included), that a node went over by installing a snapshot.
type skip struct{ from, to uint64 }

// skips are those between two entries that it applied.
func (l *life) skips(timeline *oracle.Timeline) []skip {
	var list []skip
	for i := 1; i < len(l.indexes); i++ {
		last, next := l.indexes[i-1], l.indexes[i]
		if before := timeline.AtIndex(next - 1); before.Index() > last {
			list = append(list, skip{timeline.AtIndex(last).Revision(), before.Revision()})
		}
	}
	return list
}

// spell says in the history what a node says by silence. A subscription that nothing of what a snapshot brought concerns is
// not told of the snapshot; what came and went in the revisions that were skipped, nobody at that node can know. So where a
// stream goes past such revisions, a cut that says "nothing differs" is put in, and is judged as one.
func spell(h *history.History, lives []*life, timeline *oracle.Timeline) *history.History {
	final := timeline.Final()
	told := &history.History{Calls: h.Calls, Faults: h.Faults}
	streams := map[int64]*silences{}
	for _, m := range h.Messages {
		s := streams[m.Stream]
		if s == nil {
			s = &silences{at: map[uint32]uint64{}}
			streams[m.Stream] = s
			for _, l := range lives {
				if l.node == m.Node && l.since <= m.At { // They are in the order of time.
					s.skipped = l.skips(timeline)
				}
			}
		}
		for id, to := range s.past(m) {
			header := &apiv1.ResponseHeader{ClusterId: final.ClusterID(), Epoch: final.Epoch(), Revision: to}
			for _, body := range nothingDiffers(id, header) {
				said := m
				said.Body = body
				told.Messages = append(told.Messages, said)
			}
		}
		told.Messages = append(told.Messages, m)
	}
	return told
}

// silences follows one stream.
type silences struct {
	skipped []skip
	at      map[uint32]uint64 // revisions of the subscriptions that are synced
}

// past takes a message in, and tells which subscriptions it takes past skipped revisions, and up to which.
func (s *silences) past(m history.Message) map[uint32]uint64 {
	body, ok := m.Body.(watchMessage)
	if !ok || m.Direction != history.Received {
		return nil
	}
	upTo := max(body.GetEvents().GetRevision(), body.GetProgress().GetHeader().GetRevision())
	first := upTo // What lies behind it was told before the message.
	for _, e := range body.GetEvents().GetEvents() {
		first = min(first, e.GetEvent().GetRevision()-1)
	}
	past := map[uint32]uint64{}
	for id, revision := range s.at {
		for _, k := range s.skipped {
			if revision < k.to && k.to <= first {
				past[id] = k.to
			}
		}
		s.at[id] = max(revision, upTo)
	}
	if y := body.GetSynced(); y != nil {
		s.at[y.GetSubscriptionId()] = y.GetHeader().GetRevision()
	}
	if e := body.GetEnded(); e != nil {
		delete(s.at, e.GetSubscriptionId())
	}
	return past
}

// watchMessage is what is sent on a watch of either kind.
type watchMessage interface {
	GetSynced() *apiv1.Synced
	GetEvents() *apiv1.Events
	GetProgress() *apiv1.Progress
	GetEnded() *apiv1.SubscriptionEnded
}

// nothingDiffers is a cut that says so.
func nothingDiffers(id uint32, header *apiv1.ResponseHeader) []*apiv1.WatchResponse {
	return []*apiv1.WatchResponse{
		{Payload: &apiv1.WatchResponse_Cut{Cut: &apiv1.Cut{
			SubscriptionId: id, Reason: apiv1.CutReason_CUT_REASON_SNAPSHOT_INSTALLED,
		}}},
		{Payload: &apiv1.WatchResponse_Synced{Synced: &apiv1.Synced{SubscriptionId: id, Header: header}}},
	}
}
