package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Door does to the requests of a foreign protocol what the API does to calls: it bounds connections and secures them, finds out
// who asks, lets in or refuses, holds namespaces to their quota of writes, and notes what was done in the audit log. It shares
// all of it with the API: a place is a place, whoever has it. Its methods are safe for concurrent use.
//
// A server listens by Listener, takes Context for each connection (as http.Server.ConnContext), and makes of each request a
// Visit.
type Door struct {
	core  *core
	conns *connections
	tls   *serverTLS // nil: plaintext
	audit audit
	// reads has a place for each read that is worked on, or was let in and has been woken. Those who come together, as when a
	// node was lost or a change wakes many, wait for each other for a moment.
	reads chan struct{}
}

// Door returns the way in for a protocol, such as "consul"; with TLS clients may choose one of the protocols by ALPN.
func (s *Server) Door(name string, protocols ...string) *Door {
	d := &Door{core: s.core, conns: s.conns, audit: s.audit, reads: make(chan struct{}, s.core.admission.most(classList))}
	if d.audit.log != nil {
		d.audit.log = d.audit.log.With("door", name)
	}
	if s.tls != nil {
		d.tls = s.tls.speaking(s.cfg.TLS, protocols...)
	}
	return d
}

// Listener returns the listener through which the clients of the door come: beyond the limits connections are closed at once. With TLS
// they are *tls.Conn whose handshake is done. Close waits for the end of everything, Accept fails then with net.ErrClosed.
func (d *Door) Listener(lis net.Listener) net.Listener {
	limited := &limitListener{lis, d.conns}
	if d.tls == nil {
		return limited
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &secureListener{Listener: limited, tls: d.tls, ctx: ctx, cancel: cancel, ready: make(chan net.Conn), failed: make(chan error)}
	l.running.Go(l.accept)
	return l
}

// secureListener shakes hands with those who come, each for itself, and hands over who may stay.
type secureListener struct {
	net.Listener

	tls     *serverTLS
	ctx     context.Context //nolint:containedctx // It ends with the listener.
	cancel  context.CancelFunc
	ready   chan net.Conn
	failed  chan error // why nobody came
	running sync.WaitGroup
}

// accept goes on after an error, such as that there are too many open files, once it was told: whoever is told knows when.
func (l *secureListener) accept() {
	for l.ctx.Err() == nil {
		raw, err := l.Listener.Accept()
		if err == nil {
			l.running.Go(func() { l.shake(raw) })
			continue
		}
		select {
		case l.failed <- err:
		case <-l.ctx.Done():
		}
	}
}

func (l *secureListener) shake(raw net.Conn) {
	ctx, cancel := context.WithTimeout(l.ctx, connectionTimeout)
	defer cancel()
	watched := &watchedRaw{Conn: raw}
	conn := tls.Server(watched, l.tls.cfg)
	if err := l.tls.accept(ctx, raw, conn); err != nil {
		return
	}
	watched.watch(l.tls.source.Watch(conn.ConnectionState(), false, func() { raw.Close() }))
	select {
	case l.ready <- conn:
	case <-l.ctx.Done():
		_ = conn.Close() // Nobody takes it any more.
	}
}

// Accept returns the next connection that is within the limits and whose hand was shaken.
func (l *secureListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.ready:
		return conn, nil
	case err := <-l.failed:
		return nil, err
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close closes the listener. Connections that were handed over stay.
func (l *secureListener) Close() error {
	err := l.Listener.Close()
	l.cancel()
	l.running.Wait()
	return err
}

// watchedRaw is the connection below one with TLS, which ends the watch over the certificate when it is closed.
type watchedRaw struct {
	net.Conn

	mu     sync.Mutex // guards what is below
	stop   func()     // nil: not watched yet
	closed bool
}

func (c *watchedRaw) watch(stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stop = stop; c.closed {
		stop()
	}
}

// Close closes the connection.
func (c *watchedRaw) Close() error {
	c.mu.Lock()
	if c.stop != nil && !c.closed {
		c.stop()
	}
	c.closed = true
	c.mu.Unlock()
	return c.Conn.Close()
}

// Context returns a context that knows from where and with which certificate a connection of the Listener comes, to be that of its
// requests.
func (d *Door) Context(ctx context.Context, conn net.Conn) context.Context {
	p := &peer.Peer{Addr: conn.RemoteAddr(), LocalAddr: conn.LocalAddr()}
	if secured, ok := conn.(*tls.Conn); ok {
		state := secured.ConnectionState()
		if info, err := certifiedBy(state); err == nil { // Else the handshake has refused it.
			p.AuthInfo = info
		}
	}
	return peer.NewContext(ctx, p)
}

// Request is what a Visit begins with.
type Request struct {
	// Method is the call of the API that does the same, "/package.Service/Method": its class is let in or refused, and it is
	// noted if the call would be.
	Method string
	// Renews says that to refuse it may end what is alive, as it does for a renewal.
	Renews bool
	// Text is how the protocol names the request, for the audit log.
	Text string
	// Token is what the client shows. Empty: its certificate counts, if the connection has one.
	Token string
	// Patient says that a read waits for others, for at most maxPatience, before it is refused.
	Patient bool
}

// maxPatience is how long a read waits for other reads of doors. Clients of foreign protocols have mostly no other node to ask, and
// come back late.
const maxPatience = 5 * time.Second

// Visit is a request that was let in. It must be ended. Its methods must not be called at the same time.
type Visit struct {
	door    *Door
	request Request
	class   class
	ctx     context.Context //nolint:containedctx // It is the request's.
	inside  bool            // has a place in the admission
	reading bool            // has a place among reads
	noted   bool            // something of it is in the audit log
}

// Begin lets a request in and finds out who asks; Context knows it then. Its errors are ErrOverloaded, ErrUnauthenticated, and those
// of a View. ctx is the request's, of a connection whose Context was taken.
func (d *Door) Begin(ctx context.Context, request Request) (*Visit, error) {
	v := &Visit{door: d, request: request, ctx: ctx, class: classOf(request.Method)}
	if request.Renews {
		v.class = classRenew
	}
	err := v.enter()
	if err == nil {
		if v.ctx, err = d.identify(ctx, request.Token); err == nil {
			return v, nil
		}
	}
	v.End(err)
	return nil, err
}

func (d *Door) identify(ctx context.Context, token string) (context.Context, error) {
	if token != "" {
		return d.core.identify(ctx, "Bearer "+token)
	}
	if name, ok := certificateName(ctx); ok {
		return context.WithValue(ctx, callerKey{}, fsm.CertificateCredential(name)), nil
	}
	return ctx, nil
}

// enter takes a place, or fails with ErrOverloaded.
func (v *Visit) enter() error {
	if v.request.Patient {
		patience := time.NewTimer(maxPatience)
		defer patience.Stop()
		if err := v.awaitRead(patience.C); err != nil {
			return err
		}
	}
	if err := v.door.core.admission.enter(v.class); err != nil {
		holdBack(v.ctx)
		return err
	}
	v.inside = true
	return nil
}

// awaitRead takes a place among reads.
func (v *Visit) awaitRead(patience <-chan time.Time) error {
	select {
	case v.door.reads <- struct{}{}:
	default:
		select {
		case v.door.reads <- struct{}{}:
		case <-patience:
			holdBack(v.ctx)
			return v.door.core.admission.refuse(v.class)
		case <-v.ctx.Done():
			return context.Cause(v.ctx)
		}
	}
	v.reading = true
	return nil
}

// Wait gives the place back: what waits for a change is no work.
func (v *Visit) Wait() {
	if v.inside {
		v.door.core.admission.leave()
	}
	if v.reading {
		<-v.door.reads
	}
	v.inside, v.reading = false, false
}

// Resume takes a place again after Wait. It was let in before, so it is not refused: it counts, whatever there is besides, and
// waits for others that were woken with it, or until the request's context ends.
func (v *Visit) Resume() error {
	if err := v.awaitRead(nil); err != nil {
		return err
	}
	v.door.core.admission.inFlight.Add(1)
	v.inside = true
	return nil
}

// Context is the request's, and knows who asks: Credential tells.
func (v *Visit) Context() context.Context { return v.ctx }

// Propose applies a command on behalf of who asks, whom the state machine judges by the State that it is applied to; a refusal by it
// is an error. The quota of the namespace holds, and the audit log has it.
func (v *Visit) Propose(ctx context.Context, cmd *raftlogv1.Command) (fsm.Outcome, error) {
	out, err := v.door.core.propose(ctx, cmd)
	v.note(out.Revision, err, func() []slog.Attr { return auditedCommand(cmd) })
	return out, err
}

// Renew renews what is the caller's own, by a context of the visit, and returns what of it is unknown or has ended.
func (v *Visit) Renew(ctx context.Context, kind peerv1.RenewKind, ids []string) (ended []string, err error) {
	if err := v.door.core.mayRenew(ctx, kind, ids); err != nil {
		return nil, err
	}
	return v.door.core.node.Renew(ctx, kind, ids)
}

// Did notes in the audit log what a request did otherwise than by Propose, on what, and returns err.
func (v *Visit) Did(err error, on ...slog.Attr) error {
	v.note(0, err, func() []slog.Attr { return on })
	return err
}

// End gives the place back, and notes a request that failed before it did anything, if what it was about to do is noted; one
// that was refused is noted always. It may be called once.
func (v *Visit) End(err error) {
	v.Wait()
	overloaded := errors.Is(err, ErrOverloaded) || errors.Is(err, cluster.ErrOverloaded) // They are many, and counted.
	if err != nil && !v.noted && !overloaded && v.ctx.Err() == nil {
		v.note(0, err, func() []slog.Attr { return nil })
	}
}

func (v *Visit) note(revision uint64, err error, on func() []slog.Attr) {
	v.noted = true
	v.door.audit.write(v.ctx, event{
		method: v.request.Method, revision: revision, err: err, on: on, more: []slog.Attr{slog.String("request", v.request.Text)},
	})
}

// CheckNamespace refuses what can't be a namespace, with an *[InvalidError].
func CheckNamespace(name string) error {
	var f faults
	f.namespace("namespace", name)
	return f.err()
}

// Specification returns an instance as a registration carries it: checked, in canonical form, encoded. It fails with an
// *[InvalidError].
func Specification(in *registryv1.Instance) ([]byte, error) {
	var f faults
	spec := f.instance("instance", in, nil)
	if err := f.err(); err != nil {
		return nil, err
	}
	return encodeSpec(spec)
}
