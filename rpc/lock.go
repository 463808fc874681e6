package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// lockServer serves LockService.
type lockServer struct {
	apiv1.UnimplementedLockServiceServer
	*core
}

// aboutLock explains an error of an order about one lock.
func aboutLock(err error, verb, namespace, name string) error {
	return explain(err, verb+" lock "+namespace+"/"+name, "namespace", namespace, "name", name)
}

// Acquire takes a lock, or waits for it. A retry under the same request id goes back to waiting: the queue is in the
// State, and whoever asks again is found in it.
func (s *lockServer) Acquire(ctx context.Context, req *apiv1.AcquireRequest) (*apiv1.AcquireResponse, error) {
	var f faults
	id := f.request(req)
	namespace, name := f.lock(req.GetNamespace(), req.GetName())
	f.word("session_id", req.GetSessionId(), MaxIDLen, nameChars)
	if n := len(req.GetValue()); n > MaxLockValueLen {
		f.add("value", "has %d bytes, the limit is %d", n, MaxLockValueLen)
	}
	slots := f.number("slots", req.GetSlots(), 1, MaxLockSlots, 1)
	if err := f.err(); err != nil {
		return nil, err
	}
	a := &acquisition{core: s.core, order: &raftlogv1.AcquireLock{
		Namespace: namespace, Name: name, SessionId: req.GetSessionId(), Wait: req.GetWait(), Value: req.GetValue(),
		Slots: req.GetSlots(),
	}}
	token, revision, err := a.run(ctx, id)
	if errors.Is(err, fsm.ErrSlotsMismatch) {
		err = explain(err, fmt.Sprintf("take one of %d slots", slots), "slots", strconv.FormatUint(uint64(slots), 10))
	}
	if err != nil {
		return nil, aboutLock(err, "acquire", namespace, name)
	}
	return &apiv1.AcquireResponse{Header: s.writeHeader(revision), Token: token}, nil
}

// acquisition is one Acquire under way.
type acquisition struct {
	*core
	order *raftlogv1.AcquireLock
}

// run returns the token and the revision of the acquisition. When it fails after it queued, the place is given back, but
// never the lock: the client may be asking again elsewhere by now, and would lose what it is told it has. For the same
// reason nothing is given back when the outcome of the order itself is not known.
func (a *acquisition) run(ctx context.Context, id *raftlogv1.RequestID) (token, revision uint64, err error) {
	out, err := a.propose(ctx, id)
	if err != nil || out.Number > 0 {
		return out.Number, out.Revision, err
	}
	select {
	case a.lockWaiters <- struct{}{}:
		defer func() { <-a.lockWaiters }()
		token, revision, err = a.await(ctx, out.Revision)
	default:
		err = ErrOverloaded
	}
	if err == nil || errors.Is(err, fsm.ErrSessionNotFound) {
		return token, revision, err
	}
	return a.giveUp(ctx, err)
}

// propose asks for the lock. It is admitted here and not by the interceptor, as waiting is no work.
func (a *acquisition) propose(ctx context.Context, id *raftlogv1.RequestID) (fsm.Outcome, error) {
	if err := a.admission.enter(classRegister); err != nil {
		return fsm.Outcome{}, err
	}
	defer a.admission.leave()
	return a.core.propose(ctx, &raftlogv1.Command{
		Request: id, Kind: &raftlogv1.Command_AcquireLock{AcquireLock: a.order},
	})
}

// await waits until the session owns the lock. It gives up a moment before the deadline, so that the reason still
// reaches the client. queued is the revision at which the session had its place.
func (a *acquisition) await(ctx context.Context, queued uint64) (token, revision uint64, err error) {
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-min(lockMargin, time.Until(end)/2)))
		defer cancel()
	}
	// A session that ends leaves its queues, so that the lock's events tell of it too.
	watcher := a.node.Feed().Watch(
		feed.Topic{Kind: fsm.EventLock, Namespace: a.order.GetNamespace(), Name: a.order.GetName()})
	defer watcher.Close()
	if _, err = a.node.Feed().WaitRevision(ctx, queued); err != nil {
		return 0, 0, a.tooLate(err)
	}
	for {
		closed := watcher.Take().Closed
		st := a.node.Feed().State()
		token, revision, err = a.look(ctx, st)
		if token > 0 || err != nil {
			return token, revision, err
		}
		if closed {
			return 0, 0, cluster.ErrClosed
		}
		select {
		case <-watcher.Ready():
		case <-a.leaving:
			return 0, 0, cluster.ErrClosed
		case <-ctx.Done():
			return 0, 0, a.tooLate(ctx.Err())
		}
	}
}

// look tells where the session stands in a State: token 0 means in the queue. A session that is alive and has no place
// queues again: an earlier attempt under the same request id, given up elsewhere, may have given back the place.
func (a *acquisition) look(ctx context.Context, st *fsm.State) (token, revision uint64, err error) {
	session := a.order.GetSessionId()
	lock := st.Lock(a.order.GetNamespace(), a.order.GetName())
	var owned *fsm.Owner
	if lock != nil {
		owned = lock.OwnedBy(session)
	}
	switch {
	case owned != nil:
		return owned.Token, owned.AcquireRevision, nil
	case lock != nil && slices.ContainsFunc(lock.Waiters, func(w fsm.Waiter) bool { return w.SessionID == session }):
		return 0, 0, nil
	case st.Session(session) == nil:
		return 0, 0, explain(fsm.ErrSessionNotFound, "wait", "session", session)
	}
	out, err := a.propose(ctx, nil)
	if err != nil {
		return 0, 0, err
	}
	if out.Number == 0 {
		_, err = a.node.Feed().WaitRevision(ctx, out.Revision)
	}
	return out.Number, out.Revision, err
}

// tooLate is the error of a wait that ended with its context.
func (a *acquisition) tooLate(err error) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	owner := ""
	if lock := a.node.Feed().State().Lock(a.order.GetNamespace(), a.order.GetName()); lock != nil {
		owner = lock.SessionID
	}
	return explain(fsm.ErrLockHeld, "wait until the deadline", "owner", owner)
}

// giveUp gives back the session's place in the queue, for a reason, which it returns; or the token, when the lock fell to
// the session in between. It outlives the call, whose context may have ended.
func (a *acquisition) giveUp(ctx context.Context, reason error) (token, revision uint64, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	out, err := a.core.propose(ctx, &raftlogv1.Command{Kind: &raftlogv1.Command_ReleaseLock{ReleaseLock: &raftlogv1.ReleaseLock{
		Namespace: a.order.GetNamespace(), Name: a.order.GetName(), SessionId: a.order.GetSessionId(), WaitingOnly: true,
	}}})
	var refused *fsm.Error
	switch {
	case err == nil && out.Number > 0:
		return out.Number, out.Revision, nil
	case err == nil || errors.As(err, &refused): // The place is given back, or was before.
		return 0, 0, reason
	}
	a.log.WarnContext(ctx, "place in the queue of a lock was not given back",
		slog.String("namespace", a.order.GetNamespace()), slog.String("lock", a.order.GetName()),
		slog.String("session", a.order.GetSessionId()), slog.Any("err", err))
	return 0, 0, fmt.Errorf("%w: the place in the queue was not given back: %w", cluster.ErrUnknownOutcome, err)
}

// Release gives a lock back.
func (s *lockServer) Release(ctx context.Context, req *apiv1.ReleaseRequest) (*apiv1.ReleaseResponse, error) {
	var f faults
	id := f.request(req)
	namespace, name := f.lock(req.GetNamespace(), req.GetName())
	f.word("session_id", req.GetSessionId(), MaxIDLen, nameChars)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.propose(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_ReleaseLock{
		ReleaseLock: &raftlogv1.ReleaseLock{
			Namespace: namespace, Name: name, SessionId: req.GetSessionId(), Token: req.GetToken(),
		},
	}})
	if err != nil {
		return nil, aboutLock(err, "release", namespace, name)
	}
	return &apiv1.ReleaseResponse{Header: s.writeHeader(out.Revision)}, nil
}

// GetLock shows a lock.
func (s *lockServer) GetLock(ctx context.Context, req *apiv1.GetLockRequest) (*apiv1.GetLockResponse, error) {
	var f faults
	namespace, name := f.lock(req.GetNamespace(), req.GetName())
	fresh := f.freshness(req.GetFreshness())
	if err := f.err(); err != nil {
		return nil, err
	}
	st, header, err := s.view(ctx, fresh)
	if err != nil {
		return nil, aboutLock(err, "get", namespace, name)
	}
	lock := st.Lock(namespace, name)
	if lock == nil {
		return nil, aboutLock(ErrLockNotFound, "get", namespace, name)
	}
	return &apiv1.GetLockResponse{Header: header, Lock: lock.Proto()}, nil
}

// ListLocks lists locks, sorted by namespace and name.
func (s *lockServer) ListLocks(ctx context.Context, req *apiv1.ListLocksRequest) (*apiv1.ListLocksResponse, error) {
	var f faults
	namespace := f.anyNamespace("namespace", req.GetNamespace())
	p, err := s.openPage(ctx, &f, &apiv1.ListLocksRequest{Namespace: namespace}, req)
	if err != nil {
		return nil, err
	}
	resp := &apiv1.ListLocksResponse{Header: p.header}
	visible := s.visible(ctx, registryv1.Action_ACTION_SEE_LOCK)
	after := p.last(0)
	if after == "" && namespace != allNamespaces {
		after = namespace
	}
	var last *fsm.Lock
	p.state.Locks(after, p.last(1), func(lock *fsm.Lock) bool {
		if namespace != allNamespaces && lock.Namespace != namespace {
			return false
		}
		if visible != nil && !visible(lock.Namespace, lock.Name) {
			return ctx.Err() == nil
		}
		item := lock.Proto()
		if !p.take(proto.Size(item)) {
			resp.NextPageToken = p.next(last.Namespace, last.Name)
			return false
		}
		resp.Locks, last = append(resp.Locks, item), lock
		return true
	})
	return resp, nil
}
