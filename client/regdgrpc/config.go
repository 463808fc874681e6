package regdgrpc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/serviceconfig"

	"github.com/regd-io/regd/client/balance"
)

// BalancerName is the name of the policy in service configs.
const BalancerName = "regd_balance"

// ErrBadConfig says that a service config has something for regd_balance that can't be.
var ErrBadConfig = errors.New("bad " + BalancerName + " config")

// Config of the policy regd_balance. It is what stands under that name in a service config:
//
//	{"loadBalancingConfig": [{"regd_balance": {"policy": "round_robin", "zone": "eu-west-1a", "breaker": {"openTime": "5s"}}}]}
//
// Unknown fields are errors.
type Config struct {
	// Policy is least_requests (the default), round_robin, weighted_round_robin, random, weighted_random, rendezvous or ring.
	Policy string `json:"policy,omitempty"`
	// Region and Zone of the client: instances nearby are preferred as far as they can take the load, see balance.Local.
	// Default: all are equal.
	Region string `json:"region,omitempty"`
	Zone   string `json:"zone,omitempty"`
	// HashHeader names the header of outgoing calls, in lower case, whose value decides where they go, for rendezvous and
	// ring, which need it.
	HashHeader string `json:"hashHeader,omitempty"`
	// Breaker gives each instance a circuit breaker, with defaults for what is 0. Default: none.
	Breaker *Breaker `json:"breaker,omitempty"`
	// Ejection puts instances aside that do worse than others, with defaults for what is 0. Default: none.
	Ejection *Ejection `json:"ejection,omitempty"`
}

// Breaker is balance.Breaker in JSON: what a field means, and its limits, are told there. What is 0 has its default.
type Breaker struct {
	// ConsecutiveFailures open it. Default 5.
	ConsecutiveFailures int `json:"consecutiveFailures,omitempty"`
	// FailureRatio opens it: the share of failures among the calls of the last Window. Default 0.5.
	FailureRatio float64 `json:"failureRatio,omitempty"`
	// MinCalls are the calls within Window below which FailureRatio opens nothing. Default 20.
	MinCalls int `json:"minCalls,omitempty"`
	// Window over which FailureRatio is counted. Default 10 s.
	Window Duration `json:"window,omitempty"`
	// OpenTime is how long it stays open. Default 5 s.
	OpenTime Duration `json:"openTime,omitempty"`
	// Trials are the calls at a time that it lets through when half-open, and that must succeed to close it. Default 1.
	Trials int `json:"trials,omitempty"`
}

// Ejection is balance.Ejection in JSON: what a field means, and its limits, are told there. What is 0 has its default.
type Ejection struct {
	// ConsecutiveFailures eject. Default 5.
	ConsecutiveFailures int `json:"consecutiveFailures,omitempty"`
	// SuccessRate also ejects, every Interval, those whose calls fail much more often than the others'. Default: it doesn't.
	SuccessRate bool `json:"successRate,omitempty"`
	// Interval between two looks at rates of success. Default 10 s.
	Interval Duration `json:"interval,omitempty"`
	// BaseTime is how long the first ejection lasts; each further one in a row lasts one BaseTime longer. Default 30 s.
	BaseTime Duration `json:"baseTime,omitempty"`
	// MaxTime is how long an ejection lasts at most. Default 300 s.
	MaxTime Duration `json:"maxTime,omitempty"`
	// MaxShare is the share of the healthy instances that may be ejected at once. Default 0.1.
	MaxShare float64 `json:"maxShare,omitempty"`
}

// Duration is a time.Duration that is text in JSON, such as "1.5s".
type Duration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("duration %s: want text such as \"1.5s\"", data)
	}
	parsed, err := time.ParseDuration(text)
	*d = Duration(parsed)
	return err
}

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// ServiceConfig returns a service config with nothing but this policy, for grpc.WithDefaultServiceConfig.
func (c Config) ServiceConfig() string {
	text, err := json.Marshal(map[string]any{"loadBalancingConfig": []any{map[string]any{BalancerName: c}}})
	if err != nil {
		return "{}" // A Config holds nothing that JSON can't, but for numbers that are none, and those are refused anyway.
	}
	return string(text)
}

// parsed is a Config that was found to be good.
type parsed struct {
	serviceconfig.LoadBalancingConfig

	text       string // to see whether it has changed
	hashHeader string
	policy     balance.Policy
	opts       []balance.Option
}

// parseConfig reads a policy's JSON. Errors match ErrBadConfig.
func parseConfig(text []byte) (*parsed, error) {
	var c Config
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadConfig, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: there is more after the object", ErrBadConfig)
	}
	p := &parsed{text: string(text), hashHeader: c.HashHeader}
	var err error
	if p.policy, err = c.policy(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadConfig, err)
	}
	if b := c.Breaker; b != nil {
		p.opts = append(p.opts, balance.WithBreaker(balance.Breaker{
			ConsecutiveFailures: b.ConsecutiveFailures, FailureRatio: b.FailureRatio, MinCalls: b.MinCalls,
			Window: time.Duration(b.Window), OpenTime: time.Duration(b.OpenTime), Trials: b.Trials,
		}))
	}
	if e := c.Ejection; e != nil {
		p.opts = append(p.opts, balance.WithEjection(balance.Ejection{
			ConsecutiveFailures: e.ConsecutiveFailures, SuccessRate: e.SuccessRate, Interval: time.Duration(e.Interval),
			BaseTime: time.Duration(e.BaseTime), MaxTime: time.Duration(e.MaxTime), MaxShare: e.MaxShare,
		}))
	}
	if _, err := balance.New(p.policy, p.opts...); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadConfig, err)
	}
	return p, nil
}

// policy makes the policy.
func (c Config) policy() (policy balance.Policy, err error) {
	hashes := false
	switch c.Policy {
	case "least_requests", "":
		policy = balance.LeastRequests()
	case "round_robin":
		policy = balance.RoundRobin()
	case "weighted_round_robin":
		policy = balance.WeightedRoundRobin()
	case "random":
		policy = balance.Random()
	case "weighted_random":
		policy = balance.WeightedRandom()
	case "rendezvous":
		policy, hashes = balance.Rendezvous(), true
	case "ring":
		policy, hashes = balance.Ring(), true
	default:
		return nil, fmt.Errorf("policy %q: there are least_requests, round_robin, weighted_round_robin, random, weighted_random, "+
			"rendezvous and ring", c.Policy)
	}
	if hashes && c.HashHeader == "" {
		return nil, fmt.Errorf("policy %q: hashHeader is missing: it names the header whose value decides", c.Policy)
	}
	if c.Region != "" || c.Zone != "" {
		policy = balance.Local(c.Region, c.Zone, policy)
	}
	return policy, nil
}
