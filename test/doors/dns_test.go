package doors_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// haproxyConfig has HAProxy follow SRV records. It tries nothing twice, so that each request that is lost is seen.
const haproxyConfig = `
global
  maxconn 200
defaults
  mode http
  retries 0
  timeout connect 5s
  timeout client 10s
  timeout server 10s
resolvers regd
  nameserver n1 %s
  accepted_payload_size 4096
  timeout resolve 100ms
  timeout retry 100ms
  hold valid 100ms
frontend in
  bind %s
  default_backend web
backend web
  balance roundrobin
  server-template web 8 _web._tcp.service.regd resolvers regd init-addr none
`

// backend is an instance that answers HTTP with its id.
type backend struct {
	id     string
	server *http.Server
	calls  atomic.Int64
	ended  sync.WaitGroup
}

func startBackend(t *testing.T, n *node, id string) *backend {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{id: id}
	b.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		b.calls.Add(1)
		fmt.Fprint(w, id)
	})}
	b.ended.Go(func() { _ = b.server.Serve(lis) })
	t.Cleanup(b.stop)
	_, port, _ := net.SplitHostPort(lis.Addr().String())
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.Register(t.Context(), &registryv1.Instance{
		Service: "web", Id: id, Address: "127.0.0.1", Ports: []*registryv1.Port{{Number: uint32(number)}},
	}); err != nil {
		t.Fatal(err)
	}
	return b
}

// stop ends the server at once.
func (b *backend) stop() {
	_ = b.server.Close()
	b.ended.Wait()
}

// load sends requests, one after the other, until it is stopped.
type load struct {
	url  string
	sent atomic.Int64
	mu   sync.Mutex
	lost []string
	by   map[string]int // answers
}

func startLoad(t *testing.T, url string) *load {
	t.Helper()
	l := &load{url: url, by: map[string]int{}}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			id, err := get(ctx, url)
			if ctx.Err() != nil {
				return
			}
			l.mu.Lock()
			if err != nil {
				l.lost = append(l.lost, err.Error())
			}
			l.by[id]++
			l.mu.Unlock()
			l.sent.Add(1)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return l
}

func (l *load) losses() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

// TestHAProxyFollowsSRVRecords: instances that come get requests, those that drain get none, and no request is lost.
func TestHAProxyFollowsSRVRecords(t *testing.T) {
	t.Parallel()
	haproxy := program(t, "haproxy", "haproxy")
	n := startNode(t, "dns", "--dns-ttl", "0s")
	a, b := startBackend(t, n, "a"), startBackend(t, n, "b")
	front := freeAddress(t)
	config := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(config, fmt.Appendf(nil, haproxyConfig, n.door, front), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, haproxy, "-db", "-f", config)
	url := "http://" + front
	eventually(t, func() string {
		if _, err := get(t.Context(), url); err != nil {
			return err.Error()
		}
		return ""
	})
	l := startLoad(t, url)
	served := func(backends ...*backend) {
		t.Helper()
		for _, x := range backends {
			before := x.calls.Load()
			eventually(t, func() string {
				if x.calls.Load() < before+20 {
					return "no requests for " + x.id
				}
				return ""
			})
		}
	}
	served(a, b)
	c := startBackend(t, n, "c") // Scale out.
	served(a, b, c)
	if _, err := n.client.Drain(t.Context(), client.Key{Service: "web", ID: "a"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string { // Until there are 200 requests of which a gets none.
		before, sent := a.calls.Load(), l.sent.Load()
		for l.sent.Load() < sent+200 && a.calls.Load() == before {
			time.Sleep(time.Millisecond)
		}
		if a.calls.Load() != before {
			return "a still gets requests"
		}
		return ""
	})
	a.stop()
	served(b, c)
	if lost := l.losses(); len(lost) > 0 {
		t.Errorf("%d of %d requests were lost: %.500q", len(lost), l.sent.Load(), lost)
	}
}
