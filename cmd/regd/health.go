package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newHealthCmd(a *app) *cobra.Command {
	var address string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "health [ready|live] [flags]",
		Short: "Ask one node whether it is ready, or live.",
		Example: `  # The node on this machine.
  regd health

  # The health check of a container, where nothing else can ask.
  regd health live`,
		Long: `It asks the port for operations, as Kubernetes does. A node is live unless only a restart can help it; it is ready when it
has a leader and has caught up. How the whole cluster is, says  regd status.`,
		Annotations: map[string]string{helpAnnotation: "Exit codes: 0 it is, 1 it is not, 5 it does not answer."},
		ValidArgs:   []string{"ready", "live"},
		Args:        arguments("[CONDITION]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			condition := append(args, "ready")[0]
			path, known := map[string]string{"ready": "/readyz", "live": "/livez"}[condition]
			if !known {
				return usageErrorf("%q must be ready or live%s", condition, didYouMean(condition, []string{"ready", "live"}, ""))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return a.probe(ctx, "http://"+address+path+"?verbose")
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&address, "http", defaultHTTP, "`address` of the node's port for operations")
	bindEnv(fs, "http", "REGD_HTTP")
	fs.DurationVar(&timeout, "timeout", 2*time.Second, "how long to wait for the answer")
	return cmd
}

// maxProbe bounds what is read of an answer.
const maxProbe = 64 << 10

// probe prints what a node's probe answers. It returns an error unless that is good.
func (a *app) probe(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return usageErrorf("--http: %w", err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return &exitError{code: exitUnreachable, err: fmt.Errorf("ask the node: %w", err), hint: "--http  is its --http-listen, or --advertise-http"}
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxProbe))
	if err != nil {
		return &exitError{code: exitUnreachable, err: fmt.Errorf("ask the node: %w", err)}
	}
	for line := range strings.Lines(string(body)) {
		if _, err := fmt.Fprintln(a.answer(), clean(strings.TrimSuffix(line, "\n"))); err != nil {
			return wrapWrite(err)
		}
	}
	if answer.StatusCode != http.StatusOK {
		return &silentError{exitFailed}
	}
	return nil
}
