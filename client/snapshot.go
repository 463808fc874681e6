package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// snapshotChunk is the size of the parts in which a snapshot is sent.
const snapshotChunk = 256 << 10

// SaveSnapshot writes a snapshot of the whole registry to w. progress, unless nil, is called with the number of bytes
// written so far. Another node is tried until the first byte has come; after that a failure is an error, and what was
// written is of no use. It takes as long as ctx allows.
func (o *Cluster) SaveSnapshot(ctx context.Context, w io.Writer, progress func(written int64), opts ...ReadOption) (*apiv1.SnapshotInfo, error) {
	const op = "save snapshot"
	fresh, err := freshness(op, opts)
	if err != nil {
		return nil, err
	}
	ctx, unbind := o.c.bind(ctx)
	defer unbind()
	t := &transfer{progress: progress}
	var info *apiv1.SnapshotInfo
	err = o.c.try(ctx, method{op: op, repeat: always, patient: true},
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
			stream, failed := clusterService(conn).SaveSnapshot(ctx, &apiv1.SaveSnapshotRequest{Freshness: fresh}, opts...)
			if failed == nil {
				info, failed = t.receive(stream, w)
			}
			return failed
		})
	if err == nil && t.err != nil {
		err = fmt.Errorf("%s: %w", op, t.err)
	}
	if err != nil {
		return nil, err
	}
	return info, nil
}

// transfer is a snapshot on its way. What cannot be repeated is kept in err, so that the loop over nodes ends.
type transfer struct {
	progress func(int64)
	done     int64
	last     error // of the last node
	err      error
}

// add counts bytes.
func (t *transfer) add(n int) {
	t.done += int64(n)
	if t.progress != nil {
		t.progress(t.done)
	}
}

// rewind goes back to where the snapshot starts. It tells whether that was possible.
func (t *transfer) rewind(seeker io.Seeker, start int64) bool {
	if seeker == nil {
		t.err = t.last
		return false
	}
	if _, err := seeker.Seek(start, io.SeekStart); err != nil {
		t.err = errors.Join(t.last, err)
		return false
	}
	t.done = 0
	return true
}

// receive writes what comes. It returns errors only of a stream that has brought nothing yet.
func (t *transfer) receive(stream grpc.ServerStreamingClient[apiv1.SaveSnapshotResponse], w io.Writer) (*apiv1.SnapshotInfo, error) {
	var info *apiv1.SnapshotInfo
	for {
		resp, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			if info == nil {
				t.err = io.ErrUnexpectedEOF
			}
			return info, nil
		case err != nil && t.done == 0:
			return nil, err
		case err != nil:
			t.err = fmt.Errorf("after %d bytes: %w", t.done, fromStatus(err))
			return nil, nil
		}
		if resp.GetInfo() != nil {
			info = resp.GetInfo()
		}
		if _, err := w.Write(resp.GetChunk()); err != nil {
			t.err = fmt.Errorf("write after %d bytes: %w", t.done, err)
			return nil, nil
		}
		t.add(len(resp.GetChunk()))
	}
}

// RestoreSnapshot replaces the content of the registry by the snapshot in r: a new epoch. progress, unless nil, is called
// with the number of bytes sent so far. A node that surely did nothing is followed by another one if r is an io.Seeker;
// else any failure is an error. It takes as long as ctx allows.
func (o *Cluster) RestoreSnapshot(ctx context.Context, r io.Reader, progress func(sent int64)) (*apiv1.RestoreSnapshotResponse, error) {
	const op = "restore snapshot"
	ctx, unbind := o.c.bind(ctx)
	defer unbind()
	seeker, _ := r.(io.Seeker)
	var start int64
	if seeker != nil {
		var err error
		if start, err = seeker.Seek(0, io.SeekCurrent); err != nil {
			seeker = nil // a pipe, say
		}
	}
	t := &transfer{progress: progress}
	var resp *apiv1.RestoreSnapshotResponse
	err := o.c.try(ctx, method{op: op, repeat: ifUndone, patient: true},
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
			if t.done > 0 && !t.rewind(seeker, start) {
				return nil
			}
			stream, failed := clusterService(conn).RestoreSnapshot(ctx, opts...)
			if failed == nil {
				resp, failed = t.send(stream, r)
			}
			if t.err != nil {
				return nil //nolint:nilerr // What cannot be repeated ends the loop; it is returned below.
			}
			if failed != nil {
				t.last = fromStatus(failed)
			}
			return failed
		})
	if err == nil && t.err != nil {
		err = fmt.Errorf("%s: %w", op, t.err)
	}
	if err != nil {
		return nil, err
	}
	o.c.observe(resp.GetHeader())
	return resp, nil
}

// send sends all of r.
func (t *transfer) send(stream grpc.ClientStreamingClient[apiv1.RestoreSnapshotRequest, apiv1.RestoreSnapshotResponse], r io.Reader) (*apiv1.RestoreSnapshotResponse, error) {
	buf := make([]byte, snapshotChunk)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			// A failed Send says only that the stream has ended; its answer says why.
			if stream.Send(&apiv1.RestoreSnapshotRequest{Chunk: buf[:n]}) != nil {
				break
			}
			t.add(n)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.err = fmt.Errorf("read after %d bytes: %w", t.done, err)
			return nil, t.err
		}
	}
	return stream.CloseAndRecv()
}
