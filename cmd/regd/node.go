package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/certs"
	"github.com/regd-io/regd/cluster/peer"
	"github.com/regd-io/regd/cluster/storage"
	"github.com/regd-io/regd/health"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	"github.com/regd-io/regd/rpc"
)

// serveConfig is the configuration of a node, as flags, environment and file make it.
type serveConfig struct {
	Name, DataDir, LogStore                     string
	GRPCListen, PeerListen, HTTPListen          string
	AuditLog                                    string
	AdvertiseGRPC, AdvertisePeer, AdvertiseHTTP string
	InitialPeers, Join                          []string
	NonVoter, Insecure                          bool
	HeartbeatTimeout, ShutdownDelay             time.Duration
	TLS                                         tlsSettings
	Limits                                      limitSettings
	Doors                                       []door
	Trace                                       traceSettings
	Backup                                      backupSettings

	Build  buildInfo
	Logger *slog.Logger
	// Settings and LogLines are what operators may see of the settings and of the log.
	Settings []settingView
	LogLines *lastLines
	// DevChild makes the node obey the signals of regd dev.
	DevChild bool
	// NoSync is for tests: it leaves out fsync.
	NoSync bool
	// Up, if set, is told the addresses of gRPC and HTTP once both are bound: a port may have been 0.
	Up func(grpc, http net.Addr)
}

// withDefaults fills in what follows from the rest.
func (c serveConfig) withDefaults() serveConfig {
	for advertise, listen := range map[*string]string{
		&c.AdvertiseGRPC: c.GRPCListen, &c.AdvertisePeer: c.PeerListen, &c.AdvertiseHTTP: c.HTTPListen,
	} {
		if *advertise == "" {
			*advertise = listen
		}
	}
	return c
}

// validate reports all faults that the packages below can't see.
func (c serveConfig) validate() error {
	var faults []error
	bad := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Name == "" {
		bad("--name: must be set, this machine has no host name")
	}
	if c.DataDir == "" {
		bad("--data-dir: must be set")
	}
	if len(c.Name) > maxNameLength {
		bad("--name %s: has %d characters, at most %d are allowed", c.Name, len(c.Name), maxNameLength)
	}
	if c.ShutdownDelay < 0 {
		bad("--shutdown-delay %v: must not be negative", c.ShutdownDelay)
	}
	if c.HeartbeatTimeout < minHeartbeat || c.HeartbeatTimeout > maxHeartbeat {
		bad("--heartbeat-timeout %v: must be %v to %v", c.HeartbeatTimeout, minHeartbeat, maxHeartbeat)
	}
	c.TLS.validate(bad)
	c.Limits.validate(bad)
	c.Trace.validate(bad)
	c.Backup.validate(c.DataDir, bad)
	if _, on := c.TLS.peers(); on {
		if err := certs.CheckName(c.Name); err != nil {
			bad("--name: with TLS it stands in the certificate: %w", err)
		}
	}
	c.validatePeers(bad)
	c.validateAddresses(bad)
	_, secure := c.TLS.client()
	for _, d := range c.Doors {
		d.validate(secure, bad)
	}
	return errors.Join(faults...)
}

const (
	maxNameLength = 63
	minHeartbeat  = 50 * time.Millisecond
	maxHeartbeat  = time.Minute
)

func (c serveConfig) validatePeers(bad func(string, ...any)) {
	for name, addresses := range map[string][]string{"--initial-peers": c.InitialPeers, "--join": c.Join} {
		for _, address := range addresses {
			if host, _, err := net.SplitHostPort(address); err != nil || host == "" {
				bad("%s %q: must be host:port", name, address)
			}
		}
	}
}

func (c serveConfig) validateAddresses(bad func(string, ...any)) {
	for _, l := range []struct{ name, advertiseName, listen, advertise string }{
		{"--grpc-listen", "--advertise-grpc", c.GRPCListen, c.AdvertiseGRPC},
		{"--peer-listen", "--advertise-peer", c.PeerListen, c.AdvertisePeer},
		{"--http-listen", "--advertise-http", c.HTTPListen, c.AdvertiseHTTP},
	} {
		if _, _, err := net.SplitHostPort(l.listen); err != nil {
			bad("%s %q: must be host:port", l.name, l.listen)
			continue
		}
		if slices.Contains(c.plaintext(), l.name) && !c.Insecure {
			bad("%s %s: reaches beyond this machine without TLS: whoever gets there can read and change the registry; "+
				"give --tls-cert, --tls-key and --tls-ca (regd tls init makes them), or say --insecure if the network is trusted",
				l.name, l.listen)
		}
		if host, _, err := net.SplitHostPort(l.advertise); err != nil || host == "" || net.ParseIP(host).IsUnspecified() {
			bad("%s %q: nobody can reach that; give the host:port under which others reach this node", l.advertiseName, l.advertise)
		}
	}
}

// isLoopback tells whether a host is surely this machine only.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// serveErrors maps what can end a node to exit codes.
func serveErrors() []struct {
	sentinel error
	code     exitCode
	hint     string
} {
	return []struct {
		sentinel error
		code     exitCode
		hint     string
	}{
		{storage.ErrLocked, exitDataLocked, "stop the other process, or give this node a --data-dir of its own"},
		{storage.ErrForeignCluster, exitDataForeign, "check --data-dir, --initial-peers and --join: they name different clusters"},
		{storage.ErrNewerFormat, exitDataNewer, "run the version that wrote it, or a newer one"},
		{cluster.ErrTooOld, exitDataNewer, "run the version that the other nodes have, or a newer one"},
		{storage.ErrCorrupt, exitDataCorrupt, ""},
		{storage.ErrLogStore, exitConfig, "start the node with the --log-store that its folder has; for another one it has to come back empty, as a new member"},
		{storage.ErrNotWritable, exitDataDenied, "the folder must belong to the user that runs regd"},
		{storage.ErrExposed, exitConfig, "chmod o-w  it, after a look at who changed what: a folder that is not sure can be replaced by starting empty, as a new member"},
		{storage.ErrSync, exitDataSync, "check the disk before starting the node again"},
		{cluster.ErrNoRemains, exitNotFound, "give the --data-dir of the node whose disk is left"},
		{syscall.EADDRINUSE, exitFailed, "another process listens there: stop it, or choose another port"},
	}
}

// server is a running node with all that it serves.
type server struct {
	cfg     serveConfig
	log     *slog.Logger
	ops     *opsServer
	lis     net.Listener
	node    *cluster.Node
	monitor *health.Monitor
	tls     security
	traces  tracing
	api     *rpc.Server
	doors   []doorServer
	routes  []prometheus.Collector // of the doors at the port for operations
	audit   auditLog
	backups *backups
	// opened is node, for who asks while it opens.
	opened atomic.Pointer[cluster.Node]
	fatal  chan error // capacity 1

	stopping atomic.Bool
	manager  *supervisor
}

// servedNode is the node as its clients see it: not ready from the moment on at which it is asked to stop.
type servedNode struct {
	*cluster.Node
	stopping *atomic.Bool
}

// Ready implements rpc.Node.
func (n servedNode) Ready() error {
	if n.stopping.Load() {
		return cluster.ErrClosed
	}
	return n.Node.Ready()
}

// serve runs a node until ctx ends, then stops it in order. It returns nil when it was stopped by ctx, and an error with
// an exit code when it could not start or go on.
func serve(ctx context.Context, cfg serveConfig) error {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return &exitError{code: exitConfig, err: err}
	}
	if open := cfg.plaintext(); len(open) > 0 {
		cfg.Logger.Warn("listening without TLS: whoever reaches these ports can read and change the registry",
			"ports", open, "grpc_listen", cfg.GRPCListen, "peer_listen", cfg.PeerListen)
	}
	defer holdHeapFloor()()
	cfg.Logger.Info("starting", "version", cfg.Build.Version, "commit", cfg.Build.Commit, "command", strings.Join(os.Args, " "))
	s := &server{cfg: cfg, log: cfg.Logger, fatal: make(chan error, 1), manager: newSupervisor(cfg.Logger)}
	if err := s.open(ctx); err != nil {
		return serveExit(errors.Join(err, s.close(ctx)))
	}
	return serveExit(s.run(ctx))
}

// open starts everything, the port for operations first: it tells that the node is starting.
func (s *server) open(ctx context.Context) error {
	var err error
	if s.ops, err = startOps(ctx, s.cfg.HTTPListen, s.log); err != nil {
		return err
	}
	s.showPages()
	if s.cfg.AdvertiseHTTP == s.cfg.HTTPListen { // Whose port may have been 0.
		s.cfg.AdvertiseHTTP = s.ops.addr().String()
	}
	if s.tls, err = openSecurity(s.cfg); err != nil {
		return &exitError{code: exitConfig, err: err}
	}
	if s.traces, err = openTracing(ctx, s.cfg); err != nil {
		return &exitError{code: exitConfig, err: err}
	}
	if s.audit, err = openAudit(s.cfg.AuditLog, os.Stdout); err != nil {
		return err
	}
	var lc net.ListenConfig
	if s.lis, err = lc.Listen(ctx, "tcp", s.cfg.GRPCListen); err != nil {
		return fmt.Errorf("listen for clients: %w", err)
	}
	if s.cfg.Up != nil {
		s.cfg.Up(s.lis.Addr(), s.ops.addr())
	}
	if s.cfg.AdvertiseGRPC == s.cfg.GRPCListen {
		s.cfg.AdvertiseGRPC = s.lis.Addr().String()
	}
	if err = s.openNode(ctx); err != nil {
		return err
	}
	served := servedNode{s.node, &s.stopping}
	api := rpc.Config{
		Logger: s.log, TLS: s.tls.api(s.cfg.TLS), Audit: s.audit.log, Stats: s.traces.stats(),
		AccessResetFile: filepath.Join(s.cfg.DataDir, "access-reset"),
	}
	s.cfg.Limits.apply(&api)
	if s.api, err = rpc.NewServer(api, served); err != nil {
		return err
	}
	if err = s.openDoors(ctx, served); err != nil {
		return err
	}
	s.backups = newBackups(s.cfg.Backup, served, s.log)
	s.openRoutes()
	return s.ops.serveNode(served, s.collectors())
}

// openNode opens the node and the monitor that works while it leads. The monitor needs the node to exist, and the node
// may lead as soon as it does: what comes too early waits.
func (s *server) openNode(ctx context.Context) error {
	made := make(chan struct{})
	network := peer.TCP()
	if s.cfg.DevChild {
		cut := newPeerCut(network)
		go cut.obey(ctx) // Ends with ctx.
		network = cut
	}
	network = s.tls.network(network)
	//nolint:contextcheck // It runs until it is closed: later than ctx, as it has to be stopped in order.
	node, err := cluster.Open(cluster.Config{
		Name: s.cfg.Name, DataDir: s.cfg.DataDir, LogStore: storage.LogStore(s.cfg.LogStore), PeerListen: s.cfg.PeerListen, PeerAdvertise: s.cfg.AdvertisePeer,
		GRPCAdvertise: s.cfg.AdvertiseGRPC, HTTPAdvertise: s.cfg.AdvertiseHTTP, Version: s.cfg.Build.Version,
		InitialPeers: s.cfg.InitialPeers, Join: s.cfg.Join, NonVoter: s.cfg.NonVoter,
		HeartbeatTimeout: s.cfg.HeartbeatTimeout, NoSync: s.cfg.NoSync, Network: network, Logger: s.log, Tracer: s.traces.tracer(),
		Lead: func(ctx context.Context, term uint64) {
			<-made
			s.monitor.Lead(ctx, term)
		},
		Renew: func(term uint64, taken time.Time, renewals []*peerv1.Renewals) ([]*peerv1.Renewals, error) {
			<-made
			return s.monitor.Renew(term, taken, renewals)
		},
		OnFatal: func(err error) {
			s.fatal <- err
			select {} // Raft would panic on what it is told next; the process is about to end with a clean line.
		},
	})
	if err != nil {
		return err
	}
	defer close(made)
	s.node = node
	s.opened.Store(node)
	cfg := health.DefaultConfig()
	cfg.Logger = s.log
	cfg.Node = s.cfg.Name
	cfg.Unapplied = func(err error) bool { return !errors.Is(err, cluster.ErrUnknownOutcome) }
	s.monitor, err = health.New(cfg, node.Feed(), node)
	return err
}

// run serves until ctx ends or the node can't go on.
func (s *server) run(ctx context.Context) error {
	var serving errgroup.Group
	failed := make(chan error, 1+len(s.doors))
	keep := func(serve func() error) {
		serving.Go(func() error {
			if err := serve(); err != nil {
				failed <- err
			}
			return nil
		})
	}
	keep(func() error { return s.api.Serve(s.lis) })
	for _, d := range s.doors {
		keep(d.Serve)
	}
	ready, cancel := context.WithCancel(ctx)
	serving.Go(func() error { s.announce(ready); return nil })
	serving.Go(func() error { s.backups.run(ready); return nil })
	serving.Go(func() error { s.manager.attend(ready, servedNode{s.node, &s.stopping}); return nil })
	var err error
	select {
	case <-ctx.Done():
		s.log.Info("stopping", "reason", context.Cause(ctx))
		s.leave(ctx)
	case err = <-s.fatal:
		cancel()
		return err // At once: what is stuck in a failed write can't be stopped in order.
	case err = <-failed:
	}
	cancel()
	err = errors.Join(err, s.close(ctx))
	_ = serving.Wait() // None returns an error.
	s.log.Info("stopped")
	return err
}

const (
	// drainTimeout bounds handing leadership over.
	drainTimeout = 5 * time.Second
	// finishTimeout bounds finishing the calls under way.
	finishTimeout = 5 * time.Second
)

// leave takes the node out of service while it still works. ctx has ended: that is why.
func (s *server) leave(ctx context.Context) {
	s.stopping.Store(true)
	s.manager.say(daemon.SdNotifyStopping)
	time.Sleep(s.cfg.ShutdownDelay) // A second signal ends the process, so nothing has to end this.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	s.node.Drain(ctx)
}

// close stops what was started, in reverse, and waits for it, also when ctx has ended.
func (s *server) close(ctx context.Context) error {
	var errs []error
	s.stopping.Store(true)
	if s.api != nil {
		finishing, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
		defer cancel()
		if err := s.api.Shutdown(finishing); err != nil {
			s.log.Warn("calls were cut off", "err", err)
		}
	} else if s.lis != nil {
		errs = append(errs, s.lis.Close())
	}
	for _, d := range s.doors {
		finishing, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
		defer cancel()
		if err := d.Shutdown(finishing); err != nil {
			s.log.Warn("queries were cut off", "err", err)
		}
	}
	if s.node != nil {
		errs = append(errs, s.node.Close())
	}
	s.traces.close(ctx)
	s.tls.close()
	errs = append(errs, s.audit.close())
	if s.ops != nil {
		errs = append(errs, s.ops.close(ctx))
	}
	return errors.Join(errs...)
}

// announce logs when the node is ready, and what it waits for when that takes long.
func (s *server) announce(ctx context.Context) {
	const often, long = 100 * time.Millisecond, 2 * time.Second
	ticker := time.NewTicker(often)
	defer ticker.Stop()
	var reason, said string
	since := time.Now()
	for {
		err := s.node.Ready()
		if err == nil {
			info := s.node.Info()
			s.log.Info("ready", "node", info.Name, "cluster_id", info.ClusterID, "leader", info.LeaderName,
				"grpc", s.cfg.AdvertiseGRPC, "http", s.cfg.AdvertiseHTTP)
			return
		}
		if now := err.Error(); now != reason {
			reason, since = now, time.Now()
		} else if reason != said && time.Since(since) > long {
			said = reason
			s.log.Info("not ready yet", "reason", reason)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
