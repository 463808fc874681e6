package regdgrpc

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Scheme of the targets.
const Scheme = "regd"

// ErrBadTarget says that a target names no service.
var ErrBadTarget = errors.New("bad target")

// target is what a channel is to.
type target struct {
	service   string
	namespace string // "": the client's
	port      string // "": the only one, or defaultPort
}

// parseTarget reads a target's URL.
func parseTarget(u url.URL) (target, error) {
	path := strings.TrimPrefix(u.Path, "/")
	t := target{service: path}
	switch {
	case u.Opaque != "":
		t.service = u.Opaque
	case path == "":
		t.service = u.Host
	case u.Host != "":
		return target{}, fmt.Errorf("%w %q: want the service after two or after three slashes, not both", ErrBadTarget, u.String())
	}
	if t.service == "" || strings.ContainsAny(t.service, "/:") || u.User != nil {
		return target{}, fmt.Errorf("%w %q: want %s:///<service>", ErrBadTarget, u.String(), Scheme)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return target{}, fmt.Errorf("%w %q: %w", ErrBadTarget, u.String(), err)
	}
	for name, values := range query {
		if len(values) != 1 || values[0] == "" {
			return target{}, fmt.Errorf("%w %q: parameter %s: want one value", ErrBadTarget, u.String(), name)
		}
		switch name {
		case "namespace":
			t.namespace = values[0]
		case "port":
			t.port = values[0]
		default:
			return target{}, fmt.Errorf("%w %q: parameter %s: there are namespace and port", ErrBadTarget, u.String(), name)
		}
	}
	return t, nil
}
