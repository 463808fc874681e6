package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// scripted is a connection whose other side has said everything already and then hung up.
type scripted struct {
	in     *bytes.Reader
	out    bytes.Buffer
	closed chan struct{}
}

func newScripted(in []byte) *scripted {
	return &scripted{in: bytes.NewReader(in), closed: make(chan struct{})}
}

func (c *scripted) Read(b []byte) (int, error)       { return c.in.Read(b) }
func (c *scripted) Write(b []byte) (int, error)      { return c.out.Write(b) }
func (c *scripted) Close() error                     { return nil }
func (c *scripted) LocalAddr() net.Addr              { return advertised("here:1") }
func (c *scripted) RemoteAddr() net.Addr             { return advertised("there:2") }
func (c *scripted) SetDeadline(time.Time) error      { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

// sealedAs is the frame with the magic and the checksum put right, where its length allows it.
func sealedAs(magic string, in []byte) []byte {
	b := sealed(in)
	if len(b) < headerLen+checksumLen {
		return b
	}
	copy(b, magic)
	end := len(b) - checksumLen
	return binary.BigEndian.AppendUint32(b[:end], checksum(b[:end]))
}

// node is a Mux without a port.
func node(cluster string) *Mux {
	return &Mux{
		cfg:  Config{NodeID: "local", ClusterID: func() string { return cluster }}.withDefaults(),
		raft: newDoor(advertised("here:1")), grpc: newDoor(advertised("here:1")),
	}
}

// FuzzAnswer answers arbitrary first bytes of a connection. Nothing is said to what is no hello, a hello is answered by
// the one rule, and no byte of what follows it is taken.
func FuzzAnswer(f *testing.F) {
	f.Add(encodeFrame(helloMagic, anyFrame))
	f.Add(encodeFrame(helloMagic, frame{version: protocolVersion, code: uint8(kindRaft), from: Identity{NodeID: "n", ClusterID: "c1"}}))
	f.Add(encodeFrame(helloMagic, frame{version: protocolVersion, code: uint8(kindGRPC), from: Identity{NodeID: "n"}}))
	f.Add(reseal(func(b []byte) []byte { b[4] = 2; return b }))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, hello := range [][]byte{in, append(sealedAs(helloMagic, in), "what follows"...)} {
			for _, cluster := range []string{"", "c1"} {
				answered(t, hello, cluster)
			}
		}
	})
}

func answered(t *testing.T, in []byte, cluster string) {
	t.Helper()
	raw, m := newScripted(in), node(cluster)
	c, d, err := m.answer(t.Context(), raw)
	taken := len(in) - raw.in.Len()
	hello, helloErr := readFrame(bytes.NewReader(in), helloMagic)
	if helloErr != nil {
		if err == nil || raw.out.Len() > 0 {
			t.Fatalf("%v was answered by %x", helloErr, raw.out.Bytes())
		}
		return
	}
	if want := headerLen + int(binary.BigEndian.Uint16(in[5:])) + checksumLen; taken != want {
		t.Fatalf("%d bytes were taken of a hello of %d", taken, want)
	}
	reply, replyErr := readFrame(&raw.out, replyMagic)
	if replyErr != nil || reply.from != m.identity() || raw.out.Len() > 0 {
		t.Fatalf("the reply reads as %+v, %v, and %d bytes follow", reply, replyErr, raw.out.Len())
	}
	want := verdictVersion
	if hello.version == protocolVersion {
		want = judge(kind(hello.code), hello.from.ClusterID, cluster)
	}
	accepted := want == verdictAccepted
	if verdict(reply.code) != want || (err == nil) != accepted {
		t.Fatalf("%+v at a node of cluster %q: verdict %d, error %v, want %d", hello, cluster, reply.code, err, want)
	}
	if accepted && (c.remote != hello.from || d != m.raft && d != m.grpc || (d == m.raft) != (kind(hello.code) == kindRaft)) {
		t.Fatalf("%+v was let in as %+v", hello, c.remote)
	}
	if !accepted {
		wantHandshakeError(t, err)
	}
}

// FuzzIntroduce judges arbitrary answers to a hello: a connection only for a reply that accepts, of the node and the
// cluster that are meant, else an error that names the address in one line.
func FuzzIntroduce(f *testing.F) {
	f.Add(encodeFrame(replyMagic, frame{version: protocolVersion, from: Identity{NodeID: "n", ClusterID: "c1"}}), true)
	f.Add(encodeFrame(replyMagic, frame{version: protocolVersion, code: 99, from: Identity{NodeID: "n\n\x1b[2J"}}), false)
	f.Add(encodeFrame(replyMagic, frame{version: 2}), false)
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), true)
	f.Fuzz(func(t *testing.T, in []byte, raft bool) {
		k, cluster := kindGRPC, ""
		if raft {
			k, cluster = kindRaft, "c1"
		}
		for _, reply := range [][]byte{in, sealedAs(replyMagic, in)} {
			for _, wanted := range []string{"", "n"} {
				introduced(t, reply, k, cluster, wanted)
			}
		}
	})
}

func introduced(t *testing.T, in []byte, k kind, cluster, wanted string) {
	t.Helper()
	raw, m := newScripted(in), node(cluster)
	c, err := m.introduce(t.Context(), raw, k, wanted, "there:2")
	want := encodeFrame(helloMagic, frame{version: protocolVersion, code: uint8(k), from: m.identity()})
	if !bytes.Equal(raw.out.Bytes(), want) {
		t.Fatalf("said %x, want %x", raw.out.Bytes(), want)
	}
	if err != nil {
		wantHandshakeError(t, err)
		return
	}
	reply, replyErr := readFrame(bytes.NewReader(in), replyMagic)
	switch {
	case replyErr != nil, reply.version != protocolVersion, verdict(reply.code) != verdictAccepted,
		judge(k, cluster, reply.from.ClusterID) != verdictAccepted, wanted != "" && reply.from.NodeID != wanted,
		c.remote != reply.from, c.anonymous != (cluster == ""):
		t.Fatalf("%x (%+v, %v) was taken for a yes of node %q", in, reply, replyErr, wanted)
	}
}

func wantHandshakeError(t *testing.T, err error) {
	t.Helper()
	var refused *HandshakeError
	if !errors.As(err, &refused) {
		t.Fatalf("%v is no HandshakeError", err)
	}
	if text := err.Error(); !strings.Contains(text, "there:2") || len(text) > 2048 || strings.ContainsAny(text, "\n\x1b") {
		t.Fatalf("error %q: not one printable line that names the address", text)
	}
}
