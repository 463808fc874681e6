package regdhttp

import (
	"fmt"
	"net/url"
	"strings"
)

// target is what is called: a service by a scheme. It is the key under which balancers are kept.
type target struct {
	scheme     string
	namespace  string // "": the client's
	service    string
	serverName string // that the certificate must be for, "" without TLS
}

// parse reads a URL. It tells whether the host is a service's; other hosts are none of this package's business.
func (c *config) parse(u *url.URL) (t target, ours bool, err error) {
	host := strings.TrimSuffix(u.Hostname(), ".")
	cut := len(host) - len(c.suffix)
	if cut < 0 || !strings.EqualFold(host[cut:], c.suffix) {
		return target{}, false, nil
	}
	t = target{scheme: u.Scheme, service: host[:cut]}
	// A namespace has no dots, a service may: the last label is the namespace, unless it is the only one.
	if dot := strings.LastIndexByte(t.service, '.'); dot >= 0 {
		t.service, t.namespace = t.service[:dot], t.service[dot+1:]
		if t.namespace == "" {
			t.service = ""
		}
	}
	if t.service == "" {
		return t, true, fmt.Errorf("%w: host %q: want <service>%s or <service>.<namespace>%s", ErrBadURL, u.Host, c.suffix, c.suffix)
	}
	if u.Port() != "" {
		return t, true, fmt.Errorf("%w: host %q: leave the port out: instances are registered with theirs, WithPort chooses by name",
			ErrBadURL, u.Host)
	}
	switch t.scheme {
	case "http":
	case "https":
		t.serverName = host
		if c.serverName != nil {
			t.serverName = c.serverName(t.namespace, t.service)
		}
	default:
		return t, true, fmt.Errorf("%w: scheme %q: want http or https", ErrBadURL, u.Scheme)
	}
	return t, true, nil
}
