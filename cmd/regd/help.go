package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// helpAnnotation holds text that closes the help of a command: exit codes, what to look at next.
const helpAnnotation = "regd_see"

// flagGroup is a heading of flags.
type flagGroup struct {
	title string
	flags []string
}

// flagGroups are the headings of the flags that many commands share, in the order in which they are shown.
var flagGroups = []flagGroup{ //nolint:gochecknoglobals // a constant table
	{"Connection", []string{"endpoint", "timeout", "tls", "ca-cert", "cert", "cert-key", "server-name"}},
	{"Output", []string{"output", "no-headers", "color"}},
}

// help prints the help of a command: what it does, usage, examples, then the flags.
func (a *app) help(cmd *cobra.Command, _ []string) {
	w := cmd.OutOrStdout()
	heading := func(title string) { fmt.Fprintf(w, "\n%s:\n", a.paintFor(w).as(colourBold, title)) }
	fmt.Fprintln(w, cmd.Short)
	heading("Usage")
	fmt.Fprintf(w, "  %s\n", cmd.UseLine())
	if cmd.HasExample() {
		heading("Examples")
		fmt.Fprintln(w, cmd.Example)
	}
	if cmd.Long != "" {
		fmt.Fprintf(w, "\n%s\n", cmd.Long)
	}
	if cmd.HasAvailableSubCommands() {
		helpCommands(w, cmd, heading)
	}
	helpFlags(w, cmd, heading)
	if see := cmd.Annotations[helpAnnotation]; see != "" {
		fmt.Fprintf(w, "\n%s\n", see)
	}
	if !cmd.HasParent() {
		heading("Exit codes")
		for _, e := range exitMeanings {
			fmt.Fprintf(w, "  %3d  %s\n", e.code, e.meaning)
		}
	}
}

func helpCommands(w io.Writer, cmd *cobra.Command, heading func(string)) {
	list := func(title, group string) {
		shown := false
		for _, sub := range cmd.Commands() {
			if sub.GroupID != group || !sub.IsAvailableCommand() {
				continue
			}
			if !shown {
				heading(title)
				shown = true
			}
			fmt.Fprintf(w, "  %-*s  %s\n", cmd.Commands()[0].NamePadding(), sub.Name(), strings.TrimSuffix(sub.Short, "."))
		}
	}
	for _, g := range cmd.Groups() {
		list(g.Title, g.ID)
	}
	list("Commands", "")
}

func helpFlags(w io.Writer, cmd *cobra.Command, heading func(string)) {
	own := pflag.NewFlagSet("own", pflag.ContinueOnError)
	own.SortFlags = cmd.Flags().SortFlags
	shared := make([]*pflag.FlagSet, len(flagGroups))
	for i := range shared {
		shared[i] = pflag.NewFlagSet("shared", pflag.ContinueOnError)
	}
	add := func(f *pflag.Flag) {
		for i, g := range flagGroups {
			for _, name := range g.flags {
				if f.Name == name {
					shared[i].AddFlag(f)
					return
				}
			}
		}
		own.AddFlag(f)
	}
	cmd.LocalFlags().VisitAll(add)
	cmd.InheritedFlags().VisitAll(add)
	if own.HasAvailableFlags() {
		heading("Flags")
		fmt.Fprint(w, own.FlagUsages())
	}
	for i, g := range flagGroups {
		if shared[i].HasAvailableFlags() {
			heading(g.title)
			fmt.Fprint(w, shared[i].FlagUsages())
		}
	}
}
