package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
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
	cmd := &cobra.Command{
		Use:   "version [flags]",
		Short: "Show the version of this binary.",
		Example: `  regd version

  # For programs.
  regd version -o json`,
		Args: arguments(),
		RunE: func(*cobra.Command, []string) error {
			if out.format == formatJSON {
				return printJSON(a.answer(), a.build)
			}
			_, err := fmt.Fprintf(a.answer(), "regd %s\ncommit %s\ndate   %s\n%s %s/%s\n",
				a.build.Version, a.build.Commit, a.build.Date, a.build.Go, a.build.OS, a.build.Arch)
			return wrapWrite(err)
		},
	}
	out = a.addOutput(cmd, formatText, formatJSON)
	return cmd
}
