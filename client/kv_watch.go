package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// KeyChange is what a watch of keys yields.
type KeyChange struct {
	// ReadInfo says who told it. Its revision is that up to which all is known after the ChangeSynced that follows.
	ReadInfo
	// Kind is ChangePut, ChangeDelete or ChangeSynced.
	Kind ChangeKind
	// Key that has changed. Empty in a ChangeSynced.
	Key string
	// KeyValue is the key after a put, else nil.
	KeyValue *registryv1.KeyValue
}

// Watch yields a key, or those that begin alike, as the request says: first as they are, then what changes, whatever becomes
// of connections and nodes. The progress interval is the client's to choose. A ChangeSynced follows the first state and each
// row of changes, and comes every few seconds while nothing changes: what the reader has then is what was in the registry at
// its revision.
//
// Of changes of one key that follow closely some may be left out, the last one never is. At another node it goes on with what
// differs: no put is yielded again, none after a newer one, and what was deleted meanwhile is yielded as a delete. There are two
// exceptions. After an operator has restored a snapshot all keys come anew, as revisions of before and after do not compare. And
// a key that was deleted just when its node failed may come back as it was, and is deleted again, if the next node lags behind.
//
// The client remembers the names of the keys and their revisions, and holds the first state with its values while a node
// tells it. A reader that is slow costs nobody memory.
//
// The loop ends with ctx, with the client's Close, and when the registry refuses the watch; the last pair has the error.
func (k *KV) Watch(ctx context.Context, watch *apiv1.WatchKeysRequest) iter.Seq2[KeyChange, error] {
	req := &apiv1.WatchKeysRequest{
		Namespace: k.c.namespace(watch.GetNamespace()), Key: watch.GetKey(), Prefix: watch.GetPrefix(),
		KeysOnly: watch.GetKeysOnly(), ProgressInterval: durationpb.New(progressInterval),
	}
	op := "watch keys " + req.GetNamespace() + "/" + req.GetKey()
	return func(yield func(KeyChange, error) bool) {
		if k.c.life.Err() != nil {
			yield(KeyChange{}, fmt.Errorf("%s: %w", op, ErrClosed))
			return
		}
		bound, unbind := k.c.bind(ctx)
		defer unbind()
		w := &keyWatch{yield: yield, told: map[string]uint64{}}
		f := follower[*apiv1.WatchKeysResponse]{
			c: k.c, what: "keys", pause: pause{limit: maxWatchPause}, take: w.take,
			open: func(ctx context.Context, conn grpc.ClientConnInterface) (func() (*apiv1.WatchKeysResponse, error), error) {
				stream, err := kvService(conn).WatchKeys(ctx, req)
				if err != nil {
					return nil, err
				}
				return stream.Recv, nil
			},
		}
		if err := f.run(bound); !errors.Is(err, errStopped) {
			yield(KeyChange{}, fmt.Errorf("%s: %w", op, err))
		}
	}
}

// keyWatch is what a watch of keys has yielded.
type keyWatch struct {
	yield func(KeyChange, error) bool
	told  map[string]uint64 // revision of the last change of each key that the reader has
	point ResumePoint       // up to which the reader has all
	// state is all keys as the stream tells them, until it has told them all and is as far as the reader. Then it is nil, and
	// what comes is yielded at once.
	state map[string]*registryv1.KeyValue
}

// take takes a message of a row in.
func (w *keyWatch) take(resp *apiv1.WatchKeysResponse) error {
	at := pointOf(resp.GetHeader())
	info := infoOf(resp.GetHeader())
	if resp.GetAll() {
		w.state = map[string]*registryv1.KeyValue{}
	}
	if w.state == nil {
		if err := w.change(info, resp.GetKeyValues(), resp.GetDeleted()); err != nil {
			return err
		}
	} else {
		for _, k := range resp.GetKeyValues() {
			w.state[k.GetKey()] = k
		}
		for _, key := range resp.GetDeleted() {
			delete(w.state, key)
		}
	}
	if resp.GetMore() {
		return nil
	}
	// A node that lags behind the last one is waited for.
	if !at.before(w.point) {
		if err := w.whole(info, at); err != nil {
			return err
		}
	}
	if resp.GetHeader().GetStaleness().AsDuration() > watchStale {
		return errStale
	}
	return nil
}

// whole brings the reader to a point, at which the row has ended.
func (w *keyWatch) whole(info ReadInfo, at ResumePoint) error {
	if w.state != nil {
		if err := w.differ(info, at); err != nil {
			return err
		}
	}
	w.point = at
	return w.say(KeyChange{ReadInfo: info, Kind: ChangeSynced})
}

// differ yields in what the state differs from what the reader has, deletions first.
func (w *keyWatch) differ(info ReadInfo, at ResumePoint) error {
	state, same := w.state, at.sameHistory(w.point)
	w.state = nil
	var gone []string
	for _, key := range slices.Sorted(maps.Keys(w.told)) {
		switch _, there := state[key]; {
		case !there && same && w.told[key] > at.Revision: // The reader was told ahead of the row: this node will come to it.
		case !there:
			gone = append(gone, key)
		case !same:
			w.told[key] = 0 // Its revision says nothing here.
		}
	}
	var puts []*registryv1.KeyValue
	for _, key := range slices.Sorted(maps.Keys(state)) {
		puts = append(puts, state[key])
	}
	if err := w.change(info, nil, gone); err != nil {
		return err
	}
	return w.change(info, puts, nil)
}

// change yields changes that the reader does not have yet.
func (w *keyWatch) change(info ReadInfo, puts []*registryv1.KeyValue, deleted []string) error {
	for _, k := range puts {
		if k.GetModifyRevision() <= w.told[k.GetKey()] {
			continue
		}
		w.told[k.GetKey()] = k.GetModifyRevision()
		if err := w.say(KeyChange{ReadInfo: info, Kind: ChangePut, Key: k.GetKey(), KeyValue: k}); err != nil {
			return err
		}
	}
	for _, key := range deleted {
		if _, there := w.told[key]; !there {
			continue
		}
		delete(w.told, key)
		if err := w.say(KeyChange{ReadInfo: info, Kind: ChangeDelete, Key: key}); err != nil {
			return err
		}
	}
	return nil
}

func (w *keyWatch) say(c KeyChange) error {
	if !w.yield(c, nil) {
		return errStopped
	}
	return nil
}
