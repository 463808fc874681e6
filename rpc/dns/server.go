package dns

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/regd-io/regd/cluster"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Node is what the door needs of its node; *cluster.Node is the real one. It must be safe for concurrent use.
type Node interface {
	// View returns the State that the node has, as [cluster.ModeStale] does, and its age.
	View(ctx context.Context, fresh cluster.Freshness) (cluster.View, error)
}

// Server answers DNS queries at one node. Its methods are safe for concurrent use.
type Server struct {
	cfg        Config
	log        *slog.Logger
	node       Node
	domains    []*domain
	zones      []Zone // the longest prefix first
	translator *translator
	cache      *cache
	limiter    *limiter   // nil: no limit
	forward    *forwarder // nil: nothing is forwarded
	metrics    *metrics

	udp          *net.UDPConn
	tcp          net.Listener
	destinations bool // the UDP socket tells to which address a packet was sent
	conns        *conns
	workers      sync.Pool // for TCP

	ctx     context.Context // of what waits for others; ends when Shutdown does not wait any longer
	cancel  context.CancelFunc
	serving sync.WaitGroup
	leave   sync.Mutex // held to set leaving, and to begin to serve
	leaving atomic.Bool
	current atomic.Bool // The State was up to date once.
}

func (c Config) withDefaults() Config {
	if len(c.Domains) == 0 {
		c.Domains = []string{"regd."}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.MinHealth = cmp.Or(c.MinHealth, registryv1.Health_HEALTH_WARNING)
	c.Unhealthy = cmp.Or(c.Unhealthy, UnhealthyEmpty)
	c.Stale = cmp.Or(c.Stale, StaleServe)
	c.Order = cmp.Or(c.Order, OrderShuffle)
	c.MaxStale = cmp.Or(c.MaxStale, 10*time.Second)
	c.UDPSize = cmp.Or(c.UDPSize, safeUDPSize)
	c.MaxForwards = cmp.Or(c.MaxForwards, 256)
	c.MaxConns = cmp.Or(c.MaxConns, 1000)
	c.MaxConnsPerIP = cmp.Or(c.MaxConnsPerIP, 100)
	c.Workers = cmp.Or(c.Workers, 2*runtime.GOMAXPROCS(0))
	return c
}

// Listen returns a server that listens; Serve answers. Shutdown must be called in any case.
func Listen(ctx context.Context, cfg Config, node Node) (*Server, error) {
	s, err := newServer(cfg, node)
	if err != nil {
		return nil, fmt.Errorf("configure DNS: %w", err)
	}
	if err := s.bind(ctx); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return s, nil
}

// newServer returns a server without sockets: all but Listen, Serve and Shutdown works.
func newServer(cfg Config, node Node) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	domains, err := newDomains(cfg.Domains, cfg.NegativeTTL)
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger, node: node, domains: domains, zones: slices.Clone(cfg.Zones),
		translator: newTranslator(cfg, domains[0]), cache: newCache(),
		limiter: newLimiter(cfg.RateLimit, time.Now()), forward: newForwarder(cfg.Forward, cfg.MaxForwards),
		metrics: newMetrics(), conns: newConns(cfg.MaxConns, cfg.MaxConnsPerIP), ctx: context.Background(),
	}
	slices.SortStableFunc(s.zones, func(a, b Zone) int { return cmp.Compare(b.Network.Bits(), a.Network.Bits()) })
	s.workers.New = func() any { return s.newWorker() }
	return s, nil
}

func newTranslator(cfg Config, main *domain) *translator {
	return &translator{
		minHealth: cfg.MinHealth, unhealthy: cfg.Unhealthy, ttl: cfg.TTL, ttls: cfg.ServiceTTLs,
		datacenter: strings.ToLower(cfg.Datacenter), main: main, index: newIndex(),
	}
}

// bind listens by UDP and TCP on the same port.
func (s *Server) bind(ctx context.Context) error {
	var lc net.ListenConfig
	const attempts = 8 // Where any port will do, TCP may not have the one that UDP got.
	for i := 1; ; i++ {
		udp, err := lc.ListenPacket(ctx, "udp", s.cfg.Listen)
		if err != nil {
			return fmt.Errorf("listen for DNS: %w", err)
		}
		tcp, err := lc.Listen(ctx, "tcp", udp.LocalAddr().String())
		if err != nil {
			_ = udp.Close()
			if _, port, _ := net.SplitHostPort(s.cfg.Listen); port == "0" && i < attempts {
				continue
			}
			return fmt.Errorf("listen for DNS: %w", err)
		}
		s.udp, _ = udp.(*net.UDPConn)
		s.tcp = tcp
		s.destinations = tellDestinations(s.udp)
		return nil
	}
}

// Addr returns the address of both UDP and TCP.
func (s *Server) Addr() net.Addr { return s.tcp.Addr() }

// Collectors are the server's metrics, to be registered once.
func (s *Server) Collectors() []prometheus.Collector { return s.metrics.collectors() }

// Serve answers until Shutdown; then it returns nil. It may be called once.
func (s *Server) Serve() error {
	s.leave.Lock()
	if s.leaving.Load() {
		s.leave.Unlock()
		return nil
	}
	s.serving.Add(1)
	s.leave.Unlock()
	defer s.serving.Done()
	s.log.Info("answering DNS", "address", s.Addr().String(), "domains", s.cfg.Domains)
	var udp sync.WaitGroup
	for range s.cfg.Workers {
		udp.Go(s.serveUDP)
	}
	err := s.accept()
	udp.Wait()
	return err
}

// Shutdown ends the server: nothing more is taken, and what is under way is answered, until ctx ends: then it is cut off, and
// ctx's error is returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.leave.Lock()
	s.leaving.Store(true)
	s.leave.Unlock()
	_ = s.udp.SetReadDeadline(time.Unix(1, 0)) // Answers that are forwarded still have to leave.
	_ = s.tcp.Close()
	s.conns.hurry()
	done := make(chan struct{})
	go func() {
		s.serving.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = fmt.Errorf("finish DNS queries: %w", context.Cause(ctx))
	}
	s.cancel()
	s.conns.cut()
	<-done
	_ = s.udp.Close()
	return err
}
