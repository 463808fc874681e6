package rpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// Numbers of the fields that are encoded by hand; a test compares them with the generated code.
const (
	watchCut    protowire.Number = 1 // of WatchResponse
	watchEvents protowire.Number = 3

	cutSubscription protowire.Number = 1 // of Cut
	cutFull         protowire.Number = 2
	cutReasonField  protowire.Number = 3
	cutInstances    protowire.Number = 4
	cutDeleted      protowire.Number = 5

	keyNamespace protowire.Number = 1 // of InstanceKey
	keyService   protowire.Number = 2
	keyID        protowire.Number = 3
)

// cut is a cut under way, and the part of it that is being filled.
type cut struct {
	stream *watchStream
	head   []byte // encoded subscription id, full and reason
	parts  int

	instances []*fsm.Record
	deleted   []feed.Key
	size      int // of instances and deleted, encoded
}

func (w *watchStream) newCut(sub *subscription, full bool, reason apiv1.CutReason) *cut {
	head := protowire.AppendTag(nil, cutSubscription, protowire.VarintType)
	head = protowire.AppendVarint(head, uint64(sub.id))
	head = protowire.AppendTag(head, cutFull, protowire.VarintType)
	head = protowire.AppendVarint(head, protowire.EncodeBool(full))
	head = protowire.AppendTag(head, cutReasonField, protowire.VarintType)
	head = protowire.AppendVarint(head, uint64(reason)) //nolint:gosec // Reasons are not negative.
	return &cut{stream: w, head: head}
}

// cutFull sends all that matches.
func (w *watchStream) cutFull(ctx context.Context, sub *subscription, v cluster.View, reason apiv1.CutReason) error {
	c := w.newCut(sub, true, reason)
	var err error
	sub.filter.each(v.State, func(r *fsm.Record) bool {
		err = c.put(ctx, r)
		return err == nil
	})
	if err != nil {
		return err
	}
	if c.parts == 0 && c.size == 0 {
		// The client forgets what it had: there is a part even if nothing matches.
		if err := c.send(ctx); err != nil {
			return err
		}
	}
	return c.end(ctx, sub, v, v.State.Revision())
}

// cutKeys sends what has become of the keys.
func (w *watchStream) cutKeys(
	ctx context.Context, sub *subscription, v cluster.View, keys []feed.Key, reason apiv1.CutReason,
) error {
	c := w.newCut(sub, false, reason)
	for _, k := range keys {
		if k.Kind != fsm.EventInstance || sub.filter.service != "" && sub.filter.service != k.Name ||
			!sub.filter.shows(k.Namespace, k.Name) {
			continue
		}
		var err error
		if r := v.State.Instance(k.Namespace, k.Name, k.ID); r != nil && sub.filter.match(r) {
			err = c.put(ctx, r)
		} else {
			err = c.remove(ctx, k)
		}
		if err != nil {
			return err
		}
	}
	if reason == apiv1.CutReason_CUT_REASON_SNAPSHOT_INSTALLED && c.parts == 0 && c.size == 0 {
		// Nothing differs, but what came and went is not told: the client must know that it may have missed changes.
		if err := c.send(ctx); err != nil {
			return err
		}
	}
	return c.end(ctx, sub, v, v.State.Revision())
}

// cutRevision tells a revision that is too large for one message as a cut, which may have parts: to only, or to all who
// are told of changes. Clients must not see a part of a revision for the whole.
func (w *watchStream) cutRevision(ctx context.Context, events []*feed.Event, only *subscription) error {
	v, err := w.view(ctx)
	if err != nil {
		return err
	}
	revision := events[0].Revision
	subs := []*subscription{only}
	if only == nil {
		subs = w.before(revision)
	}
	for _, sub := range subs {
		c := w.newCut(sub, false, apiv1.CutReason_CUT_REASON_LARGE_REVISION)
		for _, e := range events {
			switch {
			case e.New != nil && sub.filter.match(e.New):
				err = c.put(ctx, e.New)
			case e.Old != nil && sub.filter.match(e.Old):
				err = c.remove(ctx, e.Key())
			}
			if err != nil {
				return err
			}
		}
		if err := c.end(ctx, sub, v, revision); err != nil {
			return err
		}
	}
	return nil
}

// end sends what is left and says that the subscription equals the registry at the revision. A cut without parts has
// nothing to tell this subscription.
func (c *cut) end(ctx context.Context, sub *subscription, v cluster.View, revision uint64) error {
	if c.size > 0 {
		if err := c.send(ctx); err != nil {
			return err
		}
	}
	if c.parts == 0 {
		return nil
	}
	return c.stream.sendSynced(ctx, sub, v, revision)
}

// sendSynced ends a cut or a catch-up: from here on the subscription gets events.
func (w *watchStream) sendSynced(ctx context.Context, sub *subscription, v cluster.View, revision uint64) error {
	sub.from = revision
	w.synced = max(w.synced, revision)
	return w.sendMessage(ctx, &apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Synced{
		Synced: &apiv1.Synced{SubscriptionId: sub.id, Header: w.header(v, revision)},
	}})
}

// put adds an instance that is new or changed.
func (c *cut) put(ctx context.Context, r *fsm.Record) error {
	c.instances = append(c.instances, r)
	return c.grow(ctx, protowire.SizeTag(cutInstances)+protowire.SizeBytes(len(r.Encoded())))
}

// remove adds an instance that is gone or no longer matches.
func (c *cut) remove(ctx context.Context, k feed.Key) error {
	c.deleted = append(c.deleted, k)
	return c.grow(ctx, protowire.SizeTag(cutDeleted)+protowire.SizeBytes(keySize(k)))
}

func (c *cut) grow(ctx context.Context, n int) error {
	if c.size += n; c.size < watchMessage {
		return nil
	}
	return c.send(ctx)
}

// send sends the part and begins the next. It pauses now and then: a large cut must not keep the applier from running.
func (c *cut) send(ctx context.Context) error {
	w, n := c.stream, len(c.head)+c.size
	err := w.send(ctx, newEncoded(protowire.SizeTag(watchCut)+protowire.SizeBytes(n), func(dst []byte) []byte {
		dst = protowire.AppendTag(dst, watchCut, protowire.BytesType)
		dst = protowire.AppendVarint(dst, uint64(n))
		return c.append(append(dst, c.head...))
	}))
	c.parts++
	if w.unpaced += n; w.unpaced >= cutBlock {
		w.unpaced = 0
		time.Sleep(cutPause)
	}
	clear(c.instances)
	c.instances, c.deleted, c.size = c.instances[:0], c.deleted[:0], 0
	return err
}

// append appends the encoded instances and deleted keys.
func (c *cut) append(dst []byte) []byte {
	for _, r := range c.instances {
		dst = protowire.AppendTag(dst, cutInstances, protowire.BytesType)
		dst = protowire.AppendBytes(dst, r.Encoded())
	}
	for _, k := range c.deleted {
		dst = protowire.AppendTag(dst, cutDeleted, protowire.BytesType)
		dst = protowire.AppendVarint(dst, uint64(keySize(k)))
		dst = appendText(dst, keyNamespace, k.Namespace)
		dst = appendText(dst, keyService, k.Name)
		dst = appendText(dst, keyID, k.ID)
	}
	return dst
}

func keySize(k feed.Key) int {
	return protowire.SizeTag(keyNamespace) + protowire.SizeBytes(len(k.Namespace)) +
		protowire.SizeTag(keyService) + protowire.SizeBytes(len(k.Name)) +
		protowire.SizeTag(keyID) + protowire.SizeBytes(len(k.ID))
}

func appendText(dst []byte, n protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(dst, n, protowire.BytesType), s)
}
