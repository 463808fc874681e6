package fsm

import (
	"google.golang.org/protobuf/encoding/protowire"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// applyBatch applies registrations, then deregistrations, under one revision and one incarnation: all or none. Undoing
// is taking back the state of before, which is still whole since the batch works under a mark of its own.
func (t *txn) applyBatch(body []byte) Outcome {
	if outcome, ok := checkBatch(body); !ok {
		return outcome
	}
	before, events := *t.st, len(t.events)
	t.mark = new(mark)
	t.batch = true
	outcome := t.applyBatchItems(body)
	if refused, over := t.overfilled(&before); over && outcome.Code == raftlogv1.Code_CODE_UNSPECIFIED {
		outcome = refused
	}
	t.batch, t.overfull = false, nil
	if outcome.Code != raftlogv1.Code_CODE_UNSPECIFIED {
		clear(t.events[events:])
		*t.st, t.events = before, t.events[:events]
	}
	return outcome
}

// The fields of a raftlogv1.Batch.
const (
	batchRegister   = 1
	batchDeregister = 2
)

// checkBatch checks the frame and the size of a batch.
func checkBatch(body []byte) (Outcome, bool) {
	items := 0
	for len(body) > 0 {
		var f field
		n := f.consume(body)
		if n < 0 || (f.number <= batchDeregister && f.kind != protowire.BytesType) {
			return refuse(raftlogv1.Code_CODE_INVALID, "command"), false
		}
		body = body[n:]
		if f.number <= batchDeregister {
			items++
		}
	}
	if items > MaxBatch {
		return refuse(raftlogv1.Code_CODE_LIMIT, "batch"), false
	}
	return Outcome{}, true
}

// applyBatchItems applies the items of a batch up to the first that is refused.
func (t *txn) applyBatchItems(body []byte) Outcome {
	session := ""
	for _, kind := range [...]protowire.Number{batchRegister, batchDeregister} {
		for rest := body; len(rest) > 0; {
			var f field
			n := f.consume(rest)
			rest = rest[n:]
			if f.number != kind {
				continue
			}
			var outcome Outcome
			if kind == batchRegister {
				outcome = t.applyRegister(f.bytes)
			} else {
				outcome = with(f.bytes, &raftlogv1.Deregister{}, t.deregister)
			}
			if outcome.Code != raftlogv1.Code_CODE_UNSPECIFIED {
				return outcome
			}
			if outcome.ID != "" {
				session = outcome.ID
			}
		}
	}
	return Outcome{ID: session, Number: t.incarnation}
}
