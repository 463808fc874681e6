package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
)

func newSessionsCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sessions [flags]",
		Short: "List the sessions: the client processes that are alive.",
		Example: `  regd sessions

  # How many instances hang on each.
  regd sessions -o json | jq '.sessions[] | [.client_name, .instances]'`,
	}
	list := &cobra.Command{
		Use: "list [flags]", Short: cmd.Short, Example: "  regd sessions list -o wide",
	}
	for _, c := range []*cobra.Command{cmd, list} {
		fresh := addFreshness(c)
		out := a.addOutput(c, formatTable, formatWide, formatJSON, formatYAML, formatJSONL, formatName)
		conn := a.addConnection(c)
		c.Args = arguments()
		c.RunE = func(cmd *cobra.Command, _ []string) error {
			return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
				result, err := cl.Sessions(ctx, fresh.option)
				if err != nil {
					return err
				}
				sessions := []sessionView{}
				for _, s := range result.Sessions {
					sessions = append(sessions, viewSession(s))
				}
				doc := struct {
					Header   headerView    `json:"header"`
					Sessions []sessionView `json:"sessions"`
				}{viewInfo(result.ReadInfo), sessions}
				return printList(out, doc, sessions, sessionTable(time.Now()))
			})
		}
	}
	cmd.AddCommand(list)
	return cmd
}
