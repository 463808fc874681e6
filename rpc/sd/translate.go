package sd

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// group is a target with its labels, as Prometheus reads it. A group could have several targets; but then their labels would
// have to be the same.
type group struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// maxTargets is the number of targets in one answer: with their labels some 50 MB.
const maxTargets = 100_000

// errTooMany says that more is asked for than one answer has.
var errTooMany = errors.New("too many targets")

// Metadata by which an instance says how it is scraped.
const (
	scrapeKey = "prometheus.io/scrape" // "false": not at all
	schemeKey = "prometheus.io/scheme"
	pathKey   = "prometheus.io/path"
	portKey   = "prometheus.io/port" // a number, or the name of a port
)

// metricsPort is the name of the port that is scraped when nothing else is said.
const metricsPort = "metrics"

// groups are the targets that a query asks for among what may be seen, ordered by namespace, service and id. Instances that
// have no port to be scraped at are left out.
func groups(st *fsm.State, q query, visible func(namespace, service string) bool) (found []group, leftOut int, err error) {
	found = []group{} // Not null in JSON.
	add := func(r *fsm.Record) {
		if !q.instance(r) {
			return
		}
		if scrape, _ := r.Metadata(scrapeKey); scrape == "false" {
			return
		}
		in, decodeErr := r.Proto()
		if decodeErr != nil {
			err = cmp.Or(err, fmt.Errorf("instance %s/%s/%s: %w", r.Namespace(), r.Service(), r.ID(), decodeErr))
			return
		}
		port, ok := portOf(in, q.port)
		switch {
		case !ok:
			leftOut++
		case len(found) == maxTargets:
			err = cmp.Or(err, fmt.Errorf("%w: the limit is %d", errTooMany, maxTargets))
		default:
			found = append(found, group{[]string{target(in, port)}, labels(in, port)})
		}
	}
	each(st, q, func(svc *fsm.Service) bool {
		if q.service(svc.Name()) && visible(svc.Namespace(), svc.Name()) {
			svc.Ascend("", func(r *fsm.Record) bool {
				add(r)
				return err == nil
			})
		}
		return err == nil
	})
	return found, leftOut, err
}

// each calls fn for the services of the namespaces that are asked for, until it returns false.
func each(st *fsm.State, q query, fn func(*fsm.Service) bool) {
	if slices.Contains(q.namespaces, "*") {
		st.Services("", "", fn)
		return
	}
	for _, namespace := range q.namespaces {
		more := true
		st.Services(namespace, "", func(svc *fsm.Service) bool {
			more = svc.Namespace() != namespace || fn(svc)
			return more && svc.Namespace() == namespace
		})
		if !more {
			return
		}
	}
}

// portOf is the port to scrape: the one that was asked for; or that the instance names; or its port "metrics"; or its first.
func portOf(in *registryv1.Instance, asked string) (*registryv1.Port, bool) {
	named := func(name string) (*registryv1.Port, bool) {
		i := slices.IndexFunc(in.GetPorts(), func(p *registryv1.Port) bool { return p.GetName() == name })
		if i < 0 {
			return nil, false
		}
		return in.GetPorts()[i], true
	}
	if asked != "" {
		return named(asked)
	}
	if own := in.GetMetadata()[portKey]; own != "" {
		if n, err := strconv.ParseUint(own, 10, 16); err == nil && n > 0 {
			i := slices.IndexFunc(in.GetPorts(), func(p *registryv1.Port) bool { return p.GetNumber() == uint32(n) })
			if i >= 0 {
				return in.GetPorts()[i], true
			}
			return &registryv1.Port{Number: uint32(n)}, true
		}
		return named(own)
	}
	if p, ok := named(metricsPort); ok {
		return p, true
	}
	if len(in.GetPorts()) == 0 {
		return nil, false
	}
	return in.GetPorts()[0], true
}

func target(in *registryv1.Instance, port *registryv1.Port) string {
	return net.JoinHostPort(in.GetAddress(), number(port))
}

func number(p *registryv1.Port) string { return strconv.FormatUint(uint64(p.GetNumber()), 10) }

// labels are those of a target. What begins with __meta_ is for relabelling: Prometheus drops it afterwards.
func labels(in *registryv1.Instance, port *registryv1.Port) map[string]string {
	l := map[string]string{}
	set := func(name, value string) {
		if value != "" {
			l[name] = value
		}
	}
	const meta = "__meta_regd_"
	set(meta+"namespace", in.GetNamespace())
	set(meta+"service", in.GetService())
	set(meta+"instance", in.GetId())
	set(meta+"address", in.GetAddress())
	set(meta+"zone", in.GetZone())
	set(meta+"region", in.GetRegion())
	set(meta+"health", strings.ToLower(strings.TrimPrefix(in.GetHealth().String(), "HEALTH_")))
	set(meta+"weight", strconv.FormatUint(uint64(in.GetWeight()), 10))
	set(meta+"port", number(port))
	set(meta+"port_name", port.GetName())
	for _, p := range in.GetPorts() {
		set(meta+"port_"+labelName(p.GetName()), number(p))
	}
	if len(in.GetTags()) > 0 {
		set(meta+"tags", ","+strings.Join(in.GetTags(), ",")+",") // So that ",a," finds one.
	}
	for key, value := range in.GetMetadata() {
		set(meta+"metadata_"+labelName(key), value)
	}
	set("__scheme__", in.GetMetadata()[schemeKey])
	set("__metrics_path__", in.GetMetadata()[pathKey])
	return l
}

// labelName turns a text into one that a label's name can have: what it can't becomes an underscore, as everywhere in Prometheus.
func labelName(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, s)
}
