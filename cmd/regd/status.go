package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// Verdicts of status.
const (
	verdictHealthy  = "healthy"
	verdictDegraded = "degraded"
	verdictNoLeader = "no leader"
)

// statusView is how a cluster is.
type statusView struct {
	Header          headerView   `json:"header"`
	Verdict         string       `json:"verdict"`
	Leader          string       `json:"leader"` // by name
	Quorum          uint32       `json:"quorum"`
	Voters          uint32       `json:"voters"`
	VotersReachable uint32       `json:"voters_reachable"`
	Services        uint64       `json:"services"`
	Instances       uint64       `json:"instances"`
	Sessions        uint64       `json:"sessions"`
	Leases          uint64       `json:"leases"`
	Locks           uint64       `json:"locks"`
	Problems        []string     `json:"problems"`
	Members         []memberView `json:"members"`
}

func viewStatus(s *apiv1.StatusResponse) statusView {
	v := statusView{
		Header: viewHeader(s.GetHeader()), Quorum: s.GetQuorum(), Voters: s.GetVoters(), VotersReachable: s.GetVotersReachable(),
		Services: s.GetServices(), Instances: s.GetInstances(), Sessions: s.GetSessions(), Leases: s.GetLeases(),
		Locks: s.GetLocks(), Problems: append([]string{}, s.GetProblems()...), Members: viewMembers(s.GetMembers()),
	}
	for _, m := range v.Members {
		if m.GRPCAddress == v.Header.Leader && m.Reachable {
			v.Leader = m.Name
		}
	}
	switch {
	case v.Leader == "":
		v.Verdict = verdictNoLeader
	case len(v.Problems) > 0:
		v.Verdict = verdictDegraded
	default:
		v.Verdict = verdictHealthy
	}
	return v
}

// summary is the verdict in one line.
func (v statusView) summary() string {
	leader := "leader " + v.Leader
	if v.Leader == "" {
		leader = "writes and linearizable reads wait"
	}
	return fmt.Sprintf("%s: %d/%d voters answer, %s, %s", v.Verdict, v.VotersReachable, v.Voters, leader,
		plural(len(v.Problems), "problem"))
}

// exit is the exit code of the verdict.
func (v statusView) exit() error {
	switch v.Verdict {
	case verdictHealthy:
		return nil
	case verdictDegraded:
		return &silentError{exitDegraded}
	default:
		return &silentError{exitUnreachable}
	}
}

func newStatusCmd(a *app) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   "status [flags]",
		Short: "Tell how the cluster is, and what to do about it.",
		Example: `  regd status

  # In a script, after starting the nodes.
  regd status --wait --timeout 1m`,
		Annotations: map[string]string{helpAnnotation: "Exit codes: 0 healthy, 8 degraded, 5 unreachable or without a leader, 6 not healthy in time (--wait)."},
		Args:        arguments(),
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it is healthy")
	out := a.addOutput(cmd, formatTable, formatWide, formatJSON, formatYAML)
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
			if wait {
				return awaitHealthy(ctx, conn, cl, out)
			}
			v, err := conn.status(ctx, cl)
			if err != nil {
				return err
			}
			if err := printStatus(out, v); err != nil {
				return err
			}
			return v.exit()
		})
	}
	return cmd
}

// status asks a node how the cluster is. One that knows no leader may itself be cut off or removed: then the others are
// asked too, and the first that knows one is believed.
func (c *connection) status(ctx context.Context, cl *client.Client) (statusView, error) {
	resp, err := cl.Cluster().Status(ctx)
	if err != nil {
		return statusView{}, err
	}
	v := viewStatus(resp)
	if v.Leader != "" {
		return v, nil
	}
	const patience = time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, address := range c.addresses() {
		if other, err := c.statusOf(ctx, address); err == nil && other.Leader != "" {
			return other, nil
		}
	}
	return v, nil
}

// statusOf asks one node how the cluster is.
func (c *connection) statusOf(ctx context.Context, address string) (statusView, error) {
	secure, err := c.tls.options()
	if err != nil {
		return statusView{}, err
	}
	cl, err := client.New([]string{address}, secure...)
	if err != nil {
		return statusView{}, err
	}
	defer cl.Close() //nolint:errcheck,contextcheck // It has no session.
	if resp := cl.Cluster().LocalStatus(ctx, address); resp.Err != nil {
		return statusView{}, resp.Err
	}
	resp, err := cl.Cluster().Status(ctx)
	if err != nil {
		return statusView{}, err
	}
	return viewStatus(resp), nil
}

// awaitHealthy waits until the cluster is healthy, and tells why it is not yet.
func awaitHealthy(ctx context.Context, conn *connection, cl *client.Client, out *output) error {
	const often = 200 * time.Millisecond
	p := out.newProgress()
	defer p.end()
	p.phase("waiting for an answer")
	reason := "nobody answers"
	var last *statusView
	for {
		v, err := conn.status(ctx, cl)
		if err == nil {
			if v.Verdict == verdictHealthy {
				p.end()
				return printStatus(out, v)
			}
			last, reason = &v, v.summary()
			p.phase("waiting: %s", reason)
		} else if last == nil && ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			if codeOf(ctx.Err()) == exitInterrupted {
				return ctx.Err()
			}
			p.end()
			if last != nil {
				if err := printStatus(out, *last); err != nil {
					return err
				}
			}
			return &exitError{code: exitTimeout, err: fmt.Errorf("not healthy within %v: %s", out.timeout, reason)}
		case <-time.After(often):
		}
	}
}

// printStatus prints the verdict, then the problems, then the nodes.
func printStatus(out *output, v statusView) error {
	if out.isDocument() {
		return out.printDocument(v)
	}
	p := out.paintFor(out.stdout)
	colour := map[string]string{verdictHealthy: colourGood, verdictDegraded: colourWarn, verdictNoLeader: colourBad}[v.Verdict]
	if _, err := fmt.Fprintln(out.answer(), p.as(colour, clean(v.summary()))); err != nil {
		return wrapWrite(err)
	}
	for _, problem := range v.Problems {
		fmt.Fprintf(out.answer(), "  - %s\n", clean(problem))
	}
	fmt.Fprintf(out.answer(), "\n%s, %s, %s, %s, %s at revision %d\n\n", plural(v.Services, "service"), plural(v.Instances, "instance"),
		plural(v.Sessions, "session"), plural(v.Leases, "lease"), plural(v.Locks, "lock"), v.Header.Revision)
	return printList(out, v, v.Members, memberTable())
}

// leaderAddress asks the nodes for the gRPC address of the leader.
func leaderAddress(ctx context.Context, endpoints []string, opts ...client.Option) (string, error) {
	const limit = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cl, err := client.New(endpoints, opts...)
	if err != nil {
		return "", err
	}
	defer cl.Close() //nolint:errcheck,contextcheck // It has no session.
	const often = 100 * time.Millisecond
	for {
		resp, err := cl.Cluster().Status(ctx)
		if err != nil {
			return "", err
		}
		if leader := resp.GetHeader().GetLeader(); leader != "" {
			return leader, nil
		}
		select {
		case <-ctx.Done():
			return "", &exitError{code: exitUnreachable, err: fmt.Errorf("there is none: %w", ctx.Err())}
		case <-time.After(often):
		}
	}
}
