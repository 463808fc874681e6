package balance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Option configures a Balancer. Each option checks its argument; New reports all faults at once.
type Option func(*config) error

// config is what the options made. It never changes after New.
type config struct {
	policy    Policy
	minHealth registryv1.Health
	panicAt   float64
	breaker   Breaker
	ejection  Ejection
	random    func() uint64
	log       *slog.Logger // nil: none
}

// newConfig applies the options to the defaults.
func newConfig(policy Policy, opts []Option) (config, error) {
	cfg := config{policy: policy, minHealth: registryv1.Health_HEALTH_PASSING, random: rand.Uint64}
	var errs []error
	if policy == nil {
		errs = append(errs, errors.New("no policy: choose one, such as RoundRobin()"))
	} else if err := policy.check(); err != nil {
		errs = append(errs, err)
	}
	for _, opt := range opts {
		if err := opt(&cfg); err != nil {
			errs = append(errs, err)
		}
	}
	return cfg, errors.Join(errs...)
}

// WithMinHealth sets the least health that an instance needs to have its share: passing (the default), warning or starting.
func WithMinHealth(h registryv1.Health) Option {
	return func(c *config) error {
		switch h {
		case registryv1.Health_HEALTH_PASSING, registryv1.Health_HEALTH_WARNING, registryv1.Health_HEALTH_STARTING:
			c.minHealth = h
			return nil
		default:
			return fmt.Errorf("least health %v: must be passing, warning or starting", h)
		}
	}
}

// WithPanicThreshold sets the share of instances, more than 0 and at most 1, below which health is disregarded: if fewer
// are available, those in warning take part too; if that is still too few, all do, ejected ones included, so that the few
// left aren't crushed on account of checks that may be wrong. Open breakers stay respected, and so do draining and
// maintenance. Default: never. Envoy's panic threshold is 0.5.
func WithPanicThreshold(share float64) Option {
	return func(c *config) error {
		if !(share > 0 && share <= 1) {
			return fmt.Errorf("panic threshold %v: must be more than 0 and at most 1", share)
		}
		c.panicAt = share
		return nil
	}
}

// WithBreaker gives each instance a circuit breaker. Fields that are 0 have their defaults.
func WithBreaker(breaker Breaker) Option {
	return func(c *config) error {
		if err := breaker.check(); err != nil {
			return err
		}
		c.breaker = breaker.withDefaults()
		return nil
	}
}

// WithEjection puts instances aside that do worse than others. Fields that are 0 have their defaults.
func WithEjection(ejection Ejection) Option {
	return func(c *config) error {
		if err := ejection.check(); err != nil {
			return err
		}
		c.ejection = ejection.withDefaults()
		return nil
	}
}

// WithLogger sets where is logged that a breaker opens, that one closes again, and that an instance is ejected. Default:
// nowhere.
func WithLogger(log *slog.Logger) Option {
	return func(c *config) error {
		if log == nil {
			return errors.New("logger: nil")
		}
		c.log = log
		return nil
	}
}

// OutcomeOf judges a call by its error: none is Success, a cancellation by the caller Neutral, all else Failure. Callers
// that know more (an HTTP status, that an error is the caller's own fault) judge for themselves.
func OutcomeOf(err error) Outcome {
	switch {
	case err == nil:
		return Success
	case errors.Is(err, context.Canceled):
		return Neutral
	default:
		return Failure
	}
}

// positive returns the value, or the default if it is 0.
func positive[T int | float64 | time.Duration](value, byDefault T) T {
	if value == 0 {
		return byDefault
	}
	return value
}
