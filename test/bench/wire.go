package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// wire is a connection for calls of a gRPC server. A load shares the machine with the servers that it measures, and what it
// takes they lack: so a call costs it no goroutine, no timer and hardly any memory, headers are encoded once, many frames go
// out in one write, and a refusal that was told before is not decoded again. Messages are not decoded at all: who makes a call
// looks at as much of its answer as matters. Its methods are safe for concurrent use.
type wire struct {
	conn net.Conn
	done chan struct{} // closed when the reader is done

	mu      sync.Mutex // guards what follows
	out     *bufio.Writer
	framer  *http2.Framer // the reader alone reads from it
	encoder *hpack.Encoder
	block   bytes.Buffer    // that it encodes to
	headers map[kind][]byte // as they are encoded, once the server has their fields in its table; before, nil
	message []byte
	stream  uint32 // of the next call
	under   map[uint32]*call
	window  int   // bytes that may be sent
	initial int   // bytes that may be sent on a new stream
	broken  error // why no call can be begun any more

	// taking is held while what came is taken and while calls are given up: to a call happens one thing at a time. It is
	// locked before mu, and guards what follows.
	taking   sync.Mutex
	in       *bufio.Reader
	hpack    *hpack.Decoder
	unread   uint32 // bytes of answers for which the server was not given room again
	trailers trailers
	judged   trailers // the last that told of an error
	verdict  error    // which one
}

// kind is what the header of a call depends on.
type kind struct {
	method string
	stream bool // lasts, without a timeout
}

// call is a call of a method. When it has ended it can be begun again.
type call struct {
	kind
	// request appends the first message, which is the last unless more may follow.
	request func(b []byte) []byte
	more    bool
	// heard is called with each message of the answer, which it must not keep. An error ends the call. It is nil where the
	// answer does not matter; else an answer without a message is an error.
	heard func(message []byte) error
	// ended is called once for each time that the call was begun, without a lock of the call's maker, mostly by the reader:
	// what it begins goes out when all that has come is read. After it, nothing is heard.
	ended func(err error)

	// The wire's own.
	id       uint32
	begun    time.Time
	window   int    // bytes that may be sent
	unread   uint32 // bytes for which the server was not given room again
	messages int
	partial  []byte // of a message whose rest is yet to come
}

// trailers are what an answer says of how the call went.
type trailers struct{ status, message, details string }

const (
	// wireBuffer is the size of each of a wire's two buffers.
	wireBuffer = 64 << 10
	// room is how many bytes of answers a server may send, on a wire and on each of its streams, before it hears that they
	// were read.
	room = 1 << 24
	// window is what a server takes, on a connection and on each stream, unless it says more.
	window = 65_535
	// prefix is what comes before a message: that it is not compressed, and how long it is.
	prefix = 5
	// longest is how long a frame may be, unless the server says more.
	longest = 16 << 10
)

// newWire returns a wire on a connection to a server, which it closes in the end.
func newWire(conn net.Conn) *wire {
	w := &wire{
		conn: conn, done: make(chan struct{}), headers: map[kind][]byte{},
		out: bufio.NewWriterSize(conn, wireBuffer), in: bufio.NewReaderSize(conn, wireBuffer),
		stream: 1, under: map[uint32]*call{}, window: window, initial: window,
	}
	w.encoder = hpack.NewEncoder(&w.block)
	w.hpack = hpack.NewDecoder(4096, w.field)
	w.framer = http2.NewFramer(w.out, w.in)
	w.framer.SetReuseFrames()
	_, _ = w.out.WriteString(http2.ClientPreface) // What goes wrong with writing, the flush tells.
	_ = w.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: room})
	_ = w.framer.WriteWindowUpdate(0, room)
	w.flush()
	go w.read()
	return w
}

// header is the header of a call, encoded.
func (w *wire) header(k kind) []byte {
	encoded, known := w.headers[k]
	if encoded != nil {
		return encoded
	}
	w.block.Reset()
	fields := []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: k.method},
		{Name: ":authority", Value: w.conn.RemoteAddr().String()},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
	}
	if !k.stream {
		fields = append(fields, hpack.HeaderField{Name: "grpc-timeout", Value: strconv.Itoa(int(callTimeout.Milliseconds())) + "m"})
	}
	for _, f := range fields {
		_ = w.encoder.WriteField(f) // A buffer takes all.
	}
	encoded = bytes.Clone(w.block.Bytes())
	if known {
		w.headers[k] = encoded
		return encoded
	}
	w.headers[k] = nil
	for other := range w.headers { // Its fields are in the table now, and those of the others elsewhere than before.
		w.headers[other] = nil
	}
	return encoded
}

// begin begins a call. It goes out with the next flush. Without an error the call will end.
func (w *wire) begin(c *call) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	c.id, c.begun, c.window, c.unread, c.messages, c.partial = w.stream, time.Now(), w.initial, 0, 0, c.partial[:0]
	if err := w.encode(c, c.request); err != nil {
		return err
	}
	_ = w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: c.id, BlockFragment: w.header(c.kind), EndHeaders: true})
	_ = w.framer.WriteData(c.id, !c.more, w.message)
	w.under[c.id] = c
	w.stream += 2
	return nil
}

// add sends one more message of a call, with the next flush.
func (w *wire) add(c *call, request func(b []byte) []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken == nil && w.under[c.id] != c {
		return errors.New("the stream has ended")
	}
	if err := w.encode(c, request); err != nil {
		return err
	}
	_ = w.framer.WriteData(c.id, false, w.message)
	return nil
}

// encode encodes a message of a call that may be sent, and has room for it in the buffer.
func (w *wire) encode(c *call, request func(b []byte) []byte) error {
	w.message = request(append(w.message[:0], make([]byte, prefix)...))
	binary.BigEndian.PutUint32(w.message[1:], uint32(len(w.message)-prefix)) //nolint:gosec // No message is so long.
	switch n := len(w.message); {
	case w.broken != nil:
		return w.broken
	case n > longest:
		return fmt.Errorf("a message of %d bytes: at most %d can be sent", n, longest)
	case n > w.window:
		w.broken = errors.New("the server does not read what it was sent")
		return w.broken
	case n > c.window:
		return errors.New("the server does not read what it was sent on the stream")
	case n+wireBuffer/64 > w.out.Available():
		w.send()
	}
	w.window -= len(w.message)
	c.window -= len(w.message)
	return nil
}

// flush sends what was begun.
func (w *wire) flush() {
	w.write(w.send)
}

// send sends what is in the buffer, with the lock. It hardly ever waits: what is under way on a wire fits into what the system
// has for a connection.
func (w *wire) send() {
	if w.out.Buffered() == 0 || w.broken != nil {
		return
	}
	_ = w.conn.SetWriteDeadline(time.Now().Add(callTimeout)) // If that fails, so does the next line.
	if err := w.out.Flush(); err != nil {
		w.broken = fmt.Errorf("write to %v: %w", w.conn.RemoteAddr(), err)
		_ = w.conn.Close() // The reader ends what is under way.
	}
}

// read takes what the server sends until the connection ends.
func (w *wire) read() {
	defer close(w.done)
	for {
		frame, err := w.framer.ReadFrame()
		if err == nil {
			err = w.take(frame)
		}
		if err != nil {
			w.fail(fmt.Errorf("read from %v: %w", w.conn.RemoteAddr(), err))
			return
		}
		if w.in.Buffered() == 0 {
			w.flush()
		}
	}
}

func (w *wire) take(frame http2.Frame) error {
	w.taking.Lock()
	defer w.taking.Unlock()
	switch f := frame.(type) {
	case *http2.HeadersFrame:
		w.trailers = trailers{}
		if !f.HeadersEnded() {
			return fmt.Errorf("the header of stream %d takes more than one frame", f.StreamID)
		}
		_, err := w.hpack.Write(f.HeaderBlockFragment())
		if err = errors.Join(err, w.hpack.Close()); err != nil {
			return fmt.Errorf("the header of stream %d: %w", f.StreamID, err)
		}
		if f.StreamEnded() {
			w.end(f.StreamID, w.outcome())
		}
	case *http2.DataFrame:
		w.data(f)
	case *http2.RSTStreamFrame:
		w.end(f.StreamID, fmt.Errorf("the server reset the stream: %v", f.ErrCode))
	case *http2.WindowUpdateFrame:
		w.write(func() {
			if f.StreamID == 0 {
				w.window += int(f.Increment)
			} else if c := w.under[f.StreamID]; c != nil {
				c.window += int(f.Increment)
			}
		})
	case *http2.SettingsFrame:
		w.settings(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			w.write(func() { _ = w.framer.WritePing(true, f.Data) })
		}
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server goes away: %v: %s", f.ErrCode, f.DebugData())
	}
	return nil
}

// data takes a part of an answer, and gives the server room for more.
func (w *wire) data(f *http2.DataFrame) {
	w.mu.Lock()
	if w.unread += f.Length; w.unread > room/2 {
		_ = w.framer.WriteWindowUpdate(0, w.unread)
		w.unread = 0
	}
	c := w.under[f.StreamID]
	if c != nil {
		if c.unread += f.Length; c.unread > room/2 {
			_ = w.framer.WriteWindowUpdate(c.id, c.unread)
			c.unread = 0
		}
	}
	w.mu.Unlock()
	switch {
	case c == nil:
	case f.StreamEnded():
		w.end(c.id, errors.New("the answer ended without a status"))
	case c.heard != nil:
		if err := c.take(f.Data()); err != nil {
			w.cancelTaken(c, err)
		}
	}
}

// take takes the next bytes of an answer. Messages may span frames, and a frame may have several.
func (c *call) take(data []byte) error {
	if len(c.partial) > 0 {
		c.partial = append(c.partial, data...)
		data = c.partial
	}
	for len(data) >= prefix {
		end := prefix + int(binary.BigEndian.Uint32(data[1:]))
		if data[0] != 0 {
			return errors.New("a message is compressed")
		}
		if len(data) < end {
			break
		}
		c.messages++
		if err := c.heard(data[prefix:end]); err != nil {
			return err
		}
		data = data[end:]
	}
	c.partial = append(c.partial[:0], data...)
	return nil
}

// settings takes what the server wants, as far as it matters here.
func (w *wire) settings(f *http2.SettingsFrame) {
	if f.IsAck() {
		return
	}
	w.write(func() {
		if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
			for _, c := range w.under {
				c.window += int(v) - w.initial
			}
			w.initial = int(v)
		}
		_ = w.framer.WriteSettingsAck()
	})
}

// write does what needs the lock.
func (w *wire) write(frames func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	frames()
}

// field takes a field of a header.
func (w *wire) field(f hpack.HeaderField) {
	switch f.Name {
	case "grpc-status":
		w.trailers.status = f.Value
	case "grpc-message":
		w.trailers.message = f.Value
	case "grpc-status-details-bin":
		w.trailers.details = f.Value
	}
}

// outcome is how the call went whose trailers have come last.
func (w *wire) outcome() error {
	if w.trailers.status == "0" {
		return nil
	}
	if w.trailers != w.judged || w.verdict == nil {
		w.judged, w.verdict = w.trailers, judged(w.trailers.err())
	}
	return w.verdict
}

// err is the error that they tell of, as a client of gRPC would have it.
func (t trailers) err() error {
	s := &spb.Status{}
	details, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(t.details, "="))
	if err == nil {
		err = proto.Unmarshal(details, s)
	}
	code, codeErr := strconv.ParseUint(t.status, 10, 31)
	if err = errors.Join(err, codeErr); err != nil {
		return fmt.Errorf("trailers %+v: %w", t, err)
	}
	if t.details == "" {
		s.Code, s.Message = int32(code), t.message //nolint:gosec // 31 bits.
	}
	return status.ErrorProto(s)
}

// end ends a call, unless it has ended before.
func (w *wire) end(stream uint32, err error) {
	w.mu.Lock()
	c, found := w.under[stream]
	delete(w.under, stream)
	w.mu.Unlock()
	if !found {
		return
	}
	if err == nil && c.heard != nil && c.messages == 0 {
		err = errors.New("the answer has no message")
	}
	c.ended(err)
}

// cancel gives up a call. When it returns, the call has ended, with the given error unless it had before.
func (w *wire) cancel(c *call, err error) {
	w.taking.Lock()
	w.cancelTaken(c, err)
	w.taking.Unlock()
	w.flush()
}

// cancelTaken gives up a call while nothing is taken.
func (w *wire) cancelTaken(c *call, err error) {
	w.mu.Lock()
	under := w.under[c.id] == c
	if under {
		_ = w.framer.WriteRSTStream(c.id, http2.ErrCodeCancel)
	}
	w.mu.Unlock()
	if under {
		w.end(c.id, err)
	}
}

// expire gives up the calls that have had their time.
func (w *wire) expire(now time.Time) {
	w.taking.Lock()
	var late []*call
	w.write(func() {
		for _, c := range w.under {
			if !c.stream && now.Sub(c.begun) > callTimeout {
				late = append(late, c)
			}
		}
	})
	for _, c := range late {
		w.cancelTaken(c, status.Error(codes.DeadlineExceeded, "no answer came in time"))
	}
	w.taking.Unlock()
	w.flush()
}

// fail ends all calls.
func (w *wire) fail(err error) {
	w.taking.Lock()
	defer w.taking.Unlock()
	var all []uint32
	w.write(func() {
		w.broken = err
		for stream := range w.under {
			all = append(all, stream)
		}
	})
	for _, stream := range all {
		w.end(stream, err)
	}
}

// close ends the connection, and with it the calls that are under way.
func (w *wire) close() {
	_ = w.conn.Close() // The reader tells of what it breaks.
	<-w.done
}
