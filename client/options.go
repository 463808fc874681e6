package client

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Limits and defaults.
const (
	defaultNamespace      = "default"
	defaultSessionTTL     = 15 * time.Second
	defaultRequestTimeout = 10 * time.Second
	defaultAttemptTimeout = 3 * time.Second
	defaultCloseTimeout   = 3 * time.Second
	minSessionTTL         = 2 * time.Second
	maxSessionTTL         = 24 * time.Hour
	maxNameBytes          = 128
)

// Option configures a Client. Each option checks its argument; New reports all faults at once.
type Option func(*config) error

// config is what the options made. It never changes after New.
type config struct {
	endpoints      []string
	name           string
	namespace      string
	log            *slog.Logger
	credentials    credentials.TransportCredentials
	token          func() (string, error) // nil: none
	plaintextToken bool
	dialOptions    []grpc.DialOption
	sessionTTL     time.Duration
	requestTimeout time.Duration
	attemptTimeout time.Duration
	closeTimeout   time.Duration
	tracer         Tracer // nil: none
}

// newConfig applies the options to the defaults.
func newConfig(endpoints []string, opts []Option) (config, error) {
	cfg := config{
		name:           filepath.Base(os.Args[0]),
		namespace:      defaultNamespace,
		log:            slog.New(slog.DiscardHandler),
		credentials:    insecure.NewCredentials(),
		sessionTTL:     defaultSessionTTL,
		requestTimeout: defaultRequestTimeout,
		attemptTimeout: defaultAttemptTimeout,
		closeTimeout:   defaultCloseTimeout,
	}
	cfg.name = cfg.name[:min(len(cfg.name), maxNameBytes)]
	var errs []error
	for _, endpoint := range endpoints {
		if err := checkAddress(endpoint); err != nil {
			errs = append(errs, err)
		} else if !slices.Contains(cfg.endpoints, endpoint) {
			cfg.endpoints = append(cfg.endpoints, endpoint)
		}
	}
	if len(endpoints) == 0 {
		errs = append(errs, errors.New("no endpoints: at least one host:port is needed"))
	}
	for _, opt := range opts {
		if err := opt(&cfg); err != nil {
			errs = append(errs, err)
		}
	}
	shown, err := cfg.callCredentials()
	if err != nil {
		errs = append(errs, err)
	} else if shown != nil {
		cfg.dialOptions = append([]grpc.DialOption{grpc.WithPerRPCCredentials(shown)}, cfg.dialOptions...)
	}
	return cfg, errors.Join(errs...)
}

// checkAddress tells whether an address is host:port.
func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("endpoint %q: %w", address, err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if host == "" || err != nil || number == 0 {
		return fmt.Errorf("endpoint %q: not host:port with a port of 1 to 65535", address)
	}
	return nil
}

// WithName sets what the client calls itself in the registry's list of sessions, at most 128 bytes. Default: the name of
// the program.
func WithName(name string) Option {
	return func(c *config) error {
		if name == "" || len(name) > maxNameBytes {
			return fmt.Errorf("name of %d bytes: need 1 to %d", len(name), maxNameBytes)
		}
		c.name = name
		return nil
	}
}

// WithLogger sets where the client logs: a lost or regained session, and nodes that it leaves. Default: nowhere.
func WithLogger(log *slog.Logger) Option {
	return func(c *config) error {
		if log == nil {
			return errors.New("logger: nil")
		}
		c.log = log
		return nil
	}
}

// WithTLS makes all connections use TLS. A client certificate in it authenticates the client. Default: plaintext.
func WithTLS(cfg *tls.Config) Option {
	return func(c *config) error {
		if cfg == nil {
			return errors.New("tls: nil configuration")
		}
		c.credentials = credentials.NewTLS(cfg)
		return nil
	}
}

// WithTransportCredentials is WithTLS for other credentials, such as ones that reload their files.
func WithTransportCredentials(creds credentials.TransportCredentials) Option {
	return func(c *config) error {
		if creds == nil {
			return errors.New("transport credentials: nil")
		}
		c.credentials = creds
		return nil
	}
}

// WithDialOptions adds gRPC dial options to every connection: per-call credentials, interceptors, stats handlers, a
// dialer. They come last and win over the client's own.
func WithDialOptions(opts ...grpc.DialOption) Option {
	return func(c *config) error {
		if slices.Contains(opts, nil) {
			return errors.New("dial options: nil among them")
		}
		c.dialOptions = append(c.dialOptions, opts...)
		return nil
	}
}

// WithNamespace sets the namespace that is used where none is named. Default: "default".
func WithNamespace(namespace string) Option {
	return func(c *config) error {
		if namespace == "" {
			return errors.New("namespace: empty")
		}
		c.namespace = namespace
		return nil
	}
}

// WithSessionTTL sets how long instances and locks survive after the client's last acknowledged sign of life, 2 s to
// 24 h. It is renewed three times as often. Default: 15 s.
func WithSessionTTL(ttl time.Duration) Option {
	return func(c *config) error {
		if ttl < minSessionTTL || ttl > maxSessionTTL {
			return fmt.Errorf("session ttl %s: need %s to %s", ttl, minSessionTTL, maxSessionTTL)
		}
		c.sessionTTL = ttl
		return nil
	}
}

// WithRequestTimeout bounds calls whose context has no deadline, retries included. Waiting for a lock, watches and
// snapshots are not bounded by it. Default: 10 s.
func WithRequestTimeout(d time.Duration) Option {
	return positive("request timeout", d, func(c *config) { c.requestTimeout = d })
}

// WithAttemptTimeout bounds what a call spends on one node before it asks another one. Default: 3 s.
func WithAttemptTimeout(d time.Duration) Option {
	return positive("attempt timeout", d, func(c *config) { c.attemptTimeout = d })
}

// WithCloseTimeout bounds how long Close tries to end the session at the registry. Default: 3 s.
func WithCloseTimeout(d time.Duration) Option {
	return positive("close timeout", d, func(c *config) { c.closeTimeout = d })
}

// positive is an option that takes a duration above 0.
func positive(name string, d time.Duration, set func(*config)) Option {
	return func(c *config) error {
		if d <= 0 {
			return fmt.Errorf("%s %s: need more than 0", name, d)
		}
		set(c)
		return nil
	}
}
