package main

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A reference is a page of docs/reference that is made from what the binary itself goes by. With -rewrite they are written
// anew, to be reviewed as a diff.

// referencePath is where a page of the reference lies.
func referencePath(page string) string { return filepath.Join("..", "..", "docs", "reference", page) }

// cell writes text so that a table of Markdown shows it as it is.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "_", `\_`, "*", `\*`).Replace(text)
}

// code writes a value of a table in Markdown as code, and no value as nothing.
func code(value string) string {
	if value == "" {
		return ""
	}
	return "`" + strings.ReplaceAll(value, "|", `\|`) + "`"
}

// explained are the parts of what is said of a flag: the name of its value, what it means, its variable and its default.
func explained(f *pflag.Flag) (value, meaning, variable, def string) {
	value, meaning = pflag.UnquoteUsage(f)
	if names := f.Annotations[envAnnotation]; len(names) > 0 {
		variable = names[0]
		meaning = strings.TrimSuffix(meaning, " [$"+variable+"]")
	}
	if def = f.DefValue; slices.Contains([]string{"", "false", "0", "0s", "[]"}, def) {
		def = ""
	}
	return value, meaning, variable, def
}

// flagTable is a table of flags, and nothing without any.
func flagTable(flags []*pflag.Flag) string {
	if len(flags) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\n| flag | variable | default | meaning |\n|---|---|---|---|\n")
	for _, f := range flags {
		value, meaning, variable, def := explained(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", code(strings.TrimSpace(name+" "+value)), code(variable), code(def), cell(meaning))
	}
	return b.String()
}

// flagsOf are the flags of a command that its help shows, apart from --help, and the titles of the groups of shared ones
// that it has. Those of a node, which config.md explains, are left out and counted.
func flagsOf(cmd *cobra.Command, shared map[string]*pflag.Flag, settings *pflag.FlagSet) (own []*pflag.Flag, groups []string, ofNode int) {
	eachFlag(cmd, func(f *pflag.Flag) {
		if setting := settings.Lookup(f.Name); setting != nil && setting.Usage == f.Usage {
			ofNode++
			return
		}
		if shared[f.Name] == nil {
			own = append(own, f)
			return
		}
		for _, g := range flagGroups {
			if slices.Contains(g.flags, f.Name) && !slices.Contains(groups, g.title) {
				groups = append(groups, g.title)
			}
		}
	})
	return own, groups, ofNode
}

// eachFlag visits the flags of a command that its help shows, apart from --help.
func eachFlag(cmd *cobra.Command, visit func(*pflag.Flag)) {
	shown := func(f *pflag.Flag) {
		if !f.Hidden && f.Name != "help" {
			visit(f)
		}
	}
	cmd.LocalFlags().SortFlags = cmd.Flags().SortFlags
	cmd.LocalFlags().VisitAll(shown)
	cmd.InheritedFlags().VisitAll(shown)
}

// sharedFlags are the flags of the groups which are the same in all commands that have them, by name.
func sharedFlags(root *cobra.Command) map[string]*pflag.Flag {
	shared, differ := map[string]*pflag.Flag{}, map[string]bool{}
	walk(root, func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		eachFlag(cmd, func(f *pflag.Flag) {
			if first := shared[f.Name]; first != nil && (first.Usage != f.Usage || first.DefValue != f.DefValue) {
				differ[f.Name] = true
			}
			shared[f.Name] = f
		})
	})
	maps.DeleteFunc(shared, func(name string, _ *pflag.Flag) bool {
		return differ[name] || !slices.ContainsFunc(flagGroups, func(g flagGroup) bool { return slices.Contains(g.flags, name) })
	})
	return shared
}

const cliHead = `<!-- Made from the commands of cmd/regd by: go test ./cmd/regd -run Reference -rewrite -->

# Command line

Every command of ` + "`regd`" + ` with its flags. ` + "`regd COMMAND --help`" + ` says the same for one. The settings of a node are explained in
[config.md](config.md), errors of the API in [errors.md](errors.md).

A flag wins over its variable of the environment. Further variables: ` + "`REGD_TOKEN`" + ` is the token that is shown where
` + "`--token-file`" + ` names none; ` + "`NO_COLOR`, `CLICOLOR_FORCE` and `TERM=dumb`" + ` are heeded by ` + "`--color auto`" + `; ` + "`XDG_STATE_HOME`" + ` is
where ` + "`regd dev`" + ` keeps its state.

## Exit codes

| code | meaning |
|---|---|
`

// cliPage is the reference of the command line.
func cliPage(root *cobra.Command, settings *pflag.FlagSet) string {
	var b strings.Builder
	b.WriteString(cliHead)
	for _, e := range exitMeanings {
		fmt.Fprintf(&b, "| %d | %s |\n", e.code, cell(e.meaning))
	}
	shared := sharedFlags(root)
	for _, g := range flagGroups {
		var flags []*pflag.Flag
		for _, name := range g.flags {
			if f := shared[name]; f != nil {
				flags = append(flags, f)
			}
		}
		fmt.Fprintf(&b, "\n## Flags: %s\n%s", g.title, flagTable(flags))
	}
	walk(root, func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", cmd.CommandPath(), cell(cmd.Short))
		if cmd.Runnable() {
			fmt.Fprintf(&b, "\n```\n%s\n```\n", cmd.UseLine())
		}
		own, groups, ofNode := flagsOf(cmd, shared, settings)
		b.WriteString(flagTable(own))
		var links []string
		if ofNode > 0 {
			links = append(links, "[the settings of a node](config.md)")
		}
		for _, title := range groups {
			links = append(links, fmt.Sprintf("[%s](#flags-%s)", title, strings.ToLower(title)))
		}
		if len(links) > 0 && cmd.Runnable() {
			fmt.Fprintf(&b, "\nFlags too: %s.\n", strings.Join(links, ", "))
		}
	})
	return b.String()
}

const configHead = `<!-- Made from the flags of regd serve by: go test ./cmd/regd -run Reference -rewrite -->

# Settings of a node

What ` + "`regd serve`" + ` can be told. Each setting is a flag, a variable of the environment and a key of the YAML file that
` + "`--config`" + ` names. A flag wins over the environment, that over the file. A list is ` + "`a,b`" + ` as flag and variable, and may be a
list in the file. Unknown keys are errors. ` + "`regd config check`" + ` says all that is wrong with the settings of a node, ` + "`regd config\nshow`" + `
what they are and where each is from. None is read again while the node runs, but the files that hold certificates are.

Go's own ` + "`GOGC`, `GOMEMLIMIT` and `GOMAXPROCS`" + ` are heeded; [sizing.md](../sizing.md) says what a node needs.

| key and flag | variable | value | default | meaning |
|---|---|---|---|---|
`

// configPage is the reference of the settings.
func configPage(settings *pflag.FlagSet) string {
	var b strings.Builder
	b.WriteString(configHead)
	settings.VisitAll(func(f *pflag.Flag) {
		value, meaning, variable, def := explained(f)
		key := "`" + f.Name + "`"
		if f.Name == "config" {
			key += ", not in the file"
		}
		if f.Value.Type() == "bool" {
			value = "true, false"
		}
		fmt.Fprintf(&b, "| <a id=\"%s\"></a>%s | %s | %s | %s | %s |\n", f.Name, key, code(variable), cell(value), code(def), cell(meaning))
	})
	return b.String()
}

// nodeSettings are the flags of regd serve that are settings.
func nodeSettings() *pflag.FlagSet {
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	(&serveSettings{serveConfig: serveConfig{Doors: doors()}}).addFlags(fs)
	return fs
}

// wholeRoot is the command tree with all doors.
func wholeRoot(t *testing.T) *cobra.Command {
	t.Helper()
	a := newShell(t).app(&bytes.Buffer{}, &bytes.Buffer{})
	a.doors = doors
	return a.root()
}

func TestCommandReferenceIsFresh(t *testing.T) {
	root := wholeRoot(t)
	asReviewed(t, referencePath("cli.md"), cliPage(root, nodeSettings()))
}

func TestConfigReferenceIsFresh(t *testing.T) {
	asReviewed(t, referencePath("config.md"), configPage(nodeSettings()))
}

// Each command, and each flag that help shows, is in the reference.
func TestReferencesAreComplete(t *testing.T) {
	root, settings := wholeRoot(t), nodeSettings()
	cli, config := cliPage(root, settings), configPage(settings)
	walk(root, func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		if !strings.Contains(cli, "\n## "+cmd.CommandPath()+"\n") {
			t.Errorf("cli.md lacks %s", cmd.CommandPath())
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && f.Name != "help" && !strings.Contains(cli, "--"+f.Name) && !strings.Contains(config, "`"+f.Name+"`") {
				t.Errorf("%s --%s is in no reference", cmd.CommandPath(), f.Name)
			}
		})
	})
}
