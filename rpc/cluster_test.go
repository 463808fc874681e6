package rpc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/regd-io/regd/cluster"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestOperatorsOrdersReachTheNode(t *testing.T) {
	r := newRig(t)
	calls := map[string]func() (*apiv1.ResponseHeader, error){
		"Status": func() (*apiv1.ResponseHeader, error) {
			resp, err := r.cluster.Status(bg, &apiv1.StatusRequest{})
			return resp.GetHeader(), err
		},
		"Members": func() (*apiv1.ResponseHeader, error) {
			resp, err := r.cluster.Members(bg, &apiv1.MembersRequest{})
			if err == nil && len(resp.GetMembers()) != 1 {
				t.Errorf("members %v", resp.GetMembers())
			}
			return resp.GetHeader(), err
		},
		"Join": func() (*apiv1.ResponseHeader, error) {
			resp, err := r.cluster.Join(bg, &apiv1.JoinRequest{PeerAddress: "n2:7401", NonVoter: true})
			want := &registryv1.Member{Name: "n2", PeerAddress: "n2:7401", NonVoter: true}
			if diff := cmp.Diff(want, resp.GetMember(), protocmp.Transform()); err == nil && (diff != "" || !resp.GetChanged()) {
				t.Errorf("member (-want +got):\n%s", diff)
			}
			return resp.GetHeader(), err
		},
		"Remove": func() (*apiv1.ResponseHeader, error) {
			resp, err := r.cluster.Remove(bg, &apiv1.RemoveRequest{Node: "n2"})
			return resp.GetHeader(), err
		},
		"Promote": func() (*apiv1.ResponseHeader, error) {
			resp, err := r.cluster.Promote(bg, &apiv1.PromoteRequest{Node: "n2"})
			return resp.GetHeader(), err
		},
		"Demote": func() (*apiv1.ResponseHeader, error) {
			resp, err := r.cluster.Demote(bg, &apiv1.DemoteRequest{Node: "n2"})
			return resp.GetHeader(), err
		},
		"TransferLeadership": func() (*apiv1.ResponseHeader, error) {
			resp, err := r.cluster.TransferLeadership(bg, &apiv1.TransferLeadershipRequest{Node: "n2"})
			if err == nil && resp.GetLeader() != "n2" {
				t.Errorf("leader %q", resp.GetLeader())
			}
			return resp.GetHeader(), err
		},
		"Verify": func() (*apiv1.ResponseHeader, error) {
			resp, err := r.cluster.Verify(bg, &apiv1.VerifyRequest{})
			if err == nil && !resp.GetEqual() {
				t.Errorf("verify %v", resp)
			}
			return resp.GetHeader(), err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			r.node.set(func() { r.node.operator = nil })
			if header, err := call(); err != nil || header.GetNode() != "n1" {
				t.Errorf("header %v, %v", header, err)
			}
			r.node.set(func() { r.node.operator = fmt.Errorf("%w: two of three voters are gone", cluster.ErrMembership) })
			_, err := call()
			wantReason(t, err, codes.FailedPrecondition, apiv1.Reason_REASON_MEMBERSHIP_REFUSED)
			r.node.set(func() { r.node.operator = cluster.ErrMemberNotFound })
			_, err = call()
			wantReason(t, err, codes.NotFound, apiv1.Reason_REASON_MEMBER_NOT_FOUND)
		})
	}
}

func TestOperatorsOrdersAreValidated(t *testing.T) {
	r := newRig(t)
	for name, call := range map[string]func() error{
		"join without a port": func() error {
			_, err := r.cluster.Join(bg, &apiv1.JoinRequest{PeerAddress: "n2"})
			return err
		},
		"remove nobody": func() error {
			_, err := r.cluster.Remove(bg, &apiv1.RemoveRequest{})
			return err
		},
		"promote nobody": func() error {
			_, err := r.cluster.Promote(bg, &apiv1.PromoteRequest{})
			return err
		},
		"demote a long name": func() error {
			_, err := r.cluster.Demote(bg, &apiv1.DemoteRequest{Node: long(MaxNodeNameLen + 1)})
			return err
		},
		"transfer to a line break": func() error {
			_, err := r.cluster.TransferLeadership(bg, &apiv1.TransferLeadershipRequest{Node: "a\nb"})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			wantReason(t, call(), codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
		})
	}
}

// save saves a snapshot.
func (r *rig) save(tb testing.TB) (*apiv1.SnapshotInfo, []byte) {
	tb.Helper()
	stream, err := r.cluster.SaveSnapshot(tb.Context(), &apiv1.SaveSnapshotRequest{})
	if err != nil {
		tb.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil || first.GetHeader().GetNode() != "n1" || first.GetInfo() == nil {
		tb.Fatalf("first part %v, %v", first, err)
	}
	data := bytes.Clone(first.GetChunk())
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return first.GetInfo(), data
		}
		if err != nil {
			tb.Fatal(err)
		}
		if n := len(part.GetChunk()); n > SnapshotChunk {
			tb.Errorf("a part has %d bytes", n)
		}
		data = append(data, part.GetChunk()...)
	}
}

// restore restores a snapshot, in parts of the given size.
func (r *rig) restore(tb testing.TB, data []byte, size int) (*apiv1.RestoreSnapshotResponse, error) {
	tb.Helper()
	stream, err := r.cluster.RestoreSnapshot(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	for len(data) > 0 {
		n := min(size, len(data))
		if err := stream.Send(&apiv1.RestoreSnapshotRequest{Chunk: data[:n]}); err != nil {
			break // The answer says why.
		}
		data = data[n:]
	}
	return stream.CloseAndRecv()
}

func TestSavedSnapshotIsRestored(t *testing.T) {
	r := newRig(t)
	many(3, func(b int) {
		req := &apiv1.RegisterBatchRequest{}
		many(MaxBatch, func(i int) {
			in := instance("web", fmt.Sprint(b, "-", i))
			in.Metadata = map[string]string{"filler": long(200)}
			req.Register = append(req.Register, in)
		})
		if _, err := r.registry.RegisterBatch(bg, req); err != nil {
			t.Fatal(err)
		}
	})
	session := r.openSession(t)
	r.mustAcquire(t, session)
	st := r.node.feed.State()
	info, data := r.save(t)
	if len(data) < 3*SnapshotChunk {
		t.Fatalf("the snapshot has %d bytes, too few to be in parts", len(data))
	}
	hash := st.ContentHash()
	want := &apiv1.SnapshotInfo{
		ClusterId: "c1", Index: st.Index(), Term: 1, Revision: st.Revision(), Epoch: st.Epoch(), ContentHash: hash[:],
		Instances: 3000, Sessions: 1, Locks: 1, Version: 1,
	}
	if diff := cmp.Diff(want, info, protocmp.Transform()); diff != "" {
		t.Errorf("info (-want +got):\n%s", diff)
	}
	if _, err := r.sessions.Close(bg, &apiv1.CloseRequest{SessionId: session}); err != nil {
		t.Fatal(err)
	}
	r.register(t, instance("api", "later"))
	before := r.node.feed.State().Revision()
	resp, err := r.restore(t, data, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, resp.GetInfo(), protocmp.Transform()); diff != "" {
		t.Errorf("info (-want +got):\n%s", diff)
	}
	if h := resp.GetHeader(); h.GetEpoch() <= st.Epoch() || h.GetRevision() <= before {
		t.Errorf("header %v, want a later epoch and revision than %d and %d", h, st.Epoch(), before)
	}
	if got := r.node.feed.State().ContentHash(); got != hash {
		t.Error("the content differs from what was saved")
	}
}

func TestBadSnapshotChangesNothing(t *testing.T) {
	r := newRig(t)
	many(50, func(i int) { r.register(t, instance("web", fmt.Sprint(i))) })
	_, data := r.save(t)
	flipped := bytes.Clone(data)
	flipped[len(flipped)/2] ^= 1
	before := r.node.feed.State()
	for name, bad := range map[string][]byte{
		"nothing": nil, "garbage": []byte("not a snapshot"), "cut": data[:len(data)-1], "flipped bit": flipped,
		"something after it": append(bytes.Clone(data), 0),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.restore(t, bad, 1000)
			wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_BAD_SNAPSHOT)
			if r.node.feed.State() != before {
				t.Error("the state is another one")
			}
		})
	}
}

func TestSnapshotIsBounded(t *testing.T) {
	r := &chunkReader{stream: endless{}, left: 100_000}
	n, err := io.Copy(io.Discard, r)
	if !errors.Is(err, cluster.ErrBadSnapshot) || n > 100_000 {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

// endless is a client that never stops sending.
type endless struct {
	apiv1.ClusterService_RestoreSnapshotServer
}

func (endless) Recv() (*apiv1.RestoreSnapshotRequest, error) {
	return &apiv1.RestoreSnapshotRequest{Chunk: make([]byte, 1000)}, nil
}

// parts is a client that remembers what it was sent.
type parts struct {
	apiv1.ClusterService_SaveSnapshotServer
	sizes []int
}

func (p *parts) Send(resp *apiv1.SaveSnapshotResponse) error {
	p.sizes = append(p.sizes, len(resp.GetChunk()))
	return nil
}

func TestLargeBlocksAreSentInParts(t *testing.T) {
	p := &parts{}
	n, err := chunkWriter{p}.Write(make([]byte, 2*SnapshotChunk+1))
	if err != nil || n != 2*SnapshotChunk+1 {
		t.Errorf("wrote %d bytes, %v", n, err)
	}
	if diff := cmp.Diff([]int{SnapshotChunk, SnapshotChunk, 1}, p.sizes); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}
}
