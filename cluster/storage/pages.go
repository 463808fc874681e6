package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// The format of a bbolt file (version 2): pages of a power of two bytes in the
// machine's byte order. Pages 0 and 1 hold the meta records of the last two
// transactions; the newer one names the root of a tree of buckets.
const (
	pageHeader  = 16 // id 8, flags 2, count 2, overflow 4
	elementSize = 16 // of the table after the header, in leaf and branch alike
	metaSize    = 64 // magic 4, version 4, page size 4, flags 4, root 16, freelist 8, pages 8, transaction 8, checksum 8

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagMeta     = 0x04
	flagFreelist = 0x10
	flagBucket   = 0x01 // of a leaf element: its value is a bucket

	boltMagic   = 0xED0CDAED
	boltVersion = 2
	noFreelist  = ^uint64(0)

	maxPageSize = 64 << 10
	maxRun      = 1 << 28 // bytes of one page with its overflow: far above any entry
	maxDepth    = 32      // of the tree: far above any file that fits a disk
)

var errPage = errors.New("bad page")

// pageError is damage at one page.
type pageError struct {
	page uint64
	err  error
}

// Error names the page and what is wrong with it.
func (e *pageError) Error() string { return fmt.Sprintf("page %d: %v", e.page, e.err) }

func badPage(id uint64, format string, args ...any) error {
	return &pageError{page: id, err: fmt.Errorf("%w: "+format, append([]any{errPage}, args...)...)}
}

// pages reads a bbolt file with plain reads and believes nothing in it. The
// library itself can't be asked: on a damaged file it panics in a goroutine of
// its own, which nobody can catch, and it writes when it opens. Everything that
// leads to a key is checked: ids, bounds, order, each page reached once, and
// that the elements of a page lie densely, as the library writes them, which
// shows a changed count or size. Memory: one bit a page, one page a level.
type pages struct {
	file io.ReaderAt
	size uint64 // of a page
	meta boltMeta
	seen []uint64 // one bit a page: reached
	bufs [maxDepth][]byte
	step func(doneBytes, totalBytes uint64) // called after each page
	done uint64
}

type boltMeta struct {
	pageSize                           uint32
	root, freelist, pages, transaction uint64
}

// openPages reads the two meta pages. Both must be good: a torn write can't
// damage one, because a record lies within one sector, and the older one alone
// would silently take back the last acknowledged transaction.
func openPages(file io.ReaderAt, fileSize uint64) (*pages, error) {
	first, err := readMeta(file, 0, 0)
	if err != nil {
		return nil, err
	}
	size := first.pageSize
	if size < 512 || size > maxPageSize || size&(size-1) != 0 {
		return nil, badPage(0, "page size %d", size)
	}
	second, err := readMeta(file, int64(size), 1)
	if err != nil {
		return nil, err
	}
	meta := first
	if second.transaction > first.transaction {
		meta = second
	}
	if second.pageSize != size || meta.pages > fileSize/uint64(size) {
		return nil, badPage(meta.transaction%2, "it counts %d pages of %d bytes, the file has %d bytes", meta.pages, meta.pageSize, fileSize)
	}
	return &pages{
		file: file, size: uint64(size), meta: meta,
		seen: make([]uint64, meta.pages/64+1),
		step: func(uint64, uint64) {},
	}, nil
}

func readMeta(file io.ReaderAt, at int64, id uint64) (boltMeta, error) {
	var buf [pageHeader + metaSize]byte
	if _, err := file.ReadAt(buf[:], at); err != nil {
		return boltMeta{}, &pageError{page: id, err: err}
	}
	order := binary.NativeEndian
	if order.Uint64(buf[0:]) != id || order.Uint16(buf[8:]) != flagMeta {
		return boltMeta{}, badPage(id, "not a meta page")
	}
	m := buf[pageHeader:]
	sum := fnv.New64a()
	_, _ = sum.Write(m[:metaSize-8]) // A hash never fails.
	switch {
	case order.Uint32(m[0:]) != boltMagic || order.Uint32(m[4:]) != boltVersion:
		return boltMeta{}, badPage(id, "not of a bbolt file of version %d", boltVersion)
	case order.Uint64(m[56:]) != sum.Sum64():
		return boltMeta{}, badPage(id, "checksum mismatch")
	}
	return boltMeta{
		pageSize:    order.Uint32(m[8:]),
		root:        order.Uint64(m[16:]),
		freelist:    order.Uint64(m[32:]),
		pages:       order.Uint64(m[40:]),
		transaction: order.Uint64(m[48:]),
	}, nil
}

// page is one page with its overflow, or the page inside an inline bucket.
type page struct {
	id    uint64
	flags uint16
	count int
	data  []byte
}

// element is one row of a leaf (key and value) or of a branch (key and child).
type element struct {
	key, value []byte
	child      uint64
	bucket     bool
}

// read reads a page with its overflow into the buffer of its level, and marks it.
func (p *pages) read(id uint64, depth int) (page, error) {
	if depth >= maxDepth {
		return page{}, badPage(id, "deeper than %d levels", maxDepth)
	}
	if id < 2 || id >= p.meta.pages {
		return page{}, badPage(id, "outside the file of %d pages", p.meta.pages)
	}
	if err := p.fill(id, depth, p.size); err != nil {
		return page{}, err
	}
	pg := parsePage(p.bufs[depth])
	if pg.id != id {
		return page{}, badPage(id, "it says it is page %d", pg.id)
	}
	run := 1 + uint64(binary.NativeEndian.Uint32(p.bufs[depth][12:]))
	if run > p.meta.pages-id || run*p.size > maxRun {
		return page{}, badPage(id, "runs over %d pages", run)
	}
	for i := id; i < id+run; i++ {
		if p.seen[i/64]&(1<<(i%64)) != 0 {
			return page{}, badPage(id, "page %d is used twice", i)
		}
		p.seen[i/64] |= 1 << (i % 64)
	}
	p.done += run * p.size
	p.step(p.done, p.meta.pages*p.size)
	if run == 1 {
		return pg, nil
	}
	if err := p.fill(id, depth, run*p.size); err != nil {
		return page{}, err
	}
	return parsePage(p.bufs[depth]), nil
}

func (p *pages) fill(id uint64, depth int, size uint64) error {
	if uint64(cap(p.bufs[depth])) < size {
		p.bufs[depth] = make([]byte, size)
	}
	p.bufs[depth] = p.bufs[depth][:size]
	if _, err := p.file.ReadAt(p.bufs[depth], int64(id*p.size)); err != nil {
		return &pageError{page: id, err: err}
	}
	return nil
}

func parsePage(data []byte) page {
	order := binary.NativeEndian
	return page{
		id:    order.Uint64(data[0:]),
		flags: order.Uint16(data[8:]),
		count: int(order.Uint16(data[10:])),
		data:  data,
	}
}

// each calls fn for the elements of a page, which must lie densely and have
// rising keys from low (included) up to high (excluded; nil: no limit).
func (pg page) each(id uint64, low, high []byte, fn func(e element, next []byte) error) error {
	if pg.flags != flagLeaf && pg.flags != flagBranch {
		return badPage(id, "type %#x where a tree page should be", pg.flags)
	}
	at := uint64(pageHeader + pg.count*elementSize) // where the next element's bytes must lie
	if at > uint64(len(pg.data)) {
		return badPage(id, "%d elements in %d bytes", pg.count, len(pg.data))
	}
	var last element
	for i := range pg.count {
		e, end, err := pg.element(id, i, at)
		if err != nil {
			return err
		}
		if bytes.Compare(e.key, low) < 0 || i > 0 && bytes.Equal(e.key, low) || high != nil && bytes.Compare(e.key, high) >= 0 {
			return badPage(id, "key %x of element %d is out of order", e.key, i)
		}
		if i > 0 {
			if err := fn(last, e.key); err != nil {
				return err
			}
		}
		last, low, at = e, e.key, end
	}
	if pg.count == 0 {
		return nil
	}
	return fn(last, high)
}

func (pg page) element(id uint64, i int, at uint64) (e element, end uint64, err error) {
	order := binary.NativeEndian
	row := uint64(pageHeader + i*elementSize)
	head := pg.data[row:]
	var pos, keySize, valueSize uint64
	if pg.flags == flagLeaf {
		e.bucket = order.Uint32(head[0:])&flagBucket != 0
		pos, keySize, valueSize = uint64(order.Uint32(head[4:])), uint64(order.Uint32(head[8:])), uint64(order.Uint32(head[12:]))
	} else {
		pos, keySize, e.child = uint64(order.Uint32(head[0:])), uint64(order.Uint32(head[4:])), order.Uint64(head[8:])
	}
	end = at + keySize + valueSize
	if row+pos != at || keySize == 0 || end > uint64(len(pg.data)) {
		return element{}, 0, badPage(id, "element %d at %d+%d (key %d, value %d bytes) should begin at %d of %d",
			i, row, pos, keySize, valueSize, at, len(pg.data))
	}
	e.key = pg.data[at : at+keySize : at+keySize]
	e.value = pg.data[at+keySize : end : end]
	return e, end, nil
}

// walk calls fn for each element of the leaves of the tree under a page, in order.
func (p *pages) walk(id uint64, depth int, low, high []byte, fn func(id uint64, depth int, e element) error) error {
	pg, err := p.read(id, depth)
	if err != nil {
		return err
	}
	if pg.flags == flagBranch && pg.count == 0 {
		return badPage(id, "a branch without children")
	}
	return pg.each(id, low, high, func(e element, next []byte) error {
		if pg.flags == flagLeaf {
			return fn(id, depth, e)
		}
		return p.walk(e.child, depth+1, e.key, next, fn)
	})
}

// buckets walks the whole file: fn gets each key and value of the buckets that
// the root holds, which must be exactly the named ones, in the order of names.
func (p *pages) buckets(names []string, fn func(bucket string, page uint64, key, value []byte) error) error {
	found := 0
	err := p.walk(p.meta.root, 0, nil, nil, func(id uint64, depth int, e element) error {
		if !e.bucket || found == len(names) || string(e.key) != names[found] || len(e.value) < 16 {
			return badPage(id, "%q where one of the buckets %q should be", e.key, names)
		}
		found++
		return p.bucket(id, depth+1, e.value, func(id uint64, _ int, in element) error {
			if in.bucket {
				return badPage(id, "a bucket inside bucket %q", e.key)
			}
			return fn(string(e.key), id, in.key, in.value)
		})
	})
	if err != nil {
		return err
	}
	if found != len(names) {
		return badPage(p.meta.root, "%d of the buckets %q", found, names)
	}
	return p.freelist()
}

// bucket walks one bucket: a tree of its own, or a page inside the value.
func (p *pages) bucket(id uint64, depth int, value []byte, fn func(id uint64, depth int, e element) error) error {
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return p.walk(root, depth, nil, nil, fn)
	}
	inline := value[16:]
	if len(inline) < pageHeader {
		return badPage(id, "an inline bucket of %d bytes", len(value))
	}
	pg := parsePage(inline)
	if pg.flags != flagLeaf {
		return badPage(id, "an inline bucket of type %#x", pg.flags)
	}
	return pg.each(id, nil, nil, func(e element, _ []byte) error { return fn(id, depth, e) })
}

// freelist checks that no page in use is listed as free. regd writes no list,
// but a file that the bbolt tool has compacted has one.
func (p *pages) freelist() error {
	if p.meta.freelist == noFreelist {
		return nil
	}
	pg, err := p.read(p.meta.freelist, 0)
	if err != nil {
		return err
	}
	order := binary.NativeEndian
	ids, count := pg.data[pageHeader:], uint64(pg.count)
	if pg.flags != flagFreelist {
		return badPage(p.meta.freelist, "type %#x where the list of free pages should be", pg.flags)
	}
	if count == 0xFFFF { // Too many for the header: the count comes first.
		count, ids = order.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids)/8) {
		return badPage(p.meta.freelist, "%d free pages in %d bytes", count, len(ids))
	}
	for i := range count {
		free := order.Uint64(ids[i*8:])
		if free < 2 || free >= p.meta.pages || p.seen[free/64]&(1<<(free%64)) != 0 {
			return badPage(p.meta.freelist, "page %d can't be free", free)
		}
		p.seen[free/64] |= 1 << (free % 64)
	}
	return nil
}
