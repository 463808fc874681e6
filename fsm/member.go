package fsm

import (
	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// appendMember encodes a member by hand: what is hashed must not depend on the version of a library.
func appendMember(b []byte, m *registryv1.Member) []byte {
	b = appendString(b, 1, m.GetId())
	b = appendString(b, 2, m.GetName())
	b = appendString(b, 3, m.GetPeerAddress())
	b = appendString(b, 4, m.GetGrpcAddress())
	b = appendString(b, 5, m.GetHttpAddress())
	b = appendString(b, 6, m.GetVersion())
	b = appendUint(b, 7, uint64(m.GetFeatureLevel()))
	return appendBool(b, 8, m.GetNonVoter())
}

// setMember records where a node is reached and what it can do.
func (t *txn) setMember(cmd *raftlogv1.SetMember) Outcome {
	m := cmd.GetMember()
	if !validName(m.GetId()) {
		return refuse(raftlogv1.Code_CODE_INVALID, "id")
	}
	for _, text := range [...]string{
		m.GetName(), m.GetPeerAddress(), m.GetGrpcAddress(), m.GetHttpAddress(), m.GetVersion(),
	} {
		if len(text) > MaxMemberBytes {
			return refuse(raftlogv1.Code_CODE_INVALID, "member")
		}
	}
	next := &registryv1.Member{
		Id: m.GetId(), Name: m.GetName(), PeerAddress: m.GetPeerAddress(), GrpcAddress: m.GetGrpcAddress(),
		HttpAddress: m.GetHttpAddress(), Version: m.GetVersion(), FeatureLevel: m.GetFeatureLevel(),
		NonVoter: m.GetNonVoter(),
	}
	old, ok := t.st.members.get(next.GetId())
	if ok {
		if proto.Equal(old, next) {
			return Outcome{}
		}
		t.scratch = appendMember(t.scratch[:0], old)
		t.subSum(tableMembers, t.scratch)
	}
	t.scratch = appendMember(t.scratch[:0], next)
	t.addSum(tableMembers, t.scratch)
	t.st.members.set(t.mark, next.GetId(), next)
	t.events = append(t.events, Event{Kind: EventMember, Created: true, Revision: t.change(), Name: next.GetId()})
	return Outcome{}
}

// removeMember forgets a node. One that is not there is forgotten already.
func (t *txn) removeMember(cmd *raftlogv1.RemoveMember) Outcome {
	old, ok := t.st.members.get(cmd.GetId())
	if !ok {
		return Outcome{}
	}
	t.scratch = appendMember(t.scratch[:0], old)
	t.subSum(tableMembers, t.scratch)
	t.st.members.delete(t.mark, cmd.GetId())
	t.events = append(t.events, Event{Kind: EventMember, Revision: t.change(), Name: cmd.GetId()})
	return Outcome{}
}
