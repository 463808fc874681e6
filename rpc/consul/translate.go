package consul

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// translator turns instances into what Consul shows. It is pure.
type translator struct {
	datacenter string
}

// instance is an instance taken apart.
type instance struct {
	place
	*registryv1.Instance
}

func open(r *fsm.Record) (instance, error) {
	in, err := r.Proto()
	if err != nil {
		return instance{}, err
	}
	i := instance{Instance: in}
	i.place = place{node: in.GetAddress(), id: in.GetId()}
	if name, ok := in.GetMetadata()[factNode]; ok {
		i.place = place{node: name, id: cmp.Or(in.GetMetadata()[factID], in.GetId()), door: true}
	}
	return i, nil
}

// nodeAddress is where the node is reached.
func (i instance) nodeAddress() string {
	if !i.door {
		return i.GetAddress()
	}
	return cmp.Or(i.GetMetadata()[factNodeAddress], i.node)
}

// tags are the tags in the order in which they were given.
func (i instance) tags() []string {
	if len(i.GetTags()) == 0 {
		return []string{}
	}
	return orderTags(i.GetTags(), i.GetMetadata()[factTags])
}

// meta is the metadata without what is for this door.
func (i instance) meta() map[string]string {
	m := make(map[string]string, len(i.GetMetadata()))
	for key, value := range i.GetMetadata() {
		if !strings.HasPrefix(key, factPrefix) {
			m[key] = value
		}
	}
	return m
}

func (i instance) port() int {
	if len(i.GetPorts()) == 0 {
		return 0
	}
	return int(i.GetPorts()[0].GetNumber())
}

// serviceAddress is the address of the service, empty if it was given none: then the node's is meant.
func (i instance) serviceAddress() string {
	if i.GetMetadata()[factAddress] == "node" {
		return ""
	}
	return i.GetAddress()
}

func (i instance) tagged() map[string]address {
	var m map[string]address
	if text := i.GetMetadata()[factTagged]; text != "" {
		_ = json.Unmarshal([]byte(text), &m)
	}
	return m
}

func (i instance) locality() *locality {
	if i.GetZone() == "" && i.GetRegion() == "" {
		return nil
	}
	return &locality{Region: i.GetRegion(), Zone: i.GetZone()}
}

// texts reads a map from a fact, empty if there is none.
func (i instance) texts(fact string) map[string]string {
	m := map[string]string{}
	if text := i.GetMetadata()[fact]; text != "" {
		_ = json.Unmarshal([]byte(text), &m)
	}
	return m
}

func (t translator) node(i instance) node {
	tagged := i.texts(factNodeTagged)
	if len(tagged) == 0 {
		tagged = lanWan(i.nodeAddress())
	}
	return node{
		ID: cmp.Or(i.GetMetadata()[factNodeID], uuidOf(i.node)), Node: i.node, Address: i.nodeAddress(), Datacenter: t.datacenter,
		TaggedAddresses: tagged, Meta: i.texts(factNodeMeta), CreateIndex: 1, ModifyIndex: 1, // Nobody counts changes of nodes.
	}
}

func lanWan(address string) map[string]string {
	return map[string]string{"lan": address, "wan": address}
}

// member is a node of the cluster as a node of Consul.
func (t translator) member(m *registryv1.Member) node {
	host := hostOf(m.GetGrpcAddress())
	return node{
		ID: m.GetId(), Node: m.GetName(), Address: host, Datacenter: t.datacenter, TaggedAddresses: lanWan(host),
		Meta: map[string]string{"regd-version": m.GetVersion()}, CreateIndex: 1, ModifyIndex: 1,
	}
}

// hostOf is the host of host:port.
func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}

func (t translator) service(i instance) service {
	s := service{
		ID: i.id, Service: i.GetService(), Tags: i.tags(), Meta: i.meta(), Port: i.port(), Address: i.serviceAddress(),
		SocketPath: i.GetMetadata()[factSocket], TaggedAddresses: i.tagged(), Weights: weightsOf(i.Instance),
		EnableTagOverride: i.GetMetadata()[factTagOverride] == "true",
		CreateIndex:       i.GetCreateRevision(), ModifyIndex: i.GetModifyRevision(), Locality: i.locality(),
	}
	if len(i.GetPorts()) > 1 {
		for n, p := range i.GetPorts() {
			s.Ports = append(s.Ports, servicePort{Name: p.GetName(), Port: int(p.GetNumber()), Default: n == 0})
		}
	}
	return s
}

func (t translator) row(i instance) row {
	n, s := t.node(i), t.service(i)
	tagged := s.TaggedAddresses
	if tagged == nil {
		tagged = map[string]address{}
	}
	return row{
		ID: n.ID, Node: n.Node, Address: n.Address, Datacenter: n.Datacenter, TaggedAddresses: n.TaggedAddresses, NodeMeta: n.Meta,
		ServiceID: s.ID, ServiceName: s.Service, ServiceAddress: s.Address, ServiceTaggedAddresses: tagged, ServiceTags: s.Tags,
		ServiceMeta: s.Meta, ServicePort: s.Port, ServiceWeights: s.Weights, ServiceEnableTagOverride: s.EnableTagOverride,
		ServiceLocality: s.Locality, CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex,
	}
}

// checks are the checks of an instance, in their order, then one for each reason of the registry's own that it gets no traffic.
func (t translator) checks(i instance) []check {
	ofNode := i.GetService() == nodeService && i.door
	base := check{Node: i.node, ServiceID: i.id, ServiceName: i.GetService(), ServiceTags: i.tags(), CreateIndex: i.GetCreateRevision()}
	if ofNode {
		base.ServiceID, base.ServiceName, base.ServiceTags = "", "", []string{}
	}
	checks := make([]check, 0, len(i.GetChecks()))
	for n, def := range i.GetChecks() {
		fact := factOfCheck(i.GetMetadata(), def.GetName())
		c := base
		c.CheckID, c.Notes = checkID(i.id, def.GetName(), fact), fact.Notes
		c.Name = cmp.Or(fact.Name, t.checkName(i, def.GetName()))
		c.Type, c.Interval, c.Timeout, c.Definition = describe(i, def)
		c.Status, c.ModifyIndex = critical, i.GetCreateRevision()
		if n < len(i.GetCheckStates()) {
			state := i.GetCheckStates()[n]
			c.Status, c.Output, c.ModifyIndex = statusOf(state.GetStatus()), state.GetOutput(), state.GetChangedRevision()
		}
		checks = append(checks, c)
	}
	if i.GetMaintenance() {
		c := base
		c.CheckID, c.Name, c.Status, c.Type = maintenanceCheck+i.id, "Service Maintenance Mode", critical, maintenance
		c.Notes, c.ModifyIndex = cmp.Or(i.GetMetadata()[factMaintenance], noReason), i.GetModifyRevision()
		checks = append(checks, c)
	}
	if i.GetDraining() {
		c := base
		c.CheckID, c.Name, c.Status, c.Type = drainingCheck+i.id, "Draining", critical, "draining"
		c.Notes, c.ModifyIndex = "The instance has announced its end and takes nothing new.", i.GetModifyRevision()
		checks = append(checks, c)
	}
	return checks
}

// checkName is the name of a check that was given none.
func (t translator) checkName(i instance, name string) string {
	if n, ok := strings.CutPrefix(name, ownCheck+"-"); i.door && (name == ownCheck || ok && number(n)) {
		return "Service '" + i.GetService() + "' check"
	}
	return name
}

// describe tells how a check is made.
func describe(i instance, def *registryv1.Check) (kind, interval, timeout string, d definition) {
	span := func(p *durationpb.Duration) string {
		if p == nil {
			return ""
		}
		return p.AsDuration().String()
	}
	interval, timeout = span(def.GetInterval()), span(def.GetTimeout())
	d.Interval, d.Timeout = interval, timeout
	d.DeregisterCriticalServiceAfter = span(i.GetDeregisterCriticalAfter())
	tls := func(c *registryv1.CheckTLS) { d.TLSServerName, d.TLSSkipVerify = c.GetServerName(), c.GetSkipVerify() }
	switch def.GetKind().(type) {
	case *registryv1.Check_Http:
		h := def.GetHttp()
		kind, d.HTTP, d.Method = "http", h.GetUrl(), h.GetMethod()
		if d.HTTP == "" {
			d.HTTP = "http://" + target(i, "", h.GetPort()) + h.GetPath()
		}
		for name, value := range h.GetHeaders() {
			if d.Header == nil {
				d.Header = map[string][]string{}
			}
			d.Header[name] = []string{value}
		}
		tls(h.GetTls())
	case *registryv1.Check_Tcp:
		kind, d.TCP = "tcp", target(i, def.GetTcp().GetAddress(), def.GetTcp().GetPort())
	case *registryv1.Check_Grpc:
		g := def.GetGrpc()
		kind, d.GRPC, d.GRPCUseTLS = "grpc", target(i, g.GetAddress(), g.GetPort()), g.GetTls() != nil
		if g.GetService() != "" {
			d.GRPC += "/" + g.GetService()
		}
		tls(g.GetTls())
	case *registryv1.Check_Ttl:
		kind, d.TTL = "ttl", span(def.GetTtl().GetTtl())
	}
	return kind, interval, timeout, d
}

// target is where a check goes.
func target(i instance, address, port string) string {
	if address != "" {
		return address
	}
	for _, p := range i.GetPorts() {
		if p.GetName() == port || port == "" {
			return net.JoinHostPort(i.GetAddress(), fmt.Sprint(p.GetNumber()))
		}
	}
	return i.GetAddress()
}

// aggregate is the status that checks add up to.
func aggregate(checks []check) string {
	status := passing
	for _, c := range checks {
		switch {
		case strings.HasPrefix(c.CheckID, maintenanceCheck), c.CheckID == "_node_maintenance":
			return maintenance
		case c.Status == critical:
			status = critical
		case c.Status == warning && status == passing:
			status = warning
		}
	}
	return status
}

// hasTags tells whether an instance has all of the tags, in any case of letters, as in Consul.
func hasTags(have, want []string) bool {
	for _, tag := range want {
		if !slices.ContainsFunc(have, func(t string) bool { return strings.EqualFold(t, tag) }) {
			return false
		}
	}
	return true
}

// hasMeta tells whether a node has all of the pairs.
func hasMeta(have, want map[string]string) bool {
	for key := range maps.Keys(want) {
		if value, ok := have[key]; !ok || value != want[key] {
			return false
		}
	}
	return true
}
