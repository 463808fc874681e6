package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// orderFunc does something to an instance and tells whether that changed anything.
type orderFunc func(ctx context.Context, cl *client.Client, key client.Key) (changed bool, err error)

// keyCommand finishes a command that does something to one instance, named by SERVICE and ID.
func (a *app) keyCommand(cmd *cobra.Command, result func() string, do orderFunc) {
	var namespace string
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML, formatName)
	conn := a.addConnection(cmd)
	addNamespace(cmd, &namespace, "namespace of the instance")
	cmd.ValidArgsFunction = conn.completeKey
	if lead := cmd.ValidArgs; len(lead) > 0 { // Words before SERVICE.
		cmd.ValidArgs = nil
		cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return lead, cobra.ShellCompDirectiveNoFileComp
			}
			return conn.completeKey(cmd, args[1:], typed)
		}
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		key := client.Key{Namespace: namespace, Service: args[len(args)-2], ID: args[len(args)-1]}
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			changed, err := do(ctx, cl, key)
			if err != nil {
				return err
			}
			return out.done(change{Name: instanceName(key), Result: result(), Changed: changed})
		})
	}
}

// instanceName is an instance as it is named in messages.
func instanceName(key client.Key) string { return "instance/" + key.Service + "/" + key.ID }

func newDeregisterCmd(a *app) *cobra.Command {
	var incarnation uint64
	cmd := &cobra.Command{
		Use:   "deregister SERVICE ID [flags]",
		Short: "Remove an instance.",
		Example: `  regd deregister web web-1

  # Only if nobody has registered it anew since it was looked at.
  regd deregister web web-1 --incarnation 17`,
		Long: "Removing what is not there succeeds. An owner that is alive and keeps its instance registered does not learn of\n" +
			"this: to take an instance out of service, drain it.",
		Args: arguments("SERVICE", "ID"),
	}
	cmd.Flags().Uint64Var(&incarnation, "incarnation", 0, "only this incarnation; 0: any")
	a.keyCommand(cmd, func() string { return "deregistered" },
		func(ctx context.Context, cl *client.Client, key client.Key) (bool, error) {
			return cl.Deregister(ctx, key, onlyIncarnation(incarnation)...)
		})
	return cmd
}

func onlyIncarnation(incarnation uint64) []client.OrderOption {
	if incarnation == 0 {
		return nil
	}
	return []client.OrderOption{client.OnlyIncarnation(incarnation)}
}

func newDrainCmd(a *app) *cobra.Command {
	var incarnation uint64
	var undo bool
	cmd := &cobra.Command{
		Use:   "drain SERVICE ID [flags]",
		Short: "Announce the end of an instance: it stays listed and gets no new work.",
		Example: `  regd drain web web-1

  # It stays after all.
  regd drain web web-1 --cancel`,
		Args: arguments("SERVICE", "ID"),
	}
	cmd.Flags().BoolVar(&undo, "cancel", false, "end draining")
	cmd.Flags().Uint64Var(&incarnation, "incarnation", 0, "only this incarnation; 0: any")
	result := func() string {
		if undo {
			return "no longer draining"
		}
		return "draining"
	}
	a.keyCommand(cmd, result, func(ctx context.Context, cl *client.Client, key client.Key) (bool, error) {
		if undo {
			return cl.Undrain(ctx, key, onlyIncarnation(incarnation)...)
		}
		return cl.Drain(ctx, key, onlyIncarnation(incarnation)...)
	})
	return cmd
}

func newMaintenanceCmd(a *app) *cobra.Command {
	var on bool
	cmd := &cobra.Command{
		Use:   "maintenance on|off SERVICE ID [flags]",
		Short: "Take an instance out of service, or put it back.",
		Example: `  regd maintenance on web web-1
  regd maintenance off web web-1`,
		Long: "Maintenance outlasts a restart of the instance: it ends by  maintenance off  or with the instance.",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := arguments("on|off", "SERVICE", "ID")(cmd, args); err != nil {
				return err
			}
			if on = args[0] == "on"; !on && args[0] != "off" {
				return usageErrorf("%s: %q must be on or off", cmd.CommandPath(), args[0])
			}
			return nil
		},
		ValidArgs: []string{"on", "off"},
	}
	result := func() string {
		if on {
			return "in maintenance"
		}
		return "no longer in maintenance"
	}
	a.keyCommand(cmd, result, func(ctx context.Context, cl *client.Client, key client.Key) (bool, error) {
		return cl.SetMaintenance(ctx, key, on)
	})
	return cmd
}

func newReportCmd(a *app) *cobra.Command {
	var check, text string
	cmd := &cobra.Command{
		Use:   "report passing|warning|critical SERVICE ID [flags]",
		Short: "Report the status of an instance's TTL check.",
		Example: `  # From a cron job, for an instance registered with --detach --ttl 5m.
  regd report passing backup db-1

  regd report critical backup db-1 --text full`,
		ValidArgs: []string{"passing", "warning", "critical"},
	}
	words := cmd.ValidArgs
	var status registryv1.CheckStatus
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := arguments("STATUS", "SERVICE", "ID")(cmd, args); err != nil {
			return err
		}
		if !slices.Contains(words, args[0]) {
			return usageErrorf("%s: status %q must be one of %s%s",
				cmd.CommandPath(), args[0], strings.Join(words, ", "), didYouMean(args[0], words, ""))
		}
		status = registryv1.CheckStatus(registryv1.CheckStatus_value["CHECK_STATUS_"+strings.ToUpper(args[0])])
		return nil
	}
	cmd.Flags().StringVar(&check, "check", "", "`name` of the check; default: the only TTL check that there is")
	cmd.Flags().StringVar(&text, "text", "", "explanation, at most 256 bytes")
	result := func() string { return "reported " + enumWord(status.String(), "CHECK_STATUS_") }
	a.keyCommand(cmd, result, func(ctx context.Context, cl *client.Client, key client.Key) (bool, error) {
		return true, cl.SetHealth(ctx, key, check, status, text)
	})
	return cmd
}
