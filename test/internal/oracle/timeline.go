package oracle

import (
	"fmt"
	"slices"
	"sort"

	"google.golang.org/protobuf/proto"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// Timeline is the state at every moment of a run, as replay makes it. It never changes.
type Timeline struct {
	start  *fsm.State
	steps  []Step
	writes map[request][]Applied
}

// Step is one log entry and what it led to.
type Step struct {
	// Term is Raft's.
	Term uint64
	// Entry is the log entry, decoded.
	Entry *raftlogv1.Entry
	// State is the state after it.
	State *fsm.State
	// Result has one outcome for each command of the entry.
	Result fsm.Result
}

// Applied is one appearance of a request in the log.
type Applied struct {
	// Index is that of the entry.
	Index uint64
	// Command is what was applied.
	Command *raftlogv1.Command
	// Outcome is what it led to: at its second appearance, the same as at its first.
	Outcome fsm.Outcome
}

type request struct {
	client   string
	sequence uint64
}

// Replay applies the collected entries one after the other to a state: [fsm.New] for a cluster from its first entry on,
// the restored one for a cluster after a restore. Entries up to the state's own index are left out. It fails when an
// entry can't be applied.
func (l *Log) Replay(start *fsm.State) (*Timeline, error) {
	t := &Timeline{start: start, writes: map[request][]Applied{}}
	state := start
	for _, e := range l.Entries() {
		if e.Index <= state.Index() {
			continue
		}
		var decoded raftlogv1.Entry
		if err := proto.Unmarshal(e.Data, &decoded); err != nil {
			return nil, fmt.Errorf("replay entry %d: %w", e.Index, err)
		}
		next, result, err := state.Apply(fsm.Entry{Index: e.Index, Term: e.Term, Data: e.Data})
		if err != nil {
			return nil, fmt.Errorf("replay entry %d: %w", e.Index, err)
		}
		t.steps = append(t.steps, Step{Term: e.Term, Entry: &decoded, State: next, Result: result})
		for i, cmd := range decoded.GetCommands() {
			if id := cmd.GetRequest(); id.GetClientId() != "" {
				key := request{id.GetClientId(), id.GetSequence()}
				t.writes[key] = append(t.writes[key], Applied{Index: e.Index, Command: cmd, Outcome: result.Outcomes[i]})
			}
		}
		state = next
	}
	return t, nil
}

// Steps are all entries in order. The slice must not be changed.
func (t *Timeline) Steps() []Step { return t.steps }

// Terms are the first steps of each term that have events, in order: what its leader is first known to have done.
func (t *Timeline) Terms() []Step {
	var list []Step
	term := uint64(0)
	for _, step := range t.steps {
		if step.Term != term && len(step.Result.Events) > 0 {
			term = step.Term
			list = append(list, step)
		}
	}
	return list
}

// Final is the state after the last entry.
func (t *Timeline) Final() *fsm.State {
	if len(t.steps) == 0 {
		return t.start
	}
	return t.steps[len(t.steps)-1].State
}

// AtRevision is the newest state that has the revision. It is nil when no entry left the registry at that revision: an
// entry can take it over several at once, and no reader can see what is between.
func (t *Timeline) AtRevision(revision uint64) *fsm.State {
	after := sort.Search(len(t.steps), func(i int) bool { return t.steps[i].State.Revision() > revision })
	state := t.start
	if after > 0 {
		state = t.steps[after-1].State
	}
	if state.Revision() != revision {
		return nil
	}
	return state
}

// AtIndex is the state after the newest entry that is not after the index.
func (t *Timeline) AtIndex(index uint64) *fsm.State {
	after := sort.Search(len(t.steps), func(i int) bool { return t.steps[i].State.Index() > index })
	if after == 0 {
		return t.start
	}
	return t.steps[after-1].State
}

// Between are the events of the revisions after from, up to and including to, in order.
func (t *Timeline) Between(from, to uint64) []fsm.Event {
	var events []fsm.Event
	first := sort.Search(len(t.steps), func(i int) bool { return t.steps[i].State.Revision() > from })
	for _, step := range t.steps[first:] {
		for _, e := range step.Result.Events {
			if e.Revision > to {
				return events
			}
			if e.Revision > from {
				events = append(events, e)
			}
		}
	}
	return events
}

// Request tells where in the log a request is: nowhere, once, or more often when it was retried.
func (t *Timeline) Request(clientID string, sequence uint64) []Applied {
	return slices.Clone(t.writes[request{clientID, sequence}])
}
