package consul

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// What the registry has no field for is metadata of the instance. Each key is there only where it says something.
const (
	factPrefix       = "consul.io/"
	factNode         = factPrefix + "node"         // name of the node; an instance that has it came by this door
	factNodeAddress  = factPrefix + "node-address" // address of the node, unless it is the name
	factNodeID       = factPrefix + "node-id"      // as given to the catalog
	factNodeMeta     = factPrefix + "node-meta"    // JSON
	factNodeTagged   = factPrefix + "node-tagged"  // JSON: tagged addresses of the node
	factID           = factPrefix + "id"           // service id, where it is not the instance's
	factAgent        = factPrefix + "agent"        // identity that registered it, with access control on
	factAddress      = factPrefix + "address"      // "node": none was given
	factTags         = factPrefix + "tags"         // order of the tags, as places in the sorted list
	factTagOverride  = factPrefix + "tag-override" // "true"
	factTagged       = factPrefix + "tagged"       // JSON: tagged addresses
	factWeights      = factPrefix + "weights"      // "PASSING,WARNING", where the weight does not tell
	factSocket       = factPrefix + "socket-path"  // socket path
	factMaintenance  = factPrefix + "maintenance"  // why it is in maintenance
	factCheck        = factPrefix + "check/"       // + name of the check: JSON, a checkFact
	weightUnit       = 100                         // weight of an instance that weighs 1 here
	nodeService      = "consul-node"               // the service whose instances are nodes without services, and with checks of their own
	nodeCheckPrefix  = "_node_"                    // begins ids of checks that are a node's state
	maintenanceCheck = "_service_maintenance:"     // + service id
	drainingCheck    = "_service_draining:"        // + service id
	serviceCheck     = "service:"                  // + service id: id of a check that was given none
	ownCheck         = "service"                   // name of that check in the registry; the second is "service-2"
	noReason         = "Maintenance mode is enabled for this service, but no reason was provided. This is a default message."
)

// checkFact is what the registry has no field for in a check.
type checkFact struct {
	ID    string `json:"id,omitempty"`
	Name  string `json:"name,omitempty"`
	Notes string `json:"notes,omitempty"`
}

// place is where an instance is, as Consul has it.
type place struct {
	node string // name of the node
	id   string // service id, unique in the node
	door bool   // it came by this door
}

// placeOf tells where an instance is.
func placeOf(r *fsm.Record) place {
	p := place{id: r.ID()}
	if p.node, p.door = r.Metadata(factNode); p.door {
		if id, ok := r.Metadata(factID); ok {
			p.id = id
		}
		return p
	}
	p.node = addressOf(r)
	return p
}

// nodeFacts are the facts that say what a node is.
var nodeFacts = [...]string{factNodeAddress, factNodeMeta, factNodeID, factNodeTagged} //nolint:gochecknoglobals // A table.

// nodeKey is what an instance says of its node, in a form that can be compared; empty: nothing but its name.
func nodeKey(fact func(key string) (string, bool)) string {
	key := ""
	for _, name := range nodeFacts {
		if value, ok := fact(name); ok {
			key += name + "=" + value + "\n"
		}
	}
	return key
}

// addressOf returns the address, which is not decoded in a Record.
func addressOf(r *fsm.Record) string {
	in, err := r.Proto()
	if err != nil {
		return r.ID() // It can't be: the state machine has checked the shape.
	}
	return in.GetAddress()
}

// checkID is the id of an instance's check. Ids that nobody gave follow from the name.
func checkID(serviceID, name string, fact checkFact) string {
	if fact.ID != "" {
		return fact.ID
	}
	if name == ownCheck {
		return serviceCheck + serviceID
	}
	if n, ok := strings.CutPrefix(name, ownCheck+"-"); ok && number(n) {
		return serviceCheck + serviceID + ":" + n
	}
	return serviceCheck + serviceID + ":" + name
}

// number tells whether a text is a number, in the form in which it is written.
func number(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && strconv.FormatUint(n, 10) == s
}

// factOfCheck returns what is kept of a check besides its definition.
func factOfCheck(metadata map[string]string, name string) checkFact {
	var fact checkFact
	if text := metadata[factCheck+name]; text != "" {
		_ = json.Unmarshal([]byte(text), &fact) // Of a stranger's making: then there is no fact.
	}
	return fact
}

// tagOrder tells in which order the tags stood, given sorted; empty: in this one.
func tagOrder(given, sorted []string) string {
	if slices.Equal(given, sorted) {
		return ""
	}
	places := make([]string, len(given))
	for i, tag := range given {
		at, _ := slices.BinarySearch(sorted, tag)
		places[i] = strconv.Itoa(at)
	}
	return strings.Join(places, " ")
}

// orderTags is the reverse of tagOrder. Where the order does not fit, the tags come as they are.
func orderTags(sorted []string, order string) []string {
	tags := slices.Clone(sorted)
	places := strings.Fields(order)
	if len(places) != len(sorted) {
		return tags
	}
	seen := make([]bool, len(sorted))
	for i, text := range places {
		at, err := strconv.Atoi(text)
		if err != nil || at < 0 || at >= len(sorted) || seen[at] {
			return slices.Clone(sorted)
		}
		seen[at] = true
		tags[i] = sorted[at]
	}
	return tags
}

// weightsOf are the weights that an instance shows here: what it was given, or its share in units.
func weightsOf(in *registryv1.Instance) weights {
	if a, b, ok := strings.Cut(in.GetMetadata()[factWeights], ","); ok {
		p, errP := strconv.Atoi(a)
		w, errW := strconv.Atoi(b)
		if errP == nil && errW == nil {
			return weights{p, w}
		}
	}
	return weights{max(1, int(in.GetWeight()+weightUnit/2)/weightUnit), 1}
}

// uuidOf makes an id in the form of a UUID that is always the same for a name.
func uuidOf(name string) string {
	b := sha256.Sum256([]byte("regd consul node " + name))
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// statusOf is a verdict in Consul's words: what has not passed yet is critical.
func statusOf(s registryv1.CheckStatus) string {
	switch s {
	case registryv1.CheckStatus_CHECK_STATUS_PASSING:
		return passing
	case registryv1.CheckStatus_CHECK_STATUS_WARNING:
		return warning
	case registryv1.CheckStatus_CHECK_STATUS_UNSPECIFIED, registryv1.CheckStatus_CHECK_STATUS_STARTING,
		registryv1.CheckStatus_CHECK_STATUS_CRITICAL:
		return critical
	default:
		return critical
	}
}
