package registrytest

import (
	"net"
	"time"

	"google.golang.org/grpc/test/bufconn"
)

// Listener is a listener in memory for an HTTP server in a synctest bubble.
//
// net/http ends reads by deadlines of the past, for which a bufconn sets a timer that fires at once. Go 1.26 runs such a timer of a
// bubble where it is set, with the race context that all timers of the bubble share (unlockAndRun in runtime/time.go); if another
// one fires in that moment, the race detector crashes. So a deadline that is over is a nanosecond away here.
type Listener struct{ *bufconn.Listener }

// Listen returns a listener whose connections have room for so many bytes.
func Listen(size int) Listener { return Listener{bufconn.Listen(size)} }

// Accept returns the server's end of the next connection.
func (l Listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return serverConn{conn}, nil
}

type serverConn struct{ net.Conn }

func ahead(t time.Time) time.Time {
	if now := time.Now(); !t.IsZero() && !t.After(now) {
		return now.Add(1)
	}
	return t
}

// SetReadDeadline sets the deadline of reads.
func (c serverConn) SetReadDeadline(t time.Time) error { return c.Conn.SetReadDeadline(ahead(t)) }

// SetWriteDeadline sets the deadline of writes.
func (c serverConn) SetWriteDeadline(t time.Time) error { return c.Conn.SetWriteDeadline(ahead(t)) }

// SetDeadline sets both.
func (c serverConn) SetDeadline(t time.Time) error { return c.Conn.SetDeadline(ahead(t)) }
