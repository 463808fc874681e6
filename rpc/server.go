package rpc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/stats"

	"github.com/regd-io/regd/cluster/certs"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// Config says how a Server runs. The zero value is usable.
type Config struct {
	// Logger gets what the server has to say. Default: nothing is logged.
	Logger *slog.Logger
	// TLS secures the connections. Default: none, plaintext.
	TLS *TLS
	// MaxReceive is the largest message from a client, in bytes. Default 1 MiB.
	MaxReceive int
	// MaxStreams is the number of calls that one connection may have open. Default 256.
	MaxStreams int
	// Stats is told of calls by gRPC, for tracing. Nil: nobody is, which costs nothing.
	Stats stats.Handler
	// Audit gets a record of each write, of what operators do and of what was denied. Nil: none are written.
	Audit *slog.Logger
	// AccessResetFile is the file in which an operator shows that the disk of this node is his, to bootstrap access control
	// again. Empty: that is not possible here.
	AccessResetFile string
	// MaxConns is the number of connections in all. Default 4,000.
	MaxConns int
	// MaxConnsPerIP is the number of connections from one address. Default 200.
	MaxConnsPerIP int
	// MaxInFlight is the number of calls that are worked on at once. Default 1,024.
	MaxInFlight int
	// MaxLockWaiters is the number of Acquire calls that wait at once. Default 10,000.
	MaxLockWaiters int
	// MaxWatches is the number of watch streams that are open at once. Default 20,000.
	MaxWatches int
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.MaxReceive = cmp.Or(c.MaxReceive, DefaultMaxReceive)
	c.MaxStreams = cmp.Or(c.MaxStreams, DefaultMaxStreams)
	c.MaxConns = cmp.Or(c.MaxConns, DefaultMaxConns)
	c.MaxConnsPerIP = cmp.Or(c.MaxConnsPerIP, DefaultMaxConnsPerIP)
	c.MaxInFlight = cmp.Or(c.MaxInFlight, DefaultMaxInFlight)
	c.MaxLockWaiters = cmp.Or(c.MaxLockWaiters, DefaultMaxLockWaiters)
	c.MaxWatches = cmp.Or(c.MaxWatches, DefaultMaxWatches)
	return c
}

// Validate reports all faults of a configuration. 0 stands for a default.
func (c Config) Validate() error {
	var faults []error
	for _, limit := range []struct {
		name         string
		value, least int
	}{
		{"max receive", c.MaxReceive, 64 << 10},
		{"max streams", c.MaxStreams, 1},
		{"max connections", c.MaxConns, 1},
		{"max connections per address", c.MaxConnsPerIP, 1},
		{"max in flight", c.MaxInFlight, 1},
		{"max lock waiters", c.MaxLockWaiters, 1},
		{"max watches", c.MaxWatches, 1},
	} {
		if limit.value != 0 && limit.value < limit.least {
			faults = append(faults, fmt.Errorf("%s %d: must be at least %d", limit.name, limit.value, limit.least))
		}
	}
	if t := c.TLS; t != nil && t.ClientAuth != "" && t.ClientAuth != certs.ClientAuthNone && t.Domain == "" {
		faults = append(faults, errors.New("tls: certificates of clients need a trust domain"))
	}
	return errors.Join(faults...)
}

// Server serves the API of one node. Its methods are safe for concurrent use.
type Server struct {
	cfg     Config
	core    *core
	grpc    *grpc.Server
	conns   *connections
	tls     *serverTLS // nil: plaintext
	metrics *callMetrics
	access  *accessWatch
	audit   audit
	faults  []Fault
	once    sync.Once // makes the first Shutdown the only one
}

// NewServer returns a server for a node; Serve starts it.
func NewServer(cfg Config, node Node) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure API server: %w", err)
	}
	cfg = cfg.withDefaults()
	s := &Server{
		cfg: cfg,
		core: &core{
			guard:       guard{node},
			log:         cfg.Logger,
			admission:   newAdmission(cfg.MaxInFlight),
			lockWaiters: make(chan struct{}, cfg.MaxLockWaiters),
			watches:     make(chan struct{}, cfg.MaxWatches),
			workers:     workers{most: runtime.GOMAXPROCS(0)},
			leaving:     make(chan struct{}),
		},
		conns:  newConnections(cfg.MaxConns, cfg.MaxConnsPerIP),
		faults: Faults(),
	}
	if cfg.TLS != nil {
		s.tls = newServerTLS(*cfg.TLS, cfg.Logger)
	}
	node.ServeDelivery(s.core.delivered)
	s.access = watchAccess(s.core)
	s.audit = audit{log: cfg.Audit, guard: s.core.guard}
	s.grpc = grpc.NewServer(s.options()...)
	s.register()
	s.metrics = newCallMetrics(s.grpc.GetServiceInfo())
	return s, nil
}

func (s *Server) options() []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(s.cfg.MaxReceive),
		grpc.MaxConcurrentStreams(uint32(s.cfg.MaxStreams)),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.ConnectionTimeout(connectionTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMinTime, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WaitForHandlers(true),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.InTapHandle(s.refuseUnread),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	}
	if s.tls != nil {
		opts = append(opts, grpc.Creds(s.tls))
	}
	if s.cfg.Stats != nil {
		opts = append(opts, grpc.StatsHandler(s.cfg.Stats))
	}
	return opts
}

func (s *Server) register() {
	s.grpc.RegisterService(registryService, &registryServer{core: s.core})
	apiv1.RegisterSessionServiceServer(s.grpc, &sessionServer{core: s.core})
	apiv1.RegisterLeaseServiceServer(s.grpc, &leaseServer{core: s.core})
	apiv1.RegisterLockServiceServer(s.grpc, &lockServer{core: s.core})
	apiv1.RegisterClusterServiceServer(s.grpc, &clusterServer{core: s.core, restoring: make(chan struct{}, 1)})
	apiv1.RegisterAccessServiceServer(s.grpc, &accessServer{core: s.core, resetFile: s.cfg.AccessResetFile})
	apiv1.RegisterNamespaceServiceServer(s.grpc, &namespaceServer{core: s.core})
	apiv1.RegisterKVServiceServer(s.grpc, &kvServer{core: s.core})
	healthpb.RegisterHealthServer(s.grpc, &healthServer{core: s.core})
	reflection.RegisterV1(s.grpc)
}

// Collectors are the server's metrics, to be registered once.
func (s *Server) Collectors() []prometheus.Collector {
	all := append(s.core.admission.collectors(), s.limitCollectors()...)
	if s.tls != nil {
		all = append(all, s.tls.refused)
	}
	return append(all, s.metrics, quotaMetrics{s.core}, prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "regd_watch_messages_total",
		Help: "Messages sent on watch streams.",
	}, func() float64 { return float64(s.core.watchMessages.Load()) }))
}

// Serve answers calls that come in on the listener until Shutdown; then it returns nil. It closes the listener, and may
// be called for several.
func (s *Server) Serve(lis net.Listener) error {
	err := s.grpc.Serve(&limitListener{lis, s.conns})
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve API on %s: %w", lis.Addr(), err)
	}
	return nil
}

// Leave makes the health service say NOT_SERVING, while everything else goes on: load balancers get time to look
// elsewhere before Shutdown.
func (s *Server) Leave() { s.core.unready.Store(true) }

// Shutdown ends the server: health says NOT_SERVING, streams are asked to go elsewhere, no call is taken any more, and
// those under way are finished, until ctx ends: then they are cut off, and ctx's error is returned. Calls after the
// first return at once.
func (s *Server) Shutdown(ctx context.Context) error {
	var err error
	s.once.Do(func() { err = s.shutdown(ctx) })
	return err
}

func (s *Server) shutdown(ctx context.Context) error {
	s.Leave()
	close(s.core.leaving)
	var err error
	stop := context.AfterFunc(ctx, s.grpc.Stop)
	s.grpc.GracefulStop()
	if !stop() {
		s.grpc.Stop() // Waits for the one that is under way.
		err = fmt.Errorf("finish calls: %w", context.Cause(ctx))
	}
	s.core.tasks.Wait()
	s.access.close()
	s.core.workers.ended.Wait()
	return err
}
