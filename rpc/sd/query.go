package sd

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

const (
	// defaultNamespace is asked when none is named.
	defaultNamespace = "default"
	// defaultStaleness is how old the answer may be when nothing is said: less than Prometheus waits between two requests.
	defaultStaleness = 30 * time.Second
	// maxStaleness is the oldest answer that can be asked for.
	maxStaleness = time.Hour
	// maxTerms is how often one parameter may be given.
	maxTerms = 64
	// maxTermBytes is the longest value of a parameter.
	maxTermBytes = 1024
)

// query is what a request asks for.
type query struct {
	namespaces []string // sorted; "*": all
	services   []string // names, or prefixes followed by "*"; none: all
	tags       []string // all of them
	metadata   []pair   // all of them
	zones      []string // one of them; none: any
	health     []registryv1.Health
	port       string // name; empty: the rule of portOf
	staleness  time.Duration
}

// pair is a key of metadata and the value that it must have. any: it has to be there.
type pair struct {
	key, value string
	any        bool
}

// parse takes parameters apart. The error names all that are wrong.
func parse(values url.Values) (query, error) {
	q := query{namespaces: []string{defaultNamespace}, staleness: defaultStaleness}
	var faults []error
	bad := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	for name, given := range values {
		if len(given) > maxTerms {
			bad("%s: is given %d times, the limit is %d", name, len(given), maxTerms)
			continue
		}
		if i := slices.IndexFunc(given, func(v string) bool { return v == "" || len(v) > maxTermBytes }); i >= 0 {
			bad("%s: a value must have 1 to %d bytes, one has %d", name, maxTermBytes, len(given[i]))
			continue
		}
		if err := q.set(name, given); err != nil {
			faults = append(faults, err)
		}
	}
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return q, errors.Join(faults...)
}

// parameters are all that there are, in the order in which errors list them.
const parameters = "namespace, service, tag, metadata, zone, health, port, max_staleness"

func (q *query) set(name string, given []string) error {
	one := func() (string, error) {
		if len(given) > 1 {
			return "", fmt.Errorf("%s: is given %d times, once is the limit", name, len(given))
		}
		return given[0], nil
	}
	var err error
	switch name {
	case "namespace":
		q.namespaces = slices.Compact(slices.Sorted(slices.Values(given)))
	case "service":
		q.services = given
	case "tag":
		q.tags = given
	case "metadata":
		for _, term := range given {
			key, value, exact := strings.Cut(term, "=")
			q.metadata = append(q.metadata, pair{key, value, !exact})
		}
	case "zone":
		q.zones = given
	case "health":
		q.health, err = healths(given)
	case "port":
		q.port, err = one()
	case "max_staleness":
		var text string
		if text, err = one(); err != nil {
			break
		}
		q.staleness, err = time.ParseDuration(text)
		if err != nil || q.staleness <= 0 || q.staleness > maxStaleness {
			err = fmt.Errorf("max_staleness %q: must be a duration up to %v, such as 30s", text, maxStaleness)
		}
	default:
		err = fmt.Errorf("%q: there is no such parameter; there are %s", name, parameters)
	}
	return err
}

func healths(names []string) ([]registryv1.Health, error) {
	var out []registryv1.Health
	for _, name := range names {
		h, ok := registryv1.Health_value["HEALTH_"+strings.ToUpper(name)]
		if !ok || h == 0 {
			return nil, fmt.Errorf("health %q: must be passing, warning, starting, draining, critical or maintenance", name)
		}
		out = append(out, registryv1.Health(h))
	}
	return out, nil
}

// service tells whether a service is asked for.
func (q *query) service(name string) bool {
	return len(q.services) == 0 || slices.ContainsFunc(q.services, func(want string) bool {
		if prefix, ok := strings.CutSuffix(want, "*"); ok {
			return strings.HasPrefix(name, prefix)
		}
		return name == want
	})
}

// instance tells whether an instance of a service that is asked for is asked for.
func (q *query) instance(r *fsm.Record) bool {
	if len(q.zones) > 0 && !slices.Contains(q.zones, r.Zone()) || len(q.health) > 0 && !slices.Contains(q.health, r.Health()) {
		return false
	}
	for _, tag := range q.tags {
		if _, ok := slices.BinarySearch(r.Tags(), tag); !ok {
			return false
		}
	}
	for _, want := range q.metadata {
		if got, ok := r.Metadata(want.key); !ok || !want.any && got != want.value {
			return false
		}
	}
	return true
}
