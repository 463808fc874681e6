package health

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// What a target does after it has said what it has to say.
const (
	hangsUp = iota
	fallsSilent
	goesOn // for ever
	endings
)

// say sends an answer and ends as told. It returns how many bytes it could send.
func say(c net.Conn, answer []byte, ending uint8) (sent int) {
	n, err := c.Write(answer)
	filler := bytes.Repeat([]byte("x"), 4<<10)
	for sent = n; err == nil && ending%endings == goesOn; sent += n {
		n, err = c.Write(filler)
	}
	return sent
}

// FuzzHTTPAnswer probes a target that answers with arbitrary bytes, and then hangs up, falls silent or goes on for ever.
// A pass is what net/http reads so too; little more than what may be looked at is read; nothing of it is quoted.
func FuzzHTTPAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ngreen"), uint8(hangsUp), "green")
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ngre\r\n2\r\nen\r\n0\r\n\r\n"), uint8(fallsSilent), "green")
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"), uint8(goesOn), "green")
	f.Add([]byte("HTTP/1.0 200\r\n\r\n"), uint8(goesOn), "green")
	f.Add([]byte("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 429 Slow\r\n\r\n"), uint8(fallsSilent), "")
	f.Add([]byte("HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n"), uint8(hangsUp), "")
	f.Add([]byte("HTTP/1.1 200 OK\r\nX: "), uint8(goesOn), "")
	f.Add([]byte("HTTP/1.1 003\r\n\r\n"), uint8(goesOn), "")
	f.Add([]byte("HTTP/1.1 209 \r\n\r\n"), uint8(hangsUp), "green")
	f.Add([]byte("SSH-2.0-OpenSSH_9.2p1 of-a-host-inside\r\n"), uint8(fallsSilent), "")
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: secret-length\r\n\r\n"), uint8(hangsUp), "")
	f.Add([]byte{}, uint8(hangsUp), "")
	f.Add([]byte{}, uint8(fallsSilent), "")
	f.Fuzz(func(t *testing.T, answer []byte, ending uint8, text string) {
		var r result
		sent := 0
		synctest.Test(t, func(t *testing.T) {
			ps := newProbes(testConfig())
			ended := make(chan struct{})
			ps.client.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go func() {
					defer close(ended)
					defer theirs.Close()
					question := bufio.NewReader(theirs)
					if _, err := http.ReadRequest(question); err != nil {
						return
					}
					hungUp := make(chan struct{})
					go func() { _, _ = io.Copy(io.Discard, question); close(hungUp) }()
					if sent = say(theirs, answer, ending); ending%endings == fallsSilent {
						<-hungUp
					}
				}()
				return ours, nil
			}
			check := httpCheck("", func(h *registryv1.HTTPCheck) { h.BodyContains = text })
			in := &registryv1.Instance{Address: "10.0.0.1", Ports: []*registryv1.Port{{Name: "main", Number: 80}}}
			r = ps.run(t.Context(), newPlan(in, within(time.Second, check)))
			<-ended
		})
		wantTold(t, r, httpOutputs)
		if limit := maxAnswerHeader + maxBody + 16<<10; sent > max(limit, len(answer)) && ending%endings == goesOn {
			t.Errorf("%d bytes were read, want no more than %d", sent, limit)
		}
		if r.status == statusPassing && !readsAsPass(answer, ending, text) {
			t.Errorf("%q passes for %q", answer, text)
		}
	})
}

// httpOutputs are all outputs of an HTTP check whose target could be reached.
var httpOutputs = regexp.MustCompile(`^(HTTP \d{1,3}( [A-Za-z' -]+)?(, but the body (lacks the expected text|breaks off))?` +
	`|no answer within 1s|the answer is not valid HTTP|EOF)$`)

// readsAsPass judges an answer as net/http reads it.
func readsAsPass(answer []byte, ending uint8, text string) bool {
	all := io.Reader(bytes.NewReader(answer))
	if ending%endings == goesOn {
		all = io.MultiReader(all, strings.NewReader(strings.Repeat("x", 2*maxAnswerHeader)))
	}
	br := bufio.NewReader(all)
	for {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return false
		}
		informs := resp.StatusCode >= 100 && resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols
		var body []byte
		if !informs {
			body, _ = io.ReadAll(io.LimitReader(resp.Body, maxBody)) // One that breaks off may have said enough.
		}
		resp.Body.Close()
		if informs {
			continue
		}
		return resp.StatusCode >= 200 && resp.StatusCode <= 299 && bytes.Contains(body, []byte(text))
	}
}

// wantTold holds that a result is one of the three verdicts, in one of the ways in which it may be told.
func wantTold(t *testing.T, r result, outputs *regexp.Regexp) {
	t.Helper()
	if r.status != statusPassing && r.status != statusWarning && r.status != statusCritical {
		t.Errorf("status %v", r.status)
	}
	if !outputs.MatchString(r.output) || r.output != sanitise(r.output) {
		t.Errorf("output %q is none of those that quote nothing", r.output)
	}
}

// FuzzGRPCAnswer asks a target that answers with arbitrary frames, and then hangs up, falls silent or goes on for ever. A
// pass is a message that says SERVING; nothing of the rest is quoted.
func FuzzGRPCAnswer(f *testing.F) {
	serving := frames(f, "200", "application/grpc", "0", []byte{0, 0, 0, 0, 2, 8, 1})
	f.Add(serving, uint8(hangsUp))
	f.Add(frames(f, "200", "application/grpc", "0", []byte{0, 0, 0, 0, 2, 8, 2}), uint8(fallsSilent))
	f.Add(frames(f, "200", "application/grpc", "0", []byte{0, 0xff, 0xff, 0xff, 0xff}), uint8(goesOn))
	f.Add(frames(f, "200", "application/grpc", "14", nil), uint8(hangsUp))
	f.Add(frames(f, "503", "text/html", "", []byte("a secret body")), uint8(hangsUp))
	f.Add(serving[:len(serving)/2], uint8(fallsSilent))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\na secret body"), uint8(hangsUp))
	f.Add(goAway(f, "a secret reason"), uint8(hangsUp))
	f.Fuzz(func(t *testing.T, answer []byte, ending uint8) {
		address := serveFrames(t, answer, ending)
		check := &registryv1.Check{Kind: &registryv1.Check_Grpc{Grpc: &registryv1.GRPCCheck{}}}
		timeout := time.Second
		if ending%endings != hangsUp {
			timeout = quick
		}
		r := probeOnce(t, testConfig(), address, within(timeout, check))
		wantTold(t, r, grpcOutputs)
		if r.status == statusPassing && !saysServing(answer) {
			t.Errorf("%q passes", answer)
		}
	})
}

// grpcOutputs are all outputs of a gRPC check whose target could be reached.
var grpcOutputs = regexp.MustCompile(`^(no answer within (1s|60ms)|gRPC health: [A-Za-z_ ]+|gRPC health: -?\d+)$`)

// serveFrames answers each HTTP/2 connection, once it has asked something, with the bytes. It returns its address.
func serveFrames(t *testing.T, answer []byte, ending uint8) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			answerFrames(c, answer, ending)
			c.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
	return listener.Addr().String()
}

func answerFrames(c net.Conn, answer []byte, ending uint8) {
	framer := http2.NewFramer(c, c)
	if _, err := io.CopyN(io.Discard, c, int64(len(http2.ClientPreface))); err != nil {
		return
	}
	if err := framer.WriteSettings(); err != nil {
		return
	}
	for asked := false; !asked; {
		frame, err := framer.ReadFrame()
		if err != nil {
			return
		}
		asked = frame.Header().Type == http2.FrameHeaders
	}
	hungUp := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, c); close(hungUp) }()
	say(c, answer, ending)
	if ending%endings == hangsUp {
		_ = c.(*net.TCPConn).CloseWrite() // The probe may have hung up first.
	}
	<-hungUp
}

// frames is an answer on stream 1.
func frames(f *testing.F, status, contentType, grpcStatus string, data []byte) []byte {
	f.Helper()
	var b bytes.Buffer
	framer := http2.NewFramer(&b, nil)
	header := func(fields ...string) []byte {
		var h bytes.Buffer
		encoder := hpack.NewEncoder(&h)
		for i := 0; i < len(fields); i += 2 {
			if err := encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
				f.Fatal(err)
			}
		}
		return h.Bytes()
	}
	write := func(err error) {
		if err != nil {
			f.Fatal(err)
		}
	}
	write(framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, EndHeaders: true, BlockFragment: header(":status", status, "content-type", contentType),
	}))
	write(framer.WriteData(1, grpcStatus == "", data))
	if grpcStatus != "" {
		write(framer.WriteHeaders(http2.HeadersFrameParam{
			StreamID: 1, EndHeaders: true, EndStream: true,
			BlockFragment: header("grpc-status", grpcStatus, "grpc-message", "a secret message"),
		}))
	}
	return b.Bytes()
}

func goAway(f *testing.F, reason string) []byte {
	f.Helper()
	var b bytes.Buffer
	if err := http2.NewFramer(&b, nil).WriteGoAway(0, http2.ErrCodeInternal, []byte(reason)); err != nil {
		f.Fatal(err)
	}
	return b.Bytes()
}

// saysServing looks for a message on stream 1 that says SERVING.
func saysServing(answer []byte) bool {
	framer := http2.NewFramer(io.Discard, bytes.NewReader(answer))
	var message []byte
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			break
		}
		if data, ok := frame.(*http2.DataFrame); ok && data.StreamID == 1 {
			message = append(message, data.Data()...)
		}
	}
	if len(message) < 5 || uint64(len(message)-5) < uint64(binary.BigEndian.Uint32(message[1:])) {
		return false
	}
	var got grpc_health_v1.HealthCheckResponse
	err := proto.Unmarshal(message[5:5+binary.BigEndian.Uint32(message[1:])], &got)
	return err == nil && got.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING
}

// FuzzCheckID parses arbitrary ids of renewals: what is one is the id of just that check.
func FuzzCheckID(f *testing.F) {
	f.Add("default/web/host:80%2Fa%20b/ttl", "n", "s", "i/..", "c%")
	f.Add("a/b/c/%zz", "", "", "", "")
	f.Fuzz(func(t *testing.T, id, namespace, service, instance, check string) {
		if key, name, err := parseCheckID(id); err == nil {
			again, sameName, err := parseCheckID(CheckID(key.namespace, key.service, key.id, name))
			if err != nil || again != key || sameName != name {
				t.Errorf("%q is %v %q, then %v %q, %v", id, key, name, again, sameName, err)
			}
		}
		key, name, err := parseCheckID(CheckID(namespace, service, instance, check))
		if want := (instanceKey{namespace, service, instance}); err != nil || key != want || name != check {
			t.Errorf("%v %q comes back as %v %q, %v", want, check, key, name, err)
		}
	})
}
