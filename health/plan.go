package health

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Defaults and limits of active checks. The doors refuse what is beyond them; here they keep a definition that came in
// otherwise from harming the rest.
const (
	defaultInterval = 10 * time.Second
	minInterval     = time.Second
	maxInterval     = time.Hour
	defaultTimeout  = 5 * time.Second
	minTimeout      = 10 * time.Millisecond
	maxTimeout      = time.Minute // However long the interval: a probe that hangs takes the place of others.
	defaultRise     = 1
	defaultFall     = 3
	maxRun          = 10
)

// plan is the definition of an active check, resolved against its instance. Immutable.
type plan struct {
	check    *registryv1.Check
	target   string // URL for HTTP, host:port otherwise.
	host     string // The host that is probed; what counts when many fail at once.
	fault    string // Why the definition cannot be carried out. Every probe then fails with it.
	interval time.Duration
	timeout  time.Duration
	rise     int
	fall     int
}

// newPlan resolves check, which is not a TTL check, against the instance that it belongs to.
func newPlan(in *registryv1.Instance, check *registryv1.Check) *plan {
	interval := clamp(orDefault(check.GetInterval(), defaultInterval), minInterval, maxInterval)
	p := &plan{
		check:    check,
		interval: interval,
		timeout:  clamp(orDefault(check.GetTimeout(), min(defaultTimeout, interval)), minTimeout, min(maxTimeout, interval)),
		rise:     run(check.GetRise(), defaultRise),
		fall:     run(check.GetFall(), defaultFall),
	}
	var err error
	switch kind := check.GetKind().(type) {
	case *registryv1.Check_Http:
		p.target, err = httpTarget(in, kind.Http)
	case *registryv1.Check_Tcp:
		p.target, err = target(in, kind.Tcp.GetAddress(), kind.Tcp.GetPort())
	case *registryv1.Check_Grpc:
		p.target, err = target(in, kind.Grpc.GetAddress(), kind.Grpc.GetPort())
	default:
		err = errors.New("the check has no kind")
	}
	if err != nil {
		p.fault = err.Error()
	}
	p.host = hostOf(p.target)
	return p
}

// same reports whether q asks the same of the same endpoint.
func (p *plan) same(q *plan) bool {
	return p.target == q.target && p.fault == q.fault && proto.Equal(p.check, q.check)
}

// kind names the kind of the check in metrics.
func (p *plan) kind() string {
	switch p.check.GetKind().(type) {
	case *registryv1.Check_Http:
		return "http"
	case *registryv1.Check_Tcp:
		return "tcp"
	case *registryv1.Check_Grpc:
		return "grpc"
	default:
		return "none"
	}
}

// target returns address, or where the instance listens on its named (or first) port.
func target(in *registryv1.Instance, address, port string) (string, error) {
	if address != "" {
		return address, nil
	}
	for _, p := range in.GetPorts() {
		if port == "" || p.GetName() == port {
			number := strconv.FormatUint(uint64(p.GetNumber()), 10)
			return net.JoinHostPort(strings.Trim(in.GetAddress(), "[]"), number), nil
		}
	}
	if port == "" {
		return "", errors.New("the instance has no port")
	}
	return "", fmt.Errorf("the instance has no port %q", port)
}

func httpTarget(in *registryv1.Instance, check *registryv1.HTTPCheck) (string, error) {
	raw := check.GetUrl()
	if raw == "" {
		address, err := target(in, "", check.GetPort())
		if err != nil {
			return "", err
		}
		scheme := "http"
		if check.GetTls() != nil {
			scheme = "https"
		}
		raw = scheme + "://" + address + "/" + strings.TrimPrefix(check.GetPath(), "/")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return "", errors.New("the URL cannot be parsed")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", errors.New("the URL is not an absolute http or https URL")
	}
	return raw, nil
}

// hostOf returns the host of a URL or of host:port.
func hostOf(target string) string {
	if u, err := url.Parse(target); err == nil && u.Host != "" {
		return u.Hostname()
	}
	if host, _, err := net.SplitHostPort(target); err == nil {
		return host
	}
	return target
}

func orDefault(d *durationpb.Duration, otherwise time.Duration) time.Duration {
	if v := d.AsDuration(); v > 0 {
		return v
	}
	return otherwise
}

func clamp(v, low, high time.Duration) time.Duration { return min(max(v, low), high) }

func run(v uint32, otherwise int) int {
	if v == 0 {
		return otherwise
	}
	return int(min(v, maxRun))
}
