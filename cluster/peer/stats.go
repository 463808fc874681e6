package peer

import (
	"context"
	"errors"
	"sync/atomic"
)

// Stats counts what happened at the port since it was bound.
type Stats struct {
	// Accepted connections, whatever became of them.
	Accepted uint64
	// Refused after a well-formed hello: foreign cluster, no cluster, version, wrong name.
	Refused uint64
	// Untrusted connections, before any hello: without TLS, or with a certificate that is not trusted.
	Untrusted uint64
	// Malformed hellos.
	Malformed uint64
	// TimedOut handshakes, and connections that nobody accepted in time.
	TimedOut uint64
	// Broken handshakes: the other side went away.
	Broken uint64
	// OverLimit connections that were closed, or had to make room, because of MaxConns.
	OverLimit uint64
	// Dialled connections that were accepted by the other side.
	Dialled uint64
	// DialErrors is the number of those that were not.
	DialErrors uint64
	// Open is the number of accepted connections now, unfinished handshakes included.
	Open int
}

// Stats returns the counters.
func (m *Mux) Stats() Stats {
	m.mu.Lock()
	open := m.open
	m.mu.Unlock()
	return Stats{
		Accepted:   m.stats.accepted.Load(),
		Refused:    m.stats.refused.Load(),
		Untrusted:  m.stats.untrusted.Load(),
		Malformed:  m.stats.malformed.Load(),
		TimedOut:   m.stats.timedOut.Load(),
		Broken:     m.stats.broken.Load(),
		OverLimit:  m.stats.overLimit.Load(),
		Dialled:    m.stats.dialled.Load(),
		DialErrors: m.stats.dialErrors.Load(),
		Open:       open,
	}
}

type counters struct {
	accepted, refused, untrusted, malformed, timedOut, broken, overLimit, dialled, dialErrors atomic.Uint64
}

// count files a handshake that failed as the acceptor. ended is why its context ended, if it did.
func (c *counters) count(err, ended error) {
	var refused *HandshakeError
	switch {
	case errors.Is(err, ErrUntrusted):
		c.untrusted.Add(1)
	case errors.As(err, &refused):
		c.refused.Add(1)
	case malformed(err):
		c.malformed.Add(1)
	case errors.Is(ended, context.DeadlineExceeded):
		c.timedOut.Add(1)
	case errors.Is(ended, context.Canceled):
		// Evicted, which is counted as over the limit, or the port is closing.
	default:
		c.broken.Add(1)
	}
}
