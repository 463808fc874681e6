package dns

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	miekg "github.com/miekg/dns"
)

// TestSilentConnectionsEnd: those that never ask, those that stop in the middle of a question, and those that don't read.
func TestSilentConnectionsEnd(t *testing.T) {
	t.Parallel()
	packet, err := newRequest("web.service.regd.", miekg.TypeA).msg.Pack()
	if err != nil {
		t.Fatal(err)
	}
	whole := append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)
	for _, tt := range []struct {
		name string
		sent []byte
		read bool
		want time.Duration
	}{
		{"nothing", nil, true, idleTimeout},
		{"half a length", whole[:1], true, idleTimeout},
		{"half a question", whole[:10], true, readTimeout},
		{"a question, and then nothing", whole, true, idleTimeout},
		{"a question whose answer is not read", whole, false, writeTimeout},
		{"more than a question can be", []byte{0xFF, 0xFF}, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, _ := newTestServer(t, newWorld(t))
				here, there := net.Pipe()
				defer here.Close()
				began, ended := time.Now(), make(chan time.Duration, 1)
				go func() {
					s.serveTCP(there, netip.MustParseAddr("192.0.2.1"))
					ended <- time.Since(began)
				}()
				if _, err := here.Write(tt.sent); err != nil {
					t.Fatal(err)
				}
				if tt.read {
					go func() {
						_, _ = here.Read(make([]byte, 1))
						for {
							if _, err := here.Read(make([]byte, 512)); err != nil {
								return
							}
						}
					}()
				}
				if took := <-ended; took != tt.want {
					t.Errorf("it ends after %v, want %v", took, tt.want)
				}
			})
		})
	}
}

// TestIdleConnectionsEndAtOnceOnShutdown: they are not waited for.
func TestIdleConnectionsEndAtOnceOnShutdown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := newTestServer(t, newWorld(t))
		here, there := net.Pipe()
		defer here.Close()
		client := netip.MustParseAddr("192.0.2.1")
		s.conns.take(there, client)
		began, ended := time.Now(), make(chan time.Duration, 1)
		go func() {
			s.serveTCP(there, client)
			ended <- time.Since(began)
		}()
		synctest.Wait()
		s.leaving.Store(true)
		s.conns.hurry()
		if took := <-ended; took != 0 {
			t.Errorf("it ends after %v", took)
		}
	})
}
