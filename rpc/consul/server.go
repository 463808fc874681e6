package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/feed"
	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	"github.com/regd-io/regd/rpc"
)

// DefaultPort is that of Consul.
const DefaultPort = "8500"

const (
	// maxWaiters bounds the queries that wait for a change.
	maxWaiters = 32_768
	// maxIdle is the number of request ids that are kept for the next writes.
	maxIdle = 512
	// maxWholes bounds the answers that may be as large as the registry.
	maxWholes = 4
	// maxBody is the largest body of a request, snapshots excepted.
	maxBody = 512 << 10
	// maxWork is how long a request may take, waiting for a change and snapshots excepted.
	maxWork = 15 * time.Second
	// maxSend is how long a client may take to read an answer.
	maxSend = time.Minute
)

// Node is what the door needs of its node; *cluster.Node is the real one. It must be safe for concurrent use.
type Node interface {
	// View returns a State as fresh as asked, or an error.
	View(ctx context.Context, fresh cluster.Freshness) (cluster.View, error)
	// Renew renews TTL checks, and returns those that are unknown.
	Renew(ctx context.Context, kind peerv1.RenewKind, ids []string) (ended []string, err error)
	// Feed is what is visible on this node.
	Feed() *feed.Feed
	// Info says who this node is and who leads.
	Info() cluster.Info
	// Status tells how the cluster is; local asks no other node.
	Status(ctx context.Context, local bool) (*apiv1.StatusResponse, error)
	// Remove removes a node, by id or name.
	Remove(ctx context.Context, node string, force bool) error
	// TransferLeadership hands leadership to a node ("": the one that is furthest) and returns the new leader's name.
	TransferLeadership(ctx context.Context, node string) (leader string, err error)
	// Restore replaces the content of the registry.
	Restore(ctx context.Context, st *fsm.State) error
}

// Config is the configuration of a Server. What is required is said.
type Config struct {
	// Listen is the host:port on which clients are answered. Required by Listen.
	Listen string
	// Datacenter is what clients are told. Default "dc1".
	Datacenter string
	// Host is the name of this machine: the node of what is registered from it. Required.
	Host string
	// Door is through which clients come, and what they write goes. Required.
	Door *rpc.Door
	// Logger gets what the operator should know. nil: nothing is logged.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	c.Datacenter = cmp.Or(c.Datacenter, "dc1")
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate reports what is wrong with the configuration.
func (c Config) Validate() error {
	c = c.withDefaults()
	return errors.Join(validNode("datacenter", c.Datacenter), validNode("host", c.Host))
}

// Server answers requests at one node. Its methods are safe for concurrent use.
type Server struct {
	cfg      Config
	node     Node
	shapes   translator
	ledger   *ledger
	requests requestIDs
	routes   routes
	metrics  *metrics
	gatherer prometheus.Gatherer

	waiters chan struct{} // one token for each query that waits
	wholes  chan struct{} // one token for each answer that may be as large as the registry: it is in memory as a whole
	// restoring has a token while a snapshot comes in: its State is memory that only one may take.
	restoring chan struct{}

	current atomic.Bool // The State was up to date once.

	lis     net.Listener
	http    *http.Server
	closing chan struct{} // closed when Shutdown begins: who waits is answered
	once    sync.Once
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// Listen returns a server that listens; Serve answers. Shutdown must be called in any case.
func Listen(ctx context.Context, cfg Config, node Node) (*Server, error) {
	s, err := newServer(cfg, node) //nolint:contextcheck // Requests bring their own.
	if err != nil {
		return nil, fmt.Errorf("configure the door for Consul's clients: %w", err)
	}
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("listen for Consul's clients: %w", err)
	}
	s.lis = cfg.Door.Listener(lis)
	return s, nil
}

// newServer returns a server that answers and does not listen.
func newServer(cfg Config, node Node) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, node: node, shapes: translator{cfg.Datacenter}, ledger: newLedger(node.Feed()), metrics: newMetrics(),
		waiters: make(chan struct{}, maxWaiters), closing: make(chan struct{}),
		restoring: make(chan struct{}, 1), wholes: make(chan struct{}, maxWholes),
		gatherer: prometheus.NewRegistry(),
	}
	s.routes = newRoutes(s)
	s.http = &http.Server{
		Handler: s, ConnContext: cfg.Door.Context,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.running.Go(func() { s.ledger.follow(ctx) })
	return s, nil
}

// Gather says where the metrics are that clients may ask for. It must be called before Serve.
func (s *Server) Gather(g prometheus.Gatherer) { s.gatherer = g }

// Addr returns the address that is listened on.
func (s *Server) Addr() net.Addr { return s.lis.Addr() }

// Collectors are the server's metrics, to be registered once.
func (s *Server) Collectors() []prometheus.Collector { return s.metrics.collectors(s) }

// Serve answers until Shutdown; then it returns nil. It may be called once.
func (s *Server) Serve() error {
	s.cfg.Logger.Info("answering Consul's clients", "address", s.Addr().String(), "datacenter", s.cfg.Datacenter)
	if err := s.http.Serve(s.lis); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("answer Consul's clients: %w", err)
	}
	return nil
}

// Shutdown ends the server: nothing more is taken, queries that wait are answered at once, and what is under way is finished,
// until ctx ends: then it is cut off, and ctx's error is returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.once.Do(func() { close(s.closing) })
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("finish requests of Consul's clients: %w", err), s.http.Close())
	}
	if s.lis != nil {
		_ = s.lis.Close() // Closed already, unless Serve was never called.
	}
	s.stop()
	return err
}

// stop ends what newServer has started.
func (s *Server) stop() {
	s.cancel()
	s.running.Wait()
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	answer := &answer{ResponseWriter: w, code: http.StatusOK}
	route := s.serve(answer, r)
	s.metrics.observe(route, answer.code, time.Since(began)-answer.waited)
}

// answer is a ResponseWriter that knows what was answered.
type answer struct {
	http.ResponseWriter
	code   int
	waited time.Duration // for a change
	pretty bool
}

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(code int) {
	a.code = code
	a.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController find the connection.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// serve answers a request and returns the route that it took.
func (s *Server) serve(w *answer, r *http.Request) (route string) {
	rt, rest, err := s.routes.find(r)
	if err == nil {
		err = s.call(w, r, rt, rest)
	}
	if err != nil {
		s.fail(w, r, err)
	}
	return rt.path
}

func (s *Server) fail(w *answer, r *http.Request, err error) {
	code, text := explain(err)
	if r.Context().Err() != nil {
		w.code = 499 // Who has gone gets no answer; in the metrics it is told apart.
		return
	}
	h := w.Header()
	var method *methodError
	if errors.As(err, &method) {
		h.Set("Allow", strings.Join(slices.Concat(method.methods, []string{http.MethodOptions}), ", "))
		code, text = http.StatusMethodNotAllowed, method.Error()
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	for _, name := range []string{"X-Consul-Index", "X-Consul-ContentHash", "X-Cache", "Age"} {
		h.Del(name)
	}
	switch code {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		h.Set("Retry-After", strconv.Itoa(retryAfter(err)))
	case http.StatusInternalServerError:
		s.cfg.Logger.Debug("a request of a Consul client failed", "path", r.URL.Path, "err", err)
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text)) // Who has gone needs no answer.
}

// call lets a request in and hands it to its route.
func (s *Server) call(w *answer, r *http.Request, rt *route, rest string) (err error) {
	a, err := s.readRequest(r, rest)
	if err != nil {
		return err
	}
	w.pretty = a.on("pretty")
	a.visit, err = s.cfg.Door.Begin(r.Context(), rpc.Request{
		Method: rt.does.method, Renews: rt.does.renews, Patient: rt.does.reads, Token: token(r, a.query),
		Text: r.Method + " " + cut(r.URL.EscapedPath()),
	})
	if err != nil {
		return err
	}
	defer func() { a.visit.End(err) }()
	a.Request = r.WithContext(a.visit.Context())     //nolint:contextcheck // It is the request's, and knows who asks.
	a.credential = rpc.Credential(a.visit.Context()) //nolint:contextcheck // Likewise.
	if !rt.large {
		a.Body = http.MaxBytesReader(w, r.Body, maxBody)
	}
	deadlines := http.NewResponseController(w)
	_ = deadlines.SetWriteDeadline(time.Now().Add(maxWork + maxSend)) // Not every writer has deadlines.
	if r.ContentLength != 0 {
		_ = deadlines.SetReadDeadline(time.Now().Add(maxWork))
	}
	return rt.serve(w, a)
}

// propose applies a command on behalf of the caller; a refusal by the state machine is an error.
func (s *Server) propose(a *request, cmd *raftlogv1.Command) error {
	_, err := s.order(a, cmd)
	return err
}

// order is propose for who wants the outcome.
func (s *Server) order(a *request, cmd *raftlogv1.Command) (fsm.Outcome, error) {
	ctx, cancel := context.WithTimeout(a.Context(), maxWork)
	defer cancel()
	id := s.requests.take()
	defer s.requests.give(id)
	cmd.Request = id.next()
	return a.visit.Propose(ctx, cmd)
}

// setMeta sets the headers of a read.
func (s *Server) setMeta(w http.ResponseWriter, index uint64, v cluster.View) {
	h := w.Header()
	known := s.node.Info().LeaderID != ""
	contact := int64(0)
	if v.Staleness > 0 {
		contact = v.Staleness.Milliseconds()
	}
	h.Set("X-Consul-Index", strconv.FormatUint(max(1, index), 10))
	h.Set("X-Consul-KnownLeader", strconv.FormatBool(known))
	h.Set("X-Consul-LastContact", strconv.FormatInt(contact, 10))
	h.Set("X-Regd-Revision", strconv.FormatUint(v.State.Revision(), 10))
	if v.Mode == cluster.ModeStale {
		h.Set("X-Consul-Effective-Consistency", "stale")
	} else {
		h.Set("X-Consul-Effective-Consistency", "consistent")
	}
	policy := "allow"
	if v.State.Enforced() {
		policy = "deny"
	}
	h.Set("X-Consul-Default-Acl-Policy", policy)
}
