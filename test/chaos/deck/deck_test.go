package deck

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/regd-io/regd/fsm"
	"github.com/regd-io/regd/test/chaos/internal/build"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
	"github.com/regd-io/regd/test/chaos/internal/report"
	"github.com/regd-io/regd/test/internal/check"
	"github.com/regd-io/regd/test/internal/history"
	"github.com/regd-io/regd/test/internal/oracle"
	"github.com/regd-io/regd/test/internal/workload"
)

func TestMain(m *testing.M) {
	code := m.Run()
	build.Cleanup()
	os.Exit(code)
}

const (
	// recovery is how soon after a fault was undone every node must serve writes, and all vote.
	recovery = 20 * time.Second
	// grace is how late an expiry may be while nothing is wrong.
	grace = 2 * time.Second
	// outage is how long writes may fail while a majority can work.
	outage = 5 * time.Second
)

// whole has all faults.
func whole() profile {
	return profile{
		name: "whole", nodes: 5, episodes: 26, last: 2500 * time.Millisecond, pause: 60 * time.Millisecond,
		counts: workload.Counts{
			Pinned: 5, Roaming: 5, Duplicates: 3, Sessions: 8, Leases: 6, Lockers: 6, Watchers: 12, Programs: 2,
		},
		least: report.Minimum{Operations: 20_000, Share: 0.1, Faults: 26},
		facts: map[string]int{
			factLeaders: 5, factExpiries: 50, factRenewals: 500, factHandovers: 50, factRepeated: 10, factEvents: 10_000,
			factResumed: 20, factInstalled: 3, factAccesses: 2_000, factHashes: 5,
		},
	}
}

// rapid replaces the leader over and over, on timers as short as can be: what goes wrong when terms overlap shows in few
// of many pauses.
func rapid() profile {
	p := whole()
	p.name, p.nodes, p.args = "rapid", 3, []string{"--heartbeat-timeout", "250ms"}
	p.kinds, p.episodes, p.last = []string{"pause leader"}, 30, 700*time.Millisecond
	p.least = report.Minimum{Operations: 10_000, Share: 0.1, Faults: 30}
	p.facts = map[string]int{factLeaders: 20, factAccesses: 2_000, factHashes: 20}
	return p
}

// What a run is to meet.
const (
	factLeaders   = "leaders that wrote"
	factExpiries  = "expiries of sessions and leases"
	factRenewals  = "acknowledged renewals"
	factHandovers = "locks handed over"
	factRepeated  = "requests repeated in the log"
	factEvents    = "watch events checked"
	factResumed   = "watches resumed"
	factInstalled = "watches told of an installed snapshot"
	factAccesses  = "accesses in linearizability checks"
	factHashes    = "state hashes compared"
)

// TestDeck deals the deck. CHAOS_SEED chooses the seed, CHAOS_REPORT a folder for the reports as JSON and text, and for
// what the nodes applied and logged when a promise was broken. It runs when CHAOS=1: it takes many minutes.
func TestDeck(t *testing.T) {
	nodes.Alone(t)
	seed := rand.Uint64N(1_000_000)
	if s := os.Getenv("CHAOS_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("CHAOS_SEED=%q: must be a number", s)
		}
	}
	t.Logf("seed %d", seed)
	for _, p := range []profile{whole(), rapid()} {
		t.Run(p.name, func(t *testing.T) {
			r := deal(t, seed, p)
			var text strings.Builder
			if err := r.WriteText(&text, p.least); err != nil {
				t.Fatal(err)
			}
			t.Log("\n" + text.String())
			if dir := os.Getenv("CHAOS_REPORT"); dir != "" {
				keep(t, filepath.Join(dir, p.name), r, text.String())
			}
			if len(r.Violations) > 0 || len(r.Invalid(p.least)) > 0 {
				t.Fail()
			}
		})
	}
}

// keep writes the report into a folder.
func keep(t *testing.T, dir string, r *report.Report, text string) {
	t.Helper()
	var b bytes.Buffer
	err := r.WriteJSON(&b)
	if err == nil {
		err = os.MkdirAll(dir, 0o750)
	}
	for name, content := range map[string][]byte{"chaos.json": b.Bytes(), "chaos.txt": []byte(text)} {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), content, 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// deal makes a run and judges it.
func deal(t *testing.T, seed uint64, p profile, mutants ...build.Mutant) *report.Report {
	t.Helper()
	begun := time.Now()
	w := newWorld(t, seed, p, mutants...)
	var names []string
	for _, n := range w.c.Nodes() {
		names = append(names, n.Name)
	}
	load, err := workload.New(workload.Config{
		Dial: w.dial, Nodes: names, Address: func(node string) string { return w.c.Node(node).GRPC }, Recorder: w.rec, Seed: seed,
		Pause: p.pause, MinTTL: minTTL, MaxTTL: 2 * minTTL, Counts: p.counts,
	})
	w.must(err)
	t.Cleanup(load.Close) // Its clients would find the next cluster, which has the same addresses.
	ctx, cancel := context.WithCancel(t.Context())
	loaded := make(chan error, 1)
	go func() { loaded <- load.Run(ctx) }()
	for i, e := range schedule(w.rng, w.deck(p.kinds), p.episodes, p.last) {
		t.Logf("%v: episode %d: %v", time.Since(begun).Round(time.Second), i+1, e)
		w.play(e)
	}
	time.Sleep(2 * time.Second)
	cancel()
	w.must(<-loaded)
	settling, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	settled, err := load.Settle(settling, names)
	if err != nil {
		w.fault("settle", "%v", err)
	}
	load.Close()
	r := w.judge(settled)
	for _, b := range load.Broken() {
		rule, detail, _ := strings.Cut(b, ": ")
		r.Violations = append(r.Violations, check.Violation{Rule: rule, Detail: detail})
	}
	r.Seed, r.Profile, r.Nodes, r.Took = int64(seed), p.name, p.nodes, time.Since(begun) //nolint:gosec // Below a million, or the user's.
	r.Replay = fmt.Sprintf("make chaos SEED=%d", seed)
	if dir := os.Getenv("CHAOS_REPORT"); dir != "" && len(r.Violations) > 0 {
		w.keepEvidence(filepath.Join(dir, p.name))
	}
	return r
}

// keepEvidence copies what each node applied and logged into a folder.
func (w *world) keepEvidence(dir string) {
	w.t.Helper()
	w.must(os.MkdirAll(dir, 0o750))
	for _, n := range w.c.Nodes() {
		applied, err := os.ReadFile(w.appliedFile(n.Name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, n.Name+".applied"), applied, 0o600)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, n.Name+".log"), []byte(n.Log(math.MaxInt)), 0o600)
		}
		w.must(err)
	}
}

// deck is the faults of the given kinds, or all.
func (w *world) deck(kinds []string) []fault {
	if len(kinds) == 0 {
		return w.faults
	}
	return slices.DeleteFunc(slices.Clone(w.faults), func(f fault) bool { return !slices.Contains(kinds, f.kind) })
}

// play makes one episode. What accompanies a fault begins first and ends last: the fault may hide from us who leads.
func (w *world) play(e episode) {
	time.Sleep(e.peace)
	undone, faults := make([]undo, len(e.faults)), make([]history.Fault, len(e.faults))
	for i, f := range slices.Backward(e.faults) {
		faults[i] = history.Fault{Kind: f.kind, From: w.rec.Now()}
		undone[i] = f.begin(w)
	}
	time.Sleep(e.last)
	for i := range undone {
		d := undone[i]()
		faults[i].Nodes, faults[i].Evidence, faults[i].To = d.nodes, d.evidence, w.rec.Now()
	}
	err := w.recover(recovery)
	if err != nil {
		w.fault("live", "after %v: %v", e, err)
	}
	w.verify()
	for _, f := range faults {
		if err == nil {
			f.Recovered = w.rec.Now()
		}
		w.rec.Fault(f)
	}
}

// judge holds what the clients saw against what the nodes applied.
func (w *world) judge(settled time.Duration) *report.Report {
	begun := time.Now()
	log := oracle.NewLog()
	for _, n := range w.c.Nodes() {
		w.must(log.ReadFile(n.Name, w.appliedFile(n.Name)))
	}
	h := w.rec.History()
	r := &report.Report{Commit: commit(w.t), Violations: w.broken, Skipped: w.skipped}
	timeline, err := log.Replay(fsm.New())
	if err != nil {
		for _, clash := range log.Clashes() {
			r.Violations = append(r.Violations, check.Violation{Rule: "replica-clash", Detail: clash})
		}
		r.Violations = append(r.Violations, check.Violation{Rule: "replay", Detail: err.Error()})
		r.Fill(h, nil)
		return r
	}
	found, figures := check.Judge(&check.Run{
		History: h, Timeline: timeline, Clashes: log.Clashes(), Grace: grace, Recovery: recovery, Settled: settled,
	})
	r.Violations = append(r.Violations, found...)
	for _, f := range w.faults {
		if gap := figures.Gaps[f.kind].Longest; gap > outage && !f.stops {
			r.Violations = append(r.Violations, check.Violation{
				Rule: "outage", Detail: fmt.Sprintf("no write was acknowledged for %v around %q, want at most %v", gap, f.kind, outage),
			})
		}
	}
	r.Fill(h, figures.Gaps)
	r.Checks = time.Since(begun)
	r.Facts = []report.Fact{
		{What: factLeaders, Count: len(timeline.Terms())},
		{What: factExpiries, Count: figures.Lease.Expired},
		{What: factRenewals, Count: figures.Lease.Renewals},
		{What: factHandovers, Count: figures.Lock.Handovers},
		{What: factRepeated, Count: figures.Once.Repeated},
		{What: factEvents, Count: figures.Watch.Events},
		{What: factResumed, Count: figures.Watch.Resumed},
		{What: factInstalled, Count: figures.Watch.Cuts["SNAPSHOT_INSTALLED"]},
		{What: factAccesses, Count: figures.Linear.Accesses},
		{What: factHashes, Count: figures.Replica.Hashes},
	}
	for i := range r.Facts {
		r.Facts[i].Least = w.least[r.Facts[i].What]
	}
	r.Notes = []string{
		fmt.Sprintf("least time between the end of a guarantee and its expiry: %v; longest life after a TTL, faults included: %v",
			figures.Lease.Margin.Round(time.Millisecond), figures.Lease.Lateness.Round(time.Millisecond)),
		fmt.Sprintf("log: %d entries to revision %d; watches: %d streams, cuts %v", len(timeline.Steps()), timeline.Final().Revision(),
			figures.Watch.Streams, figures.Watch.Cuts),
	}
	return r
}

// commit is the version of the source, as git tells it.
func commit(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
