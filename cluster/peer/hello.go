package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Identity is what a side says about itself in the handshake, and what its certificate says about it.
type Identity struct {
	// NodeID is the id of the node.
	NodeID string
	// ClusterID is the UUID of its cluster; empty: none yet.
	ClusterID string
	// Name of the node by its certificate, which TLS has proved. It is not part of the handshake. Empty: no TLS.
	Name string
}

// MaxIDLen is the longest node or cluster id, in bytes, that the handshake carries.
const MaxIDLen = 128

// The handshake is one frame each way:
//
//	magic 4 | version 1 | length 2 | body | CRC32C 4 (over all before it)
//	body: code 1 | node id length 1 | node id | cluster id length 1 | cluster id
//
// The code is the kind of connection in the hello and the verdict in the reply. Magic, version, length and checksum
// stay where they are in every version, so that each version can read a frame of any other to its end and refuse it
// with a reply: a connection closed over unread bytes is reset, and the reset may overtake the reply.
const (
	protocolVersion = 1

	headerLen   = 4 + 1 + 2
	checksumLen = 4
	maxBodyLen  = 512
)

const (
	helloMagic = "\xf1rgd"
	replyMagic = "\xf2rgd"
)

// kind says what a connection carries.
type kind uint8

const (
	kindRaft kind = 1
	kindGRPC kind = 2
)

// verdict is the answer to a hello. Numbers are never used anew.
type verdict uint8

const (
	verdictAccepted verdict = iota
	verdictForeignCluster
	verdictNoCluster
	verdictVersion
	verdictUnknownKind
	verdictWrongName
)

// err returns the sentinel of the verdict, nil for accepted.
func (v verdict) err() error {
	switch v {
	case verdictAccepted:
		return nil
	case verdictForeignCluster:
		return ErrForeignCluster
	case verdictNoCluster:
		return ErrNoCluster
	case verdictVersion:
		return ErrVersion
	case verdictWrongName:
		return ErrWrongName
	default:
		return fmt.Errorf("%w (reason %d)", ErrRefused, v)
	}
}

// judge holds the rule of who may talk to whom. It is symmetric: both sides apply it. Raft needs two members of one
// cluster; over gRPC one or both may still be without, to be identified, adopted or joined.
func judge(k kind, a, b string) verdict {
	switch k {
	case kindRaft:
		if a == "" || b == "" {
			return verdictNoCluster
		}
	case kindGRPC:
		if a == "" || b == "" {
			return verdictAccepted
		}
	default:
		return verdictUnknownKind
	}
	if a != b {
		return verdictForeignCluster
	}
	return verdictAccepted
}

var (
	errBadMagic = errors.New("unknown magic")
	errTooLong  = errors.New("frame too long")
	errChecksum = errors.New("checksum does not match")
	errBadBody  = errors.New("malformed body")
)

// frame is a hello or a reply.
type frame struct {
	version uint8
	code    uint8
	from    Identity
}

// encodeFrame returns the frame as it is sent. The ids must not be longer than MaxIDLen.
func encodeFrame(magic string, f frame) []byte {
	body := 3 + len(f.from.NodeID) + len(f.from.ClusterID)
	b := make([]byte, 0, headerLen+body+checksumLen)
	b = append(b, magic...)
	b = append(b, f.version)
	b = binary.BigEndian.AppendUint16(b, uint16(body))
	b = append(b, f.code, byte(len(f.from.NodeID)))
	b = append(b, f.from.NodeID...)
	b = append(b, byte(len(f.from.ClusterID)))
	b = append(b, f.from.ClusterID...)
	return binary.BigEndian.AppendUint32(b, checksum(b))
}

func checksum(b []byte) uint32 {
	return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
}

// readFrame reads exactly one frame and not a byte more. Of a frame of another version only the version is filled
// in. io.EOF means that nothing came at all.
func readFrame(r io.Reader, magic string) (frame, error) {
	var buf [headerLen + maxBodyLen + checksumLen]byte
	header := buf[:headerLen]
	// The magic alone first: a stranger that sends a few bytes and waits is known at once.
	if _, err := io.ReadFull(r, header[:len(magic)]); err != nil {
		return frame{}, err
	}
	if string(header[:len(magic)]) != magic {
		return frame{}, errBadMagic
	}
	if _, err := io.ReadFull(r, header[len(magic):]); err != nil {
		return frame{}, unexpected(err)
	}
	length := int(binary.BigEndian.Uint16(header[len(magic)+1:]))
	if length > maxBodyLen {
		return frame{}, errTooLong
	}
	end := headerLen + length
	if _, err := io.ReadFull(r, buf[headerLen:end+checksumLen]); err != nil {
		return frame{}, unexpected(err)
	}
	if binary.BigEndian.Uint32(buf[end:]) != checksum(buf[:end]) {
		return frame{}, errChecksum
	}
	f := frame{version: header[len(magic)]}
	if f.version != protocolVersion {
		return f, nil
	}
	return parseBody(f, buf[headerLen:end])
}

func parseBody(f frame, body []byte) (frame, error) {
	if len(body) < 1 {
		return frame{}, errBadBody
	}
	f.code = body[0]
	node, rest, ok := cutID(body[1:])
	if !ok {
		return frame{}, errBadBody
	}
	cluster, rest, ok := cutID(rest)
	if !ok || len(rest) != 0 || node == "" {
		return frame{}, errBadBody
	}
	f.from = Identity{NodeID: node, ClusterID: cluster}
	return f, nil
}

// cutID takes one length-prefixed id off the front.
func cutID(b []byte) (id string, rest []byte, ok bool) {
	if len(b) == 0 {
		return "", nil, false
	}
	n := int(b[0])
	if n > MaxIDLen || len(b) < 1+n {
		return "", nil, false
	}
	return string(b[1 : 1+n]), b[1+n:], true
}

// unexpected tells an end in the middle of a frame from an end before it.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// malformed reports whether the error says that the bytes were no frame, as opposed to a broken connection.
func malformed(err error) bool {
	return errors.Is(err, errBadMagic) || errors.Is(err, errTooLong) ||
		errors.Is(err, errChecksum) || errors.Is(err, errBadBody)
}
