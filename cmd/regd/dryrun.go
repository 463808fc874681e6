package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
)

// addDryRun gives a command --dry-run.
func addDryRun(cmd *cobra.Command, dry *bool) {
	cmd.Flags().BoolVar(dry, "dry-run", false, "only show what would happen")
}

// votersView is how many nodes vote, and how many of them it takes.
type votersView struct {
	Voters    int `json:"voters"`
	Reachable int `json:"voters_reachable"`
	Quorum    int `json:"quorum"`
}

func viewVoters(members []memberView) votersView {
	var v votersView
	for _, m := range members {
		if m.Suffrage != "voter" {
			continue
		}
		v.Voters++
		if m.Reachable {
			v.Reachable++
		}
	}
	v.Quorum = v.Voters/2 + 1
	return v
}

func (v votersView) String() string {
	return fmt.Sprintf("%s, %d of them answer and %d are needed", plural(v.Voters, "voter"), v.Reachable, v.Quorum)
}

// voterPlan is what would become of the quorum if a node did not vote.
type voterPlan struct {
	Name    string     `json:"name"`
	Result  string     `json:"result"`
	Changed bool       `json:"changed"` // whether it would change anything
	DryRun  bool       `json:"dry_run"`
	Before  votersView `json:"before"`
	After   votersView `json:"after"`
	Problem string     `json:"problem,omitempty"`

	member memberView
}

// planVoters finds out what would become of the quorum without a node, given by name or id.
func planVoters(ctx context.Context, cl *client.Client, node string) (voterPlan, error) {
	resp, err := cl.Cluster().Members(ctx)
	if err != nil {
		return voterPlan{}, err
	}
	members := viewMembers(resp.GetMembers())
	var others []memberView
	var found *memberView
	for _, m := range members {
		if m.Name == node || m.ID == node {
			found = &m
		} else {
			others = append(others, m)
		}
	}
	if found == nil {
		return voterPlan{}, &exitError{code: exitNotFound, err: fmt.Errorf("no member %q", node), hint: "regd members  lists names and ids"}
	}
	return voterPlan{
		Name: "member/" + found.Name, DryRun: true, Before: viewVoters(members), After: viewVoters(others), member: *found,
	}, nil
}

// removal says what the removal of the node will do.
func (p voterPlan) removal() []string {
	state := p.member.Role
	if !p.member.Reachable {
		state = "unreachable"
	}
	return []string{
		fmt.Sprintf("%s (%s, %s) will be removed from the cluster for good", p.member.Name, p.member.Suffrage, state),
		fmt.Sprintf("%d voters will remain, %d of them answer now and %d are needed", p.After.Voters, p.After.Reachable, p.After.Quorum),
	}
}

// planVoters prints what would happen if a node were removed or demoted.
func (o *output) planVoters(ctx context.Context, cl *client.Client, node, result string, force bool) error {
	p, err := planVoters(ctx, cl, node)
	if err != nil {
		return err
	}
	voter := p.member.Suffrage == "voter"
	p.Result, p.Changed = result, voter || result == "removed"
	switch {
	case !voter:
	case p.After.Voters == 0:
		p.Problem = "it is the only voter: this would be refused"
	case p.After.Reachable < p.After.Quorum && force:
		p.Problem = "too few of the voters that remain answer: nothing could be written until more do"
	case p.After.Reachable < p.After.Quorum:
		p.Problem = "too few of the voters that remain answer: this would be refused"
	}
	switch {
	case o.isDocument():
		return o.printDocument(p)
	case o.format == formatName:
		_, err = fmt.Fprintln(o.answer(), clean(p.Name))
		return wrapWrite(err)
	case !p.Changed:
		_, err = fmt.Fprintf(o.answer(), "%s would be unchanged (dry run)\n", clean(p.Name))
		return wrapWrite(err)
	}
	text := fmt.Sprintf("%s would be %s (dry run)\n  now    %v\n  after  %v\n", clean(p.Name), p.Result, p.Before, p.After)
	if p.Problem != "" {
		text += "  - " + p.Problem + "\n"
	}
	_, err = fmt.Fprint(o.answer(), text)
	return wrapWrite(err)
}

// contentView is how much a registry holds.
type contentView struct {
	Instances uint64 `json:"instances"`
	Sessions  uint64 `json:"sessions"`
	Leases    uint64 `json:"leases"`
	Locks     uint64 `json:"locks"`
	Revision  uint64 `json:"revision"`
}

func (v contentView) String() string {
	return fmt.Sprintf("%s, %s, %s, %s at revision %d", plural(v.Instances, "instance"), plural(v.Sessions, "session"),
		plural(v.Leases, "lease"), plural(v.Locks, "lock"), v.Revision)
}

// planRestore prints what would be replaced by a snapshot.
func (o *output) planRestore(ctx context.Context, cl *client.Client, file string, snapshot snapshotView) error {
	status, err := cl.Cluster().Status(ctx)
	if err != nil {
		return err
	}
	p := struct {
		File   string      `json:"file"`
		DryRun bool        `json:"dry_run"`
		Before contentView `json:"before"`
		After  contentView `json:"after"`
	}{
		file, true,
		contentView{status.GetInstances(), status.GetSessions(), status.GetLeases(), status.GetLocks(), status.GetHeader().GetRevision()},
		contentView{snapshot.Instances, snapshot.Sessions, snapshot.Leases, snapshot.Locks, snapshot.Revision},
	}
	if o.isDocument() {
		return o.printDocument(p)
	}
	_, err = fmt.Fprintf(o.answer(), "%s would be restored (dry run)\n  now    %v\n  after  %v\n", clean(file), p.Before, p.After)
	return wrapWrite(err)
}
