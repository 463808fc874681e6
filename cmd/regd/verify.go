package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
)

// replicaView is the state of one node at the compared index.
type replicaView struct {
	Node      string `json:"node"`
	Index     uint64 `json:"index"`
	Revision  uint64 `json:"revision"`
	StateHash string `json:"state_hash"`
	Chain     string `json:"chain"`
	Problem   string `json:"problem,omitempty"`
}

func newVerifyCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify [flags]",
		Short: "Prove that all nodes hold the same registry.",
		Example: `  regd verify

  # The hash of the content is equal for equal registries, also across clusters.
  regd verify -o json | jq -r .content_hash`,
		Long:        "Compares the hash of the whole state, and the chain of hashes of all that led to it, at one index on all nodes.",
		Annotations: map[string]string{helpAnnotation: "Exit codes: 0 all nodes answered and are equal, 1 not."},
		Args:        arguments(),
	}
	out := a.addOutput(cmd, formatTable, formatWide, formatJSON, formatYAML)
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return conn.call(cmd, func(ctx context.Context, cl *client.Client) error { return verify(ctx, cl, out) })
	}
	return cmd
}

func verify(ctx context.Context, cl *client.Client, out *output) error {
	resp, err := cl.Cluster().Verify(ctx)
	if err != nil {
		return err
	}
	replicas := []replicaView{}
	answered := 0
	for _, r := range resp.GetReplicas() {
		replicas = append(replicas, replicaView{
			Node: r.GetNode(), Index: r.GetIndex(), Revision: r.GetRevision(), StateHash: hex.EncodeToString(r.GetStateHash()),
			Chain: hex.EncodeToString(r.GetChain()), Problem: r.GetProblem(),
		})
		if r.GetProblem() == "" {
			answered++
		}
	}
	doc := struct {
		Header      headerView    `json:"header"`
		Equal       bool          `json:"equal"`
		ContentHash string        `json:"content_hash"`
		Replicas    []replicaView `json:"replicas"`
	}{viewHeader(resp.GetHeader()), resp.GetEqual(), hex.EncodeToString(resp.GetContentHash()), replicas}
	if !out.isDocument() {
		verdict := fmt.Sprintf("equal: all %d replicas are the same", len(replicas))
		switch {
		case !resp.GetEqual() && answered < len(replicas):
			verdict = fmt.Sprintf("not verified: %d of %d replicas answered", answered, len(replicas))
		case !resp.GetEqual():
			verdict = "DIFFERENT: the replicas are not the same"
		}
		if _, err := fmt.Fprintln(out.answer(), verdict); err != nil {
			return wrapWrite(err)
		}
	}
	if err := printList(out, doc, replicas, replicaTable(answered < len(replicas))); err != nil {
		return err
	}
	if !resp.GetEqual() {
		return &silentError{exitFailed}
	}
	return nil
}

// replicaTable has a column for problems if there are any.
func replicaTable(problems bool) tableOf[replicaView] {
	t := tableOf[replicaView]{columns: []column[replicaView]{
		{title: "NODE", text: func(v replicaView) string { return v.Node }},
		{title: "INDEX", right: true, text: func(v replicaView) string { return strconv.FormatUint(v.Index, 10) }},
		{title: "REVISION", right: true, text: func(v replicaView) string { return strconv.FormatUint(v.Revision, 10) }},
		{title: "STATE", text: func(v replicaView) string { return v.StateHash }},
		{title: "CHAIN", wide: true, text: func(v replicaView) string { return v.Chain }},
	}}
	if problems {
		t.columns = append(t.columns, column[replicaView]{
			title: "PROBLEM", text: func(v replicaView) string { return v.Problem }, colour: func(replicaView) string { return colourBad },
		})
	}
	return t
}
