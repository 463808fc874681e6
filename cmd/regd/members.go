package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

func newMembersCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "members [flags]",
		Short: "List the nodes of the cluster; add, remove, promote and demote them.",
		Example: `  regd members

  # Replace n2, whose disk is lost.
  regd members remove n2
  regd members join n4.example:7401`,
	}
	list := &cobra.Command{Use: "list [flags]", Short: "List the nodes of the cluster.", Example: "  regd members list -o wide"}
	for _, c := range []*cobra.Command{cmd, list} {
		out := a.addOutput(c, formatTable, formatWide, formatJSON, formatYAML, formatJSONL, formatName)
		conn := a.addConnection(c)
		c.Args = arguments()
		c.RunE = func(cmd *cobra.Command, _ []string) error {
			return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
				resp, err := cl.Cluster().Members(ctx)
				if err != nil {
					return err
				}
				members := viewMembers(resp.GetMembers())
				doc := struct {
					Header  headerView   `json:"header"`
					Members []memberView `json:"members"`
				}{viewHeader(resp.GetHeader()), members}
				return printList(out, doc, members, memberTable())
			})
		}
	}
	cmd.AddCommand(list, newMembersJoinCmd(a), newMembersRemoveCmd(a),
		newSuffrageCmd(a, "promote", "Make a non-voter a voter.", "a voter", promote, false),
		newSuffrageCmd(a, "demote", "Make a voter a non-voter that stays one.", "a non-voter", demote, true))
	return cmd
}

func newMembersJoinCmd(a *app) *cobra.Command {
	var nonVoter, wait bool
	cmd := &cobra.Command{
		Use:   "join PEER_ADDRESS [flags]",
		Short: "Add an empty node that runs. It votes once it has caught up.",
		Example: `  # On the new machine:  regd serve --name n4 --data-dir ... --advertise-peer n4.example:7401 ...
  regd members join n4.example:7401

  # For reads only: it never votes.
  regd members join n4.example:7401 --non-voter`,
		Args: arguments("PEER_ADDRESS"),
	}
	cmd.Flags().BoolVar(&nonVoter, "non-voter", false, "keep it a non-voter")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it votes, or with --non-voter, until it has caught up")
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML, formatName)
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			resp, err := cl.Cluster().Join(ctx, args[0], nonVoter)
			if err != nil {
				return err
			}
			m := resp.GetMember()
			if wait {
				if err := a.awaitMember(ctx, cl, m.GetId(), nonVoter); err != nil {
					return err
				}
			}
			return out.done(change{Name: "member/" + m.GetName(), Result: "joined", Changed: resp.GetChanged()})
		})
	}
	return cmd
}

// awaitMember waits until a new member has the suffrage that it is to have, and tells how far it is.
func (a *app) awaitMember(ctx context.Context, cl *client.Client, id string, nonVoter bool) error {
	const often = 200 * time.Millisecond
	p := a.newProgress()
	defer p.end()
	for {
		resp, err := cl.Cluster().Members(ctx)
		if err != nil {
			return fmt.Errorf("joined, but it was not seen to catch up: %w", err)
		}
		for _, m := range viewMembers(resp.GetMembers()) {
			if m.ID != id {
				continue
			}
			if m.Suffrage == enumWord(apiv1.Suffrage_SUFFRAGE_VOTER.String(), "SUFFRAGE_") || (nonVoter && m.Reachable && m.lag == 0) {
				return nil
			}
			p.phase("%s is catching up, %d entries behind", m.Name, m.lag)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("joined, but it does not vote yet: %w", ctx.Err())
		case <-time.After(often):
		}
	}
}

func newMembersRemoveCmd(a *app) *cobra.Command {
	var force, yes, dry bool
	cmd := &cobra.Command{
		Use:   "remove NODE [flags]",
		Short: "Remove a node, dead or alive, also the leader.",
		Example: `  regd members remove n2

  # What would become of the quorum?
  regd members remove n2 --dry-run

  # In a script.
  regd members remove n2 --yes`,
		Long: `NODE is a name or an id. A removed node stops serving and can't come back with its old data: to use the machine again,
delete its data folder and join it anew.`,
		Args: arguments("NODE"),
	}
	cmd.Flags().BoolVar(&force, "force", false, "also when fewer than a majority of the rest answer")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	addDryRun(cmd, &dry)
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML, formatName)
	conn := a.addConnection(cmd)
	cmd.ValidArgsFunction = conn.completeMembers
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		//nolint:contextcheck // Whoever was asked has taken their time: the call gets its full time too.
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			if dry {
				return out.planVoters(ctx, cl, args[0], "removed", force)
			}
			if !yes {
				plan, err := planVoters(ctx, cl, args[0])
				if err != nil {
					return err
				}
				if err := a.confirm(yes, args[0], plan.removal()...); err != nil {
					return err
				}
				fresh, cancel := conn.bounded(cmd)
				defer cancel()
				ctx = fresh
			}
			if _, err := cl.Cluster().Remove(ctx, args[0], force); err != nil {
				return err
			}
			return out.done(change{Name: "member/" + args[0], Result: "removed", Changed: true})
		})
	}
	return cmd
}

// suffrageFunc changes whether a node votes, and tells whether that changed anything.
type suffrageFunc func(ctx context.Context, cl *client.Cluster, node string) (changed bool, err error)

// newSuffrageCmd makes promote or demote.
func newSuffrageCmd(a *app, verb, short, result string, do suffrageFunc, dryRun bool) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb + " NODE [flags]", Short: short, Example: "  regd members " + verb + " n4", Args: arguments("NODE"),
	}
	var dry bool
	if dryRun {
		addDryRun(cmd, &dry)
	}
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML, formatName)
	conn := a.addConnection(cmd)
	cmd.ValidArgsFunction = conn.completeMembers
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			if dry {
				return out.planVoters(ctx, cl, args[0], "demoted", false)
			}
			changed, err := do(ctx, cl.Cluster(), args[0])
			if err != nil {
				return err
			}
			return out.done(change{Name: "member/" + args[0], Result: "is " + result, Changed: changed})
		})
	}
	return cmd
}

func promote(ctx context.Context, cl *client.Cluster, node string) (bool, error) {
	resp, err := cl.Promote(ctx, node)
	return resp.GetChanged(), err
}

func demote(ctx context.Context, cl *client.Cluster, node string) (bool, error) {
	resp, err := cl.Demote(ctx, node)
	return resp.GetChanged(), err
}

func newLeaderCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "leader [flags]",
		Short:   "Hand leadership over.",
		Example: "  regd leader transfer\n  regd leader transfer n2",
		Args:    cobra.ArbitraryArgs,
		RunE:    onlySubcommands,
	}
	transfer := &cobra.Command{
		Use:     "transfer [NODE] [flags]",
		Short:   "Hand leadership to a node, or to the one that is furthest.",
		Example: "  regd leader transfer n2",
		Args:    arguments("[NODE]"),
	}
	out := a.addOutput(transfer, formatText, formatJSON, formatYAML, formatName)
	conn := a.addConnection(transfer)
	transfer.ValidArgsFunction = conn.completeMembers
	transfer.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			resp, err := cl.Cluster().TransferLeadership(ctx, first(args))
			if err != nil {
				return err
			}
			return out.done(change{Name: "member/" + resp.GetLeader(), Result: "leads", Changed: true})
		})
	}
	cmd.AddCommand(transfer)
	return cmd
}
