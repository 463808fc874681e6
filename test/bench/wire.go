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

// wire is a connection for calls of one unary method of a gRPC server. A load shares the machine with the servers that it
// measures, and what it takes they lack: so a call costs it no goroutine, no timer and hardly any memory, its header is
// encoded once, many frames go out in one write, and a refusal that was told before is not decoded again. Answers are not
// decoded at all: only how a call went counts. Its methods are safe for concurrent use.
type wire struct {
	conn  net.Conn
	ended func(w *wire, c call, err error) // once for each call that was begun, without a lock
	done  chan struct{}                    // closed when the reader is done

	mu      sync.Mutex // guards what follows
	out     *bufio.Writer
	framer  *http2.Framer // the reader alone reads from it
	header  []byte        // of the next call
	short   []byte        // of each call after the first
	message []byte
	stream  uint32 // of the next call
	under   map[uint32]call
	window  int   // bytes that may be sent
	broken  error // why no call can be begun any more

	// The reader's own.
	in       *bufio.Reader
	hpack    *hpack.Decoder
	unread   uint32 // bytes of answers for which the server was not given room again
	trailers trailers
	judged   trailers // the last that told of an error
	verdict  error    // which one
}

// call is a call that is under way.
type call struct {
	client     int // who makes it
	due, begun time.Time
}

// trailers are what an answer says of how the call went.
type trailers struct{ status, message, details string }

const (
	// wireBuffer is the size of each of a wire's two buffers.
	wireBuffer = 64 << 10
	// room is how many bytes of answers a server may send on a wire before it hears that they were read.
	room = 1 << 24
)

// newWire returns a wire on a connection to a server, which it closes in the end, for calls of a method. ended is called for
// each call when it has ended, mostly by the reader: what it begins goes out when all that has come is read.
func newWire(conn net.Conn, method string, ended func(*wire, call, error)) *wire {
	w := &wire{
		conn: conn, ended: ended, done: make(chan struct{}),
		out: bufio.NewWriterSize(conn, wireBuffer), in: bufio.NewReaderSize(conn, wireBuffer),
		stream: 1, under: map[uint32]call{}, window: 65_535, // As HTTP/2 has them.
	}
	w.hpack = hpack.NewDecoder(4096, w.field)
	w.framer = http2.NewFramer(w.out, w.in)
	w.framer.SetReuseFrames()
	w.header, w.short = headers(conn.RemoteAddr().String(), method)
	_, _ = w.out.WriteString(http2.ClientPreface) // What goes wrong with writing, the flush tells.
	_ = w.framer.WriteSettings()
	_ = w.framer.WriteWindowUpdate(0, room)
	w.flush()
	go w.read()
	return w
}

// headers are those of the first call of a connection, after which the server has all fields in its table, and of all others.
func headers(address, method string) (first, others []byte) {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, into := range []*[]byte{&first, &others} {
		block.Reset()
		for _, f := range []hpack.HeaderField{
			{Name: ":method", Value: "POST"},
			{Name: ":scheme", Value: "http"},
			{Name: ":path", Value: method},
			{Name: ":authority", Value: address},
			{Name: "content-type", Value: "application/grpc"},
			{Name: "te", Value: "trailers"},
			{Name: "grpc-timeout", Value: strconv.Itoa(int(callTimeout.Milliseconds())) + "m"},
		} {
			_ = encoder.WriteField(f) // A buffer takes all.
		}
		*into = bytes.Clone(block.Bytes())
	}
	return first, others
}

// begin begins a call, with the message that encode appends to what it is given. It goes out with the next flush. Without an
// error the call will end.
func (w *wire) begin(c call, encode func([]byte) []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	const prefix = 5 // Not compressed, and how long it is.
	w.message = encode(append(w.message[:0], make([]byte, prefix)...))
	if w.broken == nil && len(w.message) > w.window {
		w.broken = errors.New("the server does not read what it was sent")
	}
	if w.broken != nil {
		return w.broken
	}
	if w.out.Available() < len(w.message)+wireBuffer/64 {
		w.send()
	}
	binary.BigEndian.PutUint32(w.message[1:], uint32(len(w.message)-prefix)) //nolint:gosec // No message is so long.
	w.window -= len(w.message)
	_ = w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: w.stream, BlockFragment: w.header, EndHeaders: true})
	_ = w.framer.WriteData(w.stream, true, w.message)
	w.header = w.short
	w.under[w.stream] = c
	w.stream += 2
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
		if w.unread += f.Length; w.unread > room/2 {
			w.write(func() { _ = w.framer.WriteWindowUpdate(0, w.unread) })
			w.unread = 0
		}
	case *http2.RSTStreamFrame:
		w.end(f.StreamID, fmt.Errorf("the server reset the stream: %v", f.ErrCode))
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			w.write(func() { w.window += int(f.Increment) })
		}
	case *http2.SettingsFrame:
		if !f.IsAck() {
			w.write(func() { _ = w.framer.WriteSettingsAck() })
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			w.write(func() { _ = w.framer.WritePing(true, f.Data) })
		}
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server goes away: %v: %s", f.ErrCode, f.DebugData())
	}
	return nil
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
	if found {
		w.ended(w, c, err)
	}
}

// expire gives up the calls that have had their time.
func (w *wire) expire(now time.Time) {
	var late []uint32
	w.write(func() {
		for stream, c := range w.under {
			if now.Sub(c.begun) > callTimeout {
				late = append(late, stream)
				_ = w.framer.WriteRSTStream(stream, http2.ErrCodeCancel)
			}
		}
	})
	for _, stream := range late {
		w.end(stream, status.Error(codes.DeadlineExceeded, "no answer came in time"))
	}
	w.flush()
}

// fail ends all calls.
func (w *wire) fail(err error) {
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
