package consul

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"
)

const (
	// minSessionTTL is the shortest time to live of a session, maxSessionTTL the longest: Consul's.
	minSessionTTL = 10 * time.Second
	maxSessionTTL = rpc.MaxTTL
	// defaultLockDelay is the lock delay of a session that names none.
	defaultLockDelay = 15 * time.Second
	maxLockDelay     = fsm.MaxLockDelayMs * time.Millisecond
	// serfHealth is the check by which Consul's sessions end with their node. There are no agents here that could fail.
	serfHealth = "serfHealth"
)

// The behaviors of a session.
const (
	behaviorRelease = "release"
	behaviorDelete  = "delete"
)

// session is a session as it is shown.
type session struct {
	ID            string
	Name          string
	Node          string
	LockDelay     time.Duration // as a number of nanoseconds
	Behavior      string
	TTL           string
	NodeChecks    []string
	ServiceChecks []string
	CreateIndex   uint64
	ModifyIndex   uint64
}

func sessionOf(s *fsm.Session) session {
	shown := session{
		ID: s.ID(), Name: s.ClientName, Node: s.Node(), LockDelay: time.Duration(s.LockDelayMs()) * time.Millisecond, //nolint:gosec // At most a minute.
		Behavior: behaviorRelease, TTL: (time.Duration(s.TTLMs) * time.Millisecond).String(), //nolint:gosec // At most a day.
		NodeChecks: []string{}, ServiceChecks: []string{}, CreateIndex: s.CreateRevision, ModifyIndex: s.CreateRevision,
	}
	if s.Behavior() == registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE {
		shown.Behavior = behaviorDelete
	}
	return shown
}

// sessionRequest is the body of session/create.
type sessionRequest struct {
	Name, Node, Behavior string
	TTL                  string
	LockDelay            lockDelay
	Checks, NodeChecks   []string
	ServiceChecks        []struct{ ID string }
}

// lockDelay is a duration such as "15s", or a number: of seconds below a thousand, else of nanoseconds.
type lockDelay struct{ text string }

// UnmarshalJSON implements json.Unmarshaler. What is wrong is told later, with the name of the field.
func (d *lockDelay) UnmarshalJSON(b []byte) error {
	if d.text = strings.Trim(string(b), `"`); d.text == "null" {
		d.text = ""
	}
	return nil
}

func (d lockDelay) duration() (time.Duration, error) {
	if d.text == "" {
		return defaultLockDelay, nil
	}
	v, err := time.ParseDuration(d.text)
	if n, numberErr := strconv.ParseFloat(d.text, 64); numberErr == nil {
		const seconds = 1000
		if v, err = time.Duration(n), nil; n < seconds {
			v = time.Duration(n * float64(time.Second))
		}
	}
	if err != nil || v < 0 {
		return 0, badRequest("Invalid LockDelay %q: must be a duration, such as 15s, or a number of seconds", cut(d.text))
	}
	return min(v, maxLockDelay), nil
}

// createSession is PUT session/create. It may have no body.
func (s *Server) createSession(w *answer, a *request) error {
	var want sessionRequest
	body, err := readAll(w, a)
	if err != nil {
		return err
	}
	if len(strings.TrimSpace(string(body))) > 0 {
		if err = decodeBody(body, "", &want); err != nil {
			return err
		}
	}
	order, err := want.order(a)
	if err != nil {
		return err
	}
	if _, err = s.order(a, &raftlogv1.Command{Level: fsm.KVLevel, Kind: &raftlogv1.Command_OpenSession{OpenSession: order}}); err != nil {
		return err
	}
	return reply(w, http.StatusOK, map[string]string{"ID": order.GetId()})
}

// order checks what is wanted.
func (r *sessionRequest) order(a *request) (*raftlogv1.OpenSession, error) {
	o := &raftlogv1.OpenSession{Id: uuid.NewString(), ClientName: r.Name, Node: r.Node, Behavior: registryv1.SessionBehavior_SESSION_BEHAVIOR_RELEASE}
	if len(r.Name) > rpc.MaxClientNameLen {
		return nil, badRequest("Invalid Name: has %d bytes, the limit is %d", len(r.Name), rpc.MaxClientNameLen)
	}
	if o.Node == "" {
		o.Node = a.agent.node
	}
	if err := validNode("Node", o.GetNode()); err != nil {
		return nil, err
	}
	switch r.Behavior {
	case "", behaviorRelease:
	case behaviorDelete:
		o.Behavior = registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE
	default:
		return nil, &failure{http.StatusInternalServerError, fmt.Sprintf("Invalid Behavior setting '%s': must be release or delete", cut(r.Behavior))}
	}
	ttl := maxSessionTTL
	if r.TTL != "" {
		var err error
		if ttl, err = time.ParseDuration(r.TTL); err != nil {
			return nil, &failure{http.StatusInternalServerError, fmt.Sprintf("Session TTL '%s' invalid: must be a duration, such as 15s", cut(r.TTL))}
		}
	}
	if ttl == 0 { // As if there was none.
		ttl = maxSessionTTL
	}
	if ttl < minSessionTTL || ttl > maxSessionTTL {
		return nil, &failure{http.StatusInternalServerError, fmt.Sprintf("Invalid Session TTL '%v': must be between %v and %v", ttl, minSessionTTL, maxSessionTTL)}
	}
	o.TtlMs = uint64(ttl.Milliseconds()) //nolint:gosec // It is in range.
	delay, err := r.LockDelay.duration()
	if err != nil {
		return nil, err
	}
	o.LockDelayMs = uint64(delay.Milliseconds()) //nolint:gosec // It is in range.
	for _, check := range slices.Concat(r.Checks, r.NodeChecks) {
		if check != serfHealth {
			return nil, badRequest("Check %q: a session of regd hangs on no check: it ends with its TTL; leave it out", cut(check))
		}
	}
	if len(r.ServiceChecks) > 0 {
		return nil, badRequest("ServiceChecks: a session of regd hangs on no check: it ends with its TTL; leave it out")
	}
	return o, nil
}

// destroySession is PUT session/destroy/ID. One that is not there is destroyed already.
func (s *Server) destroySession(w *answer, a *request) error {
	if err := a.needSession(); err != nil {
		return err
	}
	if validNode("", a.rest) == nil { // Else there never was such a one.
		if err := s.propose(a, &raftlogv1.Command{Kind: &raftlogv1.Command_CloseSession{CloseSession: &raftlogv1.CloseSession{Id: a.rest}}}); err != nil {
			return err
		}
	}
	return reply(w, http.StatusOK, true)
}

func (a *request) needSession() error {
	if a.rest == "" {
		return badRequest("Missing session")
	}
	return nil
}

// renewSession is PUT session/renew/ID.
func (s *Server) renewSession(w *answer, a *request) error {
	if err := a.needSession(); err != nil {
		return err
	}
	gone := notFound("Session id '%s' not found", cut(a.rest))
	if validNode("", a.rest) != nil {
		return gone
	}
	ctx, cancel := context.WithTimeout(a.Context(), maxWork)
	defer cancel()
	ended, err := a.visit.Renew(ctx, peerv1.RenewKind_RENEW_KIND_SESSION, []string{a.rest})
	if err != nil {
		return err
	}
	st := s.node.Feed().State()
	if len(ended) == 0 && st.Session(a.rest) == nil { // It was created at another node just now.
		v, viewErr := s.node.View(ctx, cluster.Freshness{Mode: cluster.ModeLinearizable})
		if viewErr != nil {
			return viewErr
		}
		st = v.State
	}
	found := st.Session(a.rest)
	if len(ended) > 0 || found == nil {
		return gone
	}
	return reply(w, http.StatusOK, []session{sessionOf(found)})
}

// sessionInfo is GET session/info/ID.
func (s *Server) sessionInfo(w *answer, a *request) error {
	if err := a.needSession(); err != nil {
		return err
	}
	return s.ask(w, a, read{topics: []topic{{ofSession, "", a.rest}}, body: func(st *fsm.State) (any, bool, error) {
		found := st.Session(a.rest)
		switch {
		case found == nil:
			return []session{}, false, nil
		case !a.seesSession(st, found):
			return []session{}, true, nil
		default:
			return []session{sessionOf(found)}, false, nil
		}
	}})
}

// nodeSessions is GET session/node/NODE.
func (s *Server) nodeSessions(w *answer, a *request) error {
	if a.rest == "" {
		return badRequest("Missing node name")
	}
	return s.listSessions(w, a)
}

// listSessions is GET session/list.
func (s *Server) listSessions(w *answer, a *request) error {
	return s.ask(w, a, read{whole: true, topics: []topic{{kind: ofSessions}}, body: func(st *fsm.State) (any, bool, error) {
		all, hidden := []session{}, false
		st.Sessions("", func(found *fsm.Session) bool {
			switch {
			case a.rest != "" && found.Node() != a.rest:
			case a.seesSession(st, found):
				all = append(all, sessionOf(found))
			default:
				hidden = true
			}
			return true
		})
		slices.SortFunc(all, func(a, b session) int {
			return cmp.Or(cmp.Compare(a.CreateIndex, b.CreateIndex), cmp.Compare(a.ID, b.ID))
		})
		return all, hidden, nil
	}})
}

// seesSession tells whether the caller may see a session: its own, and all who may observe the cluster.
func (a *request) seesSession(st *fsm.State, found *fsm.Session) bool {
	return a.observes(st) || st.MayUse(a.credential, found.Owner)
}
