package check

import (
	"slices"
	"time"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/internal/history"
)

// readHistory finds what was asked for each session and lease.
func (l *leasing) readHistory() {
	for _, w := range l.writes {
		l.use(w)
	}
	for i := range l.run.History.Calls {
		c := &l.run.History.Calls[i]
		req, ok := c.Request.(*apiv1.RenewRequest)
		if !ok {
			continue
		}
		resp, _ := c.Response.(*apiv1.RenewResponse)
		r := renewal{what: "Renew of " + c.Client, begun: c.Begun, ended: c.Ended, acked: c.Outcome == history.OK}
		for _, id := range req.GetSessionIds() {
			l.renewed(holderKey{fsm.EventSession, id}, r, resp.GetEnded())
		}
	}
	for _, stream := range l.run.History.Streams(apiv1.SessionService_Attach_FullMethodName) {
		l.stream(fsm.EventSession, stream)
	}
	for _, stream := range l.run.History.Streams(apiv1.LeaseService_KeepAlive_FullMethodName) {
		l.stream(fsm.EventLease, stream)
	}
}

// renewed notes a renewal of one of the ids of a message, those that ended taken out.
func (l *leasing) renewed(k holderKey, r renewal, ended []string) {
	h := l.holders[k]
	if h == nil {
		return // Unknown to the log, and so to the cluster.
	}
	if slices.Contains(ended, k.id) {
		if h.toldEnded == nil || r.ended < h.toldEnded.ended {
			h.toldEnded = &r
		}
		return
	}
	h.renewals = append(h.renewals, r)
	if r.acked {
		l.figures.Renewals++
	}
}

// use notes what a write says of the sessions and leases that it names, or makes.
func (l *leasing) use(w *history.Write) {
	if w.Outcome != history.OK {
		return
	}
	r := renewal{what: describe(w), begun: w.Begun, ended: w.Ended, acked: true}
	hang := func(session, lease string) {
		for _, k := range []holderKey{{fsm.EventSession, session}, {fsm.EventLease, lease}} {
			if h := l.holders[k]; h != nil {
				h.uses = append(h.uses, r)
			}
		}
	}
	switch req := w.Request.(type) {
	case *apiv1.OpenRequest:
		resp, _ := w.Response.(*apiv1.OpenResponse)
		l.renewed(holderKey{fsm.EventSession, resp.GetSession().GetId()}, r, nil)
	case *apiv1.GrantRequest:
		resp, _ := w.Response.(*apiv1.GrantResponse)
		l.renewed(holderKey{fsm.EventLease, resp.GetLease().GetId()}, r, nil)
		hang(req.GetSessionId(), "")
	case *apiv1.RegisterRequest:
		resp, _ := w.Response.(*apiv1.RegisterResponse)
		l.renewed(holderKey{fsm.EventSession, resp.GetSession().GetId()}, r, nil)
		hang(req.GetInstance().GetSessionId(), req.GetInstance().GetLeaseId())
	case *apiv1.RegisterBatchRequest:
		resp, _ := w.Response.(*apiv1.RegisterBatchResponse)
		l.renewed(holderKey{fsm.EventSession, resp.GetSession().GetId()}, r, nil)
		for _, i := range req.GetRegister() {
			hang(i.GetSessionId(), i.GetLeaseId())
		}
	case *apiv1.AcquireRequest:
		hang(req.GetSessionId(), "")
	}
}

// renewRequest and renewResponse are the messages of Attach and KeepAlive.
type renewRequest interface{ GetSequence() uint64 }

type renewResponse interface {
	GetSequence() uint64
	GetEnded() []string
	GetGoElsewhere() bool
}

func renewedIDs(m renewRequest) []string {
	switch req := m.(type) {
	case *apiv1.AttachRequest:
		return req.GetSessionIds()
	case *apiv1.KeepAliveRequest:
		return req.GetLeaseIds()
	default:
		return nil
	}
}

// stream notes the renewals of one stream. An answer acknowledges the oldest request with its number that has none, and all
// before that.
func (l *leasing) stream(kind fsm.EventKind, messages []history.Message) {
	var open []history.Message
	note := func(request history.Message, ended time.Duration, resp renewResponse) {
		r := renewal{what: "renewal of " + request.Client, begun: request.At, ended: ended, acked: resp != nil}
		var gone []string
		if resp != nil {
			gone = resp.GetEnded()
		}
		for _, id := range renewedIDs(request.Body.(renewRequest)) { //nolint:forcetypeassert // Looked at below.
			l.renewed(holderKey{kind, id}, r, gone)
		}
	}
	last := time.Duration(0)
	for _, m := range messages {
		last = m.At
		if _, ok := m.Body.(renewRequest); ok && m.Direction == history.Sent {
			open = append(open, m)
		}
		resp, ok := m.Body.(renewResponse)
		if !ok || m.Direction != history.Received || resp.GetGoElsewhere() {
			continue
		}
		i := slices.IndexFunc(open, func(q history.Message) bool {
			return q.Body.(renewRequest).GetSequence() == resp.GetSequence() //nolint:forcetypeassert // Looked at above.
		})
		for _, request := range open[:i+1] {
			note(request, m.At, resp)
		}
		open = open[i+1:]
	}
	for _, m := range open {
		note(m, last, nil)
	}
}
