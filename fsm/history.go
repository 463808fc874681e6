package fsm

import (
	"encoding/binary"
	"slices"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// How the history of instances is kept.
//
// Each change of an instance leaves a transition: what happened, by whom or by which verdict. They are encoded one behind the
// other into chunks, and when there are HistoryChunks of these the oldest is dropped. There is no index: whoever asks about an
// instance, which is seldom, reads them all, a millisecond or two. So a transition costs whoever causes it an encoding, a hash
// and a copy, and an instance to which nothing happens costs nothing.

const (
	// chunkBytes is the size of a chunk. It leaves room for what is kept beside it in an allocation of 16 KiB.
	chunkBytes = 16<<10 - 8
	// transitionField frames a transition: a chunk is an encoded raftlogv1.Transitions.
	transitionField = 1
)

// history is what was kept of the changes of instances. Copying it shares the chunks.
type history struct {
	begun  bool // since the first command of HistoryLevel
	record historyRecord
	count  uint64   // of the transitions that are kept
	closed [][]byte // full chunks, oldest first: neither they nor this slice ever change
	open   *chunk   // nil: none yet
	used   int      // how much of the open chunk belongs to this history
}

// historyRecord is what there is once about the history.
type historyRecord struct {
	after   uint64 // all transitions after this revision are kept
	afterMs int64  // the log time of it
	dropped uint64 // how many were kept before
}

// append encodes the record as a raftlogv1.HistoryRecord.
func (r historyRecord) append(b []byte) []byte {
	b = appendUint(b, 1, r.after)
	b = appendUint(b, 2, uint64(r.afterMs))
	return appendUint(b, 3, r.dropped)
}

// chunk is where transitions are written behind those that are there. It is shared by all states of a history, each of which
// sees as much of it as was there then; so the bytes that anybody sees never change. Should two states go on from one, the
// first to claim the space behind it gets it, and the other goes on in a copy.
type chunk struct {
	claimed atomic.Int64
	bytes   [chunkBytes]byte
}

// chunks calls fn for the chunks, newest first, until fn returns false.
func (h *history) chunks(fn func(b []byte) bool) {
	if h.open != nil && !fn(h.open.bytes[:h.used]) {
		return
	}
	for _, b := range slices.Backward(h.closed) {
		if !fn(b) {
			return
		}
	}
}

// len returns the number of chunks.
func (h *history) len() int {
	if h.open == nil {
		return 0
	}
	return len(h.closed) + 1
}

// fits reports whether a transition of that length finds room behind what is in the open chunk.
func (h *history) fits(length int) bool {
	return h.open != nil && h.used+1+protowire.SizeBytes(length) <= chunkBytes
}

// add writes an encoded transition behind the others, in the open chunk if it fits there.
func (h *history) add(encoded []byte) {
	if !h.fits(len(encoded)) {
		if h.open != nil {
			h.closed = append(slices.Clip(h.closed), h.open.bytes[:h.used:h.used])
		}
		h.open, h.used = new(chunk), 0
	}
	at := h.used
	h.used += 1 + protowire.SizeBytes(len(encoded))
	if !h.open.claimed.CompareAndSwap(int64(at), int64(h.used)) {
		fork := new(chunk)
		copy(fork.bytes[:at], h.open.bytes[:at])
		fork.claimed.Store(int64(h.used))
		h.open = fork
	}
	b := protowire.AppendTag(h.open.bytes[:at], transitionField, protowire.BytesType)
	protowire.AppendBytes(b, encoded)
	h.count++
}

// hashTransition hashes an encoded transition, which stands behind 8 bytes of scratch, with its place in the history.
func hashTransition(place uint64, scratch []byte) sum {
	binary.BigEndian.PutUint64(scratch, place)
	return hashBytes(scratch, seedTransition)
}

// eachTransition calls fn for the encoded transitions of a chunk until fn returns false, and reports whether the chunk was
// well-formed as far as fn wanted to see.
func eachTransition(b []byte, fn func(encoded []byte) bool) bool {
	for len(b) > 0 {
		var f field
		n := f.consume(b)
		if n < 0 || f.number != transitionField || f.kind != protowire.BytesType {
			return false
		}
		b = b[n:]
		if !fn(f.bytes) {
			break
		}
	}
	return true
}

// beginHistory begins the history, unless it was. What happened before is not in it.
func (s *State) beginHistory() {
	if s.history.begun {
		return
	}
	s.history = history{begun: true, record: historyRecord{after: s.revision, afterMs: s.time}}
	s.sums[tableHistory] = hashRecord(tableHistory, s.history.record.append(nil))
}

// note adds a transition to the history. The scratch buffer, which is returned for reuse, serves to encode it.
func (s *State) note(tr *transition, scratch []byte) []byte {
	scratch = tr.append(append(scratch[:0], 0, 0, 0, 0, 0, 0, 0, 0))
	h := &s.history
	s.sums[tableTransitions].add(hashTransition(h.record.dropped+h.count, scratch))
	h.add(scratch[8:])
	if len(h.closed) == HistoryChunks {
		s.dropChunk()
	}
	return scratch
}

// dropChunk forgets the oldest transitions.
func (s *State) dropChunk() {
	h := &s.history
	s.sums[tableHistory].sub(hashRecord(tableHistory, h.record.append(nil)))
	var last transition
	var scratch []byte
	eachTransition(h.closed[0], func(encoded []byte) bool {
		scratch = append(append(scratch[:0], 0, 0, 0, 0, 0, 0, 0, 0), encoded...)
		s.sums[tableTransitions].sub(hashTransition(h.record.dropped, scratch))
		h.record.dropped++
		h.count--
		last.decodeTime(encoded)
		return true
	})
	h.closed = h.closed[1:]
	h.record.after, h.record.afterMs = last.revision, last.timeMs
	s.sums[tableHistory].add(hashRecord(tableHistory, h.record.append(nil)))
}

// HistoryAfter returns the revision, with the log time of it, after which every change of an instance is in the history that
// [State.Transitions] reads. False: there is no history, as no command of [HistoryLevel] was applied yet.
func (s *State) HistoryAfter() (revision uint64, unixMs int64, ok bool) {
	return s.history.record.after, s.history.record.afterMs, s.history.begun
}

// Transitions returns the newest transitions that are kept of an instance, there or gone, oldest first, and the restores
// between them. There are most at most, and more says that older ones are kept, too. It reads up to 8 MiB, which takes some
// milliseconds.
func (s *State) Transitions(namespace, service, id string, most int) (found []*registryv1.Transition, more bool) {
	s.history.chunks(func(b []byte) bool {
		var here []*registryv1.Transition
		eachTransition(b, func(encoded []byte) bool {
			if concerns(encoded, namespace, service, id) {
				tr := new(registryv1.Transition)
				if proto.Unmarshal(encoded, tr) == nil { // It is what append wrote.
					here = append(here, tr)
				}
			}
			return true
		})
		found = append(here, found...)
		return len(found) <= most
	})
	if len(found) > most {
		found, more = found[len(found)-most:], true
	}
	return found, more
}

// concerns reports whether an encoded transition is of that instance or of all.
func concerns(encoded []byte, namespace, service, id string) bool {
	var f field
	n := f.consume(encoded)
	if n < 0 || f.number != 1 {
		return true // A restore.
	}
	if string(f.bytes) != id {
		return false
	}
	for _, want := range [...]string{service, namespace} {
		encoded = encoded[n:]
		f = field{}
		if n = f.consume(encoded); n < 0 || string(f.bytes) != want {
			return false
		}
	}
	return true
}

// transition is a registryv1.Transition.
type transition struct {
	at          *ident // nil: of a restore
	revision    uint64
	timeMs      int64
	cause       registryv1.Cause
	health      registryv1.Health
	incarnation uint64
	replaced    uint64
	actor       string
	reason
}

// reason is what else there is to say of why an instance changes.
type reason struct {
	session, lease string
	check          string
	status         registryv1.CheckStatus
	output         string
	judge          string
	term           uint64
	silenceMs      uint64
	set            bool
}

// append encodes the transition, fields in order.
func (tr *transition) append(b []byte) []byte {
	if tr.at != nil {
		b = appendString(b, 1, tr.at.id)
		b = appendString(b, 2, tr.at.in.name())
		b = appendString(b, 3, tr.at.in.namespace())
	}
	b = appendUint(b, 4, tr.revision)
	b = appendUint(b, 5, uint64(tr.timeMs))
	b = appendUint(b, 6, uint64(tr.cause))
	b = appendUint(b, 7, uint64(tr.health))
	b = appendUint(b, 8, tr.incarnation)
	b = appendUint(b, 9, tr.replaced)
	b = appendString(b, 10, tr.actor)
	b = appendString(b, 11, tr.session)
	b = appendString(b, 12, tr.check)
	b = appendUint(b, 13, uint64(tr.status))
	b = appendString(b, 14, tr.output)
	b = appendString(b, 15, tr.judge)
	b = appendUint(b, 16, tr.term)
	b = appendUint(b, 17, tr.silenceMs)
	b = appendString(b, 18, tr.lease)
	return appendBool(b, 19, tr.set)
}

// decodeTime reads revision and time of an encoded transition.
func (tr *transition) decodeTime(b []byte) {
	for len(b) > 0 {
		var f field
		n := f.consume(b)
		if n < 0 || f.number > 5 {
			return
		}
		b = b[n:]
		switch f.number {
		case 4:
			tr.revision = f.varint
		case 5:
			tr.timeMs = int64(f.varint)
		}
	}
}

// judged says which leader gave a verdict, if one did: a term of 0 is that of no leader.
func judged(node string, term uint64) reason {
	if term == 0 {
		return reason{}
	}
	return reason{judge: cut(node, MaxNameBytes), term: term}
}

// who returns the identity that the command under way is on behalf of, empty for the cluster itself and for whoever has shown
// nothing. While access control is off, too: it says who did it, not who may.
func (t *txn) who() string {
	switch {
	case len(t.actor) == 0 || string(t.actor) == Anonymous:
		return ""
	case t.identity != "":
		return t.identity
	}
	identity, _ := t.st.Identity(string(t.actor))
	return identity
}

// noteChange adds a change of an instance to the history: next is nil when it is gone, old when it is new.
func (t *txn) noteChange(next, old *Record, cause registryv1.Cause) {
	if !t.st.history.begun {
		return
	}
	tr := transition{revision: t.st.revision, timeMs: t.st.time, cause: cause, actor: t.who(), reason: t.reason}
	if next == nil {
		tr.at, tr.incarnation = old.at, old.incarnation
	} else {
		tr.at, tr.incarnation, tr.health = next.at, next.incarnation, next.health
	}
	if cause == registryv1.Cause_CAUSE_REGISTERED {
		tr.session, tr.lease = next.SessionID(), next.LeaseID()
		if old != nil {
			tr.replaced = old.incarnation
		}
	}
	t.scratch = t.st.note(&tr, t.scratch)
}

// rebaseHistory goes on with the history of the running cluster: what happened there happened, and what comes from the
// snapshot has another past, or an earlier one.
func (s *State) rebaseHistory(snapshot, onto *State) {
	s.history = onto.history
	s.sums[tableHistory], s.sums[tableTransitions] = onto.sums[tableHistory], onto.sums[tableTransitions]
	if snapshot.history.begun {
		s.beginHistory()
	}
	if s.history.begun {
		s.note(&transition{revision: s.revision, timeMs: s.time, cause: registryv1.Cause_CAUSE_RESTORED}, nil)
	}
}

// historyRecord loads what there is once about the history.
func (l *loader) historyRecord(m *raftlogv1.HistoryRecord) error {
	h := &l.st.history
	if h.begun || m.GetAfterRevision() > l.st.revision || m.GetAfterUnixMs() < 0 {
		return errMalformed
	}
	h.begun = true
	h.record = historyRecord{after: m.GetAfterRevision(), afterMs: m.GetAfterUnixMs(), dropped: m.GetDropped()}
	l.add(h.record.append(l.scratch[:0]))
	return nil
}

// transitions loads a chunk, which must be what [history.add] makes of what is in it: the next state drops it as a whole.
func (l *loader) transitions(b []byte) error {
	h := &l.st.history
	if !h.begun || len(b) == 0 || len(b) > chunkBytes || h.len() == HistoryChunks {
		return errMalformed
	}
	before := h.len()
	whole := eachTransition(b, func(encoded []byte) bool {
		fresh := h.len() == before
		return fresh != h.fits(len(encoded)) && l.transition(encoded)
	})
	if !whole || h.used != len(b) {
		return errMalformed
	}
	return nil
}

// transition loads one transition and reports whether it is one.
func (l *loader) transition(encoded []byte) bool {
	m := new(registryv1.Transition)
	if proto.Unmarshal(encoded, m) != nil {
		return false
	}
	tr := transition{
		revision: m.GetRevision(), timeMs: m.GetTimeUnixMs(), cause: m.GetCause(), health: m.GetHealth(),
		incarnation: m.GetIncarnation(), replaced: m.GetReplaced(), actor: m.GetActor(),
		reason: reason{
			session: m.GetSessionId(), lease: m.GetLeaseId(), check: m.GetCheck(), status: m.GetStatus(), output: m.GetOutput(),
			judge: m.GetJudge(), term: m.GetTerm(), silenceMs: m.GetSilenceMs(), set: m.GetSet(),
		},
	}
	named := validName(m.GetId()) && validName(m.GetService()) && validName(m.GetNamespace())
	if named {
		tr.at = &ident{in: newPair(m.GetNamespace(), m.GetService()), id: m.GetId()}
	}
	l.scratch = tr.append(append(l.scratch[:0], 0, 0, 0, 0, 0, 0, 0, 0))
	switch {
	case !named && m.GetCause() != registryv1.Cause_CAUSE_RESTORED, string(l.scratch[8:]) != string(encoded),
		tr.revision < l.st.history.record.after || tr.revision > l.st.revision || tr.timeMs < 0:
		return false
	}
	h := &l.st.history
	l.st.sums[tableTransitions].add(hashTransition(h.record.dropped+h.count, l.scratch))
	h.add(encoded)
	return true
}
