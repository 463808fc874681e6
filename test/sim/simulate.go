package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/internal/check"
	"github.com/regd-io/regd/test/internal/history"
	"github.com/regd-io/regd/test/internal/oracle"
	"github.com/regd-io/regd/test/internal/workload"
)

const (
	// progress is how soon a healed majority must serve reads and writes, whatever is wrong with the others.
	progress = 30 * time.Second
	// reunion is how soon all nodes must be members, vote and have caught up, once nothing is wrong any more.
	reunion = time.Minute
	// settling is how soon all must be quiet then.
	settling = time.Minute
	// grace is how late an expiry may be while nothing is wrong: what package health allows itself, and a proposal.
	grace = 2 * time.Second
)

// outcome is what a run met.
type outcome struct {
	figures   check.Figures
	calls     int
	leaders   int            // that there were
	installed int            // snapshots, by nodes that lagged
	struck    map[string]int // faults by kind
}

// simulate makes one run in the bubble of the test: first faults of all kinds, then a majority that must make progress
// while the rest is half cut off, then peace, and the verdict.
func simulate(t *testing.T, o options) outcome {
	t.Helper()
	w := newWorld(t, o)
	defer w.tell()
	load := w.newLoad("")
	defer load.Close()
	stop := w.start(load)
	time.Sleep(2 * time.Second)
	for range o.episodes {
		w.episode()
	}
	w.reunite()
	w.liveness()
	w.reunite()
	stop()
	settled := w.settle(load, o.founders())
	return w.outcome(w.judge(w.recorder.History(), fsm.New(), settled))
}

// newLoad makes clients for all nodes.
func (w *world) newLoad(name string) *workload.Workload {
	w.t.Helper()
	load, err := workload.New(workload.Config{
		Dial: w.dial, Nodes: w.o.names(), Address: address, Name: name, Recorder: w.recorder, Seed: w.o.seed,
		Pause: w.o.pause, MinTTL: w.o.minTTL, MaxTTL: 2 * w.o.minTTL, KeyOps: 100, Counts: w.o.counts,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return load
}

// start has clients work until stop is called, which waits for them.
func (w *world) start(load *workload.Workload) (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- load.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	}
}

// settle brings a run to an end that can be judged, and tells when that was.
func (w *world) settle(load *workload.Workload, nodes []string) time.Duration {
	ctx, cancel := context.WithTimeout(w.t.Context(), settling)
	defer cancel()
	settled, err := load.Settle(ctx, nodes)
	if err != nil {
		w.fault("settle", "%v", err)
	}
	w.note("settled")
	w.broken = append(w.broken, load.Broken()...)
	return settled
}

// fault notes that a promise was broken.
func (w *world) fault(rule, format string, args ...any) {
	w.broken = append(w.broken, rule+": "+fmt.Sprintf(format, args...))
}

// tell fails the test for each broken promise, and shows how it came to that.
func (w *world) tell() {
	for _, v := range w.broken {
		w.t.Error(v)
	}
	if w.t.Failed() {
		w.t.Logf("%v\n%s", w.o, w.trace.String())
	}
}

// episode is one or two faults at a time, and some peace after them.
func (w *world) episode() {
	type blow struct {
		history.Fault
		undo func()
	}
	var blows []blow
	for range 1 + w.rng.IntN(2) {
		if len(w.o.faults) == 0 {
			break
		}
		kind := w.any(w.o.faults)
		f := faults[slices.IndexFunc(faults, func(f fault) bool { return f.kind == kind })]
		from := w.recorder.Now()
		nodes, evidence, undo := f.strike(w)
		if len(nodes) == 0 {
			continue
		}
		w.note("%s: %s %s", kind, strings.Join(nodes, ", "), evidence)
		w.struck[kind]++
		blows = append(blows, blow{history.Fault{Kind: kind, Nodes: nodes, From: from, Evidence: evidence}, undo})
		w.rest(0, time.Second)
	}
	w.rest(time.Second, 8*time.Second)
	for _, b := range slices.Backward(blows) {
		if b.undo != nil {
			b.undo()
		}
	}
	w.Net.Heal()
	w.note("healed")
	for _, b := range blows {
		b.To = w.recorder.Now()
		w.recorder.Fault(b.Fault)
	}
	w.rest(time.Second, 6*time.Second)
}

// rest lets a random time pass.
func (w *world) rest(least, most time.Duration) {
	time.Sleep(least + time.Duration(w.rng.Int64N(int64(most-least)+1)))
}

// liveness cuts a minority of the founders off in one direction or ends them, and demands that each of the others soon
// serves reads and writes. What only heals at random would hide a cluster that can't go on by itself.
func (w *world) liveness() {
	names := w.o.founders()
	w.rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	core, rest := names[:len(names)/2+1], names[len(names)/2+1:]
	from := w.recorder.Now()
	how := w.any([]string{"don't hear", "are not heard by", "are stopped, unlike"})
	for _, name := range rest {
		if how == "are stopped, unlike" {
			w.crash(name)
			continue
		}
		for _, other := range core {
			if how == "don't hear" {
				w.Net.CutOneWay(other, name)
			} else {
				w.Net.CutOneWay(name, other)
			}
		}
	}
	evidence := fmt.Sprintf("%v %s %v", rest, how, core)
	w.note("liveness: %s", evidence)
	for _, name := range core {
		if err := w.serves(name, from+progress); err != nil {
			w.fault("liveness", "%s, and for %v %s does not serve: %v", evidence, progress, name, err)
		}
	}
	w.note("liveness: the majority serves after %v", w.recorder.Now()-from)
	w.rest(0, 3*time.Second)
	for _, name := range rest {
		if w.Node(name) == nil {
			w.restart(name)
		}
	}
	w.Net.Heal()
	w.note("healed")
	w.recorder.Fault(history.Fault{Kind: "liveness", Nodes: rest, From: from, To: w.recorder.Now(), Evidence: evidence})
}

// serves waits until a node carries out a write and a linearizable read, until a time since the start of the run.
func (w *world) serves(node string, until time.Duration) error {
	conn, err := w.dial("prober", node, w.recorder.DialOptions("prober", node)...)
	if err != nil {
		return err
	}
	defer conn.Close()
	registry := apiv1.NewRegistryServiceClient(conn)
	for {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
		_, err = registry.Register(ctx, &apiv1.RegisterRequest{Instance: &registryv1.Instance{
			Service: "prober", Id: node, Address: "10.0.0.1",
		}})
		if err == nil {
			_, err = registry.Get(ctx, &apiv1.GetRequest{Key: &apiv1.InstanceKey{Service: "prober", Id: node}})
		}
		cancel()
		if err == nil || w.recorder.Now() > until {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// judge holds what the clients saw against what the nodes applied, from a state on.
func (w *world) judge(h *history.History, start *fsm.State, settled time.Duration) (*oracle.Timeline, check.Figures) {
	w.t.Helper()
	timeline, err := w.log.Replay(start)
	if err != nil {
		w.t.Fatal(err)
	}
	found, figures := check.Judge(&check.Run{
		History: h, Timeline: timeline, Clashes: w.log.Clashes(), Grace: grace, Settled: settled,
	})
	for _, v := range found {
		w.fault(v.Rule, "%s\n%s", v.Detail, evidence(v.Detail, h, timeline))
	}
	return timeline, figures
}

// outcome tells what the run met, and holds the snapshots that were saved against the log.
func (w *world) outcome(timeline *oracle.Timeline, figures check.Figures) outcome {
	for _, st := range w.saved {
		if have, want := st.Hash(), timeline.AtIndex(st.Index()).Hash(); have != want {
			w.fault("snapshot", "saved at index %d with hash %x, replay has %x", st.Index(), have, want)
		}
	}
	out := outcome{figures: figures, calls: len(w.recorder.History().Calls), leaders: len(w.led()), struck: w.struck}
	for _, l := range w.lives {
		out.installed += len(l.skips(timeline))
	}
	return out
}
