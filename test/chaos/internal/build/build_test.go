package build

import (
	"bytes"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/regd-io/regd/test/internal/oracle"
)

func TestMain(m *testing.M) {
	code := m.Run()
	Cleanup()
	os.Exit(code)
}

// What has moved in the source tree since a mutant was written shows here, and not only once a chaos run is due.
func TestMutantsFitTodaysSource(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range Mutants() {
		t.Run(m.Name, func(t *testing.T) {
			if seen[m.Name] || m.Promise == "" || m.Rule == "" || len(m.Edits) == 0 {
				t.Errorf("a mutant has a name of its own, a promise, a rule and edits: %+v", m)
			}
			seen[m.Name] = true
			parse(t, m)
		})
	}
	if len(seen) != 10 {
		t.Errorf("%d mutants", len(seen))
	}
}

func TestAllMutantsFitTogether(t *testing.T) {
	var some []Mutant
	for _, m := range Mutants() {
		if m.Name != "M3" { // It and M2 are two ways to break the same line.
			some = append(some, m)
		}
	}
	parse(t, some...)
}

// parse makes the overlay and reads it as Go.
func parse(t *testing.T, mutants ...Mutant) {
	t.Helper()
	files, err := overlay(mutants)
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range files {
		if _, err := parser.ParseFile(token.NewFileSet(), path, content, parser.SkipObjectResolution); err != nil {
			t.Error(err)
		}
	}
}

func TestATextThatIsNotThereOnceIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("one two two"), 0o600); err != nil {
		t.Fatal(err)
	}
	for old, want := range map[string]bool{"one": true, "two": false, "three": false} {
		files := sources{}
		err := files.edit(dir, Edit{File: "f", Old: old, New: "1"})
		if (err == nil) != want {
			t.Errorf("replacing %q: %v", old, err)
		}
		if got := string(files[filepath.Join(dir, "f")]); want && got != "1 two two" {
			t.Errorf("replacing %q gave %q", old, got)
		}
	}
	if err := (sources{}).edit(dir, Edit{File: "none", Old: "one"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := build([]Mutant{{Name: "M0", Edits: []Edit{{File: "go.mod", Old: "no such text"}}}}); err == nil || !strings.Contains(err.Error(), "M0") {
		t.Errorf("a mutant that does not fit: %v", err)
	}
}

func TestEditsOfOneFileAddUp(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("one two"), 0o600); err != nil {
		t.Fatal(err)
	}
	files := sources{}
	before := files.sum()
	for _, e := range []Edit{{"f", "one", "1"}, {"f", "two", "2"}} {
		if err := files.edit(dir, e); err != nil {
			t.Fatal(err)
		}
	}
	if got := string(files[filepath.Join(dir, "f")]); got != "1 2" || files.sum() == before {
		t.Errorf("got %q", got)
	}
}

// The variables are named twice: the files that are added to regd can import nothing of the tests.
func TestTheAddedFilesReadTheVariables(t *testing.T) {
	for _, name := range []string{
		EnvSnapshotThreshold, EnvSnapshotInterval, EnvTrailingLogs, EnvMinFreeBytes, EnvFeedEvents, EnvFeedBytes, EnvQueueEvents,
		EnvApplied,
	} {
		if bytes.Count(nodeSource, []byte(`"`+name+`"`)) != 1 {
			t.Errorf("regd does not read %s", name)
		}
	}
	if !bytes.Contains(clockSource, []byte(`"`+EnvClock+`"`)) {
		t.Errorf("package time does not read %s", EnvClock)
	}
}

func TestAppliedFramesAreTheOracles(t *testing.T) {
	type entry struct {
		index, term uint64
		size        int
	}
	first := []entry{{1, 1, 0}, {127, 128, 1}, {128, 127, 127}, {1 << 20, 3, 128}, {math.MaxUint64, math.MaxUint64, 300 << 10}}
	later := []entry{{5, 6, 700}}
	frames := func(entries []entry) (all []byte) {
		for _, e := range entries {
			all = oracle.AppendEntry(all, e.index, e.term, bytes.Repeat([]byte{'x'}, e.size))
		}
		return all
	}
	program := applier(t)
	apply := func(path string, entries []entry) {
		t.Helper()
		args := []string{path}
		for _, e := range entries {
			args = append(args, fmt.Sprint(e.index), fmt.Sprint(e.term), fmt.Sprint(e.size))
		}
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	check := func(what, path string, want []byte) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d (%v): %s", what, len(got), len(want), err, cmp.Diff(want[:min(len(want), 64)], got[:min(len(got), 64)]))
		}
	}
	path := filepath.Join(t.TempDir(), "applied")
	apply(path, first)
	check("a first start", path, frames(first))
	apply(path, later)
	check("a second start", path, append(frames(first), frames(later)...))

	// A kill in the middle of a write must not spoil what the next start appends.
	whole := frames(first[:3])
	for cut := range whole {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		kept := first[:0:0]
		for _, e := range first[:3] {
			if len(frames(append(kept, e))) <= cut {
				kept = append(kept, e)
			}
		}
		apply(path, later)
		check(fmt.Sprintf("after a kill at %d", cut), path, append(frames(kept), frames(later)...))
	}
}

// applier builds a program that appends entries, given by index, term and size, to a file, as regd does.
func applier(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	const program = `package main

import (
	"bytes"
	"os"
	"strconv"
)

func main() {
	apply, err := chaosApplied(os.Args[1])
	if err != nil {
		panic(err)
	}
	for rest := os.Args[2:]; len(rest) > 0; rest = rest[3:] {
		index, _ := strconv.ParseUint(rest[0], 10, 64)
		term, _ := strconv.ParseUint(rest[1], 10, 64)
		size, _ := strconv.Atoi(rest[2])
		apply(index, term, bytes.Repeat([]byte{'x'}, size))
	}
}
`
	files := []string{filepath.Join(dir, "main.go"), filepath.Join(dir, "apply.go")}
	for i, content := range [][]byte{[]byte(program), appliedSource} {
		if err := os.WriteFile(files[i], content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "applier")
	if out, err := exec.Command("go", append([]string{"build", "-o", path}, files...)...).CombinedOutput(); err != nil {
		t.Fatalf("build the applier: %v\n%s", err, out)
	}
	return path
}

// TestMutantsCompile runs when CHAOS_MUTANTS=1, as it takes some minutes; CHAOS_MUTANTS=M3 tries one.
func TestMutantsCompile(t *testing.T) {
	which := os.Getenv("CHAOS_MUTANTS")
	if which == "" {
		t.Skip("takes some minutes: make chaos-mutants")
	}
	paths := map[string]string{Build(t): "none"}
	for _, m := range Mutants() {
		if which != "1" && which != m.Name {
			continue
		}
		path := Build(t, m)
		if other, ok := paths[path]; ok {
			t.Errorf("%s and %s are one binary", m.Name, other)
		}
		paths[path] = m.Name
	}
}
