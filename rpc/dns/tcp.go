package dns

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"
)

// Times of TCP connections.
const (
	// idleTimeout is how long a connection may be without a query.
	idleTimeout = 10 * time.Second
	// readTimeout is how long the rest of a query may take, and writeTimeout an answer.
	readTimeout  = 2 * time.Second
	writeTimeout = 5 * time.Second
	// acceptPause is the pause after a connection could not be accepted, as when there are too many files.
	acceptPause = 50 * time.Millisecond
)

// accept takes connections until the listener is closed.
func (s *Server) accept() error {
	for {
		conn, err := s.tcp.Accept()
		switch {
		case s.leaving.Load(), errors.Is(err, net.ErrClosed):
			if err == nil {
				conn.Close()
			}
			return nil
		case err != nil:
			s.log.Warn("a DNS connection could not be accepted", "err", err)
			time.Sleep(acceptPause)
			continue
		}
		client := clientOf(conn)
		if !s.conns.take(conn, client) {
			s.metrics.drop(reasonConnections)
			conn.Close()
			continue
		}
		s.metrics.conns.Inc()
		s.serving.Go(func() {
			defer s.metrics.conns.Dec()
			defer s.conns.give(conn, client)
			s.serveTCP(conn, client)
		})
	}
}

func clientOf(conn net.Conn) netip.Addr {
	addr, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return addr.AddrPort().Addr().Unmap()
}

// serveTCP answers the queries of a connection, one after the other, until it ends, idles or breaks the rules.
func (s *Server) serveTCP(conn net.Conn, client netip.Addr) {
	defer conn.Close()
	const buffer = 512
	r := bufio.NewReaderSize(conn, buffer)
	for !s.leaving.Load() {
		var size [2]byte
		_ = conn.SetReadDeadline(time.Now().Add(idleTimeout)) // Fails only with the connection.
		if s.leaving.Load() {                                 // It may have set a deadline before.
			return
		}
		if _, err := io.ReadFull(r, size[:]); err != nil {
			return
		}
		if !s.serveStream(conn, r, int(binary.BigEndian.Uint16(size[:])), client) {
			return
		}
	}
}

// serveStream answers one query of a connection, and tells whether there may be another. Only now a worker is needed: most
// connections are idle.
func (s *Server) serveStream(conn net.Conn, r io.Reader, size int, client netip.Addr) bool {
	if size > maxQuery {
		s.metrics.drop(reasonMalformed)
		return false
	}
	w, _ := s.workers.Get().(*worker)
	defer s.workers.Put(w)
	_ = conn.SetReadDeadline(time.Now().Add(readTimeout))
	if _, err := io.ReadFull(r, w.in[:size]); err != nil {
		return false
	}
	reply, outcome := s.respond(w, w.in[:size], client, true)
	if outcome == outcomeForward {
		reply = s.forwardStream(w.in[:size])
	}
	if outcome == outcomeDropped || reply == nil {
		return false
	}
	message := net.Buffers{binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply}
	_ = conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := message.WriteTo(conn)
	return err == nil
}
