package regdhttp

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/regd-io/regd/client/balance"
)

// Defaults and limits.
const (
	defaultSuffix      = ".service"
	defaultAttempts    = 3
	maxAttempts        = 5 // the first, and as many as a balance.Avoid holds
	defaultShare       = 0.2
	defaultPerSecond   = 3
	defaultMaxPause    = time.Second
	defaultMaxServices = 100
	defaultEjected     = 0.5 // least requests flock to who fails fast
	maxMaxServices     = 10_000
)

// config is what the options made. It never changes after New.
type config struct {
	suffix       string
	port         string
	inner        http.RoundTripper // nil: the default
	serverName   func(namespace, service string) string
	instanceHost bool
	policy       balance.Policy
	balance      []balance.Option
	request      func(*http.Request) balance.Request
	failure      func(*http.Response, error) bool
	idempotent   func(*http.Request) bool
	attempts     int
	attempt      time.Duration // 0: as long as the request
	share        float64
	perSecond    float64
	maxPause     time.Duration
	maxServices  int
	tracer       Tracer // nil: none
	log          *slog.Logger
}

// Option configures a Transport. Each option checks its argument; New reports all faults at once.
type Option func(*config) error

func newConfig(opts []Option) (config, error) {
	c := config{
		suffix: defaultSuffix, policy: balance.LeastRequests(),
		balance: []balance.Option{balance.WithEjection(balance.Ejection{MaxShare: defaultEjected})},
		request: func(*http.Request) balance.Request { return balance.Request{} },
		failure: IsFailure, idempotent: IsIdempotent,
		attempts: defaultAttempts, share: defaultShare, perSecond: defaultPerSecond, maxPause: defaultMaxPause,
		maxServices: defaultMaxServices,
	}
	var errs []error
	for _, opt := range opts {
		errs = append(errs, opt(&c))
	}
	if c.log != nil {
		c.balance = append([]balance.Option{balance.WithLogger(c.log)}, c.balance...)
	}
	_, err := balance.New(c.policy, c.balance...)
	return c, errors.Join(append(errs, err)...)
}

// WithTransport sets the inner transport, which makes the connections. A *http.Transport is used as it is for http, and in a
// copy for each service for https, since the name to verify belongs to a transport. Any other kind has to see to that by
// itself: it gets URLs with the addresses of instances. Close leaves it open. Default: a clone of http.DefaultTransport that
// uses no proxy and keeps up to 64 idle connections to an instance.
func WithTransport(inner http.RoundTripper) Option {
	return func(c *config) error {
		if inner == nil {
			return errors.New("transport: nil")
		}
		c.inner = inner
		return nil
	}
}

// WithSuffix sets how host names of services end, with a dot in front. Default: ".service".
func WithSuffix(suffix string) Option {
	return func(c *config) error {
		if len(suffix) < 2 || suffix[0] != '.' || strings.HasSuffix(suffix, ".") {
			return fmt.Errorf("suffix %q: want a dot and a name, such as %q", suffix, defaultSuffix)
		}
		c.suffix = suffix
		return nil
	}
}

// WithPort names the port that is called. Default: an instance's only port, or the one named as the URL's scheme.
func WithPort(name string) Option {
	return func(c *config) error {
		if name == "" {
			return errors.New("port: no name")
		}
		c.port = name
		return nil
	}
}

// WithServerName sets which name certificates must be for, with https. The namespace is "" where the URL names none.
// Default: the host name of the URL.
func WithServerName(name func(namespace, service string) string) Option {
	return func(c *config) error {
		if name == nil {
			return errors.New("server name: no function")
		}
		c.serverName = name
		return nil
	}
}

// WithInstanceHost sends the instance's address as the header Host. Default: the request's host, the name of the service.
func WithInstanceHost() Option {
	return func(c *config) error {
		c.instanceHost = true
		return nil
	}
}

// WithBalancing sets how instances are chosen. Default: balance.LeastRequests, with
// balance.WithEjection of up to half of them: who fails at once has the fewest requests.
func WithBalancing(policy balance.Policy, opts ...balance.Option) Option {
	return func(c *config) error {
		c.policy, c.balance = policy, opts
		return nil
	}
}

// WithPick sets what is asked of the balancer for a request: the hash of a key, or a filter. The function must be safe for
// concurrent use and not keep the request. Default: nothing.
func WithPick(request func(*http.Request) balance.Request) Option {
	return func(c *config) error {
		if request == nil {
			return errors.New("pick: no function")
		}
		c.request = request
		return nil
	}
}

// WithFailure sets what speaks against an instance: it gets the response, or the error that came instead of it or that
// broke off its body. Requests that the caller cancelled are not asked about, and count for nothing. Default: IsFailure.
func WithFailure(failure func(*http.Response, error) bool) Option {
	return func(c *config) error {
		if failure == nil {
			return errors.New("failure: no function")
		}
		c.failure = failure
		return nil
	}
}

// WithIdempotent sets which requests may be carried out twice. Default: IsIdempotent.
func WithIdempotent(idempotent func(*http.Request) bool) Option {
	return func(c *config) error {
		if idempotent == nil {
			return errors.New("idempotent: no function")
		}
		c.idempotent = idempotent
		return nil
	}
}

// WithAttempts sets on how many instances a request is tried at most, 1 to 5. Default: 3.
func WithAttempts(n int) Option {
	return func(c *config) error {
		if n < 1 || n > maxAttempts {
			return fmt.Errorf("attempts %d: need 1 to %d", n, maxAttempts)
		}
		c.attempts = n
		return nil
	}
}

// WithAttemptTimeout bounds how long an instance has to begin its answer: after that the attempt fails with ErrAttemptTimeout,
// which counts against the instance, and calls for another one as a broken connection does. It does not bound how long the
// body takes. Without it an instance that hangs costs a request all the time that its context has. Set it above what the
// slowest sound answer takes. Default: none.
func WithAttemptTimeout(timeout time.Duration) Option {
	return func(c *config) error {
		if timeout <= 0 {
			return fmt.Errorf("attempt timeout %s: need more than 0", timeout)
		}
		c.attempt = timeout
		return nil
	}
}

// WithRetryBudget bounds retries to a service, over 10 s: the share of requests that may be added to its load, 0 to 1, and
// how many per second are always allowed. Default: 0.2 and 3.
func WithRetryBudget(share, perSecond float64) Option {
	return func(c *config) error {
		if !(share >= 0 && share <= 1) || !(perSecond >= 0 && perSecond <= 1e6) {
			return fmt.Errorf("retry budget of a share of %g and %g per second: need 0 to 1, and 0 to 1e6", share, perSecond)
		}
		c.share, c.perSecond = share, perSecond
		return nil
	}
}

// WithMaxPause bounds for how long a retry waits when Retry-After asks for it. With a longer one the response is returned
// as it is. Default: 1 s.
func WithMaxPause(pause time.Duration) Option {
	return func(c *config) error {
		if pause < 0 {
			return fmt.Errorf("max pause %s: negative", pause)
		}
		c.maxPause = pause
		return nil
	}
}

// WithMaxServices bounds how many services are kept ready, 1 to 10,000, each with a watch and a balancer. The one that was
// not called for longest makes room. Default: 100.
func WithMaxServices(n int) Option {
	return func(c *config) error {
		if n < 1 || n > maxMaxServices {
			return fmt.Errorf("max services %d: need 1 to %d", n, maxMaxServices)
		}
		c.maxServices = n
		return nil
	}
}

// WithLogger sets where is logged that breakers open and close and that instances are ejected, see balance.WithLogger.
// Default: nowhere.
func WithLogger(log *slog.Logger) Option {
	return func(c *config) error {
		if log == nil {
			return errors.New("logger: nil")
		}
		c.log = log
		return nil
	}
}
