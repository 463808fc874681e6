package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// handshake is an accepted connection that has not said yet who it is.
type handshake struct {
	cancel context.CancelFunc
}

// admit starts the handshake of an accepted connection. At the limit the oldest unfinished handshake makes room: it
// is the likeliest never to finish, so strangers that connect and keep silent cannot keep members out.
func (m *Mux) admit(raw net.Conn) {
	m.stats.accepted.Add(1)
	ctx, cancel := context.WithTimeout(m.life, m.cfg.HandshakeTimeout)
	h := &handshake{cancel: cancel}
	m.mu.Lock()
	admitted := !m.closed && (m.open < m.cfg.MaxConns || m.evictLocked())
	if admitted {
		m.open++
		m.pending = append(m.pending, h)
		m.wg.Add(1)
	}
	m.mu.Unlock()
	if !admitted {
		cancel()
		raw.Close()
		m.stats.overLimit.Add(1)
		return
	}
	go func() {
		defer m.wg.Done()
		defer cancel()
		m.receive(ctx, h, raw)
	}()
}

// evictLocked drops the oldest unfinished handshake.
func (m *Mux) evictLocked() bool {
	if len(m.pending) == 0 {
		return false
	}
	m.pending[0].cancel()
	m.pending = slices.Delete(m.pending, 0, 1)
	m.open--
	m.stats.overLimit.Add(1)
	return true
}

// settle ends the pending state of a handshake. It reports false when the handshake was evicted, and so is no longer
// counted.
func (m *Mux) settle(h *handshake) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.Index(m.pending, h)
	if i < 0 {
		return false
	}
	m.pending = slices.Delete(m.pending, i, i+1)
	return true
}

func (m *Mux) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open--
}

// receive shakes hands as the acceptor and delivers the connection.
func (m *Mux) receive(ctx context.Context, h *handshake, raw net.Conn) {
	c, d, err := m.answer(ctx, raw)
	counted := m.settle(h)
	if err == nil && counted && d.deliver(ctx, c, m.release) {
		return
	}
	raw.Close()
	if counted {
		m.release()
	}
	m.stats.count(err, ctx.Err())
	var refused *HandshakeError
	if errors.As(err, &refused) && m.mayWarn() {
		m.cfg.Logger.Warn("peer refused", "address", refused.Addr, "peer", refused.Remote.NodeID,
			"cluster", refused.Remote.ClusterID, "error", refused.Err)
	}
}

// mayWarn tells whether the operator can be told of a refusal: not oftener than every refusalLogInterval. Who is refused will
// try again and again, and Stats counts.
func (m *Mux) mayWarn() bool {
	now, last := time.Now().UnixNano(), m.warned.Load()
	return now-last >= int64(refusalLogInterval) && m.warned.CompareAndSwap(last, now)
}

// answer reads the hello and replies to it. With TLS that comes first.
func (m *Mux) answer(ctx context.Context, raw net.Conn) (*conn, *door, error) {
	local := m.identity()
	if s, ok := raw.(*secureConn); ok {
		if err := s.authenticate(ctx); errors.Is(err, ErrUntrusted) {
			return nil, nil, &HandshakeError{Addr: raw.RemoteAddr().String(), Local: local, Err: err}
		} else if err != nil {
			return nil, nil, err
		}
	}
	var hello frame
	err := interruptible(ctx, raw, func() (err error) {
		if hello, err = readFrame(raw, helloMagic); err != nil {
			return err
		}
		hello.from.Name = certified(raw)
		v := judgeHello(hello, local)
		if v == verdictAccepted && m.misnamed(hello.from) {
			v = verdictWrongName
		}
		reply := frame{version: protocolVersion, code: uint8(v), from: local}
		if _, err = raw.Write(encodeFrame(replyMagic, reply)); err != nil {
			return err
		}
		if v != verdictAccepted {
			return &HandshakeError{Addr: raw.RemoteAddr().String(), Local: local, Remote: hello.from, Err: v.err()}
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	d := m.raft
	if kind(hello.code) == kindGRPC {
		d = m.grpc
	}
	return &conn{Conn: raw, remote: hello.from}, d, nil
}

func judgeHello(hello frame, local Identity) verdict {
	if hello.version != protocolVersion {
		return verdictVersion
	}
	return judge(kind(hello.code), hello.from.ClusterID, local.ClusterID)
}

// judgeReply tells why the node that has replied is not to be talked to.
func (m *Mux) judgeReply(reply frame, k kind, wanted string, local Identity) error {
	if err := verdict(reply.code).err(); err != nil {
		return err
	}
	// The acceptor's word is not enough where the rule can be checked.
	if err := judge(k, local.ClusterID, reply.from.ClusterID).err(); err != nil {
		return err
	}
	if wanted != "" && wanted != reply.from.NodeID {
		return ErrWrongNode
	}
	if m.misnamed(reply.from) {
		return ErrWrongName
	}
	return nil
}

// misnamed tells whether a node's certificate is of another one than the cluster knows by its id.
func (m *Mux) misnamed(who Identity) bool {
	known := m.cfg.NameOf(who.NodeID)
	return who.Name != "" && known != "" && who.Name != known
}

func (m *Mux) identity() Identity {
	return Identity{NodeID: m.cfg.NodeID, ClusterID: m.cfg.ClusterID()}
}

// dial connects to addr and shakes hands as the dialler. A wanted node id other than "" must be the one that answers:
// behind a name may be another node for a while, and its vote must not be counted for the one that was meant.
func (m *Mux) dial(ctx context.Context, k kind, wanted, addr string) (*conn, error) {
	if !m.begin() {
		return nil, fmt.Errorf("dial peer %s: %w", addr, ErrClosed)
	}
	defer m.wg.Done()
	ctx, cancel := context.WithTimeout(ctx, m.cfg.HandshakeTimeout)
	defer cancel()
	defer context.AfterFunc(m.life, cancel)() //nolint:contextcheck // the port's life ends the dial, whoever asked for it
	c, err := m.connect(ctx, k, wanted, addr)
	if err != nil {
		m.stats.dialErrors.Add(1)
		if errors.Is(err, ErrUntrusted) || errors.Is(err, ErrWrongName) {
			m.warnDialled(addr, err)
		}
		if m.life.Err() != nil {
			err = ErrClosed
		}
		return nil, fmt.Errorf("dial peer %s: %w", addr, err)
	}
	m.stats.dialled.Add(1)
	return c, nil
}

// warnDialled tells the operator of what no retry heals, and what those who dial may take for a node that is down.
func (m *Mux) warnDialled(addr string, err error) {
	if m.mayWarn() {
		m.cfg.Logger.Warn("no trust between this node and a peer", "address", addr, "error", err)
	}
}

func (m *Mux) connect(ctx context.Context, k kind, wanted, addr string) (*conn, error) {
	raw, err := m.cfg.Network.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	c, err := m.introduce(ctx, raw, k, wanted, addr)
	if err != nil {
		raw.Close()
		return nil, err
	}
	d := m.raft
	if k == kindGRPC {
		d = m.grpc
	}
	if !d.enter(c) {
		raw.Close()
		return nil, ErrClosed
	}
	return c, nil
}

// introduce sends the hello and judges the reply.
func (m *Mux) introduce(ctx context.Context, raw net.Conn, k kind, wanted, addr string) (*conn, error) {
	local := m.identity()
	var reply frame
	err := interruptible(ctx, raw, func() (err error) {
		hello := frame{version: protocolVersion, code: uint8(k), from: local}
		_, sent := raw.Write(encodeFrame(helloMagic, hello))
		// Who hung up before the hello came may have said something before that.
		if reply, err = readFrame(raw, replyMagic); err != nil && sent != nil && !malformed(err) {
			return fmt.Errorf("send hello: %w", sent)
		}
		return err
	})
	reply.from.Name = certified(raw)
	fail := func(err error) error {
		return &HandshakeError{Addr: addr, Local: local, Remote: reply.from, Wanted: wanted, Err: err}
	}
	switch {
	case malformed(err):
		return nil, fail(fmt.Errorf("%w: %w", ErrNotPeer, err))
	case alerted(err):
		return nil, fail(fmt.Errorf("%w: it refused the certificate of this node, its log says why: %w", ErrUntrusted, err))
	case hungUp(err):
		return nil, fail(fmt.Errorf("hung up without an answer (it may want TLS, be full, or be stopping): %w", err))
	case err != nil:
		return nil, fail(err)
	case reply.version != protocolVersion:
		return nil, fail(fmt.Errorf("%w: peer speaks %d, this node %d", ErrVersion, reply.version, protocolVersion))
	}
	if err = m.judgeReply(reply, k, wanted, local); err != nil {
		return nil, fail(err)
	}
	return &conn{Conn: raw, remote: reply.from, anonymous: local.ClusterID == ""}, nil
}

// alerted tells whether TLS told of a refusal. In TLS 1.3 the handshake of who dials ends before its certificate is looked at,
// so that comes in place of the reply.
func alerted(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" // As crypto/tls calls it; the type is not exported.
}

// Probe shakes hands with the node at addr and hangs up: who is it, and may it be talked to? The error is a
// *HandshakeError when something answered, which gRPC's dialling would hide.
func (m *Mux) Probe(ctx context.Context, addr string) (Identity, error) {
	c, err := m.dial(ctx, kindGRPC, "", addr)
	if err != nil {
		return Identity{}, err
	}
	_ = c.Close() // its end is all that was left to do
	return c.remote, nil
}

// interruptible runs a conversation that ends when ctx does. On success the connection has no deadline left.
func interruptible(ctx context.Context, c net.Conn, talk func() error) error {
	stop := context.AfterFunc(ctx, func() {
		// A moment in the past ends reads and writes that wait. The error is that of the next read or write.
		_ = c.SetDeadline(time.Unix(1, 0))
	})
	err := talk()
	if !stop() {
		return errors.Join(context.Cause(ctx), err)
	}
	return err
}
