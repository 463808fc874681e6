package chaos_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// rawConn is an HTTP/2 connection of a client without manners.
type rawConn struct {
	net.Conn
	out    *bufio.Writer
	framer *http2.Framer
	next   uint32
}

// dialRaw connects from the i-th address and greets.
func dialRaw(t *testing.T, i int, address string) *rawConn {
	t.Helper()
	c, err := greet(i, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func greet(i int, address string) (*rawConn, error) {
	conn, err := ground(i).Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	c := &rawConn{Conn: conn, out: bufio.NewWriterSize(conn, 32<<10), next: 1}
	c.framer = http2.NewFramer(c.out, conn)
	_, err = io.WriteString(c.out, http2.ClientPreface)
	if err = errors.Join(err, c.framer.WriteSettings(), c.out.Flush()); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// headers are those of a call.
func headers(method string) []byte {
	var b bytes.Buffer
	encoder := hpack.NewEncoder(&b)
	encoder.SetMaxDynamicTableSize(0) // Each call stands for itself.
	for _, f := range [][2]string{
		{":method", "POST"},
		{":scheme", "http"},
		{":path", method},
		{":authority", "a"},
		{"content-type", "application/grpc"},
		{"te", "trailers"},
	} {
		_ = encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}) // To a buffer.
	}
	return b.Bytes()
}

// call begins a call, with its request unless that is nil.
func (c *rawConn) call(method string, request proto.Message) (stream uint32, err error) {
	stream = c.next
	c.next += 2
	err = c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: headers(method), EndHeaders: true})
	if request == nil || err != nil {
		return stream, err
	}
	body, err := proto.Marshal(request)
	if err != nil {
		return stream, err
	}
	return stream, c.framer.WriteData(stream, true, append([]byte{0, 0, 0, byte(len(body) >> 8), byte(len(body))}, body...))
}

// goAway reads until the node hangs up, and returns what it said before that.
func (c *rawConn) goAway() (code http2.ErrCode, said string) {
	for {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return code, said
		}
		if f, ok := frame.(*http2.GoAwayFrame); ok {
			code, said = f.ErrCode, string(f.DebugData())
		}
	}
}

// watchersThatNeverRead watches everything on hundreds of connections and reads nothing, while fat instances are written.
// One who reads gets all of them.
func watchersThatNeverRead(t *testing.T, s *siege) {
	const watchers, perAddress, writes = 500, 150, 40
	watching := s.metric(t, "regd_watchers")
	var conns []*rawConn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range watchers {
		c := dialRaw(t, i/perAddress, s.target.GRPC)
		conns = append(conns, c)
		_, err := c.call(apiv1.RegistryService_WatchService_FullMethodName, &apiv1.WatchServiceRequest{Filter: &apiv1.Filter{Namespace: "*"}})
		if err = errors.Join(err, c.out.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	s.wait(t, "the watches to begin", 10*time.Second, func() bool {
		return s.metric(t, "regd_watchers") >= watching+watchers
	})
	reader := observe(t, newClient(t, []string{s.target.GRPC}))
	fat := map[string]string{}
	for i := range 7 {
		fat[strconv.Itoa(i)] = strings.Repeat("x", 512)
	}
	write := func(n int) (revision uint64, told float64) {
		const sent = "regd_watch_messages_total" // To the one who reads, too.
		before := s.metric(t, sent)
		for i := range n {
			reply, err := s.target.Registry().Register(t.Context(), &apiv1.RegisterRequest{Instance: &registryv1.Instance{
				Service: "fat", Id: strconv.Itoa(i), Address: "127.0.0.1", Metadata: fat, Weight: uint32(time.Now().UnixNano()%65535) + 1,
			}})
			if err != nil {
				t.Fatal(err)
			}
			revision = reply.GetHeader().GetRevision()
		}
		return revision, (s.metric(t, sent) - before) / watchers
	}
	_, first := write(writes)
	revision, then := write(writes)
	s.wait(t, "who reads to have everything", 5*time.Second, func() bool { return reader.reached(revision) })
	t.Logf("%d watchers were told %.1f messages each during %d writes, %.1f during as many more", watchers, first, writes, then)
	if first < 10 || then > 1 {
		t.Error("the watchers were not held up by what they did not read: nothing is proved")
	}
}

// idleConnections opens more than a thousand connections to the port of clients and hundreds to that of the nodes that say
// nothing, and to both some that say a byte a second. All are cut. From one address only so many are let in.
func idleConnections(t *testing.T, s *siege) {
	const addresses, idle, peers, slow, fromOne = 8, 140, 75, 12, 300 // idle, peers and slow: from each address
	var wg sync.WaitGroup
	defer wg.Wait()
	ended := make(chan time.Duration, addresses*(idle+peers+2*slow)+fromOne)
	var mu sync.Mutex
	var opened []net.Conn
	defer func() {
		for _, c := range opened {
			c.Close()
		}
	}()
	open := func(address, says string, i int) {
		conn, err := ground(i).Dial("tcp", address)
		if err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		opened = append(opened, conn)
		mu.Unlock()
		began := time.Now()
		wg.Go(func() {
			_, _ = io.Copy(io.Discard, conn) // Until the node hangs up.
			ended <- time.Since(began)
		})
		wg.Go(func() {
			for _, b := range []byte(says) {
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
	}
	var opening sync.WaitGroup
	for i := range addresses {
		opening.Go(func() {
			for range idle {
				open(s.target.GRPC, "", i)
			}
			for range peers {
				open(s.target.Peer, "", i)
			}
			for range slow {
				open(s.target.GRPC, http2.ClientPreface, i)
				open(s.target.Peer, "\xf1rgd\x01\x00\x10", i)
			}
		})
	}
	opening.Wait()
	peak := s.metric(t, "process_open_fds") - s.base[s.target].files
	for range addresses * (idle + peers + 2*slow) {
		select {
		case d := <-ended:
			if d > 7*time.Second {
				t.Errorf("a connection that said nothing of use was cut after %v", d)
			}
		case <-time.After(15 * time.Second):
			t.Fatal("connections that say nothing of use are not cut")
		}
	}
	t.Logf("%.0f files more were open at the peak", peak)
	if peak < 700 { // The first may have been cut before the last was opened.
		t.Error("too few connections were open at once: nothing is proved")
	}
	refused := 0
	for range fromOne {
		open(s.target.GRPC, "", 20)
	}
	for len(ended) > 0 || refused == 0 {
		select {
		case d := <-ended:
			if d < time.Second {
				refused++
			}
		case <-time.After(2 * time.Second):
			t.Fatalf("none of %d connections from one address was refused", fromOne)
		}
	}
	s.wait(t, "the rest to be refused", 2*time.Second, func() bool {
		for len(ended) > 0 {
			<-ended
			refused++
		}
		return refused >= fromOne-200
	})
	t.Logf("%d of %d connections from one address were refused", refused, fromOne)
}

// resetCalls begins thousands of calls and resets each at once, as in CVE-2023-44487.
func resetCalls(t *testing.T, s *siege) {
	const resets, attackers = 20_000, 4
	const started, method = "grpc_server_started_total", `grpc_method="ListInstances"`
	before := s.metric(t, started, method)
	var sent, away [attackers]int
	var wg sync.WaitGroup
	for a := range attackers {
		wg.Go(func() {
			for sent[a] < resets/attackers {
				c, err := greet(a, s.target.GRPC)
				if err != nil {
					t.Error(err)
					return
				}
				var reading sync.WaitGroup
				reading.Go(func() {
					if code, _ := c.goAway(); code != http2.ErrCodeNo {
						away[a]++
					}
				})
				for err == nil && sent[a] < resets/attackers {
					if sent[a]%50 == 0 {
						time.Sleep(assault * 50 * attackers / resets)
					}
					var stream uint32
					stream, err = c.call(apiv1.RegistryService_ListInstances_FullMethodName, &apiv1.ListInstancesRequest{})
					if err = errors.Join(err, c.framer.WriteRSTStream(stream, http2.ErrCodeCancel)); err == nil {
						sent[a]++
					}
				}
				_ = c.out.Flush() // It may have been cut off.
				if err == nil {
					time.Sleep(100 * time.Millisecond) // What is on its way may arrive.
				}
				c.Close()
				reading.Wait()
			}
		})
	}
	wg.Wait()
	total, goAways := 0, 0
	for a := range attackers {
		total, goAways = total+sent[a], goAways+away[a]
	}
	ran := s.metric(t, started, method) - before
	t.Logf("%d calls were begun and reset, %.0f of them started, %d connections were sent away", total, ran, goAways)
	if total < resets || ran < 100 {
		t.Error("the calls did not reach the node: nothing is proved")
	}
	s.wait(t, "no call to be worked on", 5*time.Second, func() bool {
		return s.metric(t, "regd_requests_in_flight") <= 2 // The neighbour's, and nobody else's.
	})
}

// endlessMessages sends messages over the limit, messages that claim to have 4 GiB, and headers without end.
func endlessMessages(t *testing.T, s *siege) {
	const senders = 8
	locks := apiv1.NewLockServiceClient(dialFrom(t, 0, s.target))
	value := make([]byte, 2<<20)
	var refused atomic.Int64
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			for end := time.Now().Add(assault); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				_, err := locks.Acquire(t.Context(), &apiv1.AcquireRequest{Name: "l", SessionId: "s", Value: value})
				if status.Code(err) != codes.ResourceExhausted {
					t.Errorf("a message over the limit: %v", err)
					return
				}
				refused.Add(1)
			}
		})
	}
	wg.Wait()
	resets := claims(t, s, senders)
	written := endlessHeaders(t, s)
	t.Logf("%d messages were refused, %d claims of 4 GiB, headers after %d KiB", refused.Load(), resets, written>>10)
	if refused.Load() < 2*senders || resets != senders {
		t.Error("too few were refused: nothing is proved")
	}
}

// claims begins calls whose message claims to have 4 GiB, and tells how many the node ends by itself.
func claims(t *testing.T, s *siege, n int) (ended int) {
	t.Helper()
	c := dialRaw(t, 1, s.target.GRPC)
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for range n {
		stream, err := c.call(apiv1.RegistryService_ListInstances_FullMethodName, nil)
		claim := append([]byte{0, 0xff, 0xff, 0xff, 0xff}, make([]byte, 1000)...)
		if err = errors.Join(err, c.framer.WriteData(stream, false, claim), c.out.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	for ended < n {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			t.Errorf("after %d of %d: %v", ended, n, err)
			return ended
		}
		if h, ok := frame.(*http2.HeadersFrame); ok && h.StreamEnded() {
			ended++
		}
	}
	return ended
}

// endlessHeaders sends header after header in one call, as in CVE-2023-45288, until the node hangs up, and returns how
// many bytes it took.
func endlessHeaders(t *testing.T, s *siege) (written int) {
	t.Helper()
	const far = 64 << 20
	c := dialRaw(t, 2, s.target.GRPC)
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headers("/a/b")})
	filler := bytes.Repeat([]byte{0x10, 1, 'a', 1, 'b'}, 3000) // Literal fields that are never indexed.
	for err == nil && written < far {
		err = errors.Join(c.framer.WriteContinuation(1, false, filler), c.out.Flush())
		written += len(filler)
	}
	if err == nil {
		t.Errorf("%d bytes of headers were taken", written)
	}
	return written
}

// pingFlood pings without pause until it is sent away, and sends settings without reading their acknowledgements.
func pingFlood(t *testing.T, s *siege) {
	const pingers, setters, settings = 20, 8, 50_000
	var wg sync.WaitGroup
	for i := range pingers {
		wg.Go(func() {
			c, err := greet(i%5, s.target.GRPC)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			said := make(chan string, 1)
			wg.Go(func() {
				code, why := c.goAway()
				said <- fmt.Sprint(code, " ", why)
			})
			for range 1000 {
				if errors.Join(c.framer.WritePing(false, [8]byte{}), c.out.Flush()) != nil {
					break
				}
				time.Sleep(time.Millisecond)
			}
			select {
			case why := <-said:
				if why != "ENHANCE_YOUR_CALM too_many_pings" {
					t.Errorf("who pings without pause was told %q", why)
				}
			case <-time.After(5 * time.Second):
				t.Error("who pings without pause was not sent away")
			}
		})
	}
	var took [setters]int
	for i := range setters {
		wg.Go(func() {
			c, err := greet(5, s.target.GRPC)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			err = c.SetWriteDeadline(time.Now().Add(2 * time.Second)) // The node may stop reading: that is as good.
			for took[i] < settings && err == nil {
				err = c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000})
				took[i]++
			}
		})
	}
	wg.Wait()
	t.Logf("%d were sent away for their pings, settings were sent %v times", pingers, took)
	for _, n := range took {
		if n < 1000 {
			t.Error("too few settings were sent: nothing is proved")
		}
	}
}
