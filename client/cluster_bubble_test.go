package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

func (n *fakeNode) Status(_ context.Context, req *apiv1.StatusRequest) (*apiv1.StatusResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	resp := &apiv1.StatusResponse{Header: n.header(), Quorum: 2}
	if req.GetLocal() {
		resp.Quorum = 0
	}
	return resp, nil
}

func (n *fakeNode) Remove(context.Context, *apiv1.RemoveRequest) (*apiv1.RemoveResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &apiv1.RemoveResponse{Header: n.header()}, nil
}

func (n *fakeNode) SaveSnapshot(_ *apiv1.SaveSnapshotRequest, stream grpc.ServerStreamingServer[apiv1.SaveSnapshotResponse]) error {
	n.script.Lock()
	script := n.saved
	n.script.Unlock()
	return script(stream)
}

func (n *fakeNode) RestoreSnapshot(stream grpc.ClientStreamingServer[apiv1.RestoreSnapshotRequest, apiv1.RestoreSnapshotResponse]) error {
	n.note("RestoreSnapshot", &apiv1.RestoreSnapshotRequest{})
	n.script.Lock()
	before := n.before
	n.script.Unlock()
	var got []byte
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		got = append(got, req.GetChunk()...)
		if before != nil {
			if err := before("RestoreSnapshot", req); err != nil {
				return err
			}
		}
	}
	return stream.SendAndClose(&apiv1.RestoreSnapshotResponse{Info: &apiv1.SnapshotInfo{ContentHash: got}})
}

func TestLocalStatusesNameEveryNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 3)
		f.nodes[1].set(func(n *fakeNode) { n.down = true })
		f.nodes[0].leader = f.nodes[2].address
		c := f.client(f.nodes[:2])
		if _, err := c.Cluster().Status(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := c.Cluster().LocalStatuses(t.Context())
		if len(got) != 3 {
			t.Fatalf("%d statuses, want those of 2 endpoints and the leader that was told", len(got))
		}
		for i, s := range got {
			if s.Address != f.nodes[i].address || (s.Err != nil) != (i == 1) || (s.Status != nil) == (i == 1) {
				t.Errorf("status %d: %+v", i, s)
			}
		}
		if s := c.Cluster().LocalStatus(t.Context(), "nonsense"); s.Err == nil {
			t.Error("a bad address was accepted")
		}
	})
}

func TestOrderThatCannotBeRepeatedIsSentOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		for _, n := range f.nodes {
			n.after = failing("Remove", status.Error(codes.Unavailable, "reset"))
		}
		_, err := f.client(nil).Cluster().Remove(t.Context(), "n2", false)
		if !errors.Is(err, client.ErrOutcomeUnknown) || len(f.calls("Remove")) != 1 {
			t.Errorf("%d attempts, error %v: want one, of unknown outcome", len(f.calls("Remove")), err)
		}
	})
}

func TestOrderThatWasNotCarriedOutIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		f.nodes[0].set(func(n *fakeNode) { n.down = true })
		f.nodes[1].before = failing("Remove", reason(apiv1.Reason_REASON_NO_LEADER), reason(apiv1.Reason_REASON_NOT_LEADER))
		if _, err := f.client(nil).Cluster().Remove(t.Context(), "n2", false); err != nil {
			t.Error(err)
		}
		if n := len(f.calls("Remove")); n != 3 {
			t.Errorf("%d attempts, want 3", n)
		}
	})
}

func chunk(s string) *apiv1.SaveSnapshotResponse {
	return &apiv1.SaveSnapshotResponse{Chunk: []byte(s)}
}

func TestSnapshotIsSavedFromAnyNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		f.nodes[0].saved = func(grpc.ServerStreamingServer[apiv1.SaveSnapshotResponse]) error {
			return reason(apiv1.Reason_REASON_STARTING)
		}
		f.nodes[1].saved = func(s grpc.ServerStreamingServer[apiv1.SaveSnapshotResponse]) error {
			return errors.Join(s.Send(&apiv1.SaveSnapshotResponse{Info: &apiv1.SnapshotInfo{Revision: 7}, Chunk: []byte("ab")}), s.Send(chunk("cd")))
		}
		var out bytes.Buffer
		var progress []int64
		info, err := f.client(nil).Cluster().SaveSnapshot(t.Context(), &out, func(n int64) { progress = append(progress, n) })
		if err != nil || out.String() != "abcd" || info.GetRevision() != 7 || len(progress) != 2 || progress[1] != 4 {
			t.Errorf("saved %q, info %v, progress %v, error %v", &out, info, progress, err)
		}
	})
}

func TestSnapshotThatBreaksOffIsAnError(t *testing.T) {
	for _, test := range []struct {
		name   string
		script func(grpc.ServerStreamingServer[apiv1.SaveSnapshotResponse]) error
		out    io.Writer
	}{
		{"broken", func(s grpc.ServerStreamingServer[apiv1.SaveSnapshotResponse]) error {
			return errors.Join(s.Send(chunk("ab")), status.Error(codes.Unavailable, "reset"))
		}, io.Discard},
		{"no info", func(grpc.ServerStreamingServer[apiv1.SaveSnapshotResponse]) error { return nil }, io.Discard},
		{"disk of the caller", func(s grpc.ServerStreamingServer[apiv1.SaveSnapshotResponse]) error {
			return s.Send(chunk("ab"))
		}, failingWriter{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeCluster(t, 1)
				f.nodes[0].saved = test.script
				if _, err := f.client(nil).Cluster().SaveSnapshot(t.Context(), test.out, nil); err == nil {
					t.Error("no error")
				}
			})
		})
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestSnapshotIsRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		content := bytes.Repeat([]byte("0123456789"), 100_000)
		f.nodes[0].before = failing("RestoreSnapshot", reason(apiv1.Reason_REASON_NO_LEADER))
		in := bytes.NewReader(append([]byte("header"), content...))
		if _, err := in.Seek(6, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		var sent int64
		resp, err := f.client(nil).Cluster().RestoreSnapshot(t.Context(), in, func(n int64) { sent = n })
		if err != nil || !bytes.Equal(resp.GetInfo().GetContentHash(), content) || sent != int64(len(content)) {
			t.Errorf("restored %d bytes, sent %d, error %v: want %d", len(resp.GetInfo().GetContentHash()), sent, err, len(content))
		}
	})
}

func TestRestoreThatCannotBeRepeatedIsAnError(t *testing.T) {
	for _, test := range []struct {
		name string
		in   io.Reader
		err  error
		want error
	}{
		{"no way back in the input", iotest.OneByteReader(bytes.NewReader([]byte("abc"))), reason(apiv1.Reason_REASON_NO_LEADER), client.ErrNoLeader},
		{"broken connection", bytes.NewReader([]byte("abc")), status.Error(codes.Unavailable, "reset"), client.ErrOutcomeUnknown},
		{"bad snapshot", bytes.NewReader([]byte("abc")), reason(apiv1.Reason_REASON_BAD_SNAPSHOT), client.ErrBadSnapshot},
		{"bad input", iotest.ErrReader(iotest.ErrTimeout), nil, iotest.ErrTimeout},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeCluster(t, 1)
				if test.err != nil {
					f.nodes[0].before = func(string, proto.Message) error { return test.err }
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err := f.client(nil).Cluster().RestoreSnapshot(ctx, test.in, nil)
				if !errors.Is(err, test.want) || len(f.calls("RestoreSnapshot")) > 1 {
					t.Errorf("%d attempts, error %v: want one, and %v", len(f.calls("RestoreSnapshot")), err, test.want)
				}
			})
		})
	}
}
