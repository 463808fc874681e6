package main

import (
	"errors"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/storage"
)

// Default ports.
const (
	defaultGRPC = "127.0.0.1:7400"
	defaultPeer = "127.0.0.1:7401"
	defaultHTTP = "127.0.0.1:7402"
)

func newServeCmd(a *app) *cobra.Command {
	settings := serveSettings{serveConfig: serveConfig{Build: a.build, Doors: a.openings()}}
	own := pflag.NewFlagSet("settings", pflag.ContinueOnError)
	cmd := &cobra.Command{
		Use:   "serve [flags]",
		Short: "Run a node of a cluster.",
		Example: `  # A cluster of one, to try it.
  regd serve --data-dir ./data --initial-peers 127.0.0.1:7401

  # The first three nodes of a cluster, each with all three peer addresses and its files of  regd tls init.
  regd serve --name n1 --data-dir /var/lib/regd \
    --tls-cert /etc/regd/n1.crt --tls-key /etc/regd/n1.key --tls-ca /etc/regd/ca.crt \
    --grpc-listen 0.0.0.0:7400 --advertise-grpc n1.example:7400 \
    --peer-listen 0.0.0.0:7401 --advertise-peer n1.example:7401 \
    --initial-peers n1.example:7401,n2.example:7401,n3.example:7401

  # A further node: it asks a member to take it in.
  regd serve --name n4 --data-dir /var/lib/regd --join n1.example:7401 ...`,
		Long: `Every flag is also a key of the YAML file given by --config (heartbeat-timeout: 300ms) and a variable of the
environment (REGD_HEARTBEAT_TIMEOUT=300ms). A flag wins over the environment, that over the file.

TLS files are read again every 10 seconds; bad ones leave the old ones in use, as the log and a metric say. Other nodes are
known by their certificate: spiffe://<trust domain>/regd/peer/<name> (docs/security.md).

On SIGTERM or SIGINT the node turns not ready, waits --shutdown-delay, hands leadership over, asks its clients to go
elsewhere, and stops. A second signal ends it at once. A node is never removed from its cluster by stopping: that is
done by  regd members remove.`,
		Annotations: map[string]string{helpAnnotation: `HTTP for operations: /livez /readyz[?verbose] /startupz /metrics /debug/pprof /debug/{log,settings,files,raft}

Exit codes: 0 stopped as asked, 70 data folder in use, 71 of another cluster, 72 newer, 73 damaged, 74 not writable,
75 disk failed, 78 wrong configuration. None of these is healed by starting again.`},
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := settings.read(cmd.Flags()); err != nil {
				return err
			}
			settings.Settings, settings.LogLines = viewSettings(own), &lastLines{}
			logger, err := a.newLogger(a.stderr, settings.logLevel, settings.logFormat, settings.LogLines)
			if err != nil {
				return &exitError{code: exitConfig, err: err}
			}
			settings.Logger = logger
			return serve(cmd.Context(), settings.serveConfig)
		},
	}
	settings.addFlags(own)
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.AddFlagSet(own)
	fs.BoolVar(&settings.DevChild, "dev-child", false, "obey the signals of regd dev")
	if err := fs.MarkHidden("dev-child"); err != nil {
		panic(err) // Only a misspelt name.
	}
	return cmd
}

// serveSettings are all that a node can be told: its configuration, the file with it, and how it logs.
type serveSettings struct {
	serveConfig
	file, logLevel, logFormat string
}

func (s *serveSettings) addFlags(fs *pflag.FlagSet) {
	fs.SortFlags = false
	fs.StringVar(&s.file, "config", "", "YAML `file` with settings")
	s.serveConfig.addFlags(fs)
	enumVar(fs, &s.logLevel, "log-level", "least level of what is logged", "debug", "info", "warn", "error")
	enumVar(fs, &s.logFormat, "log-format", "format of the log; auto is text on a terminal", logAuto, logText, logJSON)
	setDefault(fs, "log-level", "info")
	setDefault(fs, "log-format", logAuto)
	fs.VisitAll(func(f *pflag.Flag) { bindEnv(fs, f.Name, envName(f.Name)) })
}

// read adds what the file says to what flags and environment have said.
func (s *serveSettings) read(fs *pflag.FlagSet) error {
	if s.file == "" {
		return nil
	}
	return applyFile(fs, s.file)
}

// setDefault sets the default of a flag that was defined without one.
func setDefault(fs *pflag.FlagSet, name, value string) {
	f := fs.Lookup(name)
	if err := f.Value.Set(value); err != nil {
		panic(err) // Only a default that is not among the values.
	}
	f.DefValue = value
}

func (c *serveConfig) addFlags(fs *pflag.FlagSet) {
	hostname, _ := os.Hostname() // Without one, --name is asked for.
	hostname, _, _ = strings.Cut(hostname, ".")
	fs.StringVar(&c.Name, "name", hostname, "`name` of the node, unique in the cluster; default: the host name")
	fs.Lookup("name").DefValue = "" // Help reads the same on every machine.
	fs.StringVar(&c.DataDir, "data-dir", "", "`folder` of the node's log, snapshots and identity; required")
	enumVar(fs, &c.LogStore, "log-store", "what keeps the log, for good; wal needs one fsync a write, not two",
		string(storage.LogStoreBoltDB), string(storage.LogStoreWAL))
	setDefault(fs, "log-store", string(storage.LogStoreBoltDB))
	fs.StringVar(&c.GRPCListen, "grpc-listen", defaultGRPC, "`address` on which clients are answered")
	fs.StringVar(&c.PeerListen, "peer-listen", defaultPeer, "`address` on which other nodes are answered")
	fs.StringVar(&c.HTTPListen, "http-listen", defaultHTTP, "`address` of health and metrics")
	fs.StringVar(&c.AdvertiseGRPC, "advertise-grpc", "", "`address` under which clients reach the node; default: as listened on")
	fs.StringVar(&c.AdvertisePeer, "advertise-peer", "", "`address` under which other nodes reach it; default: as listened on")
	fs.StringVar(&c.AdvertiseHTTP, "advertise-http", "", "`address` under which operators reach it; default: as listened on")
	fs.StringSliceVar(&c.InitialPeers, "initial-peers", nil, "peer `addresses` of all first members, this one among them")
	fs.StringSliceVar(&c.Join, "join", nil, "peer `addresses` of members that an empty node asks to take it in")
	fs.BoolVar(&c.NonVoter, "non-voter", false, "stay a non-voter: serve reads, never lead")
	fs.DurationVar(&c.HeartbeatTimeout, "heartbeat-timeout", cluster.DefaultHeartbeatTimeout, "silence of the leader after which another is elected")
	fs.DurationVar(&c.ShutdownDelay, "shutdown-delay", 0, "time between turning not ready and stopping; 5s behind a load balancer")
	c.TLS.addFlags(fs)
	c.Limits.addFlags(fs)
	fs.StringVar(&c.AuditLog, "audit-log", "", "`file` that gets a line of JSON for each write and whatever was refused; - for stdout")
	c.Backup.addFlags(fs)
	c.Trace.addFlags(fs)
	fs.BoolVar(&c.Insecure, "insecure", false, "listen beyond this machine without TLS")
	for _, d := range c.Doors {
		d.addFlags(fs)
	}
}

// serveExit gives an error of serve its exit code and, where there is one, what to do.
func serveExit(err error) error {
	for _, row := range serveErrors() {
		if errors.Is(err, row.sentinel) {
			return &exitError{code: row.code, err: err, hint: row.hint}
		}
	}
	return err
}
