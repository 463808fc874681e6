package rpc

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// WatchKeys streams keys. It counts as a watch in admission and among those that may be open.
func (s *kvServer) WatchKeys(
	req *apiv1.WatchKeysRequest, stream grpc.ServerStreamingServer[apiv1.WatchKeysResponse],
) error {
	var f faults
	w := &keyWatch{
		core: s.core, stream: stream, stuck: make(chan struct{}, 1),
		key: req.GetKey(), prefix: req.GetPrefix(), keysOnly: req.GetKeysOnly(),
	}
	w.namespace = f.namespace("namespace", req.GetNamespace())
	f.keyText("key", req.GetKey(), req.GetPrefix())
	w.interval = f.duration("progress_interval", req.GetProgressInterval(), span{
		least: MinProgressInterval, most: MaxProgressInterval, byDefault: DefaultProgressInterval,
	})
	if err := f.err(); err != nil {
		return err
	}
	about := func(err error) error { return aboutKeys(err, "watch keys", w.namespace, w.key) }
	if err := s.enterWatch(); err != nil {
		return about(err)
	}
	defer s.leaveWatch()
	if err := s.quotas.watch(s.node.Feed().State(), w.namespace); err != nil {
		return about(err)
	}
	defer s.quotas.unwatch(w.namespace)
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	ended := make(chan error, 1)
	s.tasks.Go(func() { ended <- w.run(ctx) })
	select {
	case err := <-ended:
		return about(err)
	case <-w.stuck:
		return about(fmt.Errorf("%w: its client has not read for %v", ErrOverloaded, stuckAfter))
	}
}

// keyWatch is one stream of WatchKeys. It has no queue of its own: while a client does not read, the feed notes for it which
// keys have changed, or in the end that too many have, and it is told what these are now. One goroutine runs it, as a lockWatch.
type keyWatch struct {
	core           *core
	stream         grpc.ServerStream
	namespace, key string
	prefix         bool
	keysOnly       bool
	interval       time.Duration // of progress
	stuck          chan struct{} // gives a token when a send takes too long

	sending *time.Timer
	begun   bool                              // the client was told all
	visible func(namespace, name string) bool // nil: all
	told    uint64                            // revision up to which the client is told everything
	ahead   []*feed.Event                     // taken, and of later revisions
}

// maxKeyMessage is about how much a message of a stream has: it ends with the key that reaches it.
const maxKeyMessage = 512 << 10

// run serves the stream until it ends, or the node leaves.
func (w *keyWatch) run(ctx context.Context) error {
	watcher := w.core.node.Feed().Watch(
		feed.Topic{Kind: fsm.EventKey, Namespace: w.namespace, Name: w.key, Prefix: w.prefix}, feed.Topic{Kind: fsm.EventAccess})
	defer watcher.Close()
	w.sending = time.AfterFunc(stuckAfter, func() {
		select {
		case w.stuck <- struct{}{}:
		default:
		}
	})
	w.sending.Stop()
	defer w.sending.Stop()
	idle := time.NewTimer(w.interval)
	defer idle.Stop()
	now := make(chan struct{})
	close(now)
	for due := false; ; {
		told, err := w.step(ctx, watcher, due)
		if err != nil {
			return err
		}
		if told {
			due = false
			idle.Reset(w.interval)
		}
		ready := watcher.Ready()
		if len(w.ahead) > 0 {
			ready = now
		}
		select {
		case <-ready:
		case <-idle.C:
			due = true
		case <-w.core.leaving:
			return cluster.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// step tells the client what has come, or how far it is if that is due, and reports whether it was told anything. What it tells is
// one State, whose revision is whole: a row never shows a part of what was changed at once.
func (w *keyWatch) step(ctx context.Context, watcher *feed.Watcher, due bool) (told bool, err error) {
	v, err := w.core.node.View(ctx, cluster.Freshness{Mode: cluster.ModeStale})
	if err != nil {
		return false, err
	}
	if err = w.core.node.Feed().WaitQueued(ctx, v.State.Revision()); err != nil {
		return false, err
	}
	taken := watcher.Take()
	if taken.Closed {
		return false, cluster.ErrClosed
	}
	if r := taken.Resync; r != nil {
		v.State = r.State // Not an older one.
	}
	anew, err := w.allow(ctx) // By rights that are not older than the State.
	if err != nil {
		return false, err
	}
	changed, all := w.changed(taken, v.State.Revision())
	w.told = v.State.Revision()
	switch {
	case all || anew || !w.begun:
		w.begun = true
		return true, w.tellAll(ctx, v)
	case len(changed) > 0 || due:
		return true, w.tell(ctx, v, changed)
	default:
		return false, nil
	}
}

// allow checks that the caller still is who it was and may read what it watches. anew: it may see other keys than before.
func (w *keyWatch) allow(ctx context.Context) (anew bool, err error) {
	if err = w.core.known(ctx); err != nil {
		return false, err
	}
	if !w.prefix {
		return false, w.core.authorize(ctx, need{action: registryv1.Action_ACTION_KV_READ, namespace: w.namespace, name: w.key})
	}
	if err = w.core.authorize(ctx, somewhere(registryv1.Action_ACTION_KV_READ)); err != nil {
		return false, err
	}
	before := w.visible
	w.visible = w.core.visible(ctx, registryv1.Action_ACTION_KV_READ)
	return (before == nil) != (w.visible == nil), nil
}

// changed returns the keys that have changed since the client was told last, up to a revision, sorted, or that it must be told all.
func (w *keyWatch) changed(taken feed.Taken, revision uint64) (keys []string, all bool) {
	events := append(w.ahead, taken.Events...)
	n := sort.Search(len(events), func(i int) bool { return events[i].Revision > revision })
	events, w.ahead = events[:n:n], events[n:]
	note := func(k feed.Key) {
		if k.Kind == fsm.EventKey && k.Namespace == w.namespace && w.covers(k.Name) {
			keys = append(keys, k.Name)
		}
	}
	if r := taken.Resync; r != nil {
		if r.Full || r.Reason != feed.ReasonSlowReader {
			return nil, true
		}
		for _, k := range r.Keys {
			if k.Kind == fsm.EventAccess && w.visible != nil {
				return nil, true
			}
			note(k)
		}
	}
	for _, e := range events {
		if e.Kind == fsm.EventAccess && w.visible != nil {
			return nil, true
		}
		if e.Revision > w.told { // What came before was in the State that the client was told of.
			note(e.Key())
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), false
}

func (w *keyWatch) covers(key string) bool {
	if w.prefix {
		return strings.HasPrefix(key, w.key)
	}
	return key == w.key
}

// tell sends what keys are now.
func (w *keyWatch) tell(ctx context.Context, v cluster.View, keys []string) error {
	row := w.newRow(v, false)
	for _, key := range keys {
		if w.visible != nil && !w.visible(w.namespace, key) {
			continue
		}
		if err := row.add(ctx, key, v.State.Key(w.namespace, key)); err != nil {
			return err
		}
	}
	return row.end(ctx)
}

// tellAll sends all keys.
func (w *keyWatch) tellAll(ctx context.Context, v cluster.View) error {
	row := w.newRow(v, true)
	if !w.prefix {
		if k := v.State.Key(w.namespace, w.key); k != nil {
			if err := row.add(ctx, w.key, k); err != nil {
				return err
			}
		}
		return row.end(ctx)
	}
	var err error
	v.State.Keys(w.namespace, w.key, "", func(k *fsm.KeyValue) bool {
		if w.visible != nil && !w.visible(w.namespace, k.Key) {
			return ctx.Err() == nil
		}
		err = row.add(ctx, k.Key, k)
		return err == nil
	})
	if err != nil {
		return err
	}
	return row.end(ctx)
}

// keyRow is a row of messages that belong together.
type keyRow struct {
	w    *keyWatch
	next *apiv1.WatchKeysResponse
	size int
}

func (w *keyWatch) newRow(v cluster.View, all bool) *keyRow {
	return &keyRow{w: w, next: &apiv1.WatchKeysResponse{Header: w.core.readHeader(v), All: all}}
}

// add adds a key, nil for one that is gone, and sends what there is if that is enough for a message.
func (r *keyRow) add(ctx context.Context, name string, k *fsm.KeyValue) error {
	if r.size >= maxKeyMessage {
		r.next.More = true
		if err := r.w.send(ctx, r.next); err != nil {
			return err
		}
		r.next, r.size = &apiv1.WatchKeysResponse{Header: r.next.GetHeader()}, 0
	}
	r.size += len(name) + keyOverhead
	if k == nil {
		r.next.Deleted = append(r.next.Deleted, name)
		return nil
	}
	m := shownKey(k, r.w.keysOnly)
	r.size += len(m.GetValue())
	r.next.KeyValues = append(r.next.KeyValues, m)
	return nil
}

// keyOverhead is about what a key takes in a message besides its name and its value.
const keyOverhead = 64

// end sends the last message of the row.
func (r *keyRow) end(ctx context.Context) error { return r.w.send(ctx, r.next) }

// send sends a message, and has the stream end if that takes too long.
func (w *keyWatch) send(ctx context.Context, m *apiv1.WatchKeysResponse) error {
	if err := ctx.Err(); err != nil {
		return err // The handler may have returned: nothing may be sent any more.
	}
	w.sending.Reset(stuckAfter)
	err := w.stream.SendMsg(m)
	w.sending.Stop()
	if err == nil {
		w.core.watchMessages.Add(1)
	}
	return err
}
