package dns

import "strings"

// kind is what a name asks for.
type kind int

const (
	kindNone       kind = iota // There is no such name, whatever is registered.
	kindBranch                 // Only names below it can be something.
	kindApex                   // The domain itself.
	kindNameserver             // The name in NS records.
	kindService                // A service, or those of its instances that have a tag.
	kindPortsOf                // As kindService, but only names below it have records.
	kindInstance               // One instance of a service.
	kindNode                   // A node of the cluster.
	kindAddress                // An address, written in the name.
)

// asked is what a name asks for. Which part of head names the service depends on which services there are.
type asked struct {
	kind      kind
	namespace string
	// head are the labels of service and tag, or of service and instance, the service last. For a node its name, for an address its
	// digits.
	head []string
	// service is set instead of head where the name says exactly what it is: "_web._tcp".
	service string
	tag     string // only with service
	port    string // name of the port. Empty: the first.
	srv     bool   // A name of RFC 2782.
	ids     bool   // Labels before the service are the id of an instance, not a tag.
}

const defaultNamespace = "default"

// Fixed words in names.
const (
	wordService  = "service"
	wordInstance = "instance"
	wordNode     = "node"
	wordNS       = "ns"
	wordSvc      = "svc"
	wordAddr     = "addr"
	wordDC       = "dc"
	wordTCP      = "_tcp"
	wordUDP      = "_udp"
)

// parseName tells what the name before the domain asks for. It is in lower case, empty for the domain itself.
func parseName(rest, datacenter string) asked {
	if rest == "" {
		return asked{kind: kindApex}
	}
	labels := withoutDatacenter(strings.Split(rest, "."), datacenter)
	n := len(labels) - 1
	if n < 0 {
		return asked{kind: kindBranch}
	}
	switch last := labels[n]; last {
	case wordNode, wordAddr:
		return asked{kind: branchOr(n == 0, map[string]kind{wordNode: kindNode, wordAddr: kindAddress}[last]), head: labels[:n]}
	case wordSvc:
		if n < 2 {
			return asked{kind: kindBranch}
		}
		a := parseHead(labels[:n-1])
		a.namespace, a.ids = labels[n-1], true
		return a
	case wordNS:
		if n == 0 {
			return asked{kind: kindNameserver}
		}
		a := parseKind(labels[:n-1])
		a.namespace = labels[n-1]
		return a
	default:
		a := parseKind(labels)
		a.namespace = defaultNamespace
		return a
	}
}

// withoutDatacenter cuts ".DC" and ".DC.dc" off.
func withoutDatacenter(labels []string, datacenter string) []string {
	n := len(labels)
	switch {
	case datacenter == "":
		return labels
	case n >= 2 && labels[n-1] == wordDC && labels[n-2] == datacenter:
		return labels[:n-2]
	case n == 1 && labels[0] == wordDC:
		return nil
	case labels[n-1] == datacenter:
		return labels[:n-1]
	}
	return labels
}

func branchOr(branch bool, k kind) kind {
	if branch {
		return kindBranch
	}
	return k
}

// parseKind parses what lies in one namespace.
func parseKind(labels []string) asked {
	n := len(labels) - 1
	switch {
	case n < 0:
		return asked{kind: kindBranch}
	case labels[n] == wordService:
		return parseHead(labels[:n])
	case labels[n] == wordInstance:
		return asked{kind: branchOr(n == 0, kindInstance), head: labels[:n], ids: true}
	case strings.HasPrefix(labels[n], "_"):
		return parseHead(labels) // "_web._tcp", without ".service"
	default:
		return asked{kind: kindNone}
	}
}

// parseHead parses a service with what is before it.
//
//	web            v1.web            the service, or what of it has the tag
//	_web._tcp      _web._v1          the same, by RFC 2782
//	_http._tcp.web                   the port named http of it
func parseHead(labels []string) asked {
	n := len(labels) - 1
	switch {
	case n < 0:
		return asked{kind: kindBranch}
	case strings.HasPrefix(labels[n], "_"): // The protocol or tag; before it is the service.
		service, ok := strings.CutPrefix(strings.Join(labels[:n], "."), "_")
		if !ok {
			return asked{kind: branchOr(n == 0, kindNone)}
		}
		a := asked{kind: kindService, service: service, srv: true}
		if labels[n] != wordTCP && labels[n] != wordUDP {
			a.tag = labels[n][1:]
		}
		return a
	case labels[0] == wordTCP || labels[0] == wordUDP:
		return asked{kind: kindPortsOf, head: labels[1:]}
	case strings.HasPrefix(labels[0], "_"):
		if n < 2 || labels[1] != wordTCP && labels[1] != wordUDP {
			return asked{kind: kindNone}
		}
		return asked{kind: kindService, port: labels[0][1:], head: labels[2:], srv: true}
	default:
		return asked{kind: kindService, head: labels}
	}
}
