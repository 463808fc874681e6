package dns

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// fakeNode is a node without a log: a real state machine, and an age and an error to choose.
type fakeNode struct {
	tb    testing.TB
	state atomic.Pointer[fsm.State]
	age   atomic.Int64
	fails atomic.Pointer[error]
	// onView runs before each View.
	onView atomic.Pointer[func()]
}

func newFakeNode(tb testing.TB) *fakeNode {
	tb.Helper()
	n := &fakeNode{tb: tb}
	n.state.Store(fsm.New())
	return n
}

func (n *fakeNode) View(_ context.Context, fresh cluster.Freshness) (cluster.View, error) {
	if fn := n.onView.Load(); fn != nil {
		(*fn)()
	}
	if err := n.fails.Load(); err != nil {
		return cluster.View{}, *err
	}
	return cluster.View{State: n.state.Load(), Mode: fresh.Mode, Staleness: time.Duration(n.age.Load())}, nil
}

// apply applies commands that are not refused, as one entry.
func (n *fakeNode) apply(commands ...*raftlogv1.Command) {
	n.tb.Helper()
	var encoded [][]byte
	for _, cmd := range commands {
		if n.state.Load().FeatureLevel() >= fsm.AccessLevel {
			cmd.Level = fsm.AccessLevel // Else it would count as that of a node which does not know of access control.
		}
		data, err := proto.Marshal(cmd)
		if err != nil {
			n.tb.Fatal(err)
		}
		encoded = append(encoded, data)
	}
	st := n.state.Load()
	next, result, err := st.Apply(fsm.Entry{
		Index: st.Index() + 1, Term: 1, Data: fsm.AppendEntry(nil, time.Now().UnixMilli(), encoded),
	})
	for _, out := range result.Outcomes {
		err = errors.Join(err, out.Err())
	}
	if err != nil {
		n.tb.Fatalf("apply %v: %v", commands, err)
	}
	n.state.Store(next)
}

// register registers instances.
func (n *fakeNode) register(instances ...*registryv1.Instance) {
	n.tb.Helper()
	var commands []*raftlogv1.Command
	for _, in := range instances {
		if in.GetNamespace() == "" {
			in.Namespace = "default"
		}
		if in.GetWeight() == 0 {
			in.Weight = 100
		}
		spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(in)
		if err != nil {
			n.tb.Fatal(err)
		}
		commands = append(commands, &raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: &raftlogv1.Register{Instance: spec}}})
	}
	n.apply(commands...)
}

func (n *fakeNode) deregister(namespace, service, id string) {
	n.tb.Helper()
	n.apply(&raftlogv1.Command{Kind: &raftlogv1.Command_Deregister{Deregister: &raftlogv1.Deregister{Key: key(namespace, service, id)}}})
}

func (n *fakeNode) drain(namespace, service, id string) {
	n.tb.Helper()
	n.apply(&raftlogv1.Command{Kind: &raftlogv1.Command_SetDraining{
		SetDraining: &raftlogv1.SetDraining{Key: key(namespace, service, id), Draining: true},
	}})
}

func (n *fakeNode) maintain(namespace, service, id string) {
	n.tb.Helper()
	n.apply(&raftlogv1.Command{Kind: &raftlogv1.Command_SetMaintenance{
		SetMaintenance: &raftlogv1.SetMaintenance{Key: key(namespace, service, id), Maintenance: true},
	}})
}

// enforce turns access control on and lets anonymous do what the rules say.
func (n *fakeNode) enforce(rules ...*registryv1.Rule) {
	n.tb.Helper()
	level := func(cmd *raftlogv1.Command) *raftlogv1.Command {
		cmd.Level = fsm.AccessLevel
		return cmd
	}
	n.apply(level(&raftlogv1.Command{Actor: fsm.Anonymous, Kind: &raftlogv1.Command_BootstrapAccess{BootstrapAccess: &raftlogv1.BootstrapAccess{
		Token: &raftlogv1.CreateToken{Token: &registryv1.Token{Id: "t1"}, SecretHash: make([]byte, 32)},
	}}}))
	n.apply(level(&raftlogv1.Command{Kind: &raftlogv1.Command_PutPolicy{PutPolicy: &raftlogv1.PutPolicy{
		Policy: &registryv1.Policy{Name: "p", Rules: rules},
	}}}))
	n.apply(level(&raftlogv1.Command{Kind: &raftlogv1.Command_PutGrant{PutGrant: &raftlogv1.PutGrant{
		Grant: &registryv1.Grant{Identity: fsm.Anonymous, Policies: []string{"p"}},
	}}}))
}

func key(namespace, service, id string) *raftlogv1.Key {
	return &raftlogv1.Key{Namespace: namespace, Service: service, Id: id}
}

// instance is the shortest way to write one down: "service/id address port,name=port tag,tag".
func instance(text string, change ...func(*registryv1.Instance)) *registryv1.Instance {
	words := strings.Fields(text)
	in := &registryv1.Instance{Address: words[1]}
	in.Service, in.Id, _ = strings.Cut(words[0], "/")
	if len(words) > 2 {
		for port := range strings.SplitSeq(words[2], ",") {
			p := &registryv1.Port{Name: "main"}
			if name, number, named := strings.Cut(port, "="); named {
				p.Name, port = name, number
			}
			if _, err := fmt.Sscan(port, &p.Number); err != nil {
				panic(err)
			}
			in.Ports = append(in.Ports, p)
		}
	}
	if len(words) > 3 {
		in.Tags = strings.Split(words[3], ",")
	}
	for _, c := range change {
		c(in)
	}
	return in
}

func status(s registryv1.CheckStatus) func(*registryv1.Instance) {
	return func(in *registryv1.Instance) {
		in.Checks = []*registryv1.Check{{
			Name: "c", Initial: s, Kind: &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(time.Minute)}},
		}}
	}
}

var (
	critical = status(registryv1.CheckStatus_CHECK_STATUS_CRITICAL)
	warning  = status(registryv1.CheckStatus_CHECK_STATUS_WARNING)
	starting = status(registryv1.CheckStatus_CHECK_STATUS_STARTING)
)

func namespace(ns string) func(*registryv1.Instance) {
	return func(in *registryv1.Instance) { in.Namespace = ns }
}

func zone(z string) func(*registryv1.Instance) {
	return func(in *registryv1.Instance) { in.Zone = z }
}

func weight(w uint32) func(*registryv1.Instance) {
	return func(in *registryv1.Instance) { in.Weight = w }
}

func metadata(pairs ...string) func(*registryv1.Instance) {
	return func(in *registryv1.Instance) {
		in.Metadata = map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			in.Metadata[pairs[i]] = pairs[i+1]
		}
	}
}

// newWorld returns a node with one of everything.
func newWorld(tb testing.TB) *fakeNode {
	tb.Helper()
	n := newFakeNode(tb)
	n.register(
		instance("web/w1 10.0.0.1 http=8080,grpc=9090 v1,canary", zone("eu-1a"), weight(50), metadata("version", "1.2", "rfc1035-note", `as is \ "so"`)),
		instance("web/w2 10.0.0.2 http=8080 v2,rc.1", zone("eu-1b"), metadata("version", "1.3", "empty", "")),
		instance("web/w3 fd00::3 http=8080 v2", zone("eu-1b")),
		instance("web/w4 10.0.0.4 http=8080 v2", critical),
		instance("web/w5 10.0.0.5 http=8080 v2,old"),
		instance("web/w6 10.0.0.6 http=8080 v2"),
		instance("web/w7 10.0.0.7 http=8080 v3", warning),
		instance("web/w8 10.0.0.8 http=8080 v2", starting),
		instance("db/primary db-1.example.com 5432"),
		instance("hosts/h1 h1.example.com 80"),
		instance("hosts/h2 h2.example.com 80"),
		instance("mixed/m1 h1.example.com 80"),
		instance("mixed/m2 10.0.1.2 80"),
		instance("sick/s1 10.0.2.1 80", critical),
		instance("sick/s2 10.0.2.2 80", critical),
		instance("sick/s3 10.0.2.3 80"),
		instance("portless/p1 10.0.3.1"),
		instance("Api.Gateway/g.1 10.0.4.1 80"),
		instance("beta.shop/b1 10.0.5.1 80"),
		instance("shop/b2 10.0.5.2 80 beta"),
		instance("backup/p 10.0.6.1 80", metadata("dns-priority", "5")),
		instance("backup/q 10.0.6.2 80", metadata("dns-priority", "9")),
		instance("web/s1 10.1.0.1 8080 v1", namespace("staging")),
		instance("twins/a 10.0.7.1 80"),
		instance("twins/b 10.0.7.1 81"),
		instance("twins/c 10.0.7.1 80"),
		instance("odd/host:80/x@y 10.0.8.1 80"),
	)
	n.drain("default", "web", "w5")
	n.maintain("default", "web", "w6")
	n.drain("default", "sick", "s3")
	for i := range 3 {
		n.apply(&raftlogv1.Command{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{Member: &registryv1.Member{
			Id: fmt.Sprintf("id-%d", i+1), Name: fmt.Sprintf("N%d", i+1), Version: "v1.0.0", FeatureLevel: fsm.FeatureLevel,
			GrpcAddress: []string{"10.9.0.1:7400", "[fd00::9]:7400", "n3.example.com:7400"}[i],
		}}}})
	}
	return n
}

// newTestServer returns a server without sockets whose order is that of the State.
func newTestServer(tb testing.TB, n Node, change ...func(*Config)) (*Server, *worker) {
	tb.Helper()
	cfg := Config{Listen: "127.0.0.1:0", TTL: time.Second, NegativeTTL: time.Second}
	for _, c := range change {
		c(&cfg)
	}
	s, err := newServer(cfg, n)
	if err != nil {
		tb.Fatal(err)
	}
	w := s.newWorker()
	w.c.pick = func(int) int { return 0 }
	return s, w
}

// request is a question with all that an answer may depend on.
type request struct {
	msg    *miekg.Msg
	client netip.Addr
	stream bool
}

func newRequest(name string, qtype uint16) *request {
	m := new(miekg.Msg)
	m.SetQuestion(miekg.Fqdn(name), qtype)
	m.Id = 7
	return &request{msg: m, client: netip.MustParseAddr("192.0.2.1")}
}

// ask sends a request through all but the sockets.
func ask(tb testing.TB, s *Server, w *worker, r *request) *miekg.Msg {
	tb.Helper()
	packet, err := r.msg.Pack()
	if err != nil {
		tb.Fatal(err)
	}
	return unpack(tb, respond(tb, s, w, packet, r))
}

func respond(tb testing.TB, s *Server, w *worker, packet []byte, r *request) []byte {
	tb.Helper()
	reply, outcome := s.respond(w, packet, r.client, r.stream)
	if outcome != outcomeAnswered {
		tb.Fatalf("%v: not answered (%d)", r.msg.Question, outcome)
	}
	return reply
}

func unpack(tb testing.TB, reply []byte) *miekg.Msg {
	tb.Helper()
	m := new(miekg.Msg)
	if err := m.Unpack(reply); err != nil {
		tb.Fatalf("the answer % x can't be read: %v", reply, err)
	}
	return m
}

// query asks for a name and a type.
func query(tb testing.TB, s *Server, w *worker, name string, qtype uint16) *miekg.Msg {
	tb.Helper()
	return ask(tb, s, w, newRequest(name, qtype))
}

// texts are the data of answered records, in order.
func texts(m *miekg.Msg) []string {
	var all []string
	for _, rr := range m.Answer {
		all = append(all, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return all
}

// value is that of a counter or gauge.
func value(tb testing.TB, m prometheus.Metric) float64 {
	tb.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		tb.Fatal(err)
	}
	return out.GetCounter().GetValue() + out.GetGauge().GetValue()
}
