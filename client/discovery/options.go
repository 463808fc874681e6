package discovery

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/regd-io/regd/client"
)

// Defaults and limits.
const (
	defaultKeep        = 0.3
	defaultHold        = 5 * time.Minute
	defaultLinger      = time.Minute
	defaultMaxServices = 1000
	maxMaxServices     = 10_000 // the registry takes no more watches on a stream
	maxLinger          = time.Hour
	maxHold            = time.Hour
)

// config is what the options made. It never changes after New.
type config struct {
	log         *slog.Logger
	dir         string
	maxStale    time.Duration
	keep        float64
	hold        time.Duration
	linger      time.Duration
	maxServices int
	tracer      client.Tracer // nil: none
}

// Option configures a Discovery. Each option checks its argument; New reports all faults at once.
type Option func(*config) error

func newConfig(opts []Option) (config, error) {
	cfg := config{
		log: slog.New(slog.DiscardHandler), keep: defaultKeep, hold: defaultHold, linger: defaultLinger,
		maxServices: defaultMaxServices,
	}
	var errs []error
	for _, opt := range opts {
		errs = append(errs, opt(&cfg))
	}
	return cfg, errors.Join(errs...)
}

// WithLogger sets where is logged: views that go stale, protection, and files that are not used. Default: nowhere.
func WithLogger(log *slog.Logger) Option {
	return func(c *config) error {
		if log == nil {
			return errors.New("logger: nil")
		}
		c.log = log
		return nil
	}
}

// WithMaxStale makes a view whose state may be older than this come with an error that matches ErrStale. While the
// registry is reachable a view of a service that does not change is up to 10 s old, so less than 15 s is refused.
// Default: views are served however old they are, see the package comment.
func WithMaxStale(bound time.Duration) Option {
	return func(c *config) error {
		if bound < minMaxStale {
			return fmt.Errorf("max stale %s: need at least %s", bound, minMaxStale)
		}
		c.maxStale = bound
		return nil
	}
}

// minMaxStale is longer than a watch may be silent before it is taken to be broken.
const minMaxStale = 15 * time.Second

// WithFile keeps the last view of each service in a file of its own in a folder, which is made if it is not there, so
// that it can be served after a restart before the registry answers, or while it does not. A changed view is written after
// at most 5 s, and on Close. Files older than 24 h are not used: by then addresses may belong to others. Default: no
// files.
//
// Only the user of the process may read what is written. Several processes may share a folder; the last to write wins.
func WithFile(dir string) Option {
	return func(c *config) error {
		if dir == "" {
			return errors.New("file: no folder named")
		}
		c.dir = dir
		return nil
	}
}

// WithProtection sets when instances that the registry lost, rather than was told to remove, stay in the view: when less
// than keep of the service is left, 0 to 1 (0: nothing is left), and for how long at most, up to 1 h (0: no protection).
// Default: 0.3 and 5 min.
//
// The part is of all that are listed and those that were lost within hold and not replaced since.
func WithProtection(keep float64, hold time.Duration) Option {
	return func(c *config) error {
		if !(keep >= 0 && keep <= 1) || hold < 0 || hold > maxHold {
			return fmt.Errorf("protection of %g for %s: need 0 to 1, for 0 to %s", keep, hold, maxHold)
		}
		c.keep, c.hold = keep, hold
		return nil
	}
}

// WithLinger sets how long a service is watched on after its last user has closed it, up to 1 h. Default: 1 min.
func WithLinger(d time.Duration) Option {
	return func(c *config) error {
		if d < 0 || d > maxLinger {
			return fmt.Errorf("linger %s: need 0 to %s", d, maxLinger)
		}
		c.linger = d
		return nil
	}
}

// WithMaxServices bounds how many services are watched at once, 1 to 10,000. Those that linger make room. Default: 1,000.
func WithMaxServices(n int) Option {
	return func(c *config) error {
		if n < 1 || n > maxMaxServices {
			return fmt.Errorf("max services %d: need 1 to %d", n, maxMaxServices)
		}
		c.maxServices = n
		return nil
	}
}

// WithTracer has a Tracer told when somebody waits for the first view of a service. Without one that costs nothing.
// Default: none.
func WithTracer(tracer client.Tracer) Option {
	return func(c *config) error {
		if tracer == nil {
			return errors.New("tracer: nil")
		}
		c.tracer = tracer
		return nil
	}
}

// ServiceOption says more about a service that is asked for.
type ServiceOption func(*name)

// InNamespace names the service's namespace. Default: the client's.
func InNamespace(namespace string) ServiceOption {
	return func(n *name) { n.namespace = namespace }
}
