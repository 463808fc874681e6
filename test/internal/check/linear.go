package check

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/internal/history"
	"github.com/regd-io/regd/test/internal/oracle"
)

// Bounds of what is judged for one instance: the cost is exponential in what happens at the same time.
const (
	maxAccesses = 4000
	maxAtOnce   = 10
	// maxSteps bounds the search. It counts steps, not time: a run in virtual time has none to wait for.
	maxSteps = 500_000
)

// LinearFigures say what Linear judged.
type LinearFigures struct {
	// Keys are the instances judged, Accesses the calls on them.
	Keys, Accesses int
	// Excluded are instances that something else than a recorded request about them has changed: the end of a session, say.
	Excluded int
}

// Linear judges each instance on its own, without trusting a revision: is there an order of all that was done to it, in
// keeping with time, in which every answer is right? Register, Deregister, RegisterBatch (each instance for itself) and
// linearizable Get count; the log only says which writes of unknown outcome were done.
//
//   - linear: there is no such order.
//   - linear-size: more accesses, or more of them at once, than can be judged.
//   - linear-unknown: the search was given up.
func Linear(r *Run) ([]Violation, LinearFigures) {
	l := &linear{facts: r.facts(), keys: map[key][]porcupine.Operation{}, clients: map[string]int{}}
	excluded := l.foreign()
	for _, w := range l.writes {
		l.write(w)
	}
	for i := range r.History.Calls {
		l.read(&r.History.Calls[i])
	}
	for _, k := range slices.SortedFunc(maps.Keys(l.keys), compareKeys) {
		if excluded[k] {
			l.figures.Excluded++
			continue
		}
		l.judge(k, l.keys[k])
	}
	return l.list, l.figures
}

type linear struct {
	*facts
	verdict
	keys    map[key][]porcupine.Operation
	clients map[string]int
	figures LinearFigures
}

// access is one thing done to an instance: it needs the instance to be in a state, and leaves it in one.
type access struct {
	what  string
	need  need
	value string // that is needed, for equal
	does  bool
	after string // "" for absent
}

type need int

const (
	anything need = iota
	present
	absent
	equal
)

// never is the end of an access whose end nobody saw.
const never = int64(1 << 62)

// valueOf is what is compared of an instance: what its owner says and a client can read.
func valueOf(i *registryv1.Instance) string {
	return "v=" + i.GetMetadata()["v"] + " at " + i.GetAddress() + " of " + i.GetSessionId()
}

// put is what a request makes of an instance: it hangs on the session that is opened with it, if one is.
func (f *facts) put(i *registryv1.Instance, w *history.Write) string {
	for _, a := range f.run.Timeline.Request(w.ClientID, w.Sequence) {
		if a.Outcome.ID != "" {
			i = proto.CloneOf(i)
			i.SessionId = a.Outcome.ID
		}
	}
	return valueOf(i)
}

func (l *linear) write(w *history.Write) {
	switch req := w.Request.(type) {
	case *apiv1.RegisterRequest:
		a := access{what: "register", does: true, after: l.put(req.GetInstance(), w)}
		switch resp, _ := w.Response.(*apiv1.RegisterResponse); {
		case resp != nil && !resp.GetChanged():
			a = access{what: "register again", need: equal, value: a.after}
		case req.GetIfAbsent() && req.GetInstance().GetSessionId() == "": // A session may find its own.
			a.need = absent
		case req.GetExpectedRevision() != 0:
			a.need = present
		}
		l.add(keyOf(req.GetInstance()), w, a)
	case *apiv1.DeregisterRequest:
		a := access{what: "deregister", does: true}
		if resp, ok := w.Response.(*apiv1.DeregisterResponse); ok {
			a.need = absent
			if resp.GetChanged() {
				a.need = present
			}
		}
		l.add(keyOf(req.GetKey()), w, a)
	case *apiv1.RegisterBatchRequest:
		for _, i := range req.GetRegister() {
			l.add(keyOf(i), w, access{what: "register in a batch", does: true, after: l.put(i, w)})
		}
		for _, k := range req.GetDeregister() {
			l.add(keyOf(k), w, access{what: "deregister in a batch", does: true})
		}
	}
}

// add adds an access of a write, if it was done or its refusal says something.
func (l *linear) add(k key, w *history.Write, a access) {
	end := int64(w.Ended)
	switch w.Outcome {
	case history.OK:
	case history.Unknown:
		if !l.done(w) {
			return
		}
		end = never
	case history.Failed:
		_, several := w.Request.(*apiv1.RegisterBatchRequest)
		if several || !slices.ContainsFunc(w.Calls, func(c *history.Call) bool {
			return c.Reason == apiv1.Reason_REASON_ALREADY_EXISTS || c.Reason == apiv1.Reason_REASON_STALE_INCARNATION
		}) {
			return
		}
		a = access{what: a.what + " (refused)", need: present}
	}
	l.keys[k] = append(l.keys[k], porcupine.Operation{
		ClientId: l.client(w.Calls[0].Client), Input: a, Call: int64(w.Begun), Return: end,
	})
}

// done tells whether the log has an effect of a request.
func (f *facts) done(w *history.Write) bool {
	return slices.ContainsFunc(f.run.Timeline.Request(w.ClientID, w.Sequence),
		func(a oracle.Applied) bool { return a.Outcome.Changed })
}

func (l *linear) client(name string) int {
	if _, ok := l.clients[name]; !ok {
		l.clients[name] = len(l.clients)
	}
	return l.clients[name]
}

func (l *linear) read(c *history.Call) {
	req, ok := c.Request.(*apiv1.GetRequest)
	if !ok || !linearizable(c) {
		return
	}
	a := access{what: "get", need: absent}
	switch resp, isAnswer := c.Response.(*apiv1.GetResponse); {
	case isAnswer:
		a.need, a.value = equal, valueOf(resp.GetInstance())
	case c.Reason != apiv1.Reason_REASON_INSTANCE_NOT_FOUND:
		return
	}
	k := keyOf(req.GetKey())
	l.keys[k] = append(l.keys[k], porcupine.Operation{
		ClientId: l.client(c.Client), Input: a, Call: int64(c.Begun), Return: int64(c.Ended),
	})
}

// foreign returns the instances that were changed by anything but a recorded request that names them.
func (l *linear) foreign() map[key]bool {
	type id struct {
		client   string
		sequence uint64
	}
	recorded := map[id]bool{}
	for _, w := range l.writes {
		recorded[id{w.ClientID, w.Sequence}] = w.ClientID != ""
	}
	keys := map[key]bool{}
	for _, step := range l.run.Timeline.Steps() {
		ours := map[uint64]bool{} // revisions
		for i, cmd := range step.Entry.GetCommands() {
			if out := step.Result.Outcomes[i]; out.Changed && namesInstances(cmd) {
				ours[out.Revision] = recorded[id{cmd.GetRequest().GetClientId(), cmd.GetRequest().GetSequence()}]
			}
		}
		for i := range step.Result.Events {
			if e := &step.Result.Events[i]; e.Kind == fsm.EventInstance && !ours[e.Revision] {
				keys[keyOfEvent(e)] = true
			}
		}
	}
	return keys
}

func namesInstances(cmd *raftlogv1.Command) bool {
	switch cmd.GetKind().(type) {
	case *raftlogv1.Command_Register, *raftlogv1.Command_Deregister, *raftlogv1.Command_Batch, *raftlogv1.Command_SetCheck,
		*raftlogv1.Command_SetDraining, *raftlogv1.Command_SetMaintenance:
		return true
	default:
		return false
	}
}

func (l *linear) judge(k key, ops []porcupine.Operation) {
	l.figures.Keys++
	l.figures.Accesses += len(ops)
	if most := atOnce(ops); len(ops) > maxAccesses || most > maxAtOnce {
		l.fault("linear-size", "instance %v: %d accesses, up to %d at once", k, len(ops), most)
		return
	}
	shorten(ops)
	steps := 0
	model := porcupine.Model{
		Init: func() any { return "" },
		Step: func(state, input, _ any) (bool, any) {
			steps++
			a := input.(access) //nolint:forcetypeassert // We made it.
			was := state.(string)
			if steps > maxSteps || !a.allowed(was) {
				return false, state
			}
			if a.does {
				return true, a.after
			}
			return true, state
		},
	}
	result, info := porcupine.CheckOperationsVerbose(model, ops, 0)
	switch {
	case result == porcupine.Ok:
	case steps > maxSteps:
		l.fault("linear-unknown", "instance %v: %d accesses, given up after %d steps", k, len(ops), steps)
	default:
		l.fault("linear", "instance %v: %s", k, impossible(ops, info))
	}
}

func (a access) allowed(state string) bool {
	switch a.need {
	case present:
		return state != ""
	case absent:
		return state == ""
	case equal:
		return state == a.value
	default:
		return true
	}
}

// atOnce is the largest number of accesses whose end was seen and that were under way at the same time.
func atOnce(ops []porcupine.Operation) int {
	var ends []int64
	most := 0
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	for _, op := range ops {
		ends = slices.DeleteFunc(ends, func(end int64) bool { return end < op.Call })
		if op.Return != never {
			ends = append(ends, op.Return)
		}
		most = max(most, len(ends))
	}
	return most
}

// shorten ends a write whose end nobody saw with the first read that saw what only it wrote: it was done by then. Writes
// that stay open for ever make the search long.
func shorten(ops []porcupine.Operation) {
	writers, seen := map[string]int{}, map[string]int64{}
	for _, op := range ops {
		a := op.Input.(access) //nolint:forcetypeassert // We made it.
		if a.does {
			writers[a.after]++
		} else if end, ok := seen[a.value]; a.need == equal && (!ok || op.Return < end) {
			seen[a.value] = op.Return
		}
	}
	for i := range ops {
		a := ops[i].Input.(access) //nolint:forcetypeassert // We made it.
		if end, ok := seen[a.after]; ops[i].Return == never && a.does && a.after != "" && writers[a.after] == 1 && ok {
			ops[i].Return = max(end, ops[i].Call)
		}
	}
}

// impossible tells which access has no place after the longest order that was found.
func impossible(ops []porcupine.Operation, info porcupine.LinearizationInfo) string {
	var longest []porcupine.Operation
	for _, partial := range info.PartialLinearizationsOperations()[0] {
		if len(partial) > len(longest) {
			longest = partial
		}
	}
	state := ""
	placed := map[porcupine.Operation]int{}
	for _, op := range longest {
		placed[op]++
		if a := op.Input.(access); a.does { //nolint:forcetypeassert // We made it.
			state = a.after
		}
	}
	var left []porcupine.Operation
	for _, op := range ops {
		if placed[op]--; placed[op] < 0 {
			left = append(left, op)
		}
	}
	slices.SortStableFunc(left, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d accesses have an order, after which it is %q; no place is left for", len(longest), len(ops), state)
	for _, op := range left[:min(3, len(left))] {
		fmt.Fprintf(&b, " %+v from %v to %v;", op.Input, time.Duration(op.Call), time.Duration(op.Return))
	}
	return b.String()
}
