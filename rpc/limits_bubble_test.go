package rpc

import (
	"bytes"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/test/bufconn"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// served starts a server with the default limits and returns how to dial it.
func served(t *testing.T) func() net.Conn {
	t.Helper()
	_, dial := started(t)
	return dial
}

// started is served that returns the server, too.
func started(t *testing.T) (*Server, func() net.Conn) {
	t.Helper()
	server, err := NewServer(Config{}, newFakeNode(t))
	if err != nil {
		t.Fatal(err)
	}
	lis := bufconn.Listen(256 << 10)
	done := make(chan error, 1)
	go func() { done <- server.Serve(lis) }()
	t.Cleanup(func() {
		if err := server.Shutdown(bg); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return server, func() net.Conn {
		conn, err := lis.DialContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
}

// rawClient speaks HTTP/2 without the manners of a gRPC client.
type rawClient struct {
	t      *testing.T
	conn   net.Conn
	framer *http2.Framer // reads, and answers pings
	out    *http2.Framer
	fields bytes.Buffer
	hpack  *hpack.Encoder
	next   uint32

	mu      sync.Mutex // guards writing and what is below
	answers map[uint32]http2.FrameHeader
	resets  map[uint32]http2.ErrCode
	goAway  string
	ended   chan struct{}
}

// raw greets the server as a client and notes what it says.
func raw(t *testing.T, conn net.Conn) *rawClient {
	t.Helper()
	c := &rawClient{
		t: t, conn: conn, framer: http2.NewFramer(conn, conn), out: http2.NewFramer(conn, nil), next: 1,
		answers: map[uint32]http2.FrameHeader{}, resets: map[uint32]http2.ErrCode{}, ended: make(chan struct{}),
	}
	c.hpack = hpack.NewEncoder(&c.fields)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	c.write(func() error { return c.out.WriteSettings() })
	go c.read()
	t.Cleanup(func() { conn.Close(); <-c.ended })
	synctest.Wait()
	return c
}

func (c *rawClient) read() {
	defer close(c.ended)
	for {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return
		}
		c.mu.Lock()
		switch f := frame.(type) {
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = c.framer.WritePing(true, f.Data) // Without the answer the server hangs up: that shows.
			}
		case *http2.HeadersFrame:
			c.answers[f.StreamID] = f.Header()
		case *http2.RSTStreamFrame:
			c.resets[f.StreamID] = f.ErrCode
		case *http2.GoAwayFrame:
			c.goAway = string(f.DebugData())
		}
		c.mu.Unlock()
	}
}

func (c *rawClient) write(frame func() error) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := frame(); err != nil {
		c.t.Fatal(err)
	}
}

func headersOf(method string) []hpack.HeaderField {
	return []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: method},
		{Name: ":authority", Value: "a"},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
	}
}

// open begins a call without sending its request, and returns its stream.
func (c *rawClient) open(method string, extra ...hpack.HeaderField) uint32 {
	c.t.Helper()
	c.fields.Reset()
	for _, f := range append(headersOf(method), extra...) {
		if err := c.hpack.WriteField(f); err != nil {
			c.t.Fatal(err)
		}
	}
	id := c.next
	c.next += 2
	c.write(func() error {
		const most = 16 << 10 // of a frame
		first, rest := c.fields.Bytes(), []byte(nil)
		if len(first) > most {
			first, rest = first[:most], first[most:]
		}
		err := c.out.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndHeaders: rest == nil})
		if err == nil && rest != nil {
			err = c.out.WriteContinuation(id, true, rest)
		}
		return err
	})
	return id
}

// together has what is written meanwhile arrive in one piece.
func (c *rawClient) together(write func()) {
	c.t.Helper()
	var piece bytes.Buffer
	c.out = http2.NewFramer(&piece, nil)
	write()
	c.out = http2.NewFramer(c.conn, nil)
	c.write(func() error {
		_, err := c.conn.Write(piece.Bytes())
		return err
	})
}

// send sends the empty message as the request of a call.
func (c *rawClient) send(stream uint32) {
	c.t.Helper()
	c.write(func() error { return c.out.WriteData(stream, true, make([]byte, 5)) })
}

// said is what the server has answered to a call so far.
func (c *rawClient) said(stream uint32) (answered bool, reset http2.ErrCode, goAway string) {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	_, answered = c.answers[stream]
	return answered, c.resets[stream], c.goAway
}

// wantAnswer holds that the server answers a call.
func (c *rawClient) wantAnswer(stream uint32) {
	c.t.Helper()
	if answered, reset, goAway := c.said(stream); !answered || reset != 0 {
		c.t.Errorf("stream %d: answered %v, reset %v, go away %q", stream, answered, reset, goAway)
	}
}

func TestConnectionsMustGreetInTime(t *testing.T) {
	for name, says := range map[string]string{"says nothing": "", "says a byte a second": http2.ClientPreface} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := served(t)()
				defer conn.Close()
				began := time.Now()
				var talk sync.WaitGroup
				defer talk.Wait()
				talk.Go(func() {
					for _, c := range []byte(says) {
						if _, err := conn.Write([]byte{c}); err != nil {
							return
						}
						time.Sleep(time.Second)
					}
				})
				_, _ = io.Copy(io.Discard, conn) // Until the server hangs up; it may have said something.
				if d := time.Since(began); d != connectionTimeout {
					t.Errorf("cut after %v, want %v", d, connectionTimeout)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		dial := served(t)
		conn := dial()
		time.Sleep(connectionTimeout - 1)
		c := raw(t, conn)
		stream := c.open(apiv1.RegistryService_ListServices_FullMethodName)
		c.send(stream)
		c.wantAnswer(stream)
	})
}

func TestStreamsOfAConnectionAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := raw(t, served(t)())
		var open []uint32
		for range DefaultMaxStreams {
			open = append(open, c.open(apiv1.RegistryService_WatchService_FullMethodName))
		}
		beyond := c.open(apiv1.RegistryService_WatchService_FullMethodName)
		if _, reset, _ := c.said(beyond); reset != http2.ErrCodeRefusedStream {
			t.Errorf("call %d ended with %v, want it refused", DefaultMaxStreams+1, reset)
		}
		for _, stream := range open {
			c.send(stream)
			c.wantAnswer(stream)
		}
		c.write(func() error { return c.framer.WriteRSTStream(open[0], http2.ErrCodeCancel) })
		synctest.Wait()
		again := c.open(apiv1.RegistryService_WatchService_FullMethodName)
		c.send(again)
		c.wantAnswer(again)
	})
}

func TestPingsAreLimited(t *testing.T) {
	for name, tt := range map[string]struct {
		every time.Duration
		want  string
	}{
		"at the limit": {keepaliveMinTime, ""},
		"beyond it":    {keepaliveMinTime - time.Millisecond, "too_many_pings"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dial := served(t)
				c := raw(t, dial())
				for range 20 {
					time.Sleep(tt.every)
					if _, _, goAway := c.said(0); goAway != "" {
						break
					}
					c.write(func() error { return c.framer.WritePing(false, [8]byte{}) })
				}
				if _, _, goAway := c.said(0); goAway != tt.want {
					t.Errorf("pings every %v: %q, want %q", tt.every, goAway, tt.want)
				}
				other := raw(t, dial())
				stream := other.open(apiv1.RegistryService_ListServices_FullMethodName)
				other.send(stream)
				other.wantAnswer(stream)
			})
		})
	}
}

func TestHeadersAreLimitedToTheByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := raw(t, served(t)())
		const method = apiv1.RegistryService_ListServices_FullMethodName
		usual := uint32(0)
		for _, f := range headersOf(method) {
			usual += f.Size()
		}
		filler := func(n uint32) hpack.HeaderField {
			f := hpack.HeaderField{Name: "filler", Sensitive: true}
			f.Value = strings.Repeat("~", int(n-usual-f.Size()))
			return f
		}
		at := c.open(method, filler(maxHeaderBytes))
		c.send(at)
		c.wantAnswer(at)
		beyond := c.open(method, filler(maxHeaderBytes+1))
		if answered, reset, goAway := c.said(beyond); answered || reset == 0 && goAway == "" {
			t.Errorf("a byte beyond: answered %v, reset %v, go away %q", answered, reset, goAway)
		}
		after := c.open(method)
		c.send(after)
		c.wantAnswer(after)
	})
}
