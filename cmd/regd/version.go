package main

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
)

// buildInfo is what is known of this binary.
type buildInfo struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Date    string `json:"date"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

// complete fills in what the linker was not told: for a binary made by `go install`, Go knows version and commit.
func (b buildInfo) complete() buildInfo {
	b.Go, b.OS, b.Arch = runtime.Version(), runtime.GOOS, runtime.GOARCH
	info, ok := debug.ReadBuildInfo()
	if !ok || b.Version != "devel" {
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Date = s.Value
		}
	}
	return b
}

func newVersionCmd(a *app) *cobra.Command {
	var out *output
	var conn *connection
	var check bool
	cmd := &cobra.Command{
		Use:   "version [flags]",
		Short: "Show the version of this binary, and whether the nodes have the same.",
		Example: `  regd version

  # Before and after an upgrade.
  regd version --check

  # For programs.
  regd version -o json`,
		Annotations: map[string]string{helpAnnotation: "Exit codes of --check: 0 all versions are the same, 8 they differ, 5 nobody answers."},
		Args:        arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if check {
				return conn.call(cmd, func(ctx context.Context, cl *client.Client) error { return checkVersions(ctx, cl, out) })
			}
			if out.isDocument() {
				return out.printDocument(a.build)
			}
			return a.printBuild()
		},
	}
	out = a.addOutput(cmd, formatText, formatJSON, formatYAML)
	cmd.Flags().BoolVar(&check, "check", false, "ask the nodes for their versions too")
	conn = a.addConnection(cmd)
	return cmd
}

func (a *app) printBuild() error {
	_, err := fmt.Fprintf(a.answer(), "regd %s\ncommit %s\ndate   %s\n%s %s/%s\n",
		a.build.Version, a.build.Commit, a.build.Date, a.build.Go, a.build.OS, a.build.Arch)
	return wrapWrite(err)
}

// nodeVersion is the version of one node.
type nodeVersion struct {
	Name      string `json:"name"`
	Reachable bool   `json:"reachable"`
	Version   string `json:"version,omitempty"` // if reachable
}

// checkVersions compares the version of this binary with those of the nodes that can be reached.
func checkVersions(ctx context.Context, cl *client.Client, out *output) error {
	resp, err := cl.Cluster().Members(ctx)
	if err != nil {
		return err
	}
	doc := struct {
		buildInfo
		Same  bool          `json:"same"`
		Nodes []nodeVersion `json:"nodes"`
	}{out.build, true, []nodeVersion{}}
	var others []string
	for _, m := range viewMembers(resp.GetMembers()) {
		n := nodeVersion{Name: m.Name, Reachable: m.Reachable}
		if n.Reachable {
			n.Version = m.Version
			if n.Version != out.build.Version {
				doc.Same = false
				others = append(others, fmt.Sprintf("%s has %s", n.Name, cmp.Or(n.Version, "an unknown one")))
			}
		}
		doc.Nodes = append(doc.Nodes, n)
	}
	if out.isDocument() {
		err = out.printDocument(doc)
	} else if err = out.printBuild(); err == nil {
		fmt.Fprintln(out.answer())
		err = tableOf[nodeVersion]{columns: []column[nodeVersion]{
			{title: "NODE", text: func(v nodeVersion) string { return v.Name }},
			{title: "VERSION", text: func(v nodeVersion) string {
				if !v.Reachable {
					return "<unreachable>"
				}
				return v.Version
			}},
		}}.print(out.answer(), doc.Nodes, tableStyle{headers: true, paint: out.paintFor(out.stdout)})
	}
	if err != nil {
		return err
	}
	if !doc.Same {
		out.note("warning: the versions differ: this binary is %s, %s", out.build.Version, clean(strings.Join(others, ", ")))
		return &silentError{exitDegraded}
	}
	return nil
}
