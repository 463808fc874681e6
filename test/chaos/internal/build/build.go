package build

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Edit replaces a text of a source file.
type Edit struct {
	// File is relative to the root of the module.
	File string
	// Old is the text, which must be there exactly once, and New what takes its place.
	Old, New string
}

// built is what this process has built.
var built struct {
	mu       sync.Mutex // held while building, too: one build keeps all cores busy
	dir      string
	binaries map[[sha256.Size]byte]string // paths, by what the overlay holds
}

// Build returns the path of a regd that has the instruments and the mutants. The same is built once in a process. It
// fails the test if an edit's text is not there exactly once, or if the result does not compile.
func Build(tb testing.TB, mutants ...Mutant) string {
	tb.Helper()
	path, err := build(mutants)
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

// Cleanup removes what was built. For TestMain.
func Cleanup() {
	built.mu.Lock()
	defer built.mu.Unlock()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	built.dir, built.binaries = "", nil
}

func build(mutants []Mutant) (string, error) {
	files, err := overlay(mutants)
	if err != nil {
		return "", err
	}
	built.mu.Lock()
	defer built.mu.Unlock()
	content := files.sum()
	if path, ok := built.binaries[content]; ok {
		return path, nil
	}
	if built.dir == "" {
		if built.dir, err = os.MkdirTemp("", "regd-chaos-bin-"); err != nil {
			return "", err
		}
		built.binaries = map[[sha256.Size]byte]string{}
	}
	dir, err := os.MkdirTemp(built.dir, "")
	if err != nil {
		return "", err
	}
	replace, err := files.write(dir)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "regd")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-overlay", replace, "-o", path, "github.com/regd-io/regd/cmd/regd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // As make build has it.
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build regd with %s: %w\n%s", names(mutants), err, out)
	}
	built.binaries[content] = path
	return path, nil
}

func names(mutants []Mutant) string {
	list := []string{"instruments"}
	for _, m := range mutants {
		list = append(list, m.Name)
	}
	return strings.Join(list, ", ")
}

// sources are contents of files by path: what the compiler reads in their place.
type sources map[string][]byte

// overlay returns all that differs from the source tree.
func overlay(mutants []Mutant) (sources, error) {
	module, goroot, err := roots()
	if err != nil {
		return nil, err
	}
	files := sources{
		filepath.Join(goroot, "src/time/zz_chaos.go"):      clockSource,
		filepath.Join(module, "cmd/regd/zz_chaos.go"):      nodeSource,
		filepath.Join(module, "cmd/regd/zz_chaosapply.go"): appliedSource,
	}
	errs := []error{files.edit(goroot, clockEdit()), files.edit(module, nodeEdit())}
	for _, m := range mutants {
		for _, e := range m.Edits {
			if err := files.edit(module, e); err != nil {
				errs = append(errs, fmt.Errorf("mutant %s: %w", m.Name, err))
			}
		}
	}
	return files, errors.Join(errs...)
}

// roots returns the folders of the module and of the Go tree.
func roots() (module, goroot string, err error) {
	out, err := exec.Command("go", "env", "GOMOD", "GOROOT").Output()
	if err != nil {
		return "", "", fmt.Errorf("go env: %w", err)
	}
	lines := strings.Split(string(out), "\n")
	if len(lines) < 2 || filepath.Base(lines[0]) != "go.mod" {
		return "", "", fmt.Errorf("go env: not in a module: %q", out)
	}
	return filepath.Dir(lines[0]), lines[1], nil
}

// edit makes an edit in a file below root, on top of those made before.
func (s sources) edit(root string, e Edit) error {
	path := filepath.Join(root, e.File)
	content, ok := s[path]
	if !ok {
		var err error
		if content, err = os.ReadFile(path); err != nil {
			return err
		}
	}
	if n := bytes.Count(content, []byte(e.Old)); n != 1 {
		return fmt.Errorf("%s has %d times, not once, the text that is to be replaced:\n%s", e.File, n, e.Old)
	}
	s[path] = bytes.Replace(content, []byte(e.Old), []byte(e.New), 1)
	return nil
}

// sum is a hash over everything.
func (s sources) sum() [sha256.Size]byte {
	h := sha256.New()
	for _, path := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(h, "%s %d\n%s", path, len(s[path]), s[path])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// write writes the files into dir and returns the path of the description that go build -overlay takes.
func (s sources) write(dir string) (string, error) {
	replace := map[string]string{}
	for i, path := range slices.Sorted(maps.Keys(s)) {
		replace[path] = filepath.Join(dir, fmt.Sprintf("%d-%s", i, filepath.Base(path)))
		if err := os.WriteFile(replace[path], s[path], 0o600); err != nil {
			return "", err
		}
	}
	description, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, description, 0o600)
}
