package rpc

import (
	"context"
	"encoding/base64"
	"encoding/binary"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// paged is a request for a page of a list.
type paged interface {
	GetFreshness() *apiv1.Freshness
	GetPageSize() int32
	GetPageToken() string
}

// page is one page under way. All pages of a list are read from one State.
type page struct {
	state  *fsm.State
	header *apiv1.ResponseHeader
	// after is the key of the last item of the page before; nil on the first page.
	after []string

	core  *core
	what  proto.Message // the canonical request
	room  int           // items
	bytes int
}

// openPage finds the State that the page is read from. what is the canonical request without its paging; a token of
// another request is refused.
func (c *core) openPage(ctx context.Context, f *faults, what proto.Message, req paged) (*page, error) {
	fresh, size := f.freshness(req.GetFreshness()), f.pageSize(req.GetPageSize())
	var token pageToken
	if req.GetPageToken() != "" {
		var ok bool
		if token, ok = decodePageToken(req.GetPageToken()); !ok || token.request != bodyHash(what) {
			f.add("page_token", "is not of this request: %s", quote(req.GetPageToken()))
		}
	}
	err := f.err()
	if err != nil {
		return nil, err
	}
	p := &page{core: c, what: what, room: size}
	if req.GetPageToken() == "" {
		p.state, p.header, err = c.view(ctx, fresh)
		return p, err
	}
	p.after = token.after
	p.state = c.node.Feed().At(token.epoch, token.revision)
	if p.state == nil {
		return nil, explain(ErrPageExpired, "next page of the list")
	}
	// Nothing is known of how old a later page is but its revision.
	p.header = c.readHeader(cluster.View{State: p.state, Mode: cluster.ModeStale, Staleness: -1})
	return p, nil
}

// take makes room for an item of about the given size. False: the page is full.
func (p *page) take(size int) bool {
	if p.room == 0 || p.bytes >= MaxPageBytes {
		return false
	}
	p.room--
	p.bytes += size
	return true
}

// next is the token of the page after the item with the given key. The State is kept for it.
func (p *page) next(key ...string) string {
	p.core.node.Feed().Keep(p.state)
	return pageToken{p.state.Epoch(), p.state.Revision(), bodyHash(p.what), key}.encode()
}

// pageToken says where a list goes on.
type pageToken struct {
	epoch, revision uint64
	request         uint64 // hash
	after           []string
}

// pageTokenVersion is the first byte of a token. A token lives for seconds; a node that doesn't know it says so.
const pageTokenVersion = 1

func (t pageToken) encode() string {
	b := []byte{pageTokenVersion}
	b = binary.AppendUvarint(b, t.epoch)
	b = binary.AppendUvarint(b, t.revision)
	b = binary.BigEndian.AppendUint64(b, t.request)
	for _, part := range t.after {
		b = binary.AppendUvarint(b, uint64(len(part)))
		b = append(b, part...)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// decodePageToken is the inverse of encode. It returns false for whatever encode doesn't make.
func decodePageToken(s string) (t pageToken, ok bool) {
	if s == "" || len(s) > MaxPageTokenLen {
		return t, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) == 0 || b[0] != pageTokenVersion { // Line breaks alone decode to nothing.
		return t, false
	}
	b = b[1:]
	number := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			ok = false
			return 0
		}
		b = b[n:]
		return v
	}
	ok = true
	t.epoch, t.revision = number(), number()
	if !ok || len(b) < 8 {
		return t, false
	}
	t.request, b = binary.BigEndian.Uint64(b), b[8:]
	for len(b) > 0 {
		n := number()
		if !ok || n > uint64(len(b)) {
			return t, false
		}
		t.after, b = append(t.after, string(b[:n])), b[n:]
	}
	return t, len(t.after) > 0
}

// last returns the i-th part of the key of the last item, "" on the first page.
func (p *page) last(i int) string {
	if i < len(p.after) {
		return p.after[i]
	}
	return ""
}
