package lifecycle

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/client/internal/registrytest"
)

// A connection that was opened in advance does not hold the end of the server up; a request under way does.
func TestUnusedConnectionsDoNotHoldUpTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const request = 10 * time.Second
		for name, used := range map[string]bool{"never used": false, "in use": true} {
			lis := registrytest.Listen(1 << 10)
			var states atomic.Int64
			server := &http.Server{
				Handler:           http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(request) }),
				ConnState:         func(net.Conn, http.ConnState) { states.Add(1) },
				ReadHeaderTimeout: time.Minute,
			}
			s := HTTP("http", server, lis)
			served := make(chan error, 1)
			go func() { served <- s.serve() }()
			conn, err := lis.Dial()
			if err != nil {
				t.Fatal(err)
			}
			answered := make(chan error, 1)
			go func() {
				if !used {
					answered <- nil
					return
				}
				_, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
				if err == nil {
					var resp *http.Response
					if resp, err = http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
						err = resp.Body.Close()
					}
				}
				answered <- err
			}()
			synctest.Wait()
			began := time.Now()
			if err := s.shutdown(context.Background()); err != nil {
				t.Errorf("%s: shutdown: %v", name, err)
			}
			want := time.Duration(0)
			if used {
				want = request
			}
			// net/http looks whether all have ended at intervals of half a second at most.
			if took := time.Since(began); took < want || took > want+time.Second {
				t.Errorf("%s: the server ended after %v, want %v", name, took, want)
			}
			if err := <-answered; err != nil {
				t.Errorf("%s: the request was not answered: %v", name, err)
			}
			if err := <-served; err != nil {
				t.Errorf("%s: serve: %v", name, err)
			}
			if states.Load() == 0 {
				t.Errorf("%s: the server's own ConnState is not told any more", name)
			}
			_ = conn.Close()
		}
	})
}
