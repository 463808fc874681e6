package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// commands are all commands that people see, by path.
func commands(t *testing.T) map[string]*cobra.Command {
	t.Helper()
	all := map[string]*cobra.Command{}
	walk(newShell(t).app(&bytes.Buffer{}, &bytes.Buffer{}).root(), func(cmd *cobra.Command) {
		if !cmd.Hidden {
			all[cmd.CommandPath()] = cmd
		}
	})
	return all
}

func TestEveryCommandIsExplained(t *testing.T) {
	t.Parallel()
	for path, cmd := range commands(t) {
		if !strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: its summary %q is no sentence", path, cmd.Short)
		}
		if !strings.Contains(cmd.Example, path) {
			t.Errorf("%s: no example shows it", path)
		}
		if cmd.Args == nil {
			t.Errorf("%s: its arguments are not checked", path)
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s: --%s is not explained", path, f.Name)
			}
		})
	}
}

func TestHelpIsAsReviewed(t *testing.T) {
	t.Parallel()
	for path := range commands(t) {
		args := append(strings.Fields(path)[1:], "--help")
		golden(t, "help/"+strings.ReplaceAll(path, " ", "-")+".txt", newShell(t).ok(args...))
	}
}

func TestExamplesAreValid(t *testing.T) {
	t.Parallel()
	for path, cmd := range commands(t) {
		for line := range strings.Lines(cmd.Example) {
			line = strings.TrimSpace(line)
			if !strings.HasPrefix(line, "regd ") || strings.ContainsAny(line, `\|>`) || strings.Contains(line, "...") {
				continue
			}
			words := strings.Fields(strings.ReplaceAll(line, "'", ""))
			root := newShell(t).app(&bytes.Buffer{}, &bytes.Buffer{}).root()
			found, rest, err := root.Find(words[1:])
			if err == nil {
				err = found.ParseFlags(rest)
			}
			if err == nil && found.Args != nil {
				err = found.Args(found, found.Flags().Args())
			}
			if err != nil {
				t.Errorf("%s: example %q: %v", path, line, err)
			}
		}
	}
}

func TestMistakesNameTheNearestRightThing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ typed, says string }{
		{"instnces", `unknown command "instnces" for "regd"; did you mean "instances"?`},
		{"wtach web", `did you mean "watch"?`},
		{"instnces --tag x", `unknown command "instnces"`},
		{"frobnicate", `unknown command "frobnicate" for "regd"`},
		{"members jion x:1", `unknown command "jion" for "regd members"; did you mean "join"?`},
		{"dev kil n1", `unknown command "kil" for "regd dev"; did you mean "kill"?`},
		{"lock jobs --slots 0 -- true", `--slots 0: must be 1 to 1000`},
		{"instances --tagg x", `unknown flag --tagg; did you mean "--tag"?`},
		{"serve --data-dri x", `unknown flag --data-dri; did you mean "--data-dir"?`},
		{"instances -o tabel", `--output "tabel": must be one of table, wide, json, yaml, jsonl, name; did you mean "table"?`},
		{"instances --health pasing", `did you mean "passing"?`},
		{"instances --freshness bounded", `must be linearizable, stale, bounded=DURATION or at-least=REVISION; did you mean "bounded"?`},
		{"instances --freshness bounded=2", `bounded needs a duration such as 2s`},
		{"instances --timeout 5", `--timeout "5": must be a duration with its unit`},
		{"instances --meta x", `--meta "x": must be key=value`},
		{"instances a b", `regd instances: unexpected argument "b"`},
		{"deregister web", `regd deregister: missing ID`},
		{"maintenance onn web web-1", `"onn" must be on or off`},
		{"report pasing web web-1", `did you mean "passing"?`},
		{"completion bsh", `unknown shell "bsh"; did you mean "bash"`},
		{"serve --trace-sample half", `--trace-sample "half": must be a number such as 0.25`},
		{"register web --port x", `--port "x": must be a number from 1 to 65535`},
		{"register web --check-http localhost:80", `must be a URL such as http://host:port/path, or a /path`},
		{"register web --check-http /health", `a path needs a --port`},
		{"register web --detach -- true", `--detach and a command exclude each other`},
		{"dev --nodes 0", `--nodes 0: must be 1 to 9`},
		{"status --endpoint nonsense", `missing port in address`},
	} {
		r := newShell(t).run(strings.Fields(tt.typed)...)
		if r.code != exitUsage || !strings.Contains(r.stderr, tt.says) || r.stdout != "" {
			t.Errorf("regd %s: exit code %d, want 2 and %q on stderr\n%s%s", tt.typed, r.code, tt.says, r.stdout, r.stderr)
		}
		if !strings.Contains(r.stderr, "hint: regd") {
			t.Errorf("regd %s: no hint: %s", tt.typed, r.stderr)
		}
	}
}
