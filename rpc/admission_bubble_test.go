package rpc

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

func TestWhatWillBeRefusedIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, dial := started(t)
		c := raw(t, dial())
		a := server.core.admission
		for _, tt := range []struct {
			method   string
			inFlight int64
			refused  bool
		}{
			{apiv1.RegistryService_Register_FullMethodName, a.most(classRegister) - 1, false},
			{apiv1.RegistryService_Register_FullMethodName, a.most(classRegister), true},
			{apiv1.LockService_Acquire_FullMethodName, a.most(classRegister), true},
			{apiv1.RegistryService_Deregister_FullMethodName, a.most(classRegister), false},
			{apiv1.RegistryService_Deregister_FullMethodName, a.limit, true},
			{apiv1.SessionService_Renew_FullMethodName, a.limit, false}, // It is read first.
			{apiv1.SessionService_Attach_FullMethodName, a.limit, false},
		} {
			a.inFlight.Store(tt.inFlight)
			stream := c.open(tt.method) // Without its message.
			time.Sleep(maxHold)         // Those before it were refused.
			if refused, reset, goAway := c.said(stream); refused != tt.refused || reset != 0 || goAway != "" {
				t.Errorf("%s with %d in flight: refused %v, reset %v, go away %q", tt.method, tt.inFlight, refused, reset, goAway)
			}
			if n := a.inFlight.Load(); n != tt.inFlight {
				t.Errorf("%s: %d in flight, were %d", tt.method, n, tt.inFlight)
			}
		}
		a.inFlight.Store(0)
		if n := a.rejected[classRegister].Load(); n != 2 {
			t.Errorf("%d registrations and locks were counted as refused, not 2", n)
		}
	})
}

// gRPC v1.85.0 does not cancel the context of a call that it refuses for a tap handle: its timer stays until it fires.
func TestARefusalIsNotKeptForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, dial := started(t)
		c := raw(t, dial())
		a := server.core.admission
		a.inFlight.Store(a.limit)
		defer a.inFlight.Store(0)
		for timeout, unread := range map[string]bool{"": true, "1S": true, "10S": true, "11S": false, "1H": false} {
			var extra []hpack.HeaderField
			if timeout != "" {
				extra = append(extra, hpack.HeaderField{Name: "grpc-timeout", Value: timeout})
			}
			stream := c.open(apiv1.LockService_Acquire_FullMethodName, extra...)
			time.Sleep(maxHold)
			if refused, reset, goAway := c.said(stream); refused != unread || reset != 0 || goAway != "" {
				t.Errorf("timeout %q: refused unread %v, want %v; reset %v, go away %q", timeout, refused, unread, reset, goAway)
			}
			if !unread {
				c.send(stream)
				c.wantAnswer(stream)
			}
		}
	})
}

func TestARefusalNamesTheLeaderOfNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a := r.server.core.admission
		a.inFlight.Store(a.limit)
		defer a.inFlight.Store(0)
		for _, leader := range []string{"n1:7400", "n1:7400", "n2:7400", "n1:7400"} {
			r.node.set(func() { r.node.info.LeaderAddress = leader })
			_, err := r.registry.Register(bg, &apiv1.RegisterRequest{Instance: instance("web", "1")})
			info := wantReason(t, err, codes.ResourceExhausted, apiv1.Reason_REASON_OVERLOADED)
			if got := info.GetMetadata()["leader"]; got != leader {
				t.Errorf("refused with leader %q, it is %q", got, leader)
			}
		}
		if n := a.rejected[classRegister].Load(); n != 4 {
			t.Errorf("%d of 4 refusals were counted", n)
		}
	})
}

func TestWhoIsRefusedOftenIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, dial := started(t)
		a := server.core.admission
		a.inFlight.Store(a.limit)
		defer a.inFlight.Store(0)
		register := apiv1.RegistryService_Register_FullMethodName
		answered := func(c *rawClient) int {
			synctest.Wait()
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.answers)
		}
		for _, tt := range []struct {
			refusals int
			held     time.Duration
		}{{1, refusalHold}, {20, 20 * refusalHold}, {200, maxHold}} {
			c, other := raw(t, dial()), raw(t, dial())
			// In one piece: what is read together is refused together.
			c.together(func() {
				for range tt.refusals {
					c.open(register)
				}
			})
			if n := answered(c); n != tt.refusals {
				t.Fatalf("%d of %d calls were refused", n, tt.refusals)
			}
			began, before := time.Now(), server.conns.held.Load()
			c.open(register)
			for answered(c) == tt.refusals {
				time.Sleep(time.Millisecond)
			}
			if held := time.Since(began); held != tt.held {
				t.Errorf("after %d refusals held back for %v, want %v", tt.refusals, held, tt.held)
			}
			if n := server.conns.held.Load() - before; tt.held > 0 && n > 1 {
				t.Errorf("%d holds were counted, not 1", n)
			}
			other.open(register)
			if answered(other) != 1 {
				t.Error("another connection is held back, too")
			}
		}
	})
}

// A connection that is closed while it is held back ends at once.
func TestClosingEndsAHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		lis := (&limitListener{&oneListener{conn: ours}, newConnections(1, 1)})
		conn, err := lis.Accept()
		if err != nil {
			t.Fatal(err)
		}
		ctx := peer.NewContext(bg, &peer.Peer{Addr: conn.RemoteAddr()})
		for range 100 {
			holdBack(ctx)
		}
		began, read := time.Now(), make(chan error, 1)
		go func() {
			_, err := conn.Read(make([]byte, 1))
			read <- err
		}()
		synctest.Wait()
		_ = conn.Close()
		if err := <-read; err == nil || time.Since(began) != 0 {
			t.Errorf("read %v after %v", err, time.Since(began))
		}
	})
}

// oneListener accepts one connection.
type oneListener struct {
	net.Listener
	conn net.Conn
}

func (l *oneListener) Accept() (net.Conn, error) { return l.conn, nil }

// Calls of which only the headers have come have their places already, but not for long: who sends no more can't keep them.
func TestAnUnreadCallHasItsPlaceForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, dial := started(t)
		c := raw(t, dial())
		a := server.core.admission
		free := func(n int64) { a.inFlight.Store(a.most(classRegister) - n) }
		taken := func(want int64) {
			t.Helper()
			synctest.Wait()
			if got := a.inFlight.Load() - a.most(classRegister); got != want {
				t.Errorf("%d places beyond those of registrations are taken, not %d", got, want)
			}
		}

		free(2)
		idle := c.open(apiv1.RegistryService_Register_FullMethodName)
		taken(-2) // Nobody was refused: by headers alone one gets nothing.
		c.send(idle)
		c.wantAnswer(idle)
		a.full[classRegister].Store(time.Now().UnixNano())
		prompt, late := c.open(apiv1.RegistryService_Register_FullMethodName), c.open(apiv1.RegistryService_Register_FullMethodName)
		taken(0)
		refused := c.open(apiv1.RegistryService_Register_FullMethodName)
		if said, _, _ := c.said(refused); !said {
			t.Error("a third call was let in before the first two were read")
		}
		time.Sleep(refusalHold)
		c.send(prompt)
		c.wantAnswer(prompt)
		taken(-1)
		time.Sleep(unreadFor)
		taken(-2)

		a.inFlight.Store(a.most(classRegister))
		c.send(late) // Its place is gone, and there is no other.
		c.wantAnswer(late)
		if n := a.rejected[classRegister].Load(); n != 2 {
			t.Errorf("%d calls were counted as refused, not 2", n)
		}
		taken(0)
		a.inFlight.Store(0)
	})
}
