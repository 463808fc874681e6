package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// maxOutput bounds the text that goes with a verdict, in bytes.
const maxOutput = 256

// result is what one probe found.
type result struct {
	status registryv1.CheckStatus // Passing, warning or critical.
	output string                 // Does not quote the answer's body: whoever may read the registry sees it.
}

func passing(output string) result {
	return result{registryv1.CheckStatus_CHECK_STATUS_PASSING, output}
}

func critical(output string) result {
	return result{registryv1.CheckStatus_CHECK_STATUS_CRITICAL, output}
}

// probes carries out active checks over the network. Safe for concurrent use; it keeps no connection between probes.
type probes struct {
	dialer *net.Dialer
	tls    *tls.Config // What the TLS options of a check are laid over.
	client *http.Client
}

func newProbes(cfg Config) *probes {
	p := &probes{
		dialer: &net.Dialer{},
		tls:    &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.RootCAs},
	}
	if !cfg.AllowLinkLocal {
		p.dialer.Control = refuseLinkLocal
	}
	p.client = p.httpClient()
	return p
}

// run carries out the check of p within its timeout.
func (ps *probes) run(ctx context.Context, p *plan) result {
	if p.fault != "" {
		return critical(sanitise(p.fault))
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	var r result
	switch kind := p.check.GetKind().(type) {
	case *registryv1.Check_Http:
		r = ps.http(ctx, p, kind.Http)
	case *registryv1.Check_Tcp:
		r = ps.tcp(ctx, p)
	case *registryv1.Check_Grpc:
		r = ps.grpc(ctx, p, kind.Grpc)
	}
	r.output = sanitise(r.output)
	return r
}

// tcp opens a connection and closes it.
func (ps *probes) tcp(ctx context.Context, p *plan) result {
	conn, err := ps.dialer.DialContext(ctx, "tcp", p.target)
	if err != nil {
		return failure(ctx, p, err)
	}
	conn.Close()
	return passing("connected to " + p.target)
}

// tlsConfig lays the options of a check over the common configuration.
func (ps *probes) tlsConfig(options *registryv1.CheckTLS, host string) *tls.Config {
	cfg := ps.tls.Clone()
	cfg.ServerName = host
	if name := options.GetServerName(); name != "" {
		cfg.ServerName = name
	}
	cfg.InsecureSkipVerify = options.GetSkipVerify()
	return cfg
}

// failure words the error of a probe.
func failure(ctx context.Context, p *plan, err error) result {
	var timeout net.Error // A deadline of the connection may be felt before that of ctx.
	if ctx.Err() != nil || errors.As(err, &timeout) && timeout.Timeout() {
		return critical(fmt.Sprintf("no answer within %s", p.timeout))
	}
	return critical(err.Error())
}

// errLinkLocal refuses a target.
var errLinkLocal = errors.New("link-local addresses are not probed")

// refuseLinkLocal sees the address after its name was resolved, so that no name leads around it.
func refuseLinkLocal(_, address string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("split %q: %w", address, err)
	}
	host, _, _ = strings.Cut(host, "%") // The zone of an IPv6 address.
	if ip := net.ParseIP(host); ip.IsLinkLocalUnicast() {
		return errLinkLocal
	}
	return nil
}

// sanitise turns text into at most 256 bytes of valid UTF-8 without control characters.
func sanitise(text string) string {
	text = text[:min(len(text), 4*maxOutput)]
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	text = strings.TrimSpace(text)
	if len(text) <= maxOutput {
		return text
	}
	cut := maxOutput
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut]
}

// silent words the verdict on a TTL check that was not reported.
func silent(ttl time.Duration) string { return fmt.Sprintf("no report for %s", ttl) }
