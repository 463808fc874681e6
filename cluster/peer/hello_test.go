package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
)

var anyFrame = frame{version: protocolVersion, code: 2, from: Identity{NodeID: "n1", ClusterID: "c1"}}

func TestFrameIsReadAsWrittenAndNotAByteMore(t *testing.T) {
	longest := strings.Repeat("x", MaxIDLen)
	for _, f := range []frame{
		anyFrame,
		{version: protocolVersion, code: 255, from: Identity{NodeID: longest, ClusterID: longest}},
		{version: protocolVersion, from: Identity{NodeID: "n"}},
	} {
		in := bytes.NewBuffer(encodeFrame(helloMagic, f))
		in.WriteString("what follows")
		got, err := readFrame(in, helloMagic)
		if err != nil {
			t.Fatalf("read %+v: %v", f, err)
		}
		if diff := cmp.Diff(f, got, cmp.AllowUnexported(frame{})); diff != "" {
			t.Errorf("frame (-want +got):\n%s", diff)
		}
		if rest := in.String(); rest != "what follows" {
			t.Errorf("left over %q", rest)
		}
	}
}

func TestFrameOfAnotherVersionIsReadToItsEnd(t *testing.T) {
	in := bytes.NewBuffer(reseal(func(b []byte) []byte {
		b[4] = 9
		b[headerLen+1] = 0xff // its body may look different
		return b
	}))
	got, err := readFrame(in, helloMagic)
	if err != nil || got.version != 9 || in.Len() != 0 {
		t.Fatalf("got %+v, %v, %d bytes left", got, err, in.Len())
	}
}

// reseal changes an encoded frame, given without checksum, and puts the right length and checksum on it.
func reseal(change func([]byte) []byte) []byte {
	b := encodeFrame(helloMagic, anyFrame)
	b = change(b[:len(b)-checksumLen])
	binary.BigEndian.PutUint16(b[5:], uint16(len(b)-headerLen))
	return binary.BigEndian.AppendUint32(b, checksum(b))
}

func TestBytesThatAreNoFrameAreToldFromABrokenConnection(t *testing.T) {
	good := encodeFrame(helloMagic, anyFrame)
	flipped := bytes.Clone(good)
	flipped[headerLen+2] ^= 1
	oversized := append([]byte(helloMagic), protocolVersion, 0xff, 0xff)
	for _, tc := range []struct {
		name string
		in   []byte
		want error
	}{
		{"nothing", nil, io.EOF},
		{"end in the magic", good[:2], io.ErrUnexpectedEOF},
		{"end in the header", good[:5], io.ErrUnexpectedEOF},
		{"end in the body", good[:len(good)-5], io.ErrUnexpectedEOF},
		{"end in the checksum", good[:len(good)-1], io.ErrUnexpectedEOF},
		{"http", []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), errBadMagic},
		{"tls", []byte{0x16, 3, 1, 0, 200, 1, 0, 0}, errBadMagic},
		{"http in four bytes", []byte("HTTP"), errBadMagic},
		{"reply for a hello", encodeFrame(replyMagic, anyFrame), errBadMagic},
		{"too long", oversized, errTooLong},
		{"flipped bit", flipped, errChecksum},
		{"no body", reseal(func(b []byte) []byte { return b[:headerLen] }), errBadBody},
		{"id beyond the body", reseal(func(b []byte) []byte { b[headerLen+1] = 100; return b }), errBadBody},
		{"no cluster id length", reseal(func(b []byte) []byte { return b[:headerLen+4] }), errBadBody},
		{"more than the body", reseal(func(b []byte) []byte { return append(b, 0) }), errBadBody},
		{"no node id", reseal(func(b []byte) []byte { return append(b[:headerLen], 1, 0, 0) }), errBadBody},
		{"node id too long", reseal(func(b []byte) []byte {
			b = append(b[:headerLen], 1, MaxIDLen+1)
			b = append(b, strings.Repeat("x", MaxIDLen+1)...)
			return append(b, 0)
		}), errBadBody},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := readFrame(bytes.NewReader(tc.in), helloMagic)
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			broken := errors.Is(tc.want, io.EOF) || errors.Is(tc.want, io.ErrUnexpectedEOF)
			if malformed(err) == broken {
				t.Errorf("malformed(%v) = %v", err, !broken)
			}
		})
	}
}

func TestRuleOfWhoMayTalkIsSymmetric(t *testing.T) {
	for _, tc := range []struct {
		name string
		kind kind
		a, b string
		want verdict
	}{
		{"raft in one cluster", kindRaft, "c1", "c1", verdictAccepted},
		{"raft between clusters", kindRaft, "c1", "c2", verdictForeignCluster},
		{"raft with a node without", kindRaft, "c1", "", verdictNoCluster},
		{"raft between nodes without", kindRaft, "", "", verdictNoCluster},
		{"grpc in one cluster", kindGRPC, "c1", "c1", verdictAccepted},
		{"grpc between clusters", kindGRPC, "c1", "c2", verdictForeignCluster},
		{"grpc with a node without", kindGRPC, "c1", "", verdictAccepted},
		{"grpc between nodes without", kindGRPC, "", "", verdictAccepted},
		{"unknown kind", 3, "c1", "c1", verdictUnknownKind},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := judge(tc.kind, tc.a, tc.b); got != tc.want {
				t.Errorf("judge(a, b) = %d, want %d", got, tc.want)
			}
			if got := judge(tc.kind, tc.b, tc.a); got != tc.want {
				t.Errorf("judge(b, a) = %d, want %d", got, tc.want)
			}
		})
	}
}

func TestPinnedAddressComesApartAgain(t *testing.T) {
	for _, tc := range []struct{ node, addr string }{
		{"2f1c", "n1:7401"}, {"a@b", "n1.regd.svc:7401"}, {"", "n1:7401"}, {"2f1c", "[::1]:7401"},
	} {
		node, addr := unpin(pin(raft.ServerID(tc.node), raft.ServerAddress(tc.addr)))
		if node != tc.node || addr != tc.addr {
			t.Errorf("got %q, %q, want %q, %q", node, addr, tc.node, tc.addr)
		}
	}
	if node, addr := unpin("n1:7401"); node != "" || addr != "n1:7401" {
		t.Errorf("plain address: got %q, %q", node, addr)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(encodeFrame(helloMagic, anyFrame))
	f.Add(encodeFrame(replyMagic, anyFrame))
	f.Add(reseal(func(b []byte) []byte { b[4] = 2; return b }))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		// Most inputs would fail at the checksum: judge each as it is and with the checksum put right.
		for _, b := range [][]byte{in, sealed(in)} {
			got, err := readFrame(bytes.NewReader(b), helloMagic)
			if err != nil {
				if !malformed(err) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("unfiled error %v", err)
				}
				continue
			}
			if got.version != protocolVersion {
				continue
			}
			again := encodeFrame(helloMagic, got)
			if !bytes.HasPrefix(b, again) {
				t.Fatalf("%x was read as %+v, which is written as %x", b, got, again)
			}
		}
	})
}

// sealed puts the header's magic and the checksum right, where the length allows it.
func sealed(in []byte) []byte {
	b := bytes.Clone(in)
	if len(b) < headerLen {
		return b
	}
	copy(b, helloMagic)
	end := headerLen + int(binary.BigEndian.Uint16(b[5:]))
	if end > len(b) {
		return b
	}
	return binary.BigEndian.AppendUint32(b[:end], checksum(b[:end]))
}
