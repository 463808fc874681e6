package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	// DefaultTimeout bounds one Raft exchange when TransportConfig does not.
	DefaultTimeout = 5 * time.Second
	// DefaultMaxPool is how many idle connections are kept for each node when TransportConfig does not say: one
	// for heartbeats, one for entries, one for votes.
	DefaultMaxPool = 3
)

// TransportConfig is what a Transport needs. All of it is optional.
type TransportConfig struct {
	// Gate is asked before anything is sent by which a node leads or comes to lead: heartbeats, entries, snapshots,
	// requests for votes. While it returns an error they fail with it, so that a leader that cannot do its work
	// loses its followers, and does not win the election that follows. It must not block. Answers and leadership
	// transfers to others always pass.
	Gate func() error
	// Following tells whether Raft follows in a term. Heartbeats of that term are handled beside Raft's main loop, and all
	// others in it; see SetHeartbeatHandler. It must not block. Nil: it never does.
	Following func(term uint64) bool
	// AddressProvider finds the address of a node by its id. Nil, or an error from it: the address that Raft has.
	AddressProvider raft.ServerAddressProvider
	// Timeout bounds connecting, and one exchange; snapshots get more by size. 0: DefaultTimeout.
	Timeout time.Duration
	// MaxPool is how many idle connections are kept for each node. 0: DefaultMaxPool.
	MaxPool int
	// MaxRPCsInFlight above 1 allows pipelining of entries. 0: 1.
	MaxRPCsInFlight int
	// AheadFor is for how long the answer to entries that were sent ahead may stand for one that comes now; see SendAhead.
	// 0: never.
	AheadFor time.Duration
	// HighestTerm is the highest term that an earlier process of this node voted in, from its stable store.
	HighestTerm uint64
	// Logger is for what raft.NetworkTransport logs. Nil: silent.
	Logger hclog.Logger
}

func (c TransportConfig) withDefaults() TransportConfig {
	if c.Gate == nil {
		c.Gate = func() error { return nil }
	}
	if c.Following == nil {
		c.Following = func(uint64) bool { return false }
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.MaxPool <= 0 {
		c.MaxPool = DefaultMaxPool
	}
	if c.MaxRPCsInFlight <= 0 {
		c.MaxRPCsInFlight = 1
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	return c
}

// Transport is what Raft sends and receives through. It adds to raft.NetworkTransport: each RPC reaches the node it is
// meant for or none; the gate; entries sent ahead and commits told at once; and the highest term in which this node asked for votes or granted one, before which
// nothing is taken from anybody.
//
// It embeds the NetworkTransport, because Raft finds pre-vote and Close by type assertion and would silently go
// without them.
type Transport struct {
	*raft.NetworkTransport
	cfg      TransportConfig
	layer    streamLayer
	consumer chan raft.RPC

	followers followers

	highestTerm atomic.Uint64
	gated       atomic.Uint64
	granted     atomic.Uint64

	close sync.Once
	done  chan struct{}
	wg    sync.WaitGroup // forward, and what is sent beside Raft
}

// Raft asks for the first two by type assertion.
var (
	_ raft.WithPreVote = (*Transport)(nil)
	_ raft.WithClose   = (*Transport)(nil)
	_ raft.Transport   = (*Transport)(nil)
)

// NewTransport returns the Transport over the Raft side of the port. There can be only one for each Mux. It must be
// closed before the stores that Raft writes to; Raft does that when it shuts down.
func NewTransport(m *Mux, cfg TransportConfig) *Transport {
	cfg = cfg.withDefaults()
	t := &Transport{
		cfg:      cfg,
		layer:    streamLayer{door: m.raft, mux: m},
		consumer: make(chan raft.RPC),
		done:     make(chan struct{}),
	}
	t.highestTerm.Store(cfg.HighestTerm)
	t.NetworkTransport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Logger:          cfg.Logger,
		Stream:          t.layer,
		MaxPool:         cfg.MaxPool,
		MaxRPCsInFlight: cfg.MaxRPCsInFlight,
		Timeout:         cfg.Timeout,
	})
	t.wg.Go(t.forward)
	return t
}

// HighestTerm returns the highest term in which this node asked for votes or granted one; it never falls. It is
// recorded before the request or the answer leaves. Raft's own current term is no substitute: a delayed heartbeat,
// handled beside Raft's main loop, can set it back after a vote.
func (t *Transport) HighestTerm() uint64 { return t.highestTerm.Load() }

// Gated returns how many sends the gate has stopped.
func (t *Transport) Gated() uint64 { return t.gated.Load() }

// VotesGranted returns how many votes this node has granted to others.
func (t *Transport) VotesGranted() uint64 { return t.granted.Load() }

// Close ends the transport with all its connections and waits until no RPC is being handled any more: from then on
// no handler touches Raft or its stores. It is idempotent.
func (t *Transport) Close() error {
	var err error
	t.close.Do(func() {
		close(t.done)
		t.followers.close()
		err = t.NetworkTransport.Close()
	})
	t.wg.Wait()
	t.layer.accepted.Wait()
	return err
}

// Consumer implements raft.Transport.
func (t *Transport) Consumer() <-chan raft.RPC { return t.consumer }

// forward passes incoming RPCs on. It waits for the answer to each request for a vote: Raft handles one RPC at a time
// anyway, and so whatever follows a vote is judged by the term of that vote.
func (t *Transport) forward() {
	incoming := t.NetworkTransport.Consumer()
	for {
		select {
		case rpc := <-incoming:
			if !t.overtaken(rpc) && !t.handOver(rpc) {
				return
			}
		case <-t.done:
			return
		}
	}
}

// handOver gives an RPC to Raft. A granted vote is recorded before the answer goes on to the candidate. It reports
// false when the transport is closed.
func (t *Transport) handOver(rpc raft.RPC) bool {
	out, answer := rpc.RespChan, make(chan raft.RPCResponse, 1)
	vote, isVote := rpc.Command.(*raft.RequestVoteRequest)
	if isVote {
		rpc.RespChan = answer
	}
	select {
	case t.consumer <- rpc:
	case <-t.done:
		return false
	}
	if !isVote {
		return true
	}
	select {
	case resp := <-answer:
		if v, ok := resp.Response.(*raft.RequestVoteResponse); ok && v.Granted {
			t.record(vote.Term)
			t.granted.Add(1)
		}
		out <- resp // has room for the one answer
		return true
	case <-t.done:
		return false
	}
}

// overtaken answers, with a refusal, what a leader or candidate sends in a term before the highest. Raft should do
// that; but as a heartbeat that is handled beside a vote can set its current term back, it would then take entries
// from a leader against whose successor it has already counted, and an acknowledged write could be lost.
func (t *Transport) overtaken(rpc raft.RPC) bool {
	highest := t.HighestTerm()
	switch req := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		if req.Term < highest {
			rpc.Respond(&raft.AppendEntriesResponse{Term: highest}, nil)
			return true
		}
		t.record(req.Term) // What it acknowledges to this leader, it must not take from an earlier one.
	case *raft.RequestVoteRequest:
		if req.Term < highest {
			rpc.Respond(&raft.RequestVoteResponse{Term: highest}, nil)
			return true
		}
	}
	return false
}

// SetHeartbeatHandler implements raft.Transport. Heartbeats of a leader that is followed do not go through Consumer: they
// must not wait behind what waits for a disk. All others do. Raft's handler sets term and state, and beside the main loop
// that is a data race with it: a leader whose main loop appends an entry just then would give it the term of its
// successor, and the log of that has another entry there with the same index and term. Both would be taken for equal, and
// applied. (Seen with leaders that go on after a pause, when heartbeats and writes have gathered.)
func (t *Transport) SetHeartbeatHandler(handle func(raft.RPC)) {
	t.NetworkTransport.SetHeartbeatHandler(func(rpc raft.RPC) {
		beat, ok := rpc.Command.(*raft.AppendEntriesRequest)
		switch {
		case t.overtaken(rpc):
		case ok && t.cfg.Following(beat.Term):
			handle(rpc)
		default:
			t.handOver(rpc) // When it is closed nobody waits for the answer.
		}
	})
}

func (t *Transport) record(term uint64) {
	for {
		seen := t.highestTerm.Load()
		if term <= seen || t.highestTerm.CompareAndSwap(seen, term) {
			return
		}
	}
}

// AppendEntries implements raft.Transport. Heartbeats come this way too.
func (t *Transport) AppendEntries(
	id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse,
) error {
	if err := t.pass(); err != nil {
		return err
	}
	sent := t.answeredAhead(id, args, resp)
	if sent == nil {
		sent = args
		if err := t.NetworkTransport.AppendEntries(id, t.resolve(id, target), args, resp); err != nil {
			return err
		}
	}
	t.followers.mu.Lock()
	defer t.followers.mu.Unlock()
	t.followers.note(id, target, sent, resp.Success)
	t.tell(id)
	return nil
}

// AppendEntriesPipeline implements raft.Transport.
func (t *Transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if err := t.pass(); err != nil {
		return nil, err
	}
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, t.resolve(id, target))
	if err != nil {
		return nil, err // unwrapped: Raft compares it
	}
	return pipeline{AppendPipeline: p, transport: t}, nil
}

// InstallSnapshot implements raft.Transport.
func (t *Transport) InstallSnapshot(
	id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest,
	resp *raft.InstallSnapshotResponse, data io.Reader,
) error {
	if err := t.pass(); err != nil {
		return err
	}
	return t.NetworkTransport.InstallSnapshot(id, t.resolve(id, target), args, resp, data)
}

// RequestVote implements raft.Transport.
func (t *Transport) RequestVote(
	id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse,
) error {
	if err := t.pass(); err != nil {
		return err
	}
	t.record(args.Term)
	return t.retry(func() error { return t.NetworkTransport.RequestVote(id, t.resolve(id, target), args, resp) })
}

// RequestPreVote implements raft.WithPreVote.
func (t *Transport) RequestPreVote(
	id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse,
) error {
	if err := t.pass(); err != nil {
		return err
	}
	return t.retry(func() error { return t.NetworkTransport.RequestPreVote(id, t.resolve(id, target), args, resp) })
}

// TimeoutNow implements raft.Transport.
func (t *Transport) TimeoutNow(
	id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse,
) error {
	return t.retry(func() error { return t.NetworkTransport.TimeoutNow(id, t.resolve(id, target), args, resp) })
}

// Campaign has Raft ask for votes at once, and also those who still know a leader, as if that had handed its leadership
// over. Only for when a majority of the voters has found that it has ended: a leader that lives would lose its followers.
// It returns when Raft has begun, with ctx's error, or with raft.ErrTransportShutdown.
func (t *Transport) Campaign(ctx context.Context) error {
	answer := make(chan raft.RPCResponse, 1)
	now := raft.RPC{
		Command:  &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}},
		RespChan: answer,
	}
	for to := t.consumer; ; to = nil { // Handed over, it is waited for.
		select {
		case to <- now:
		case resp := <-answer:
			return resp.Error
		case <-t.done:
			return raft.ErrTransportShutdown
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// pass asks the gate.
func (t *Transport) pass() error {
	if err := t.cfg.Gate(); err != nil {
		t.gated.Add(1)
		return fmt.Errorf("not sent: %w", err)
	}
	return nil
}

// retry repeats what failed because the other side had closed the connection. The pool does not notice when idle
// connections end, as they do when a node restarts, and an election must not be lost for that: one node in three is
// down already. The calls may all be made twice.
func (t *Transport) retry(call func() error) error {
	var err error
	for range t.cfg.MaxPool + 1 {
		var refused *HandshakeError
		if err = call(); !hungUp(err) || errors.As(err, &refused) {
			return err
		}
	}
	return err
}

// resolve returns the address to dial for a node, pinned to it.
func (t *Transport) resolve(id raft.ServerID, target raft.ServerAddress) raft.ServerAddress {
	if t.cfg.AddressProvider != nil {
		if addr, err := t.cfg.AddressProvider.ServerAddr(id); err == nil {
			target = addr
		}
	}
	return pin(id, target)
}

// pin joins the id of the node that is meant to its address. The NetworkTransport takes it as an address, and so has
// connections pooled by both and the stream layer told both.
func pin(id raft.ServerID, addr raft.ServerAddress) raft.ServerAddress {
	return raft.ServerAddress(id) + "@" + addr
}

// unpin parts them. An address that is not pinned has no id.
func unpin(addr raft.ServerAddress) (nodeID, hostPort string) {
	s := string(addr)
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		return s[:i], s[i+1:]
	}
	return "", s
}

// pipeline is a raft.AppendPipeline behind the gate.
type pipeline struct {
	raft.AppendPipeline
	transport *Transport
}

// AppendEntries implements raft.AppendPipeline. Raft's sender waits here for room, and closes the pipeline only after
// it has returned; when its decoder has gone there will never be room (hashicorp/raft #612). So a wait that is longer
// than any answer may take closes the pipeline.
func (p pipeline) AppendEntries(
	args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse,
) (raft.AppendFuture, error) {
	if err := p.transport.pass(); err != nil {
		return nil, err
	}
	stuck := time.AfterFunc(2*p.transport.cfg.Timeout, func() { _ = p.AppendPipeline.Close() })
	defer stuck.Stop()
	return p.AppendPipeline.AppendEntries(args, resp)
}
