package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

const (
	// progressInterval is how often an idle stream shall give a sign of life.
	progressInterval = 5 * time.Second
	// watchStall is how long a stream may be silent before another node is asked.
	watchStall = progressInterval*5/2 + time.Second
	// watchStale is the age of a node's state above which another node is asked. A node that is cut off from its leader
	// goes on giving signs of life.
	watchStale = 30 * time.Second
	// maxWatchPause bounds the wait between two tries to get a stream, or to get a subscription that was refused for now.
	maxWatchPause = 5 * time.Second
)

const (
	// beatInterval is how often it is looked whether this process runs.
	beatInterval = 500 * time.Millisecond
	// maxBeatGap is the time without a look from which on it counts as paused.
	maxBeatGap = 3 * beatInterval
)

// errPaused says that a stream is given up as this process was paused: what has piled up in it meanwhile would say of an
// old state that it is new.
var errPaused = errors.New("this process was paused")

// errStale says that a node's state is old.
var errStale = errors.New("the node's state is old: it is cut off from its leader")

// hub carries all watches of a client over one stream, which runs while there is a watch.
type hub struct {
	c    *Client
	wake chan struct{} // has one place, filled when the watches have changed

	mu      sync.Mutex // guards the fields below; taken before a Watch's
	watches map[uint32]*Watch
	last    uint32 // id given last
	running bool
}

func newHub(c *Client) *hub {
	return &hub{c: c, wake: make(chan struct{}, 1), watches: make(map[uint32]*Watch)}
}

// add takes a watch up. It tells whether the client is still open.
func (h *hub) add(w *Watch) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.running {
		h.running = h.c.start(h.run)
	}
	if !h.running {
		return false
	}
	h.last++
	w.id = h.last
	h.watches[w.id] = w
	h.signal()
	return true
}

// remove lets a watch go.
func (h *hub) remove(w *Watch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watches[w.id] == w {
		delete(h.watches, w.id)
		h.signal()
	}
}

func (h *hub) signal() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// all returns the watches, oldest first.
func (h *hub) all() []*Watch {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*Watch, 0, len(h.watches))
	for _, w := range h.watches {
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b *Watch) int { return cmp.Compare(a.id, b.id) })
	return all
}

// get returns the watch of a subscription, or nil.
func (h *hub) get(id uint32) *Watch {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.watches[id]
}

// idle tells whether there is no watch, and ends the run then.
func (h *hub) idle() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watches) == 0 {
		h.running = false
	}
	return !h.running
}

// run keeps a stream while there are watches.
func (h *hub) run(ctx context.Context) {
	p := pause{limit: maxWatchPause}
	for ctx.Err() == nil && !h.idle() {
		ep := h.c.pool.take(false, nil)
		if ep == nil {
			break // the client was closed
		}
		s := &watchStream{h: h, ep: ep, pause: &p, told: time.Now(), beaten: time.Now(), accepted: make(chan struct{}, 1), open: make(map[uint32]bool)}
		err := s.run(ctx)
		s.settle()
		h.c.pool.release(ep)
		switch {
		case err == nil || ctx.Err() != nil:
			continue
		case errors.Is(err, errGoElsewhere):
			h.c.pool.leaving(ep)
		case errors.Is(err, errPaused): // Which is not the node's fault.
		default:
			h.c.counts.brokenWatchStreams.Add(1)
			h.c.pool.failed(ep)
		}
		err = fmt.Errorf("watch at %s: %w", ep.address, err)
		h.c.cfg.log.Debug("watch stream ended", "endpoint", ep.address, "err", err)
		h.troubled(err)
		p.wait(ctx, 0)
	}
	if ctx.Err() != nil {
		h.close()
	}
}

// close ends all watches, as the client was closed.
func (h *hub) close() {
	h.mu.Lock()
	watches := h.watches
	h.watches, h.running = make(map[uint32]*Watch), false
	h.mu.Unlock()
	for _, w := range watches {
		w.fail(ErrClosed)
	}
}

// troubled tells the watches why nothing comes. What no node will ever grant ends those that have had nothing yet; to
// others it is trouble that may pass, as when a token is renewed.
func (h *hub) troubled(err error) {
	var e *Error
	final := errors.As(err, &e) &&
		(e.Code == codes.Unauthenticated || e.Code == codes.PermissionDenied || e.Code == codes.Unimplemented)
	for _, w := range h.all() {
		if final && !w.served() {
			h.remove(w)
			w.fail(err)
			continue
		}
		w.stalled(err)
	}
}

// watchStream is one stream with the subscriptions on it.
type watchStream struct {
	h        *hub
	ep       *endpoint
	pause    *pause
	watchdog *time.Timer
	again    *time.Timer // fires when a refused subscription is to be sent again
	node     string      // name of the node, once it has said so
	through  uint64      // nothing is missing up to this revision; the receiver's alone while it runs
	told     time.Time   // when all watches were last told how far they are; the receiver's alone

	accepted chan struct{} // has one place, filled when there are acknowledgements to send

	mu   sync.Mutex      // guards the fields below, and those of its markers; taken after a Watch's
	open map[uint32]bool // subscriptions that were sent
	acks []uint64        // numbers of markers to acknowledge

	beating sync.Mutex // guards the two below
	beaten  time.Time  // when beat was last called
	paused  bool
}

// beat tells whether this process has run all the time that the stream is there. It is called every now and then, and before
// each message is handled: whoever comes first after a pause sees it.
func (s *watchStream) beat() bool {
	s.beating.Lock()
	defer s.beating.Unlock()
	s.paused = s.paused || time.Since(s.beaten) > maxBeatGap
	s.beaten = time.Now()
	return !s.paused
}

// run carries the watches until the stream fails, or until there is no watch (nil).
func (s *watchStream) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	s.watchdog = time.AfterFunc(watchStall, func() { cancel(errStalled) })
	defer s.watchdog.Stop()
	s.again = time.NewTimer(maxWatchPause)
	s.again.Stop()
	defer s.again.Stop()
	var receiving sync.WaitGroup
	defer receiving.Wait()
	defer cancel(context.Canceled)
	stream, err := apiv1.NewRegistryServiceClient(s.ep.conn).Watch(ctx)
	if err != nil {
		return streamError(ctx, err)
	}
	receiving.Go(func() { cancel(s.receive(ctx, stream)) })
	beats := time.NewTicker(beatInterval)
	defer beats.Stop()
	for err := s.sync(stream); err == nil; {
		select {
		case <-s.h.wake:
			if s.empty() {
				return nil
			}
			err = s.sync(stream)
		case <-s.again.C:
			err = s.sync(stream)
		case <-s.accepted:
			err = s.acknowledge(stream)
		case <-beats.C:
			if !s.beat() {
				return errPaused
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	<-ctx.Done() // receiving tells why
	return context.Cause(ctx)
}

// empty tells whether there is no watch any more.
func (s *watchStream) empty() bool {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	return len(s.h.watches) == 0
}

// sync sends what has changed in the set of watches.
func (s *watchStream) sync(stream grpc.BidiStreamingClient[apiv1.WatchRequest, apiv1.WatchResponse]) error {
	wanted := make(map[uint32]bool)
	for _, w := range s.h.all() {
		wanted[w.id] = true
		if !s.opens(w.id) {
			continue
		}
		subscribe := w.subscribe()
		subscribe.ProgressInterval = durationpb.New(progressInterval)
		if err := stream.Send(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Subscribe{Subscribe: subscribe}}); err != nil {
			return err
		}
	}
	for _, id := range s.closes(wanted) {
		unsubscribe := &apiv1.Unsubscribe{SubscriptionId: id}
		if err := stream.Send(&apiv1.WatchRequest{Action: &apiv1.WatchRequest_Unsubscribe{Unsubscribe: unsubscribe}}); err != nil {
			return err
		}
	}
	return nil
}

// opens tells whether a subscription is new to the stream, and counts it in.
func (s *watchStream) opens(id uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[id] {
		return false
	}
	s.open[id] = true
	return true
}

// closes returns the subscriptions that are no longer wanted, and counts them out.
func (s *watchStream) closes(wanted map[uint32]bool) []uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var gone []uint32
	for id := range s.open {
		if !wanted[id] {
			gone = append(gone, id)
			delete(s.open, id)
		}
	}
	return gone
}

// receive hands messages on until the stream fails.
func (s *watchStream) receive(ctx context.Context, stream grpc.BidiStreamingClient[apiv1.WatchRequest, apiv1.WatchResponse]) error {
	for {
		resp, err := stream.Recv()
		if err != nil {
			return streamError(ctx, err)
		}
		if !s.beat() {
			return errPaused
		}
		s.watchdog.Reset(watchStall)
		if err := s.handle(resp); err != nil {
			return err
		}
	}
}

// handle hands one message to the watches that it is for. Subscriptions that are unknown were ended by this side.
func (s *watchStream) handle(resp *apiv1.WatchResponse) error {
	switch p := resp.GetPayload().(type) {
	case *apiv1.WatchResponse_Cut:
		if w := s.h.get(p.Cut.GetSubscriptionId()); w != nil {
			w.takeCut(p.Cut)
		}
	case *apiv1.WatchResponse_Synced:
		return s.synced(p.Synced)
	case *apiv1.WatchResponse_Events:
		s.events(p.Events)
	case *apiv1.WatchResponse_Progress:
		return s.progress(p.Progress.GetHeader())
	case *apiv1.WatchResponse_Ended:
		s.ended(p.Ended)
	case *apiv1.WatchResponse_Marker:
		s.await(p.Marker)
	case *apiv1.WatchResponse_GoElsewhere:
		s.h.c.pool.learn(p.GoElsewhere.GetLeader())
		return errGoElsewhere
	}
	return nil
}

// synced ends a cut.
func (s *watchStream) synced(m *apiv1.Synced) error {
	s.serves(m.GetHeader())
	if w := s.h.get(m.GetSubscriptionId()); w != nil {
		return w.takeSynced(m.GetHeader(), s.through)
	}
	return nil
}

// events delivers changes. Watches that have one are told how far they are. The others, of which there may be thousands,
// are told only now and then: a node sends no progress while it sends events.
func (s *watchStream) events(m *apiv1.Events) {
	touched := make(map[*Watch]bool)
	for _, e := range m.GetEvents() {
		for _, id := range e.GetSubscriptionIds() {
			if w := s.h.get(id); w != nil {
				w.takeEvent(e.GetEvent(), s.through)
				touched[w] = true
			}
		}
	}
	s.through = max(s.through, m.GetRevision())
	header := &apiv1.ResponseHeader{Revision: m.GetRevision(), Node: s.node}
	for w := range touched {
		w.reached(header, false)
	}
	if time.Since(s.told) < progressInterval {
		return
	}
	s.told = time.Now()
	for _, w := range s.h.all() {
		if !touched[w] {
			w.passed(header)
		}
	}
}

// settle tells all watches how far they are when the stream has ended, so that they resume there.
func (s *watchStream) settle() {
	for _, w := range s.h.all() {
		w.settle(s.through)
	}
}

// progress tells all watches how far they are, and how old that is.
func (s *watchStream) progress(header *apiv1.ResponseHeader) error {
	s.through = max(s.through, header.GetRevision())
	s.told = time.Now()
	for _, w := range s.h.all() {
		w.reached(header, true)
	}
	if header.GetStaleness().AsDuration() > watchStale {
		return errStale
	}
	s.serves(header)
	return nil
}

// serves notes that the node does what it should.
func (s *watchStream) serves(header *apiv1.ResponseHeader) {
	s.node = header.GetNode()
	s.h.c.observe(header)
	s.h.c.pool.succeeded(s.ep)
	s.pause.reset()
}

// ended ends a watch that the registry refuses, and asks again for one that is refused for now.
func (s *watchStream) ended(m *apiv1.SubscriptionEnded) {
	w := s.h.get(m.GetSubscriptionId())
	if w == nil {
		return
	}
	e := &Error{Reason: apiv1.Reason(apiv1.Reason_value["REASON_"+m.GetReason()]), Message: m.GetMessage()}
	if e.verdict() == giveUp && m.GetReason() != "" {
		s.h.remove(w)
		w.fail(e)
		return
	}
	w.stalled(e)
	s.mu.Lock()
	delete(s.open, m.GetSubscriptionId())
	s.mu.Unlock()
	s.again.Reset(rand.N(maxWatchPause))
}
