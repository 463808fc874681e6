package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// app is one run of the program: its streams, its environment and the flags that many commands share. Tests make one
// with buffers.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	build          buildInfo
	doors          func() []door // nil: none

	color string

	progress *progress // the last one

	// What error messages tell of the way to the cluster: how long it was tried, and where the addresses are from.
	timeout time.Duration
	origin  string
}

// Values of --color.
const (
	colorAuto   = "auto"
	colorAlways = "always"
	colorNever  = "never"
)

// Groups of commands in the help.
const (
	groupStart   = "start"
	groupUse     = "use"
	groupOperate = "operate"
	groupTools   = "tools"
)

// run executes one command line and returns the exit code of the process.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root() //nolint:contextcheck // Commands get their context when they are executed.
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil {
		a.report(cmd, err)
	}
	return int(codeOf(err))
}

// root builds the command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "regd",
		Short: "A service registry that survives its nodes.",
		Long: "Services register and stay listed while they are alive and healthy; consumers ask or watch.\n" +
			"Three or five regd nodes keep the registry by Raft.",
		Example: `  # A cluster of three on this machine, with demo services.
  regd dev --demo

  # Then, in a second terminal:
  regd status
  regd instances web
  regd watch web`,
		Args:          cobra.ArbitraryArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          onlySubcommands,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return applyEnv(cmd.Flags(), a.getenv)
		},
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetHelpFunc(a.help)
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true}) // --help says all; "help" would be a second way.
	root.SetFlagErrorFunc(flagError)
	root.CompletionOptions.DisableDefaultCmd = true
	root.DisableAutoGenTag = true
	root.AddGroup(
		&cobra.Group{ID: groupStart, Title: "Start"},
		&cobra.Group{ID: groupUse, Title: "Register and find"},
		&cobra.Group{ID: groupOperate, Title: "Operate"},
		&cobra.Group{ID: groupTools, Title: "Tools"},
	)
	a.color = colorAuto
	enumVar(root.PersistentFlags(), &a.color, "color", "colour in the output", colorAuto, colorAlways, colorNever)
	bindEnv(root.PersistentFlags(), "color", "REGD_COLOR")
	a.addCommands(root)
	walk(root, func(cmd *cobra.Command) {
		cmd.DisableFlagsInUseLine = true
		cmd.InitDefaultHelpFlag()
		cmd.Flags().Lookup("help").Usage = "show this help"
	})
	return root
}

func (a *app) addCommands(root *cobra.Command) {
	groups := map[string][]*cobra.Command{
		groupStart: {newDevCmd(a), newServeCmd(a), newStatusCmd(a)},
		groupUse: {
			newServicesCmd(a), newInstancesCmd(a), newResolveCmd(a), newCallCmd(a), newWatchCmd(a), newRegisterCmd(a),
			newWhyCmd(a), newDeregisterCmd(a), newDrainCmd(a), newMaintenanceCmd(a), newReportCmd(a), newLockCmd(a),
			newKVCmd(a),
		},
		groupOperate: {
			newMembersCmd(a), newLeaderCmd(a), newSnapshotCmd(a), newRecoverCmd(a), newVerifyCmd(a), newSessionsCmd(a), newTLSCmd(a), newAccessCmd(a),
			newNamespacesCmd(a),
			newConfigCmd(a), newHealthCmd(a), newDebugCmd(a),
		},
		groupTools: {newBenchCmd(a), newVersionCmd(a), newCompletionCmd(a)},
	}
	for group, commands := range groups {
		for _, cmd := range commands {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
}

// openings returns the doors that the program has, each with settings of its own.
func (a *app) openings() []door {
	if a.doors == nil {
		return nil
	}
	return a.doors()
}

// walk calls fn for a command and all below it.
func walk(cmd *cobra.Command, fn func(*cobra.Command)) {
	fn(cmd)
	for _, sub := range cmd.Commands() {
		walk(sub, fn)
	}
}

// onlySubcommands is the RunE of a command that does nothing by itself.
func onlySubcommands(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return unknownCommand(cmd, args[0])
	}
	return cmd.Help()
}

func unknownCommand(parent *cobra.Command, typed string) error {
	var names []string
	for _, sub := range parent.Commands() {
		if !sub.Hidden {
			names = append(names, sub.Name())
		}
	}
	return usageErrorf("unknown command %q for %q%s", typed, parent.CommandPath(), didYouMean(typed, names, ""))
}

// flagError names the nearest right flag. A flag that is unknown since its command is mistyped is the command's fault.
func flagError(cmd *cobra.Command, err error) error {
	if typed := cmd.Flags().Args(); cmd.HasSubCommands() && len(typed) > 0 {
		return unknownCommand(cmd, typed[0])
	}
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "" {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
		typed := unknown.GetSpecifiedName()
		return usageErrorf("unknown flag --%s%s", typed, didYouMean(typed, names, "--"))
	}
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		f := invalid.GetFlag()
		return usageErrorf("--%s %q: %w", f.Name, invalid.GetValue(), valueError(f, invalid))
	}
	return usageErrorf("%w", err)
}

// arguments makes the check of a command's positional arguments, given by their names; those in brackets may be left
// out.
func arguments(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		for i, name := range names {
			if i >= len(args) && !strings.HasPrefix(name, "[") {
				return usageErrorf("%s: missing %s", cmd.CommandPath(), name)
			}
		}
		if len(args) <= len(names) {
			return nil
		}
		if cmd.HasSubCommands() {
			return unknownCommand(cmd, args[len(names)])
		}
		return usageErrorf("%s: unexpected argument %q", cmd.CommandPath(), args[len(names)])
	}
}
