package health

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Config says how patient a [Monitor] is and how much it does at once.
type Config struct {
	// Logger receives what an operator should know. Required.
	Logger *slog.Logger
	// MaxProbes bounds the probes, and the proposals of their verdicts, under way at once. 1 to 65,536.
	MaxProbes int
	// MaxExpirations bounds the proposals of the deadlines under way at once. 1 to 1,024.
	MaxExpirations int
	// Grace is how much longer than its TTL anything is waited for. Interruptions of this process that are shorter
	// than half of it count as silence, longer ones do not. 100 ms to 1 min.
	Grace time.Duration
	// ProposeTimeout bounds one proposal. 100 ms to 1 min.
	ProposeTimeout time.Duration
	// Abstain is how long the checks turn nobody critical after most targets failed at once. 0 (never) to 1 h.
	Abstain time.Duration
	// RootCAs verifies the certificates of probed endpoints. Nil: the roots of the host.
	RootCAs *x509.CertPool
	// AllowLinkLocal permits probes of link-local addresses, where clouds serve the credentials of a machine.
	AllowLinkLocal bool
	// Node names this node in what it proposes, for the history of instances. Empty: it is not named.
	Node string
	// Unapplied tells whether an error of a proposal proves that its command was not and will not be applied. What
	// such a command was to expire may still be renewed. Nil: no error proves that.
	Unapplied func(error) bool
}

// DefaultConfig returns the settings that suit most clusters. Logger is left to the caller.
func DefaultConfig() Config {
	return Config{
		MaxProbes:      256,
		MaxExpirations: 64,
		Grace:          500 * time.Millisecond,
		ProposeTimeout: 5 * time.Second,
		Abstain:        time.Minute,
	}
}

// Validate reports all that is wrong with c.
func (c Config) Validate() error {
	var errs []error
	if c.Logger == nil {
		errs = append(errs, errors.New("logger: required"))
	}
	number := func(name string, v, low, high int) {
		if v < low || v > high {
			errs = append(errs, fmt.Errorf("%s: %d is not within %d to %d", name, v, low, high))
		}
	}
	duration := func(name string, v, low, high time.Duration) {
		if v < low || v > high {
			errs = append(errs, fmt.Errorf("%s: %s is not within %s to %s", name, v, low, high))
		}
	}
	number("max probes", c.MaxProbes, 1, 65536)
	number("max expirations", c.MaxExpirations, 1, 1024)
	duration("grace", c.Grace, 100*time.Millisecond, time.Minute)
	duration("propose timeout", c.ProposeTimeout, 100*time.Millisecond, time.Minute)
	duration("abstain", c.Abstain, 0, time.Hour)
	return errors.Join(errs...)
}
