package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
)

// completionBudget is how long pressing Tab may take. What is not known by then is not offered.
const completionBudget = 500 * time.Millisecond

func newCompletionCmd(*app) *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell [flags]",
		Short: "Print the completion script of a shell.",
		Example: `  # bash, for this shell and for all later ones
  source <(regd completion bash)
  regd completion bash > /etc/bash_completion.d/regd

  # zsh, fish, PowerShell
  regd completion zsh > "${fpath[1]}/_regd"
  regd completion fish > ~/.config/fish/completions/regd.fish
  regd completion powershell | Out-String | Invoke-Expression`,
		Long:      "Names of services, instances and nodes are completed too, as far as a node answers within half a second.",
		ValidArgs: shells,
		Args:      arguments("SHELL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			w := cmd.OutOrStdout()
			var err error
			switch args[0] {
			case "bash":
				err = cmd.Root().GenBashCompletionV2(w, true)
			case "zsh":
				err = cmd.Root().GenZshCompletion(w)
			case "fish":
				err = cmd.Root().GenFishCompletion(w, true)
			case "powershell":
				err = cmd.Root().GenPowerShellCompletionWithDesc(w)
			default:
				return usageErrorf("unknown shell %q%s", args[0], didYouMean(args[0], shells, ""))
			}
			return wrapWrite(err)
		},
	}
}

// completer finds names for completion. Whatever goes wrong, nothing is said and nothing is offered.
func (c *connection) completer(
	cmd *cobra.Command, find func(ctx context.Context, cl *client.Client) ([]string, error),
) ([]string, cobra.ShellCompDirective) {
	if applyEnv(cmd.Flags(), c.getenv) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	cl, err := c.dial()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer cl.Close() //nolint:errcheck // It has no session.
	ctx, cancel := context.WithTimeout(cmd.Context(), completionBudget)
	defer cancel()
	names, err := find(ctx, cl)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completionNamespace is the namespace that is being typed about.
func completionNamespace(cmd *cobra.Command) string {
	if f := cmd.Flags().Lookup("namespace"); f != nil {
		return f.Value.String()
	}
	return ""
}

// completeServices completes the name of a service as the first argument.
func (c *connection) completeServices(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return c.completer(cmd, func(ctx context.Context, cl *client.Client) ([]string, error) {
		result, err := cl.Services(ctx, client.ServiceFilter{Namespace: completionNamespace(cmd), Prefix: typed}, client.Stale())
		var names []string
		for _, s := range result.Services {
			names = append(names, cobra.CompletionWithDesc(s.GetName(), fmt.Sprintf("%d of %d passing", s.GetPassing(), s.GetInstances())))
		}
		return names, err
	})
}

// completeKey completes SERVICE and ID.
func (c *connection) completeKey(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return c.completeServices(cmd, args, typed)
	case 1:
		return c.completer(cmd, func(ctx context.Context, cl *client.Client) ([]string, error) {
			filter := client.Filter{Namespace: completionNamespace(cmd), Service: args[0]}
			result, err := cl.Instances(ctx, filter, client.Stale())
			var ids []string
			for _, i := range result.Instances {
				v := viewInstance(i)
				ids = append(ids, cobra.CompletionWithDesc(v.ID, v.Health+" "+v.endpoint()))
			}
			return ids, err
		})
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeMembers completes the name of a node as the first argument.
func (c *connection) completeMembers(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.completer(cmd, func(ctx context.Context, cl *client.Client) ([]string, error) {
		resp, err := cl.Cluster().Members(ctx)
		var names []string
		for _, m := range viewMembers(resp.GetMembers()) {
			names = append(names, cobra.CompletionWithDesc(m.Name, m.Role+" "+m.Suffrage))
		}
		return names, err
	})
}
