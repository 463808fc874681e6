package rpc

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// keyStream is a client's side of WatchKeys, which keeps what it is told.
type keyStream struct {
	t *testing.T
	grpc.ServerStreamingClient[apiv1.WatchKeysResponse]
	keys     map[string]string
	revision uint64
}

func (r *rig) watchKeys(ctx context.Context, t *testing.T, req *apiv1.WatchKeysRequest) *keyStream {
	t.Helper()
	stream, err := r.keys.WatchKeys(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return &keyStream{t: t, ServerStreamingClient: stream}
}

// row takes the messages of a row, and says whether it told all anew.
func (s *keyStream) row() (all bool) {
	s.t.Helper()
	for first := true; ; first = false {
		m, err := s.Recv()
		if err != nil {
			s.t.Fatal(err)
		}
		if m.GetAll() {
			if !first {
				s.t.Fatal("a row begins anew within a row")
			}
			s.keys, all = map[string]string{}, true
		}
		for _, k := range m.GetKeyValues() {
			s.keys[k.GetKey()] = string(k.GetValue())
		}
		for _, key := range m.GetDeleted() {
			delete(s.keys, key)
		}
		if m.GetHeader().GetRevision() < s.revision {
			s.t.Fatalf("revision %d after %d", m.GetHeader().GetRevision(), s.revision)
		}
		if s.revision = m.GetHeader().GetRevision(); !m.GetMore() {
			return all
		}
	}
}

func (s *keyStream) want(all bool, keys map[string]string) {
	s.t.Helper()
	if got := s.row(); got != all {
		s.t.Errorf("all is %t, want %t", got, all)
	}
	if diff := cmp.Diff(keys, s.keys); diff != "" {
		s.t.Errorf("keys (-want +got):\n%s", diff)
	}
}

func TestWatchedKeysAreToldFirstAndWhenTheyChange(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.upgradedTo(t, fsm.KVLevel)
		r.put(t, "app/a", "1")
		r.put(t, "apq", "1")
		tree := r.watchKeys(ctx, t, &apiv1.WatchKeysRequest{Key: "app/", Prefix: true, ProgressInterval: durationpb.New(time.Second)})
		one := r.watchKeys(ctx, t, &apiv1.WatchKeysRequest{Key: "app/b", KeysOnly: true})
		tree.want(true, map[string]string{"app/a": "1"})
		one.want(true, map[string]string{})
		r.put(t, "app/b", "2")
		tree.want(false, map[string]string{"app/a": "1", "app/b": "2"})
		one.want(false, map[string]string{"app/b": ""})
		r.put(t, "apq", "2") // Of no interest to either.
		if _, err := r.keys.DeleteKey(bg, &apiv1.DeleteKeyRequest{Key: "app/", Prefix: true}); err != nil {
			t.Fatal(err)
		}
		tree.want(false, map[string]string{})
		one.want(false, map[string]string{})
		last := r.put(t, "apq", "3")
		began := time.Now()
		tree.want(false, map[string]string{}) // Progress.
		if tree.revision != last || time.Since(began) > time.Second {
			t.Errorf("progress at revision %d after %v, want %d after a second", tree.revision, time.Since(began), last)
		}
	})
}

// TestARowOfKeysIsOneState: what one write changes together is never told in part, though writes go on while a row is made.
func TestARowOfKeysIsOneState(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.upgradedTo(t, fsm.KVLevel)
		s := r.watchKeys(ctx, t, &apiv1.WatchKeysRequest{Prefix: true})
		s.want(true, map[string]string{})
		const writes = 2000
		var writing sync.WaitGroup
		writing.Go(func() {
			for i := range writes {
				value := fmt.Appendf(nil, "%d", i)
				set := func(key string) *apiv1.KeyOp {
					return &apiv1.KeyOp{Kind: apiv1.KeyOpKind_KEY_OP_KIND_SET, Key: key, Value: value}
				}
				if _, err := r.keys.Transact(bg, &apiv1.TransactRequest{Ops: []*apiv1.KeyOp{set(fmt.Sprint("k", i%3)), set("last")}}); err != nil {
					t.Error(err)
					return
				}
			}
		})
		rows := 0
		for s.keys["last"] != fmt.Sprint(writes-1) {
			s.row()
			rows++
			last, err := strconv.Atoi(s.keys["last"])
			if err != nil {
				t.Fatal(err)
			}
			for back := range min(3, last+1) {
				if key, want := fmt.Sprint("k", (last-back)%3), fmt.Sprint(last-back); s.keys[key] != want {
					t.Fatalf("revision %d: %s is %q, want %q, as the last is %d", s.revision, key, s.keys[key], want, last)
				}
			}
		}
		writing.Wait()
		t.Logf("%d writes in %d rows", writes, rows)
	})
}

func TestASlowReaderIsToldWhatKeysAreInTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.upgradedTo(t, fsm.KVLevel)
		s := r.watchKeys(ctx, t, &apiv1.WatchKeysRequest{Prefix: true})
		s.want(true, map[string]string{})
		want := map[string]string{}
		large := strings.Repeat("x", 100<<10)
		for i := range 300 {
			key := fmt.Sprintf("k%d", i%30)
			want[key] = fmt.Sprintf("%d%s", i, large)
			r.put(t, key, want[key])
		}
		last := r.node.feed.State().Revision()
		for s.revision < last {
			s.row()
		}
		if diff := cmp.Diff(want, s.keys); diff != "" {
			t.Error("the stream leads to other keys")
		}
	})
}

func TestAWatchOfKeysEndsWhenItsClientDoesNotRead(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.upgradedTo(t, fsm.KVLevel)
		for i := range 10 {
			r.put(t, fmt.Sprint(i), strings.Repeat("x", MaxValueLen))
		}
		r.watchKeys(ctx, t, &apiv1.WatchKeysRequest{Prefix: true})
		synctest.Wait()
		if n := len(r.server.core.watches); n != 1 {
			t.Fatalf("%d watches are open", n)
		}
		time.Sleep(stuckAfter + time.Second)
		synctest.Wait()
		if n := len(r.server.core.watches); n != 0 {
			t.Errorf("%d watches are open still", n)
		}
	})
}

func TestAWatchOfKeysFollowsRights(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, r *rig) {
		r.node.enforce(t)
		r.node.upgradedTo(t, fsm.KVLevel)
		read := registryv1.Action_ACTION_KV_READ
		r.node.identity(t, "who", rule("default/a*", read))
		root := showing(ctx, "root")
		for _, key := range []string{"a", "b"} {
			if _, err := r.keys.PutKey(root, &apiv1.PutKeyRequest{Key: key}); err != nil {
				t.Fatal(err)
			}
		}
		s := r.watchKeys(showing(ctx, "who"), t, &apiv1.WatchKeysRequest{Prefix: true})
		s.want(true, map[string]string{"a": ""})
		r.node.identity(t, "who", rule("default/b*", read))
		synctest.Wait()
		for !slices.Equal(keysOfMap(s.keys), []string{"b"}) {
			s.row()
		}
		r.node.identity(t, "who", rule("default/b*", registryv1.Action_ACTION_SEE_LOCK))
		for {
			if _, err := s.Recv(); err != nil {
				if reasonOfError(err) != "PERMISSION_DENIED" {
					t.Errorf("it ends with %v", err)
				}
				return
			}
		}
	})
}

func keysOfMap(m map[string]string) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}
