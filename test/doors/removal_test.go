package doors_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// wiring is the one line that opens a door, in a file of cmd/regd.
func wiring(name string) *regexp.Regexp {
	return regexp.MustCompile(`(?im)^\t+(new\(` + name + `Door\)|s\.open` + name + `),\n`)
}

// TestADoorCanBeTakenOut takes out the folder of each door, its file of settings, and the line that wires it. What is left
// builds, tests included. With CHAOS_STRICT the tests of the only package that knew of it also pass.
func TestADoorCanBeTakenOut(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	folders, err := filepath.Glob(filepath.Join(root, "rpc", "*", "doc.go"))
	if err != nil || len(folders) == 0 {
		t.Fatalf("there are no doors: %v", err)
	}
	for _, doc := range folders {
		name := filepath.Base(filepath.Dir(doc))
		t.Run(name, func(t *testing.T) {
			overlay := without(t, root, name)
			run := func(args ...string) {
				t.Helper()
				cmd := exec.CommandContext(t.Context(), "go", args...)
				cmd.Dir = root
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("go %s: %v\n%s", strings.Join(args, " "), err, out)
				}
			}
			run("vet", "-overlay", overlay, "./cmd/regd", "./rpc")
			if os.Getenv("CHAOS_STRICT") == "1" {
				run("test", "-count=1", "-run", "Help|Settings|Config|Serve|Ops|Port|Door", "-skip", "Reference", "-overlay", overlay, "./cmd/regd")
			}
		})
	}
}

// without writes what go build takes for -overlay: the tree as it is without a door.
func without(t *testing.T, root, name string) (file string) {
	t.Helper()
	replace := map[string]string{}
	for _, pattern := range []string{"rpc/" + name + "/*.go", "rpc/" + name + "/*/*.go", "cmd/regd/door" + name + "*.go"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			replace[path] = ""
		}
	}
	lines := 0
	sources, err := filepath.Glob(filepath.Join(root, "cmd", "regd", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range sources {
		text, readErr := os.ReadFile(path)
		if readErr != nil {
			t.Fatal(readErr)
		}
		if _, gone := replace[path]; gone {
			continue
		}
		wired := wiring(name).FindAll(text, -1)
		if len(wired) == 0 {
			continue
		}
		lines += len(wired)
		changed := filepath.Join(t.TempDir(), filepath.Base(path))
		if err = os.WriteFile(changed, wiring(name).ReplaceAll(text, nil), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[path] = changed
	}
	if lines != 1 {
		t.Fatalf("%d lines wire the door %s, want one", lines, name)
	}
	encoded, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(file, encoded, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
