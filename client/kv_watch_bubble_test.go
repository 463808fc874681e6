package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func (n *fakeNode) WatchKeys(req *apiv1.WatchKeysRequest, stream grpc.ServerStreamingServer[apiv1.WatchKeysResponse]) error {
	n.note("WatchKeys", req)
	n.script.Lock()
	script := n.watchKeys
	n.script.Unlock()
	if script == nil {
		return reason(apiv1.Reason_REASON_STARTING)
	}
	return script(stream)
}

// row is a message of a watch of keys: up to a revision, the changes "key=revision" and "-key", "all" for all anew, "more" for
// more of the same row, "epoch" for the time after a restore.
func (n *fakeNode) row(revision uint64, words ...string) *apiv1.WatchKeysResponse {
	m := &apiv1.WatchKeysResponse{Header: &apiv1.ResponseHeader{
		ClusterId: "cluster", Epoch: 1, Revision: revision, Node: strings.TrimSuffix(n.address, ":7400"),
	}}
	for _, word := range words {
		key, at, put := strings.Cut(word, "=")
		switch gone, deleted := strings.CutPrefix(word, "-"); {
		case word == "all":
			m.All = true
		case word == "more":
			m.More = true
		case word == "epoch":
			m.Header.Epoch = 2
		case deleted:
			m.Deleted = append(m.Deleted, gone)
		case put:
			k := &registryv1.KeyValue{Namespace: "default", Key: key, Value: []byte(at)}
			_, _ = fmt.Sscan(at, &k.ModifyRevision)
			m.KeyValues = append(m.KeyValues, k)
		}
	}
	return m
}

// tells has the node tell rows, and then those that follow, or nothing if that is nil.
func (n *fakeNode) tells(more <-chan *apiv1.WatchKeysResponse, rows ...*apiv1.WatchKeysResponse) {
	n.set(func(n *fakeNode) {
		n.watchKeys = func(stream grpc.ServerStreamingServer[apiv1.WatchKeysResponse]) error {
			for _, row := range rows {
				if err := stream.Send(row); err != nil {
					return err
				}
			}
			for {
				select {
				case row := <-more:
					if err := stream.Send(row); err != nil {
						return err
					}
				case <-stream.Context().Done():
					return stream.Context().Err()
				}
			}
		}
	})
}

// keysWatch is a watch of all keys, whose changes are words as those of a row, and "@revision" for what is synced.
type keysWatch struct {
	t   *testing.T
	out chan string
	err error // once out is closed
}

func watchKeys(ctx context.Context, t *testing.T, c *client.Client) *keysWatch {
	t.Helper()
	w := &keysWatch{t: t, out: make(chan string)}
	t.Cleanup(func() {
		for range w.out {
		}
	})
	go func() {
		defer close(w.out)
		for change, err := range c.KV().Watch(ctx, &apiv1.WatchKeysRequest{Prefix: true}) {
			if err != nil {
				w.err = err
				return
			}
			w.out <- said(change)
		}
	}()
	return w
}

func said(c client.KeyChange) string {
	switch c.Kind {
	case client.ChangePut:
		return fmt.Sprintf("%s=%s", c.Key, c.KeyValue.GetValue())
	case client.ChangeDelete:
		return "-" + c.Key
	case client.ChangeSynced:
		return fmt.Sprintf("@%d", c.Revision)
	default:
		return fmt.Sprintf("kind %d", c.Kind)
	}
}

// want fails unless just these words come within a few minutes: less than it takes until a silent node is left.
func (w *keysWatch) want(words ...string) {
	w.t.Helper()
	var got []string
	for len(got) < len(words) {
		select {
		case word, more := <-w.out:
			if !more {
				w.t.Fatalf("ended after %v: %v; want %v", got, w.err, words)
			}
			got = append(got, word)
		case <-time.After(time.Minute):
			w.t.Fatalf("nothing came after %v, want %v", got, words)
		}
	}
	if diff := cmp.Diff(words, got); diff != "" {
		w.t.Fatalf("changes (-want +got):\n%s", diff)
	}
}

func (w *keysWatch) wantEnd(want error) {
	w.t.Helper()
	for word := range w.out {
		w.t.Errorf("%s came, want the end", word)
	}
	if !errors.Is(w.err, want) {
		w.t.Errorf("error %v, want %v", w.err, want)
	}
}

func TestWatchOfKeysYieldsEachChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		n, more := f.nodes[0], make(chan *apiv1.WatchKeysResponse)
		n.tells(more, n.row(110, "all", "b=101", "more"), n.row(110, "a=102"))
		ctx, cancel := context.WithCancel(t.Context())
		w := watchKeys(ctx, t, f.client(nil))
		w.want("a=102", "b=101", "@110")
		more <- n.row(112, "a=111", "c=112", "-b", "-x")
		w.want("a=111", "c=112", "-b", "@112")
		more <- n.row(120, "a=111") // The key was told ahead of the row before.
		w.want("@120")
		more <- n.row(130, "all", "c=112") // What one may see has changed.
		w.want("-a", "@130")
		more <- n.row(140, "a=111")
		w.want("a=111", "@140")
		if req := f.calls("WatchKeys")[0].req.(*apiv1.WatchKeysRequest); !req.GetPrefix() || req.GetProgressInterval().AsDuration() != 5*time.Second {
			t.Errorf("request %v", req)
		}
		cancel()
		w.wantEnd(context.Canceled)
	})
}

// At another node nothing is told again, nothing is lost, and nothing goes back, though it lags behind the last one at first.
func TestWatchOfKeysGoesOnAtAnotherNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		ahead, behind, more := f.nodes[0], f.nodes[1], make(chan *apiv1.WatchKeysResponse)
		// Two changes of a row are told ahead of it, which does not end.
		ahead.tells(nil, ahead.row(110, "all", "a=101", "b=102", "c=103"), ahead.row(120, "b=115", "-c"), ahead.row(125, "b=127", "d=126", "more"))
		w := watchKeys(t.Context(), t, f.client(nil))
		w.want("a=101", "b=102", "c=103", "@110", "b=115", "-c", "@120", "b=127", "d=126")
		behind.tells(more, behind.row(105, "all", "a=101", "b=102", "c=103"), behind.row(118, "b=115", "-a"), behind.row(119))
		ahead.stop()
		synctest.Wait()
		select {
		case word := <-w.out:
			t.Fatalf("%s came from a node that lags behind", word)
		case <-time.After(8 * time.Second):
		}
		more <- behind.row(122, "-c", "e=121")
		w.want("-a", "e=121", "@122")
		more <- behind.row(128, "b=127", "d=126", "a=128")
		w.want("a=128", "@128")
	})
}

func TestWatchOfKeysTellsAllAnewAfterARestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		n, more := f.nodes[0], make(chan *apiv1.WatchKeysResponse)
		n.tells(more, n.row(110, "all", "a=101", "b=102"))
		w := watchKeys(t.Context(), t, f.client(nil))
		w.want("a=101", "b=102", "@110")
		more <- n.row(90, "all", "epoch", "a=80")
		w.want("-b", "a=80", "@90")
		more <- n.row(91, "epoch", "a=91")
		w.want("a=91", "@91")
	})
}

func TestWatchOfKeysLeavesANodeThatIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		old := f.nodes[0].row(110, "all", "a=101")
		old.Header.Staleness = durationpb.New(time.Minute)
		f.nodes[0].tells(nil, old)
		f.nodes[1].tells(nil, f.nodes[1].row(120, "all", "a=120"))
		w := watchKeys(t.Context(), t, f.client(f.nodes[:1]))
		w.want("a=101", "@110", "@110") // The only one is asked again.
		w = watchKeys(t.Context(), t, f.client(nil))
		for word := range w.out {
			if word == "a=120" {
				return
			}
		}
	})
}

func TestWatchOfKeysEndsWhenItIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		n := f.nodes[0]
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		w := watchKeys(ctx, t, f.client(nil))
		w.wantEnd(client.ErrStarting)
		w.wantEnd(context.DeadlineExceeded)
		n.set(func(n *fakeNode) {
			n.watchKeys = func(grpc.ServerStreamingServer[apiv1.WatchKeysResponse]) error {
				return reasonAs(codes.PermissionDenied, apiv1.Reason_REASON_PERMISSION_DENIED)
			}
		})
		watchKeys(t.Context(), t, f.client(nil)).wantEnd(client.ErrPermissionDenied)
		n.tells(nil, n.row(110, "all"))
		c := f.client(nil)
		w = watchKeys(t.Context(), t, c)
		w.want("@110")
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		w.wantEnd(client.ErrClosed)
		watchKeys(t.Context(), t, c).wantEnd(client.ErrClosed)
		for _, err := range f.client(nil).KV().Watch(t.Context(), &apiv1.WatchKeysRequest{Prefix: true}) {
			if err != nil {
				t.Error(err)
			}
			break // The reader may stop when it likes.
		}
	})
}
