package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

// devOrder is what another terminal asks a running dev cluster to do.
type devOrder struct {
	// Verb is one of the verbs of devVerbs.
	Verb string `json:"verb"`
	// Target is a node, "leader", or a demo service or instance.
	Target string `json:"target"`
}

// devReply answers an order.
type devReply struct {
	// Said is what was done.
	Said string `json:"said,omitempty"`
	// Error is why it was not, Code the exit code for that.
	Error string   `json:"error,omitempty"`
	Code  exitCode `json:"code,omitempty"`
}

// devControl takes orders over HTTP on a loopback port, from whoever can read the token in the state file.
type devControl struct {
	token string
	lis   net.Listener
	http  *http.Server
	wg    sync.WaitGroup
}

// obey carries out one order and says what it did.
type obey func(ctx context.Context, order devOrder) (string, error)

func startDevControl(ctx context.Context, obey obey) (*devControl, error) {
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", localPort(0))
	if err != nil {
		return nil, fmt.Errorf("listen for orders: %w", err)
	}
	c := &devControl{token: rand.Text(), lis: lis}
	c.http = &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+c.token)) != 1 {
				http.Error(w, "wrong token", http.StatusForbidden)
				return
			}
			var order devOrder
			if err := json.NewDecoder(io.LimitReader(r.Body, 4<<10)).Decode(&order); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			var reply devReply
			said, err := obey(r.Context(), order)
			if reply.Said = said; err != nil {
				reply = devReply{Error: err.Error(), Code: codeOf(err)}
			}
			_ = json.NewEncoder(w).Encode(reply) // Who does not wait for the answer does not want it.
		}),
	}
	c.wg.Go(func() { _ = c.http.Serve(lis) }) // Ends with close.
	return c, nil
}

func (c *devControl) url() string { return "http://" + c.lis.Addr().String() }

func (c *devControl) close() {
	_ = c.http.Close() // Orders under way are cut off.
	c.wg.Wait()
}

// sendOrder gives a running dev cluster an order and prints what it did.
func (a *app) sendOrder(ctx context.Context, dataDir string, order devOrder) error {
	s, where, found := a.findDev(dataDir)
	if !found {
		return withHint(errors.New("no dev cluster is running"), "start one with  regd dev;  --data-dir says which one is meant")
	}
	body, err := json.Marshal(order)
	if err != nil {
		return fmt.Errorf("encode order: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.Control, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("order of dev cluster in %s: %w", where, err)
	}
	req.Header.Set("Authorization", "Bearer "+s.Token)
	resp, err := oneShot().Do(req)
	if err != nil {
		return &exitError{code: exitUnreachable, err: fmt.Errorf("order of dev cluster in %s: %w", where, err)}
	}
	defer resp.Body.Close()
	var reply devReply
	if err = json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&reply); err != nil {
		return fmt.Errorf("answer of dev cluster in %s (%s): %w", where, resp.Status, err)
	}
	if reply.Error != "" {
		return &exitError{code: reply.Code, err: errors.New(reply.Error)}
	}
	_, err = fmt.Fprintln(a.answer(), reply.Said)
	return wrapWrite(err)
}

// newDevOrderCmds are the subcommands of dev that give orders.
func newDevOrderCmds(a *app, dataDir *string) []*cobra.Command {
	var cmds []*cobra.Command
	for _, v := range []struct{ verb, arg, short, example string }{
		{"kill", "NODE|leader", "Kill a node, as a crash would. It stays down until it is restarted.", "  regd dev kill leader\n  regd dev kill n2"},
		{"restart", "NODE", "Start a node that is down, or stop and start one that runs.", "  regd dev restart n2"},
		{"pause", "NODE|leader", "Stop a node from running, as a stalled machine would.", "  regd dev pause leader"},
		{"resume", "NODE", "Let a paused node run on.", "  regd dev resume n1"},
		{"partition", "NODE|leader", "Cut a node off from the other nodes; clients still reach it.", "  regd dev partition leader"},
		{"heal", "[NODE]", "Let nodes that were cut off reach the others again; without a name, all.", "  regd dev heal"},
		{"stop-service", "NAME", "Close the HTTP port of a demo service, or of one instance.", "  regd dev stop-service web-1\n  regd dev stop-service web"},
		{"start-service", "NAME", "Open the HTTP port of a demo service again.", "  regd dev start-service web-1"},
	} {
		cmds = append(cmds, &cobra.Command{
			Use: v.verb + " " + v.arg + " [flags]", Short: v.short, Example: v.example, Args: arguments(v.arg),
			RunE: func(cmd *cobra.Command, args []string) error {
				order := devOrder{Verb: v.verb}
				if len(args) > 0 {
					order.Target = args[0]
				}
				return a.sendOrder(cmd.Context(), *dataDir, order)
			},
			ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
				return a.devTargets(*dataDir, v.arg, args), cobra.ShellCompDirectiveNoFileComp
			},
		})
	}
	return cmds
}

// devTargets are the nodes of the running dev cluster that an order may be for, for completion.
func (a *app) devTargets(dataDir, arg string, args []string) []string {
	s, _, _ := a.findDev(dataDir)
	if len(args) > 0 || !strings.Contains(arg, "NODE") {
		return nil
	}
	var names []string
	if strings.Contains(arg, "leader") {
		names = append(names, "leader")
	}
	for _, n := range s.Nodes {
		names = append(names, n.Name)
	}
	return names
}
