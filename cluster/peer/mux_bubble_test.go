package peer_test

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/regd-io/regd/cluster/peer"
	"github.com/regd-io/regd/cluster/peer/peertest"
)

// listen opens the peer port of a node, named as its host, that belongs to the cluster; "" for none.
func listen(t *testing.T, n *peertest.Net, name, cluster string, change ...func(*peer.Config)) *peer.Mux {
	t.Helper()
	cfg := peer.Config{
		Network: n.Host(name), Listen: ":7401", Advertise: name + ":7401", NodeID: name,
		ClusterID: func() string { return cluster },
	}
	for _, f := range change {
		f(&cfg)
	}
	m, err := peer.Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// acceptAll accepts what comes, and closes it at the end of the test.
func acceptAll(tb testing.TB, l net.Listener) {
	tb.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	tb.Cleanup(func() { l.Close(); <-done })
}

func TestHandshakeMatrix(t *testing.T) {
	for _, tc := range []struct {
		name       string
		a, b       string // clusters of the dialler and the acceptor
		raft, grpc error
	}{
		{"same cluster", "c1", "c1", nil, nil},
		{"foreign cluster", "c1", "c2", peer.ErrForeignCluster, peer.ErrForeignCluster},
		{"dialler has none", "", "c2", peer.ErrNoCluster, nil},
		{"acceptor has none", "c1", "", peer.ErrNoCluster, nil},
		{"neither has one", "", "", peer.ErrNoCluster, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := peertest.NewNet()
				a, b := listen(t, n, "a", tc.a), listen(t, n, "b", tc.b)
				acceptAll(t, b.StreamLayer())
				acceptAll(t, b.GRPCListener())
				c, err := a.StreamLayer().Dial("b:7401", time.Second)
				if err == nil {
					c.Close()
				}
				judge(t, "raft", err, tc.raft, tc.a, tc.b)
				got, err := a.Probe(t.Context(), "b:7401")
				judge(t, "grpc", err, tc.grpc, tc.a, tc.b)
				if err == nil {
					want := peer.Identity{NodeID: "b", ClusterID: tc.b}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("remote (-want +got):\n%s", diff)
					}
				}
			})
		})
	}
}

// judge compares the error of a dial from a to b with the sentinel that is due, and what it says about both sides.
func judge(t *testing.T, kind string, got, want error, a, b string) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got %v, want %v", kind, got, want)
		return
	}
	var he *peer.HandshakeError
	if want == nil {
		return
	}
	if !errors.As(got, &he) {
		t.Fatalf("%s: %T is no HandshakeError", kind, got)
	}
	if he.Local.ClusterID != a || he.Remote != (peer.Identity{NodeID: "b", ClusterID: b}) || he.Addr != "b:7401" {
		t.Errorf("%s: error tells %+v", kind, he)
	}
	for _, id := range []string{a, b, "b:7401"} {
		if !strings.Contains(got.Error(), id) {
			t.Errorf("%s: %q does not name %q", kind, got, id)
		}
	}
}

func TestAnotherNodeAtTheAddressIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a, b := listen(t, n, "a", "c1"), listen(t, n, "b", "c1")
		acceptAll(t, b.StreamLayer())
		acceptAll(t, b.GRPCListener())
		_, err := a.StreamLayer().Dial("other@b:7401", time.Second)
		if !errors.Is(err, peer.ErrWrongNode) || !strings.Contains(err.Error(), "other") {
			t.Errorf("pinned to another node: %v", err)
		}
		c, err := a.StreamLayer().Dial("b@b:7401", time.Second)
		if err != nil {
			t.Fatalf("pinned to the right node: %v", err)
		}
		c.Close()
	})
}

// answering serves one connection on host "b" with a function.
func answering(t *testing.T, n *peertest.Net, serve func(net.Conn)) {
	t.Helper()
	l, err := n.Listen("b:7401")
	if err != nil {
		t.Fatal(err)
	}
	defer t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		serve(c)
	}()
}

func TestDiallerTellsWhatElseAnswers(t *testing.T) {
	silent := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	for _, tc := range []struct {
		name  string
		serve func(net.Conn)
		want  error
	}{
		{"http", func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }, peer.ErrNotPeer},
		{"tls alert", func(c net.Conn) { _, _ = c.Write([]byte{0x15, 3, 1, 0, 2, 2, 10}) }, peer.ErrNotPeer},
		{"echo", func(c net.Conn) { _, _ = io.Copy(c, c) }, peer.ErrNotPeer},
		{"hangs up", func(c net.Conn) { _, _ = io.ReadFull(c, make([]byte, 7)) }, io.EOF},
		{"silent", silent, context.DeadlineExceeded},
		{"newer version", func(c net.Conn) { _, _ = c.Write(encode("\xf2rgd", 2, 0, "b", "c1")) }, peer.ErrVersion},
		{"unknown reason", func(c net.Conn) { _, _ = c.Write(encode("\xf2rgd", 1, 99, "b", "c1")) }, peer.ErrRefused},
		{
			"accepts a foreign cluster",
			func(c net.Conn) { _, _ = c.Write(encode("\xf2rgd", 1, 0, "b", "c2")) },
			peer.ErrForeignCluster,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := peertest.NewNet()
				answering(t, n, tc.serve)
				a := listen(t, n, "a", "c1")
				_, err := a.StreamLayer().Dial("b:7401", 0)
				if !errors.Is(err, tc.want) {
					t.Errorf("got %v, want %v", err, tc.want)
				}
				if s := a.Stats(); s.DialErrors != 1 || s.Dialled != 0 {
					t.Errorf("counted %+v", s)
				}
			})
		})
	}
}

// encode writes a handshake frame by hand: the format is a contract between versions.
func encode(magic string, version, code byte, node, cluster string) []byte {
	b := append([]byte(magic), version, 0, byte(3+len(node)+len(cluster)), code)
	b = append(append(b, byte(len(node))), node...)
	b = append(append(b, byte(len(cluster))), cluster...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

func TestBadHelloEndsItsConnectionOnly(t *testing.T) {
	hello := encode("\xf1rgd", 1, 1, "x", "c1")
	flipped := append([]byte(nil), hello...)
	flipped[9] ^= 1
	for _, tc := range []struct {
		name  string
		send  []byte
		count func(peer.Stats) uint64
		reply byte // reason, 0: hung up on without a reply
		after time.Duration
	}{
		{"nothing", nil, func(s peer.Stats) uint64 { return s.TimedOut }, 0, 5 * time.Second},
		{"half a hello", hello[:10], func(s peer.Stats) uint64 { return s.TimedOut }, 0, 5 * time.Second},
		{"http", []byte("GET / HTTP/1.1\r\n\r\n"), func(s peer.Stats) uint64 { return s.Malformed }, 0, 0},
		{"oversized", []byte("\xf1rgd\x01\xff\xff"), func(s peer.Stats) uint64 { return s.Malformed }, 0, 0},
		{"flipped bit", flipped, func(s peer.Stats) uint64 { return s.Malformed }, 0, 0},
		{"foreign", encode("\xf1rgd", 1, 1, "x", "c2"), func(s peer.Stats) uint64 { return s.Refused }, 1, 0},
		{"no cluster", encode("\xf1rgd", 1, 1, "x", ""), func(s peer.Stats) uint64 { return s.Refused }, 2, 0},
		{"other version", encode("\xf1rgd", 2, 1, "x", "c1"), func(s peer.Stats) uint64 { return s.Refused }, 3, 0},
		{"unknown kind", encode("\xf1rgd", 1, 7, "x", "c1"), func(s peer.Stats) uint64 { return s.Refused }, 4, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := peertest.NewNet()
				a := listen(t, n, "a", "c1")
				acceptAll(t, a.StreamLayer())
				start := time.Now()
				c, err := n.Dial(t.Context(), "a:7401")
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, err = c.Write(tc.send); err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(c)
				if err != nil || time.Since(start) != tc.after {
					t.Errorf("hung up with %v after %v, want %v", err, time.Since(start), tc.after)
				}
				var want []byte
				if tc.reply != 0 {
					want = encode("\xf2rgd", 1, tc.reply, "a", "c1")
				}
				if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b []byte) bool { return string(a) == string(b) })); diff != "" {
					t.Errorf("reply (-want +got):\n%s", diff)
				}
				synctest.Wait()
				if s := a.Stats(); tc.count(s) != 1 || s.Accepted != 1 || s.Open != 0 {
					t.Errorf("counted %+v", s)
				}
			})
		})
	}
}

func TestRefusedNodeIsLoggedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		var log strings.Builder
		listen(t, n, "a", "c1", func(c *peer.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		b := listen(t, n, "b", "c2")
		for range 60 { // a minute
			if _, err := b.Probe(t.Context(), "a:7401"); !errors.Is(err, peer.ErrForeignCluster) {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if got := strings.Count(log.String(), "cluster=c2"); got != 12 {
			t.Errorf("logged %d times:\n%s", got, log.String())
		}
	})
}

func TestStrangersThatKeepSilentDontKeepMembersOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 8
		n := peertest.NewNet()
		a := listen(t, n, "a", "c1", func(c *peer.Config) { c.MaxConns = limit })
		b := listen(t, n, "b", "c1")
		acceptAll(t, a.StreamLayer())
		for range 5 * limit {
			c, err := n.Dial(t.Context(), "a:7401")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		c, err := b.StreamLayer().Dial("a:7401", time.Second)
		if err != nil {
			t.Fatalf("member: %v", err)
		}
		defer c.Close()
		synctest.Wait()
		if s := a.Stats(); s.Open != limit || s.OverLimit != 4*limit+1 {
			t.Errorf("counted %+v", s)
		}
		time.Sleep(peer.DefaultHandshakeTimeout)
		synctest.Wait()
		if s := a.Stats(); s.Open != 1 || s.TimedOut != limit-1 {
			t.Errorf("after the timeout: counted %+v", s)
		}
	})
}

func TestConnectionsAboveTheLimitAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 3
		n := peertest.NewNet()
		a := listen(t, n, "a", "c1", func(c *peer.Config) { c.MaxConns = limit })
		b := listen(t, n, "b", "c1")
		go func() {
			for {
				c, err := a.StreamLayer().Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(io.Discard, c)
					c.Close()
				}()
			}
		}()
		var open []net.Conn
		for range limit {
			c, err := b.StreamLayer().Dial("a:7401", time.Second)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		synctest.Wait()
		if c, err := b.StreamLayer().Dial("a:7401", time.Second); err == nil {
			c.Close()
			t.Error("one more was accepted")
		}
		open[0].Close()
		synctest.Wait()
		c, err := b.StreamLayer().Dial("a:7401", time.Second)
		if err != nil {
			t.Fatalf("after one was closed: %v", err)
		}
		open[0] = c
		for _, c := range open {
			c.Close()
		}
		synctest.Wait()
		if s := a.Stats(); s.Open != 0 || s.OverLimit != 1 {
			t.Errorf("counted %+v", s)
		}
	})
}

func TestConnectionThatNobodyAcceptsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a, b := listen(t, n, "a", "c1"), listen(t, n, "b", "c1")
		c, err := b.StreamLayer().Dial("a:7401", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read: %v", err)
		}
		synctest.Wait()
		if s := a.Stats(); s.TimedOut != 1 || s.Open != 0 {
			t.Errorf("counted %+v", s)
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := peertest.NewNet()
		a, b := listen(t, n, "a", "c1"), listen(t, n, "b", "c1")
		listen(t, n, "c", "c1")
		n.Cut("a", "c")
		accepted := make(chan net.Conn, 1)
		go func() {
			c, err := a.StreamLayer().Accept()
			if err != nil {
				t.Error(err)
			}
			accepted <- c
		}()
		out, err := b.StreamLayer().Dial("a:7401", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		in := <-accepted
		stranger, err := n.Dial(t.Context(), "a:7401")
		if err != nil {
			t.Fatal(err)
		}
		dialled := make(chan error)
		go func() {
			_, err := a.StreamLayer().Dial("c:7401", 0)
			dialled <- err
		}()
		go func() {
			_, err := a.Probe(context.Background(), "c:7401")
			dialled <- err
		}()
		synctest.Wait()
		start := time.Now()
		go a.Close()
		for range 2 {
			if err := <-dialled; !errors.Is(err, peer.ErrClosed) {
				t.Errorf("dial under way: %v", err)
			}
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		for name, c := range map[string]net.Conn{"accepted": in, "dialled": out, "stranger": stranger} {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Errorf("%s connection is still open", name)
			}
			c.Close()
		}
		for _, l := range []net.Listener{a.StreamLayer(), a.GRPCListener()} {
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("accept: %v", err)
			}
		}
		if _, err := a.StreamLayer().Dial("b:7401", 0); !errors.Is(err, peer.ErrClosed) {
			t.Errorf("dial: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("took %v", d)
		}
	})
}

func TestConfigIsCheckedAsAWhole(t *testing.T) {
	err := peer.Config{NodeID: strings.Repeat("x", peer.MaxIDLen+1), HandshakeTimeout: -1, MaxConns: -1}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{"network", "listen address", "node id", "cluster id", "timeout", "limit"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q says nothing about the %s", err, part)
		}
	}
}
