package check_test

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/internal/check"
	"github.com/regd-io/regd/test/internal/history"
	"github.com/regd-io/regd/test/internal/oracle"
)

// world is a registry that keeps all promises: one State, clients that are answered from it, and what they take down. A
// test then spoils what was taken down.
type world struct {
	t   testing.TB
	h   *history.History
	log *oracle.Log

	now    time.Duration
	index  uint64
	term   uint64
	states []moment
	events []fsm.Event

	sequences map[string]uint64
	streams   int64
	made      int // ids of sessions and leases
	run       check.Run
}

// moment is a state and since when it is the current one.
type moment struct {
	at    time.Duration
	state *fsm.State
}

const clusterID = "c1"

func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{
		t: tb, h: &history.History{}, log: oracle.NewLog(), term: 1,
		states: []moment{{0, fsm.New()}}, sequences: map[string]uint64{},
		run: check.Run{Grace: 500 * time.Millisecond},
	}
	w.apply(&raftlogv1.Command{Kind: &raftlogv1.Command_InitCluster{InitCluster: &raftlogv1.InitCluster{ClusterId: clusterID}}})
	return w
}

// judged is the run as it is judged.
func (w *world) judged() *check.Run {
	w.t.Helper()
	slices.SortStableFunc(w.h.Calls, func(a, b history.Call) int { return cmp.Compare(a.Ended, b.Ended) })
	slices.SortStableFunc(w.h.Messages, func(a, b history.Message) int { return cmp.Compare(a.At, b.At) })
	tl, err := w.log.Replay(fsm.New())
	if err != nil {
		w.t.Fatal(err)
	}
	run := w.run
	run.History, run.Timeline, run.Clashes = w.h, tl, w.log.Clashes()
	return &run
}

// tick lets a millisecond pass.
func (w *world) tick() time.Duration {
	w.now += time.Millisecond
	return w.now
}

func (w *world) state() *fsm.State { return w.states[len(w.states)-1].state }

// stateAt is the state that was current at a time.
func (w *world) stateAt(at time.Duration) *fsm.State {
	i, found := slices.BinarySearchFunc(w.states, at, func(m moment, at time.Duration) int { return cmp.Compare(m.at, at) })
	for found && i+1 < len(w.states) && w.states[i+1].at == at {
		i++
	}
	if !found {
		i--
	}
	return w.states[i].state
}

// apply puts commands into the log as one entry.
func (w *world) apply(commands ...*raftlogv1.Command) []fsm.Outcome {
	w.t.Helper()
	var encoded [][]byte
	for _, cmd := range commands {
		data, err := proto.Marshal(cmd)
		if err != nil {
			w.t.Fatal(err)
		}
		encoded = append(encoded, data)
	}
	w.index++
	data := fsm.AppendEntry(nil, 1_700_000_000_000+w.now.Milliseconds(), encoded)
	next, result, err := w.state().Apply(fsm.Entry{Index: w.index, Term: w.term, Data: data})
	if err != nil {
		w.t.Fatal(err)
	}
	w.log.Add("n1", w.index, w.term, data)
	w.states = append(w.states, moment{w.now, next})
	w.events = append(w.events, result.Events...)
	return result.Outcomes
}

// expire ends sessions as a leader does.
func (w *world) expire(sessions, leases []string) {
	w.t.Helper()
	w.apply(&raftlogv1.Command{Kind: &raftlogv1.Command_Expire{Expire: &raftlogv1.Expire{
		Term: w.term, Sessions: sessions, Leases: leases,
	}}})
}

// id is the next request id of a client.
func (w *world) id(client string) *apiv1.RequestID {
	w.sequences[client]++
	return &apiv1.RequestID{ClientId: client, Sequence: w.sequences[client]}
}

// call makes a call that takes three milliseconds, and takes effect in the middle.
func (w *world) call(client string, req proto.Message) *history.Call {
	w.t.Helper()
	c := history.Call{Client: client, Node: "n1", Method: methodOf(req), Begun: w.tick(), Request: req}
	w.tick()
	w.answer(&c)
	c.Ended = w.tick()
	w.h.Calls = append(w.h.Calls, c)
	return &w.h.Calls[len(w.h.Calls)-1]
}

// answer has a call take effect now.
func (w *world) answer(c *history.Call) {
	w.t.Helper()
	c.Outcome = history.OK
	if read, ok := c.Request.(interface{ GetFreshness() *apiv1.Freshness }); ok {
		st, age := w.state(), time.Duration(0)
		if lag := read.GetFreshness().GetMaxStaleness().AsDuration() / 2; lag > 0 {
			st, age = w.stateAt(max(0, w.now-lag)), lag
		}
		w.read(c, st, age)
		return
	}
	if cmd := w.command(c.Request); cmd != nil {
		out := w.apply(cmd)[0]
		if c.Response = respond(c.Request, out, w.state()); c.Response == nil {
			c.Outcome, c.Reason = history.Failed, reasons[out.Code]
			if c.Reason == 0 {
				w.t.Fatalf("%v is refused with %v", c.Request, out)
			}
		}
		return
	}
	switch req := c.Request.(type) {
	case *apiv1.RenewRequest:
		resp := &apiv1.RenewResponse{Header: w.header(w.state().Revision())}
		for _, id := range req.GetSessionIds() {
			if w.state().Session(id) == nil {
				resp.Ended = append(resp.Ended, id)
			}
		}
		c.Response = resp
	case *apiv1.VerifyRequest:
		st := w.state()
		hash, chain := st.Hash(), st.Chain()
		resp := &apiv1.VerifyResponse{Header: w.header(st.Revision()), Equal: true}
		for _, node := range []string{"n1", "n2", "n3"} {
			resp.Replicas = append(resp.Replicas, &apiv1.ReplicaState{
				Node: node, Index: st.Index(), Revision: st.Revision(), StateHash: hash[:], Chain: chain[:],
			})
		}
		c.Response = resp
	default:
		w.t.Fatalf("nobody answers %T", req)
	}
}

func (w *world) header(revision uint64) *apiv1.ResponseHeader {
	return &apiv1.ResponseHeader{ClusterId: clusterID, Epoch: 1, Revision: revision, Node: "n1"}
}

var reasons = map[raftlogv1.Code]apiv1.Reason{
	raftlogv1.Code_CODE_NOT_FOUND:         apiv1.Reason_REASON_INSTANCE_NOT_FOUND,
	raftlogv1.Code_CODE_SESSION_NOT_FOUND: apiv1.Reason_REASON_SESSION_NOT_FOUND,
	raftlogv1.Code_CODE_LEASE_NOT_FOUND:   apiv1.Reason_REASON_LEASE_NOT_FOUND,
	raftlogv1.Code_CODE_ALREADY_EXISTS:    apiv1.Reason_REASON_ALREADY_EXISTS,
	raftlogv1.Code_CODE_STALE:             apiv1.Reason_REASON_STALE_INCARNATION,
	raftlogv1.Code_CODE_REVISION_MISMATCH: apiv1.Reason_REASON_REVISION_MISMATCH,
	raftlogv1.Code_CODE_LOCK_HELD:         apiv1.Reason_REASON_LOCK_HELD,
	raftlogv1.Code_CODE_LOCK_NOT_HELD:     apiv1.Reason_REASON_LOCK_NOT_HELD,
	raftlogv1.Code_CODE_SLOTS_MISMATCH:    apiv1.Reason_REASON_SLOTS_MISMATCH,
}

// methodOf is the method that a request is of.
func methodOf(req proto.Message) string {
	service := map[string]string{
		"Open": "Session", "Renew": "Session", "Close": "Session", "List": "Session",
		"Grant": "Lease", "Revoke": "Lease", "GetLease": "Lease", "ListLeases": "Lease",
		"Acquire": "Lock", "Release": "Lock", "GetLock": "Lock", "ListLocks": "Lock", "Verify": "Cluster",
	}
	name := string(req.ProtoReflect().Descriptor().Name())
	name = name[:len(name)-len("Request")]
	return fmt.Sprintf("/regd.api.v1.%sService/%s", cmp.Or(service[name], "Registry"), name)
}

// instance is one as it is kept.
func instance(service, id, v string) *registryv1.Instance {
	return &registryv1.Instance{
		Namespace: "default", Service: service, Id: id, Address: "10.0.0.1", Weight: 100, Metadata: map[string]string{"v": v},
	}
}

// command is what a request puts into the log, nil for none.
func (w *world) command(req proto.Message) *raftlogv1.Command {
	w.t.Helper()
	cmd := &raftlogv1.Command{}
	if r, ok := req.(interface{ GetRequestId() *apiv1.RequestID }); ok && r.GetRequestId() != nil {
		cmd.Request = &raftlogv1.RequestID{
			ClientId: r.GetRequestId().GetClientId(), Sequence: r.GetRequestId().GetSequence(), BodyHash: 1,
		}
	}
	w.made++
	made := fmt.Sprintf("id%04d", w.made)
	register := func(i *registryv1.Instance, wish *apiv1.NewSession) *raftlogv1.Register {
		var open *raftlogv1.OpenSession
		if wish != nil {
			open = &raftlogv1.OpenSession{Id: made, TtlMs: uint64(wish.GetTtl().AsDuration().Milliseconds())}
			i = proto.CloneOf(i)
			i.SessionId = made
		}
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(i)
		if err != nil {
			w.t.Fatal(err)
		}
		return &raftlogv1.Register{Instance: data, OpenSession: open}
	}
	key := func(k *apiv1.InstanceKey) *raftlogv1.Key {
		return &raftlogv1.Key{Namespace: cmp.Or(k.GetNamespace(), "default"), Service: k.GetService(), Id: k.GetId()}
	}
	switch r := req.(type) {
	case *apiv1.RegisterRequest:
		c := register(r.GetInstance(), r.GetOpenSession())
		c.IfAbsent, c.ExpectedRevision = r.GetIfAbsent(), r.GetExpectedRevision()
		cmd.Kind = &raftlogv1.Command_Register{Register: c}
	case *apiv1.DeregisterRequest:
		cmd.Kind = &raftlogv1.Command_Deregister{Deregister: &raftlogv1.Deregister{Key: key(r.GetKey()), Incarnation: r.GetIncarnation()}}
	case *apiv1.RegisterBatchRequest:
		b := &raftlogv1.Batch{}
		for _, i := range r.GetRegister() {
			b.Register = append(b.Register, register(i, r.GetOpenSession()))
		}
		for _, k := range r.GetDeregister() {
			b.Deregister = append(b.Deregister, &raftlogv1.Deregister{Key: key(k)})
		}
		cmd.Kind = &raftlogv1.Command_Batch{Batch: b}
	case *apiv1.SetMaintenanceRequest:
		cmd.Kind = &raftlogv1.Command_SetMaintenance{SetMaintenance: &raftlogv1.SetMaintenance{
			Key: key(r.GetKey()), Maintenance: r.GetMaintenance(),
		}}
	case *apiv1.OpenRequest:
		cmd.Kind = &raftlogv1.Command_OpenSession{OpenSession: &raftlogv1.OpenSession{
			Id: made, TtlMs: uint64(r.GetTtl().AsDuration().Milliseconds()),
		}}
	case *apiv1.CloseRequest:
		cmd.Kind = &raftlogv1.Command_CloseSession{CloseSession: &raftlogv1.CloseSession{Id: r.GetSessionId()}}
	case *apiv1.GrantRequest:
		cmd.Kind = &raftlogv1.Command_GrantLease{GrantLease: &raftlogv1.GrantLease{
			Id: made, TtlMs: uint64(r.GetTtl().AsDuration().Milliseconds()), SessionId: r.GetSessionId(),
		}}
	case *apiv1.RevokeRequest:
		cmd.Kind = &raftlogv1.Command_RevokeLease{RevokeLease: &raftlogv1.RevokeLease{Id: r.GetLeaseId()}}
	case *apiv1.AcquireRequest:
		cmd.Kind = &raftlogv1.Command_AcquireLock{AcquireLock: &raftlogv1.AcquireLock{
			Namespace: "default", Name: r.GetName(), SessionId: r.GetSessionId(), Wait: r.GetWait(), Slots: r.GetSlots(),
		}}
	case *apiv1.ReleaseRequest:
		cmd.Kind = &raftlogv1.Command_ReleaseLock{ReleaseLock: &raftlogv1.ReleaseLock{
			Namespace: "default", Name: r.GetName(), SessionId: r.GetSessionId(), Token: r.GetToken(),
		}}
	default:
		return nil
	}
	return cmd
}

// respond is the answer to a write, nil for one that is refused.
func respond(req proto.Message, out fsm.Outcome, st *fsm.State) proto.Message {
	h := &apiv1.ResponseHeader{ClusterId: clusterID, Epoch: 1, Revision: out.Revision, Node: "n1"}
	if out.Err() != nil {
		return nil
	}
	switch req.(type) {
	case *apiv1.RegisterRequest:
		return &apiv1.RegisterResponse{Header: h, Incarnation: out.Number, Changed: out.Changed, Session: sessionOf(out, st)}
	case *apiv1.DeregisterRequest:
		return &apiv1.DeregisterResponse{Header: h, Changed: out.Changed}
	case *apiv1.RegisterBatchRequest:
		return &apiv1.RegisterBatchResponse{Header: h, Incarnation: out.Number, Changed: out.Changed, Session: sessionOf(out, st)}
	case *apiv1.SetMaintenanceRequest:
		return &apiv1.SetMaintenanceResponse{Header: h, Changed: out.Changed}
	case *apiv1.OpenRequest:
		return &apiv1.OpenResponse{Header: h, Session: st.Session(out.ID).Proto(st)}
	case *apiv1.CloseRequest:
		return &apiv1.CloseResponse{Header: h, Changed: out.Changed}
	case *apiv1.GrantRequest:
		return &apiv1.GrantResponse{Header: h, Lease: st.Lease(out.ID).Proto(st)}
	case *apiv1.RevokeRequest:
		return &apiv1.RevokeResponse{Header: h, Changed: out.Changed}
	case *apiv1.AcquireRequest:
		return &apiv1.AcquireResponse{Header: h, Token: out.Number}
	default:
		return &apiv1.ReleaseResponse{Header: h}
	}
}

// sessionOf is the session that a registration opened, nil for none.
func sessionOf(out fsm.Outcome, st *fsm.State) *registryv1.Session {
	if s := st.Session(out.ID); s != nil {
		return s.Proto(st)
	}
	return nil
}

// read answers a read from a state of an age. Pages of instances go by the id of the last one, all else fits on one page.
func (w *world) read(c *history.Call, st *fsm.State, age time.Duration) {
	w.t.Helper()
	h := w.header(st.Revision())
	h.Staleness = durationpb.New(age)
	h.Mode = cmp.Or(c.Request.(interface{ GetFreshness() *apiv1.Freshness }).GetFreshness().GetMode(), apiv1.Mode_MODE_LINEARIZABLE)
	refuse := func(reason apiv1.Reason) { c.Outcome, c.Reason = history.Failed, reason }
	switch req := c.Request.(type) {
	case *apiv1.GetRequest:
		if r := st.Instance("default", req.GetKey().GetService(), req.GetKey().GetId()); r != nil {
			c.Response = &apiv1.GetResponse{Header: h, Instance: decode(w.t, r)}
		} else {
			refuse(apiv1.Reason_REASON_INSTANCE_NOT_FOUND)
		}
	case *apiv1.GetLeaseRequest:
		if l := st.Lease(req.GetLeaseId()); l != nil {
			c.Response = &apiv1.GetLeaseResponse{Header: h, Lease: l.Proto(st)}
		} else {
			refuse(apiv1.Reason_REASON_LEASE_NOT_FOUND)
		}
	case *apiv1.GetLockRequest:
		if l := st.Lock("default", req.GetName()); l != nil {
			c.Response = &apiv1.GetLockResponse{Header: h, Lock: l.Proto()}
		} else {
			refuse(apiv1.Reason_REASON_LOCK_NOT_FOUND)
		}
	case *apiv1.ListInstancesRequest:
		c.Response = w.list(req, st, h)
	case *apiv1.ListServicesRequest:
		resp := &apiv1.ListServicesResponse{Header: h}
		st.Services("", "", func(svc *fsm.Service) bool {
			n := svc.Counts()
			resp.Services = append(resp.Services, &apiv1.ServiceSummary{
				Namespace: svc.Namespace(), Name: svc.Name(), Revision: svc.Revision(), Instances: n.Instances, Passing: n.Passing,
				Warning: n.Warning, Critical: n.Critical, Other: n.Starting + n.Draining + n.Maintenance,
			})
			return true
		})
		c.Response = resp
	case *apiv1.ListRequest:
		resp := &apiv1.ListResponse{Header: h}
		st.Sessions("", func(s *fsm.Session) bool { resp.Sessions = append(resp.Sessions, s.Proto(st)); return true })
		c.Response = resp
	case *apiv1.ListLeasesRequest:
		resp := &apiv1.ListLeasesResponse{Header: h}
		st.Leases("", func(l *fsm.Lease) bool { resp.Leases = append(resp.Leases, l.Proto(st)); return true })
		c.Response = resp
	case *apiv1.ListLocksRequest:
		resp := &apiv1.ListLocksResponse{Header: h}
		st.Locks("", "", func(l *fsm.Lock) bool { resp.Locks = append(resp.Locks, l.Proto()); return true })
		c.Response = resp
	default:
		w.t.Fatalf("nobody answers %T", req)
	}
}

func (w *world) list(req *apiv1.ListInstancesRequest, st *fsm.State, h *apiv1.ResponseHeader) *apiv1.ListInstancesResponse {
	resp := &apiv1.ListInstancesResponse{Header: h, ServiceRevision: st.Revision()}
	svc := st.Service("default", req.GetFilter().GetService())
	if svc == nil {
		return resp
	}
	resp.ServiceRevision = svc.Revision()
	after := ""
	if req.GetPageToken() != "" {
		var revision uint64
		if _, err := fmt.Sscanf(req.GetPageToken(), "%d %s", &revision, &after); err != nil {
			w.t.Fatal(err)
		}
		h.Staleness, h.Mode = nil, apiv1.Mode_MODE_STALE
	}
	svc.Ascend(after, func(r *fsm.Record) bool {
		if !match(req.GetFilter(), r) {
			return true
		}
		if n := len(resp.Instances); req.GetPageSize() > 0 && n == int(req.GetPageSize()) {
			resp.NextPageToken = fmt.Sprintf("%d %s", st.Revision(), resp.Instances[n-1].GetId())
			return false
		}
		resp.Instances = append(resp.Instances, decode(w.t, r))
		return true
	})
	return resp
}

func decode(tb testing.TB, r *fsm.Record) *registryv1.Instance {
	tb.Helper()
	i, err := r.Proto()
	if err != nil {
		tb.Fatal(err)
	}
	return i
}

// match is as much of a filter as these tests use.
func match(f *apiv1.Filter, r *fsm.Record) bool {
	return r != nil && r.Service() == f.GetService() && r.Health() >= f.GetMinHealth()
}
