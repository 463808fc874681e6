package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newConfigCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config COMMAND",
		Short: "Check and show the settings of a node, without starting it.",
		Example: `  regd config check --config /etc/regd/regd.yaml
  regd config show --config /etc/regd/regd.yaml`,
		Long: "The commands below take the flags of  regd serve  and read the same environment and file.",
		Args: arguments(),
		RunE: onlySubcommands,
	}
	cmd.AddCommand(newConfigCheckCmd(a), newConfigShowCmd(a))
	return cmd
}

func newConfigCheckCmd(a *app) *cobra.Command {
	settings := serveSettings{serveConfig: serveConfig{Doors: a.openings()}}
	cmd := &cobra.Command{
		Use:   "check [flags]",
		Short: "Tell all that is wrong with the settings of a node.",
		Example: `  regd config check --config /etc/regd/regd.yaml

  # As the service manager will start it.
  regd config check --config /etc/regd/regd.yaml --name n1`,
		Long: `Takes the flags of  regd serve  and reads the same environment and file. It finds what can be told without starting
the node: unknown and misspelt keys, values that are none, and settings that exclude each other.`,
		Annotations: map[string]string{helpAnnotation: "Exit codes: 0 the node would take these settings, 78 it would not."},
		Args:        arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := settings.read(cmd.Flags()); err != nil {
				return err
			}
			if err := settings.withDefaults().validate(); err != nil {
				return &exitError{code: exitConfig, err: err}
			}
			_, err := fmt.Fprintln(a.answer(), "the settings are valid")
			return wrapWrite(err)
		},
	}
	settings.addFlags(cmd.Flags())
	return cmd
}

// settingView is a setting with its value.
type settingView struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	// Source is "flag", "environment", "default", or file and line.
	Source   string `json:"source"`
	Variable string `json:"variable"`
}

func newConfigShowCmd(a *app) *cobra.Command {
	settings := serveSettings{serveConfig: serveConfig{Doors: a.openings()}}
	cmd := &cobra.Command{
		Use:   "show [flags]",
		Short: "Show the settings that a node would have, and where each is from.",
		Example: `  regd config show --config /etc/regd/regd.yaml

  # Only what is not a default.
  regd config show --config /etc/regd/regd.yaml -o json | jq '.settings[] | select(.source != "default")'`,
		Long:        "Takes the flags of  regd serve  and reads the same environment and file.",
		Annotations: map[string]string{helpAnnotation: "Exit codes: 0 shown, also when a node would not start with them, 78 the file can't be read."},
		Args:        arguments(),
	}
	own := pflag.NewFlagSet("settings", pflag.ContinueOnError)
	settings.addFlags(own)
	cmd.Flags().SortFlags = false
	cmd.Flags().AddFlagSet(own)
	out := a.addOutput(cmd, formatTable, formatWide, formatJSON, formatYAML, formatJSONL, formatName)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := settings.read(cmd.Flags()); err != nil {
			return err
		}
		shown := viewSettings(own)
		doc := struct {
			Settings []settingView `json:"settings"`
		}{shown}
		return printList(out, doc, shown, tableOf[settingView]{
			columns: []column[settingView]{
				{title: "NAME", text: func(s settingView) string { return s.Name }},
				{title: "VALUE", text: func(s settingView) string { return s.Value }},
				{title: "SOURCE", text: func(s settingView) string { return s.Source }},
				{title: "VARIABLE", wide: true, text: func(s settingView) string { return s.Variable }},
			},
			name: func(s settingView) string { return s.Name },
		})
	}
	return cmd
}

// viewSettings lists settings as a file would have them, in the order of the help.
func viewSettings(settings *pflag.FlagSet) []settingView {
	var views []settingView
	settings.VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" {
			views = append(views, settingView{Name: f.Name, Value: settingValue(f), Source: sourceOf(f), Variable: envName(f.Name)})
		}
	})
	return views
}

// settingValue is the value of a flag as it can be given.
func settingValue(f *pflag.Flag) string {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return strings.Join(list.GetSlice(), ",")
	}
	return f.Value.String()
}
