package fsm

import (
	"encoding/binary"
	"slices"
	"unicode/utf8"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/encoding/protowire"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// client is what is remembered of a client's requests, at one time.
type client struct {
	id            string
	last          int64        // idleTime of its last use, to the grain of ClientTouchMs
	answeredBelow uint64       // smaller sequences are forgotten
	outcomes      []remembered // by growing sequence, at most MaxOutcomes
}

// remembered is the outcome of one request.
type remembered struct {
	sequence uint64
	bodyHash uint64
	outcome  Outcome
}

func bySequence(r remembered, sequence uint64) int {
	switch {
	case r.sequence < sequence:
		return -1
	case r.sequence > sequence:
		return 1
	default:
		return 0
	}
}

// append encodes the outcome as a raftlogv1.RememberedOutcome.
func (r *remembered) append(b []byte) []byte {
	b = appendUint(b, 1, r.sequence)
	b = appendUint(b, 2, r.bodyHash)
	inner := r.outcome.append(nil)
	return appendBytes(b, 3, inner)
}

// appendKeyed encodes the outcome with the id of its client, as it is hashed.
func (r *remembered) appendKeyed(b []byte, id string) []byte {
	b = protowire.AppendString(b, id)
	return r.append(b)
}

// append encodes the client as a raftlogv1.ClientRecord.
func (c *client) append(b []byte) []byte {
	b = c.appendHead(b)
	for i := range c.outcomes {
		b = protowire.AppendTag(b, 4, protowire.BytesType)
		b = protowire.AppendBytes(b, c.outcomes[i].append(nil))
	}
	return b
}

// appendHead encodes the client without its outcomes.
func (c *client) appendHead(b []byte) []byte {
	b = appendString(b, 1, c.id)
	b = appendUint(b, 2, uint64(c.last))
	return appendUint(b, 3, c.answeredBelow)
}

// idleKey orders clients by last use. The time never is negative in a state, and big endian sorts as numbers do.
func (c *client) idleKey() string {
	b := make([]byte, 0, 8+MaxClientIDBytes)
	b = binary.BigEndian.AppendUint64(b, uint64(c.last))
	return string(append(b, c.id...))
}

// once applies a command unless its request was applied before: then it is answered as the first time.
func (t *txn) once(cmd *command) Outcome {
	req := cmd.request
	old, known := t.st.clients.get(string(req.clientID))
	if !known {
		old = &client{id: string(req.clientID)}
	}
	bodyHash := t.bodyHash(cmd)
	at, found := slices.BinarySearchFunc(old.outcomes, req.sequence, bySequence)
	switch {
	case found && old.outcomes[at].bodyHash == bodyHash:
		t.touchClient(old)
		return old.outcomes[at].outcome
	case found:
		return t.finish(refuse(raftlogv1.Code_CODE_REQUEST_REUSED, ""))
	case req.sequence < max(old.answeredBelow, req.answeredBelow):
		return t.finish(refuse(raftlogv1.Code_CODE_REQUEST_TOO_OLD, ""))
	}
	r := remembered{sequence: req.sequence, bodyHash: bodyHash}
	answeredBelow := max(old.answeredBelow, req.answeredBelow)
	r.outcome = t.execute(cmd)
	t.remember(old, known, r, at, answeredBelow)
	return r.outcome
}

// bodyHash is the hash of the body of a request, as it is remembered: with whom it is from, so that nobody is told what another
// was. From [KVLevel] on that is found out here; before, whoever proposed had to know it, and might be behind.
func (t *txn) bodyHash(cmd *command) uint64 {
	hash := cmd.request.bodyHash
	if cmd.level < KVLevel || len(cmd.actor) == 0 {
		return hash
	}
	if identity, ok := t.st.Identity(string(cmd.actor)); ok && identity != Anonymous {
		hash ^= xxh3.HashString(identity)
	}
	return hash
}

// remember adds an outcome at its place among those of its client, and forgets what may be forgotten. An outcome that
// falls out for lack of room raises answeredBelow, so that its retry is refused rather than applied twice.
func (t *txn) remember(old *client, known bool, r remembered, at int, answeredBelow uint64) {
	keep := 0
	for keep < at && old.outcomes[keep].sequence < answeredBelow {
		t.subOutcome(old.id, &old.outcomes[keep])
		keep++
	}
	outcomes := make([]remembered, 0, len(old.outcomes)-keep+1)
	outcomes = append(outcomes, old.outcomes[keep:at]...)
	outcomes = append(outcomes, r)
	outcomes = append(outcomes, old.outcomes[at:]...)
	t.addOutcome(old.id, &r)
	if len(outcomes) > MaxOutcomes {
		answeredBelow = outcomes[0].sequence + 1
		t.subOutcome(old.id, &outcomes[0])
		outcomes = outcomes[1:]
	}
	next := &client{id: old.id, last: old.last, answeredBelow: answeredBelow, outcomes: outcomes}
	if !known {
		t.makeRoomForClient()
		next.last = t.st.idleTime()
		t.st.idle.set(t.mark, next.idleKey(), struct{}{})
	} else {
		t.subClientHead(old)
		t.moveIdle(old, next)
	}
	t.addClientHead(next)
	t.st.clients.set(t.mark, next.id, next)
}

// touchClient notes that a client was heard of.
func (t *txn) touchClient(old *client) {
	if t.st.idleTime()-old.last < ClientTouchMs {
		return
	}
	next := *old
	t.subClientHead(old)
	t.moveIdle(old, &next)
	t.addClientHead(&next)
	t.st.clients.set(t.mark, next.id, &next)
}

// moveIdle moves a client to its new place in the order of last use, once a grain.
func (t *txn) moveIdle(old, next *client) {
	if t.st.idleTime()-old.last < ClientTouchMs {
		return
	}
	next.last = t.st.idleTime()
	t.st.idle.delete(t.mark, old.idleKey())
	t.st.idle.set(t.mark, next.idleKey(), struct{}{})
}

// makeRoomForClient forgets the client that was silent for longest when there are as many as there may be.
func (t *txn) makeRoomForClient() {
	if t.st.clients.len() >= MaxClients {
		t.forgetClient(t.oldestClient())
	}
}

// forgetIdleClients forgets clients that were silent for too long, a bounded number at a time.
func (t *txn) forgetIdleClients() {
	for range MaxForgotten {
		c := t.oldestClient()
		if c == nil || t.st.idleTime()-c.last <= ClientIdleMs {
			return
		}
		t.forgetClient(c)
	}
}

// oldestClient returns the client that was silent for longest, nil if there is none.
func (t *txn) oldestClient() *client {
	key, ok := t.st.idle.first()
	if !ok {
		return nil
	}
	c, _ := t.st.clients.get(key[8:])
	return c
}

func (t *txn) forgetClient(c *client) {
	t.st.idle.delete(t.mark, c.idleKey())
	t.st.clients.delete(t.mark, c.id)
	t.subClientHead(c)
	for i := range c.outcomes {
		t.subOutcome(c.id, &c.outcomes[i])
	}
}

// The hash of the clients' table sums the heads of clients and their outcomes separately, so that one more outcome
// costs one more hash and not one over all that are remembered.

func (t *txn) addClientHead(c *client) {
	t.scratch = c.appendHead(t.scratch[:0])
	t.addSum(tableClients, t.scratch)
}

func (t *txn) subClientHead(c *client) {
	t.scratch = c.appendHead(t.scratch[:0])
	t.subSum(tableClients, t.scratch)
}

func (t *txn) addOutcome(id string, r *remembered) {
	t.st.sums[tableClients].add(t.hashOutcome(id, r))
}

func (t *txn) subOutcome(id string, r *remembered) {
	t.st.sums[tableClients].sub(t.hashOutcome(id, r))
}

func (t *txn) hashOutcome(id string, r *remembered) sum {
	t.scratch = r.appendKeyed(t.scratch[:0], id)
	return hashBytes(t.scratch, seedOutcome)
}

// validText accepts text of at most limit bytes.
func validText(b []byte, limit int) bool {
	return len(b) <= limit && utf8.Valid(b)
}
