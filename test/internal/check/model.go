package check

import (
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/regd-io/regd/fsm"
	"github.com/regd-io/regd/fsm/model"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// modelCommands is how much of the log the model replays: it copies itself with each command.
const modelCommands = 500

// Model replays the beginning of the log by the naive rules of fsm/model, as the Timeline of everything else is by the
// state machine that is being judged. A Timeline that does not begin with an empty registry is left alone.
//
//   - model: an outcome, or what the registry holds after the commands that were replayed, differs.
func Model(r *Run) []Violation {
	var v verdict
	m, commands := model.New(), 0
	if r.Timeline.AtIndex(0).Hash() != fsm.New().Hash() {
		return nil
	}
	var last *fsm.State
	for _, step := range r.Timeline.Steps() {
		if commands += len(step.Entry.GetCommands()); commands > modelCommands {
			break
		}
		outcomes, err := m.Apply(step.State.Index(), step.State.Term(), step.Entry)
		if err != nil {
			v.fault("model", "entry %d: %v", step.State.Index(), err)
			return v.list
		}
		for i, want := range outcomes {
			if got := step.Result.Outcomes[i].Proto(); !proto.Equal(got, want) {
				v.fault("model", "entry %d, command %d: outcome %v, the model has %v", step.State.Index(), i, got, want)
			}
		}
		last = step.State
	}
	if last != nil {
		if diff := cmp.Diff(contentOfModel(m), contentOf(r.facts(), last), protocmp.Transform()); diff != "" {
			v.fault("model", "the registry at index %d (-model +fsm):\n%s", last.Index(), diff)
		}
	}
	return v.list
}

// contentOf is what a reader can see of a state.
func contentOf(f *facts, st *fsm.State) map[string]proto.Message {
	content := map[string]proto.Message{}
	st.Services("", "", func(svc *fsm.Service) bool {
		svc.Ascend("", func(r *fsm.Record) bool {
			content["instance "+keyOfRecord(r).String()] = f.instance(r)
			return true
		})
		return true
	})
	st.Sessions("", func(s *fsm.Session) bool { content["session "+s.ID()] = s.Proto(st); return true })
	st.Leases("", func(l *fsm.Lease) bool { content["lease "+l.ID()] = l.Proto(st); return true })
	st.Locks("", "", func(l *fsm.Lock) bool { content["lock "+l.Namespace+"/"+l.Name] = l.Proto(); return true })
	for _, member := range st.Members() {
		content["member "+member.GetId()] = member
	}
	return content
}

// contentOfModel is contentOf for the model.
func contentOfModel(m *model.Registry) map[string]proto.Message {
	content := map[string]proto.Message{}
	for k, i := range m.Instances {
		content["instance "+key{k.Namespace, k.Service, k.ID}.String()] = i.Message
	}
	for id := range m.Sessions {
		content["session "+id] = m.Session(id)
	}
	for id := range m.Leases {
		content["lease "+id] = m.Lease(id)
	}
	for name, l := range m.Locks {
		lock := &registryv1.Lock{
			Namespace: l.GetNamespace(), Name: l.GetName(), SessionId: l.GetSessionId(), Token: l.GetToken(), Value: l.GetValue(),
			AcquireRevision: l.GetAcquireRevision(),
		}
		lock.Slots = l.GetSlots()
		for _, o := range l.GetOthers() {
			lock.Others = append(lock.Others, &registryv1.LockOwner{
				SessionId: o.GetSessionId(), Token: o.GetToken(), Value: o.GetValue(), AcquireRevision: o.GetAcquireRevision(),
			})
		}
		for _, w := range l.GetWaiters() {
			lock.Waiters = append(lock.Waiters, w.GetSessionId())
		}
		content["lock "+name.Namespace+"/"+name.Name] = lock
	}
	for id, member := range m.Members {
		content["member "+id] = member
	}
	return content
}
