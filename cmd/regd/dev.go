package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func newDevCmd(a *app) *cobra.Command {
	var plan devPlan
	var demo bool
	cmd := &cobra.Command{
		Use:   "dev [flags]",
		Short: "Run a local cluster to try regd, and break it.",
		Example: `  # Three nodes, and demo services that are registered and checked.
  regd dev --demo

  # The same with TLS everywhere, and certificates of its own.
  regd dev --tls

  # In a second terminal: see a failover.
  regd watch web
  regd dev kill leader
  regd status
  regd dev restart n1`,
		Long: `Each node is a process of its own:  regd serve --name n1 ...  Node i has the ports 7400+10*(i-1) for gRPC, then one each for
its peers, HTTP and foreign protocols. Commands in other terminals find the cluster by themselves.

All listens on this machine only. Without --tls there is no TLS; with it an authority is made in the data folder, nodes know
each other by their certificates, and clients are asked for one. There are no tokens. Ctrl-C stops everything.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan.chosen = cmd.Flags().Changed("nodes")
			if plan.count < 1 || plan.count > maxDevNodes {
				return usageErrorf("--nodes %d: must be 1 to %d", plan.count, maxDevNodes)
			}
			if plan.firstPort < 1 || plan.firstPort > 65000 {
				return usageErrorf("--port %d: must be 1 to 65000", plan.firstPort)
			}
			return a.runDev(cmd.Context(), plan, demo)
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.IntVar(&plan.count, "nodes", 3, "number of nodes")
	fs.BoolVar(&demo, "demo", false, "also run and register two small HTTP services")
	fs.BoolVar(&plan.tls, "tls", false, "use TLS, with an authority and certificates of this cluster")
	fs.IntVar(&plan.firstPort, "port", 7400, "first port of the first node; taken ones are skipped")
	cmd.PersistentFlags().StringVar(&plan.dir, "data-dir", "",
		"`folder` for the nodes' data and logs; default: a temporary one, removed at the end")
	cmd.AddCommand(newDevOrderCmds(a, &plan.dir)...)
	return cmd
}

// devSession is a dev cluster while it runs, with what belongs to it.
type devSession struct {
	*devCluster
	control *devControl
	demo    *demo
	begun   time.Time
}

// runDev runs a cluster until ctx ends.
func (a *app) runDev(ctx context.Context, plan devPlan, withDemo bool) error {
	done := make(chan struct{})
	defer close(done)
	hurry := secondSignal(done)
	s := &devSession{begun: time.Now()}
	var err error
	if s.devCluster, err = newDevCluster(a, plan); err != nil {
		return err
	}
	err = s.start(ctx, withDemo)
	if err == nil {
		s.describe()
		<-ctx.Done()
		a.note("\nstopping")
	} else if ctx.Err() != nil {
		err = nil // Interrupted while starting: that is an orderly end.
	}
	return errors.Join(err, s.end(hurry)) //nolint:contextcheck // It ends because ctx has ended.
}

// secondSignal returns a channel that closes at the second signal, until done closes.
func secondSignal(done <-chan struct{}) <-chan struct{} {
	signals, hurry := make(chan os.Signal, 2), make(chan struct{})
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() { // Ends with done.
		defer signal.Stop(signals)
		for range 2 {
			select {
			case <-signals:
			case <-done:
				return
			}
		}
		close(hurry)
	}()
	return hurry
}

// start starts nodes, control and demo, and writes down where they are.
func (s *devSession) start(ctx context.Context, withDemo bool) error {
	if err := s.devCluster.start(ctx); err != nil {
		return err
	}
	var err error
	if s.control, err = startDevControl(ctx, s.obey); err != nil {
		return err
	}
	if withDemo {
		if s.demo, err = startDemo(ctx, s.state().grpcAddresses(), s.firstPort()+demoPorts, s.tls.options()...); err != nil {
			return err
		}
	}
	state := s.state()
	state.Control, state.Token = s.control.url(), s.control.token
	if err := state.write(s.stateFile()); err != nil {
		return err
	}
	if path := s.app.userStateFile(); path != "" {
		if err := state.write(path); err != nil {
			s.app.note("commands in other folders need --endpoint: %v", err)
		}
	}
	return nil
}

func (s *devSession) stateFile() string { return filepath.Join(s.dir, devStateFile) }

// end stops everything and removes what is temporary.
func (s *devSession) end(hurry <-chan struct{}) error {
	if s.control != nil {
		s.control.close()
	}
	if s.demo != nil {
		s.demo.close()
	}
	s.stop(hurry)
	if path := s.app.userStateFile(); path != "" {
		if last, err := readDevState(path); err == nil && last.PID == os.Getpid() {
			_ = os.Remove(path) // A stale one is noticed by its process.
		}
	}
	if s.temp {
		s.app.note("all nodes stopped; removed %s", s.dir)
		return s.remove()
	}
	s.app.note("all nodes stopped; their data stays in %s", s.dir)
	state := s.state()
	state.PID = 0
	return state.write(s.stateFile())
}

// describe prints what runs and what to try, once it can be tried.
func (s *devSession) describe() {
	var b strings.Builder
	bold := func(text string) string { return s.app.paintFor(s.app.stdout).as(colourBold, text) }
	fmt.Fprintf(&b, "\n%s: a local cluster of %s, ready after %.1f s\n\n",
		bold("regd "+s.app.build.Version), plural(len(s.nodes), "node"), time.Since(s.begun).Seconds())
	row := func(title, text string) { fmt.Fprintf(&b, "  %-11s %s\n", title, text) }
	for i, n := range s.nodes {
		title := "Nodes"
		if i > 0 {
			title = ""
		}
		row(title, fmt.Sprintf("%s  gRPC %s  metrics http://%s/metrics", n.Name, n.GRPC, n.HTTP))
	}
	doors := s.openings(s.nodes[0].devAddresses)
	for i, door := range doors {
		var at []string
		for _, n := range s.nodes {
			at = append(at, s.openings(n.devAddresses)[i].address)
		}
		row(door.title, strings.Join(at, "  "))
	}
	if s.demo != nil {
		for i, text := range s.demo.describe() {
			title := "Demo"
			if i > 0 {
				title = ""
			}
			row(title, text)
		}
	}
	data := s.dir
	if s.temp {
		data += " (temporary, removed on exit)"
	}
	row("Data", data)
	row("Logs", filepath.Join(s.dir, "logs"))
	for i, line := range s.tls.describe() {
		title := "TLS"
		if i > 0 {
			title = ""
		}
		row(title, line)
	}
	row("Tokens", "off (dev only); regd access bootstrap turns them on")
	if s.tls != nil {
		fmt.Fprintf(&b, "\n%s\n", bold("Programs that are no command of regd need:"))
		for _, line := range s.tls.env(s.state().grpcAddresses()) {
			fmt.Fprintf(&b, "  export %s\n", line)
		}
	}
	fmt.Fprintf(&b, "\n%s\n", bold("Try in a second terminal:"))
	me := os.Args[0]
	tries := []string{"status", "register hello --port 9000", "dev kill leader"}
	if s.demo != nil {
		tries = []string{"instances web", "watch web", "dev kill leader"}
	}
	for _, t := range tries {
		fmt.Fprintf(&b, "  %s %s\n", me, t)
	}
	fmt.Fprint(&b, "\nCtrl-C stops everything.\n")
	fmt.Fprint(s.app.stdout, b.String())
}

// obey carries out an order from another terminal.
func (s *devSession) obey(ctx context.Context, order devOrder) (string, error) {
	switch order.Verb {
	case "stop-service", "start-service":
		return s.obeyDemo(order)
	case "heal":
		if order.Target == "" {
			return s.healAll()
		}
	}
	n, err := s.target(ctx, order.Target)
	if err != nil {
		return "", err
	}
	switch order.Verb {
	case "kill":
		return n.Name + " killed; bring it back with  regd dev restart " + n.Name, n.kill()
	case "restart":
		return s.restart(ctx, n)
	case "pause":
		return n.Name + " paused; let it go on with  regd dev resume " + n.Name, n.pause()
	case "resume":
		return n.Name + " resumed", n.resume()
	case "partition":
		return n.Name + " is cut off from the other nodes; end that with  regd dev heal " + n.Name, n.partition()
	case "heal":
		return n.Name + " can reach the other nodes again", n.heal()
	}
	return "", usageErrorf("unknown order %q", order.Verb)
}

// target finds the node that an order is for.
func (s *devSession) target(ctx context.Context, name string) (*devNode, error) {
	if name != "leader" {
		return s.find(name)
	}
	address, err := leaderAddress(ctx, s.state().grpcAddresses(), s.tls.options()...)
	if err != nil {
		return nil, fmt.Errorf("find the leader: %w", err)
	}
	for _, n := range s.nodes {
		if n.GRPC == address {
			return n, nil
		}
	}
	return nil, withHint(fmt.Errorf("the leader answers at %s, which is no node of this dev cluster", address), "name a node instead")
}

// restart starts a node again, after stopping it if it runs.
func (s *devSession) restart(ctx context.Context, n *devNode) (string, error) {
	if n.isAlive() {
		ended := n.stop()
		select {
		case <-ended:
		case <-time.After(stopTimeout):
			if err := n.kill(); err != nil && !errors.Is(err, errDevDown) {
				return "", err
			}
		}
	}
	select { // What is told of its last end is no news for the next start.
	case <-s.deaths:
	default:
	}
	if err := n.start(); err != nil {
		return "", err
	}
	const patience = 10 * time.Second
	readyCtx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.awaitReady(readyCtx, n); err != nil {
		if !n.isAlive() {
			return "", withHint(err, "its log is %s", n.log)
		}
		return fmt.Sprintf("%s started, but it is not ready yet: %s", n.Name, askReady(ctx, n.HTTP)), nil
	}
	return n.Name + " started and ready", nil
}

func (s *devSession) healAll() (string, error) {
	var healed []string
	var errs []error
	for _, n := range s.nodes {
		if n.isCut() {
			healed = append(healed, n.Name)
			errs = append(errs, n.heal())
		}
	}
	if len(healed) == 0 {
		return "no node was cut off", nil
	}
	return strings.Join(healed, ", ") + " can reach the other nodes again", errors.Join(errs...)
}

func (s *devSession) obeyDemo(order devOrder) (string, error) {
	if s.demo == nil {
		return "", withHint(errors.New("there are no demo services"), "start the cluster with  regd dev --demo")
	}
	return s.demo.turn(order.Target, order.Verb == "start-service")
}
