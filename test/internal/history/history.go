// Package history holds what clients of a cluster did and saw in one run: every call and every message of every stream,
// as the protobuf messages that crossed the wire, with times of one clock. A Recorder takes them down from inside gRPC,
// so a workload can neither forget nor embellish; package check judges them afterwards. Start at Recorder.
package history

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// Outcome is how a call ended, as far as its client can know.
type Outcome string

// The outcomes.
const (
	// OK: it was answered.
	OK Outcome = "ok"
	// Failed: it was refused, and had no effect and never will.
	Failed Outcome = "failed"
	// Unknown: it may have had its effect, or may yet have it.
	Unknown Outcome = "unknown"
)

// Call is one unary call: one attempt, where a client makes several under one request id.
type Call struct {
	// Client is who called. One client has at most one call under way, so that its calls are in order.
	Client string
	// Node is the node that was asked.
	Node string
	// Method is the full name, as in "/regd.api.v1.RegistryService/Get".
	Method string
	// Begun and Ended are when the call began and was answered or given up, since the start of the run.
	Begun, Ended time.Duration
	// Request and Response are the messages. Response is nil unless the outcome is OK.
	Request, Response proto.Message
	// Outcome says how it ended.
	Outcome Outcome
	// Reason is that of the error, UNSPECIFIED when it came without one.
	Reason apiv1.Reason
	// Err is the error's text, for people.
	Err string
}

// Header returns the header of the answer, nil where there is none.
func (c *Call) Header() *apiv1.ResponseHeader {
	if h, ok := c.Response.(interface{ GetHeader() *apiv1.ResponseHeader }); ok {
		return h.GetHeader()
	}
	return nil
}

// RequestID returns the id of a write, nil for what has none.
func (c *Call) RequestID() *apiv1.RequestID {
	if r, ok := c.Request.(interface{ GetRequestId() *apiv1.RequestID }); ok {
		return r.GetRequestId()
	}
	return nil
}

// Direction says who sent a message of a stream, or that the stream began or ended.
type Direction string

// The directions.
const (
	// Opened: the client opened the stream.
	Opened Direction = "opened"
	// Sent: by the client.
	Sent Direction = "sent"
	// Received: by the client.
	Received Direction = "received"
	// Ended: the stream is over, Err says why.
	Ended Direction = "ended"
)

// Message is one message of a stream.
type Message struct {
	// Client, Node and Method are as in Call.
	Client, Node, Method string
	// Stream is the number of the stream, unique in the run.
	Stream int64
	// At is when the message was handed to gRPC or came from it, since the start of the run.
	At time.Duration
	// Direction says whose it is.
	Direction Direction
	// Body is the message, nil for Opened and Ended.
	Body proto.Message
	// Err is why the stream ended, for people; empty when the server ended it in order.
	Err string
}

// Fault is something that was done to the cluster.
type Fault struct {
	// Kind names it, as in "kill" or "cut".
	Kind string
	// Nodes are those it was done to.
	Nodes []string
	// From and To are when it began and was undone, since the start of the run.
	From, To time.Duration
	// Recovered is when the cluster was seen to serve writes on all its nodes again; 0 if it was not waited for.
	Recovered time.Duration
	// Evidence is what shows that it really happened, as in "process state T" or "812 packets dropped". Empty: it did not.
	Evidence string
}

// History is what happened in a run. Calls are in the order in which they ended, messages in the order of At.
type History struct {
	// Calls are the unary calls.
	Calls []Call
	// Messages are those of all streams.
	Messages []Message
	// Faults are what was done to the cluster.
	Faults []Fault
}

// Write is one request: all calls under one request id.
type Write struct {
	// ClientID and Sequence are the request id.
	ClientID string
	Sequence uint64
	// Method is that of the calls.
	Method string
	// Begun is when the first call began, Ended when the first answer came, or the last call was given up.
	Begun, Ended time.Duration
	// Request is that of the first call, Response that of the first one answered.
	Request, Response proto.Message
	// Outcome is OK when a call was answered; Unknown when none was and one is unknown; else Failed.
	Outcome Outcome
	// Calls are the attempts in the order in which they ended.
	Calls []*Call
}

// Writes returns the requests that carry an id, in the order in which their first calls ended. What carries none is
// not in it.
func (h *History) Writes() []*Write {
	type id struct {
		client   string
		sequence uint64
	}
	byID := map[id]*Write{}
	var writes []*Write
	for i := range h.Calls {
		c := &h.Calls[i]
		request := c.RequestID()
		if request.GetClientId() == "" {
			continue
		}
		key := id{request.GetClientId(), request.GetSequence()}
		w := byID[key]
		if w == nil {
			w = &Write{
				ClientID: key.client, Sequence: key.sequence, Method: c.Method, Begun: c.Begun, Request: c.Request, Outcome: Failed,
			}
			byID[key] = w
			writes = append(writes, w)
		}
		w.add(c)
	}
	return writes
}

func (w *Write) add(c *Call) {
	w.Begun = min(w.Begun, c.Begun)
	w.Calls = append(w.Calls, c)
	switch {
	case w.Outcome == OK:
	case c.Outcome == OK:
		w.Outcome, w.Response, w.Ended = OK, c.Response, c.Ended
	default:
		if c.Outcome == Unknown {
			w.Outcome = Unknown
		}
		w.Ended = max(w.Ended, c.Ended)
	}
}

// Streams returns the messages of each stream of a method, in order, by the number of the stream.
func (h *History) Streams(method string) [][]Message {
	byStream := map[int64][]Message{}
	var order []int64
	for _, m := range h.Messages {
		if m.Method != method {
			continue
		}
		if byStream[m.Stream] == nil {
			order = append(order, m.Stream)
		}
		byStream[m.Stream] = append(byStream[m.Stream], m)
	}
	slices.Sort(order)
	streams := make([][]Message, 0, len(order))
	for _, number := range order {
		streams = append(streams, byStream[number])
	}
	return streams
}
