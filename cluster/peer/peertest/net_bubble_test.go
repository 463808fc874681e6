package peertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"

	"github.com/regd-io/regd/cluster/peer"
)

func TestConnKeepsTheContractOfNetConn(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		n := NewNet("a", "b")
		l, err := n.Host("b").Listen(":1")
		if err != nil {
			return nil, nil, nil, err
		}
		if c1, err = n.Host("a").Dial(t.Context(), "b:1"); err != nil {
			return nil, nil, nil, err
		}
		if c2, err = l.Accept(); err != nil {
			return nil, nil, nil, err
		}
		return c1, c2, func() { c1.Close(); c2.Close(); l.Close() }, nil
	})
}

// pair returns a connection from host a to host b.
func pair(t *testing.T, n *Net) (a, b net.Conn) {
	t.Helper()
	l, err := n.Host("b").Listen("b:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = n.Host("a").Dial(t.Context(), l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatalf("write %q: %v", s, err)
	}
}

// wantRead expects that exactly this arrives within d.
func wantRead(t *testing.T, c net.Conn, d time.Duration, want string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(d))
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v, want %q", got, err, want)
	}
}

// wantSilence expects that nothing arrives within d.
func wantSilence(t *testing.T, c net.Conn, d time.Duration) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(d))
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	if k, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes, %v, want silence", k, err)
	}
}

func TestCutHoldsBackWhatIsSentAndHealDeliversIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a", "b", "c")
		a, b := pair(t, n)
		write(t, a, "before ")
		n.Cut("a", "b")
		write(t, a, "during ")
		write(t, b, "back")
		wantRead(t, b, time.Second, "before ") // had arrived, and is read across the cut
		wantSilence(t, b, time.Hour)
		wantSilence(t, a, time.Hour)
		n.Heal()
		write(t, a, "after")
		wantRead(t, b, time.Second, "during after")
		wantRead(t, a, time.Second, "back")
	})
}

func TestHealWakesAReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a", "b")
		a, b := pair(t, n)
		n.Cut("a", "b")
		write(t, a, "x")
		go func() {
			time.Sleep(time.Minute)
			n.Heal()
		}()
		start := time.Now()
		wantRead(t, b, time.Hour, "x")
		if d := time.Since(start); d != time.Minute {
			t.Errorf("read after %v", d)
		}
	})
}

func TestCutOneWayLetsTheOtherWayThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a", "b")
		a, b := pair(t, n)
		n.CutOneWay("a", "b")
		write(t, a, "x")
		write(t, b, "y")
		wantRead(t, a, 0+time.Second, "y")
		wantSilence(t, b, time.Hour)
	})
}

func TestIsolateSparesClientsAndEndsWithHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a", "b", "c")
		a, b := pair(t, n)
		l, err := n.Listen("a:1")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		n.Isolate("a")
		c, err := n.Dial(t.Context(), "a:1")
		if err != nil {
			t.Fatalf("client: %v", err)
		}
		c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, err := n.Host("c").Dial(ctx, "a:1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial: got %v, want a timeout", err)
		}
		write(t, a, "x")
		wantSilence(t, b, time.Hour)
		n.Heal()
		wantRead(t, b, time.Second, "x")
	})
}

func TestHoldOutlivesHealAndEndsWithRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a", "b")
		a, b := pair(t, n)
		release, second := n.HoldFrom("b"), n.HoldFrom("b")
		write(t, a, "question")
		wantRead(t, b, time.Second, "question")
		write(t, b, "answer")
		n.Heal()
		wantSilence(t, a, time.Hour)
		release()
		release()
		wantSilence(t, a, time.Hour)
		second()
		wantRead(t, a, time.Second, "answer")
	})
}

func TestDelayIsThatOfOneDirectionAndKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a", "b")
		a, b := pair(t, n)
		n.Delay("a", "b", time.Minute)
		write(t, a, "1")
		write(t, b, "2")
		wantRead(t, a, 1, "2")
		n.Delay("a", "b", 0)
		write(t, a, "3")
		wantSilence(t, b, time.Minute-1)
		wantRead(t, b, 2, "13")
	})
}

func TestDialTakesARoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a", "b")
		n.Delay("a", "b", time.Second)
		n.Delay("b", "a", 2*time.Second)
		start := time.Now()
		pair(t, n)
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("dialled in %v", d)
		}
	})
}

func TestDialIsRefusedWhereNobodyListens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a", "b")
		if _, err := n.Dial(t.Context(), "b:1"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("no listener: %v", err)
		}
		var unknown *net.DNSError
		if _, err := n.Dial(t.Context(), "nobody:1"); !errors.As(err, &unknown) {
			t.Errorf("no host: %v", err)
		}
	})
}

func TestOneWayCutStopsDialsBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a", "b")
		n.CutOneWay("a", "b")
		for _, way := range []struct{ from, to string }{{"a", "b"}, {"b", "a"}} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := n.Host(way.from).Dial(ctx, way.to+":1")
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s to %s: %v", way.from, way.to, err)
			}
		}
	})
}

func TestDialGoesOnWhenTheCutHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a", "b")
		n.Cut("a", "b")
		go func() {
			time.Sleep(time.Minute)
			n.Heal()
		}()
		start := time.Now()
		pair(t, n)
		if d := time.Since(start); d != time.Minute {
			t.Errorf("dialled in %v", d)
		}
	})
}

func TestEndArrivesLikeData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a", "b")
		a, b := pair(t, n)
		write(t, a, "last words")
		n.Cut("a", "b")
		a.Close()
		wantRead(t, b, time.Second, "last words")
		wantSilence(t, b, time.Hour)
		write(t, b, "nobody reads this, but b can't know")
		n.Heal()
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read: %v", err)
		}
		if _, err := b.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write: %v", err)
		}
	})
}

func TestWriterBlocksAcrossACutAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a", "b")
		a, b := pair(t, n)
		n.Cut("a", "b")
		data := bytes.Repeat([]byte("0123456789"), streamBuffer/5)
		_ = a.SetWriteDeadline(time.Now().Add(time.Minute))
		k, err := a.Write(data)
		if k != streamBuffer || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("wrote %d, %v", k, err)
		}
		_ = a.SetWriteDeadline(time.Time{})
		go func() {
			_, _ = a.Write(data[k:])
			a.Close()
		}()
		n.Heal()
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %d bytes, %v, want %d", len(got), err, len(data))
		}
	})
}

func TestWriterThatWaitsLearnsOfTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a", "b")
		a, b := pair(t, n)
		n.Delay("b", "a", time.Minute)
		b.Close()
		start := time.Now()
		_, err := a.Write(make([]byte, 2*streamBuffer))
		if !errors.Is(err, syscall.EPIPE) || time.Since(start) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestResetEndsBothSidesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a", "b")
		a, b := pair(t, n)
		write(t, a, "lost")
		n.Reset("a")
		for _, c := range []net.Conn{a, b} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read: %v", err)
			}
			if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("write: %v", err)
			}
		}
	})
}

func TestListenerHoldsItsPortUntilItCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNet("a")
		l, err := n.Listen("a:1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err = n.Host("a").Listen("0.0.0.0:1"); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("second listener: %v", err)
		}
		c, err := n.Dial(t.Context(), "a:1") // waits in the backlog
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if _, err = c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("connection that nobody accepted: %v", err)
		}
		if _, err = l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
		if l, err = n.Listen("a:1"); err != nil {
			t.Fatalf("after close: %v", err)
		}
		l.Close()
	})
}

var _ peer.Network = host{}
