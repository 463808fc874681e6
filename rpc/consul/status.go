package consul

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"
)

// statusLeader is GET status/leader: where the leader's peers reach it, empty if there is none.
func (s *Server) statusLeader(w *answer, _ *request) error {
	leader := ""
	if m := s.node.Feed().State().Member(s.node.Info().LeaderID); m != nil {
		leader = m.GetPeerAddress()
	}
	return reply(w, http.StatusOK, leader)
}

// statusPeers is GET status/peers.
func (s *Server) statusPeers(w *answer, _ *request) error {
	peers := []string{}
	for _, m := range s.node.Feed().State().Members() {
		if !m.GetNonVoter() {
			peers = append(peers, m.GetPeerAddress())
		}
	}
	return reply(w, http.StatusOK, peers)
}

// need checks a permission that is about the cluster.
func (s *Server) need(a *request, action registryv1.Action) error {
	return s.allow(a.Context(), a, action, "", "")
}

// self is GET agent/self: the agent is that of the host that asks, the server is this node.
func (s *Server) self(w *answer, a *request) error {
	info := s.node.Info()
	host, port := splitAddress(s.me().GetPeerAddress())
	version := s.me().GetVersion()
	member := agentMember{Name: info.Name, Addr: host, Port: port, Status: alive, Tags: map[string]string{"dc": s.cfg.Datacenter, "role": "consul"}}
	return reply(w, http.StatusOK, map[string]any{
		"Config": map[string]any{
			"Datacenter": s.cfg.Datacenter, "PrimaryDatacenter": s.cfg.Datacenter, "NodeName": a.agent.node, "NodeID": uuidOf(a.agent.node),
			"Server": true, "Revision": "", "Version": version, "BuildDate": "",
		},
		"DebugConfig": map[string]any{},
		"Coord":       map[string]any{},
		"Member":      member,
		"Meta":        map[string]string{},
		"Stats": map[string]any{
			"agent":  map[string]string{"check_monitors": "0", "checks": "0", "services": "0"},
			"consul": map[string]string{"leader": strconv.FormatBool(info.Leading), "server": "true", "leader_addr": info.LeaderAddress},
			"regd":   map[string]string{"node": info.Name, "version": version, "cluster_id": info.ClusterID, "leader": info.LeaderName},
		},
		"xDS": nil,
	})
}

// version is GET agent/version.
func (s *Server) version(w *answer, _ *request) error {
	return reply(w, http.StatusOK, map[string]string{"SHA": "", "BuildDate": "", "HumanVersion": "regd " + s.me().GetVersion(), "FIPS": ""})
}

// agentMember is a member of the gossip pool, which there is none of: the nodes of the cluster stand for it.
type agentMember struct {
	Name                                                                         string
	Addr                                                                         string
	Port                                                                         int
	Tags                                                                         map[string]string
	Status                                                                       int
	ProtocolMin, ProtocolMax, ProtocolCur, DelegateMin, DelegateMax, DelegateCur int
}

// The states of a member.
const (
	alive  = 1
	failed = 4
)

// members is GET agent/members.
func (s *Server) members(w *answer, a *request) error {
	if err := s.need(a, registryv1.Action_ACTION_OBSERVE); err != nil {
		return err
	}
	st, err := s.node.Status(a.Context(), false)
	if err != nil {
		return err
	}
	all := []agentMember{}
	for _, m := range st.GetMembers() {
		host, port := splitAddress(m.GetMember().GetPeerAddress())
		state := alive
		if !m.GetReachable() {
			state = failed
		}
		all = append(all, agentMember{Name: m.GetMember().GetName(), Addr: host, Port: port, Status: state, Tags: map[string]string{
			"dc": s.cfg.Datacenter, "role": "consul", "id": m.GetMember().GetId(), "build": m.GetMember().GetVersion(),
		}})
	}
	all, err = kept(a.filter, all)
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, all)
}

func splitAddress(address string) (host string, port int) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return address, 0
	}
	port, _ = strconv.Atoi(text) // Of a name: 0.
	return host, port
}

// showMetrics is GET agent/metrics: in the format of Prometheus if asked, else as Consul's own.
func (s *Server) showMetrics(w *answer, a *request) error {
	if err := s.need(a, registryv1.Action_ACTION_OBSERVE); err != nil {
		return err
	}
	if a.query.Get("format") == "prometheus" {
		promhttp.HandlerFor(s.gatherer, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}).ServeHTTP(w, a.Request)
		return nil
	}
	families, err := s.gatherer.Gather()
	if err != nil && len(families) == 0 {
		return fmt.Errorf("gather metrics: %w", err)
	}
	return reply(w, http.StatusOK, metricsOf(families, time.Now()))
}

type gauge struct {
	Name   string
	Value  float64
	Labels map[string]string
}

type sample struct {
	Name                        string
	Count                       uint64
	Sum, Min, Max, Mean, Stddev float64
	Labels                      map[string]string
}

type metricsInfo struct {
	Timestamp string
	Gauges    []gauge
	Points    []gauge
	Counters  []sample
	Samples   []sample
}

// metricsOf shows metrics as Consul does.
func metricsOf(families []*dto.MetricFamily, now time.Time) metricsInfo {
	info := metricsInfo{Timestamp: now.UTC().Format("2006-01-02 15:04:05 -0700 MST"), Gauges: []gauge{}, Points: []gauge{}, Counters: []sample{}, Samples: []sample{}}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			switch {
			case m.GetGauge() != nil:
				info.Gauges = append(info.Gauges, gauge{f.GetName(), m.GetGauge().GetValue(), labels})
			case m.GetUntyped() != nil:
				info.Gauges = append(info.Gauges, gauge{f.GetName(), m.GetUntyped().GetValue(), labels})
			case m.GetCounter() != nil:
				v := m.GetCounter().GetValue()
				info.Counters = append(info.Counters, sample{Name: f.GetName(), Count: uint64(v), Sum: v, Labels: labels})
			case m.GetHistogram() != nil:
				info.Samples = append(info.Samples, newSample(f.GetName(), m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum(), labels))
			case m.GetSummary() != nil:
				info.Samples = append(info.Samples, newSample(f.GetName(), m.GetSummary().GetSampleCount(), m.GetSummary().GetSampleSum(), labels))
			}
		}
	}
	return info
}

func newSample(name string, count uint64, sum float64, labels map[string]string) sample {
	s := sample{Name: name, Count: count, Sum: sum, Labels: labels}
	if count > 0 {
		s.Mean = sum / float64(count)
	}
	return s
}

type raftServer struct {
	ID              string
	Node            string
	Address         string
	Leader          bool
	Voter           bool
	ProtocolVersion string
	LastIndex       uint64
}

// status asks all nodes how they are, if the caller may know.
func (s *Server) status(a *request) (*apiv1.StatusResponse, error) {
	if err := s.need(a, registryv1.Action_ACTION_OBSERVE); err != nil {
		return nil, err
	}
	return s.node.Status(a.Context(), false)
}

// raftConfiguration is GET operator/raft/configuration.
func (s *Server) raftConfiguration(w *answer, a *request) error {
	st, err := s.status(a)
	if err != nil {
		return err
	}
	servers := []raftServer{}
	for _, m := range st.GetMembers() {
		servers = append(servers, raftServer{
			ID: m.GetMember().GetId(), Node: m.GetMember().GetName(), Address: m.GetMember().GetPeerAddress(),
			Leader: m.GetRole() == apiv1.Role_ROLE_LEADER, Voter: m.GetSuffrage() == apiv1.Suffrage_SUFFRAGE_VOTER,
			ProtocolVersion: "3", LastIndex: m.GetAppliedIndex(),
		})
	}
	return reply(w, http.StatusOK, map[string]any{"Servers": servers, "Index": s.node.Feed().State().Index()})
}

// removePeer is DELETE operator/raft/peer, of the node ?id= or ?address=.
func (s *Server) removePeer(w *answer, a *request) error {
	if err := s.need(a, registryv1.Action_ACTION_OPERATE); err != nil {
		return err
	}
	id, address := a.query.Get("id"), a.query.Get("address")
	if (id == "") == (address == "") {
		return badRequest("Must specify either ?id with the server's ID or ?address with IP:port of peer to remove")
	}
	for _, m := range s.node.Feed().State().Members() {
		if m.GetId() == id || m.GetPeerAddress() == address {
			return s.done(w, a.visit.Did(s.node.Remove(a.Context(), m.GetId(), false), slog.String("node", m.GetName())))
		}
	}
	return &failure{http.StatusInternalServerError, fmt.Sprintf("id %q address %q was not found in the Raft configuration", cut(id), cut(address))}
}

// transferLeader is POST operator/raft/transfer-leader, to the node ?id= if that is given.
func (s *Server) transferLeader(w *answer, a *request) error {
	if err := s.need(a, registryv1.Action_ACTION_OPERATE); err != nil {
		return err
	}
	_, err := s.node.TransferLeadership(a.Context(), a.query.Get("id"))
	if a.visit.Did(err, slog.String("node", a.query.Get("id"))) != nil {
		return err
	}
	return reply(w, http.StatusOK, map[string]bool{"Success": true})
}

// autopilotConfiguration is GET operator/autopilot/configuration: what the registry does, in Consul's words.
func (s *Server) autopilotConfiguration(w *answer, a *request) error {
	if err := s.need(a, registryv1.Action_ACTION_OBSERVE); err != nil {
		return err
	}
	return reply(w, http.StatusOK, map[string]any{
		"CleanupDeadServers": false, "LastContactThreshold": "1s", "MaxTrailingLogs": 1000, "MinQuorum": 0,
		"ServerStabilizationTime": "10s", "RedundancyZoneTag": "", "DisableUpgradeMigration": false, "UpgradeVersionTag": "",
		"CreateIndex": 1, "ModifyIndex": 1,
	})
}

type serverHealth struct {
	ID          string
	Name        string
	Address     string
	SerfStatus  string
	Version     string
	Leader      bool
	LastContact string
	LastTerm    uint64
	LastIndex   uint64
	Healthy     bool
	Voter       bool
	StableSince time.Time
}

// autopilotHealth is GET operator/autopilot/health: 429 when a node is not well.
func (s *Server) autopilotHealth(w *answer, a *request) error {
	st, err := s.status(a)
	if err != nil {
		return err
	}
	servers, code := []serverHealth{}, http.StatusOK
	for _, m := range st.GetMembers() {
		h := serverHealth{
			ID: m.GetMember().GetId(), Name: m.GetMember().GetName(), Address: m.GetMember().GetPeerAddress(), SerfStatus: "alive",
			Version: m.GetMember().GetVersion(), Leader: m.GetRole() == apiv1.Role_ROLE_LEADER,
			LastContact: m.GetStaleness().AsDuration().String(), LastTerm: m.GetTerm(), LastIndex: m.GetAppliedIndex(),
			Healthy: m.GetReachable() && len(m.GetProblems()) == 0, Voter: m.GetSuffrage() == apiv1.Suffrage_SUFFRAGE_VOTER,
			StableSince: time.Now().Add(-m.GetUptime().AsDuration()).UTC().Truncate(time.Second),
		}
		if !m.GetReachable() {
			h.SerfStatus = "failed"
		}
		if !h.Healthy {
			code = http.StatusTooManyRequests
		}
		servers = append(servers, h)
	}
	tolerance := max(0, int(st.GetVotersReachable())-int(st.GetQuorum()))
	return reply(w, code, map[string]any{"Healthy": code == http.StatusOK, "FailureTolerance": tolerance, "Servers": servers})
}

// snapshot is GET and PUT snapshot: one of the registry's own, as  regd snapshot  saves and restores it.
func (s *Server) snapshot(w *answer, a *request) error {
	if err := s.need(a, registryv1.Action_ACTION_OPERATE); err != nil {
		return err
	}
	deadline := http.NewResponseController(w)
	_ = deadline.SetWriteDeadline(time.Now().Add(maxSnapshotTime)) // Not every writer has deadlines.
	_ = deadline.SetReadDeadline(time.Now().Add(maxSnapshotTime))
	if a.Method == http.MethodPut {
		return s.restore(w, a)
	}
	v, err := s.first(a)
	if err != nil {
		return err
	}
	_ = a.visit.Did(nil) // Whoever reads some of it has read it.
	s.setMeta(w, v.State.Revision(), v)
	w.Header().Set("Content-Type", "application/octet-stream")
	out := bufio.NewWriterSize(w, 256<<10)
	if err := errors.Join(v.State.WriteSnapshot(out, func() {}), out.Flush()); err != nil {
		s.cfg.Logger.Warn("a snapshot was not sent whole", "err", err)
		panic(http.ErrAbortHandler) // So that the client sees it: the status has been sent.
	}
	return nil
}

// maxSnapshotTime is how long a snapshot may take.
const maxSnapshotTime = 10 * time.Minute

func (s *Server) restore(w *answer, a *request) error {
	if err := s.need(a, registryv1.Action_ACTION_ADMINISTER); err != nil { // A snapshot brings its own policies and tokens.
		return err
	}
	select {
	case s.restoring <- struct{}{}:
		defer func() { <-s.restoring }()
	default:
		return &failure{http.StatusServiceUnavailable, "another snapshot is being restored: try again later"}
	}
	st, err := fsm.ReadSnapshot(bufio.NewReader(http.MaxBytesReader(w, a.Body, rpc.MaxSnapshotBytes)))
	if err != nil {
		return badRequest("the snapshot can't be read: it must be one of regd, as GET /v1/snapshot and  regd snapshot save  make it: %v", err)
	}
	return s.done(w, a.visit.Did(s.node.Restore(a.Context(), st)))
}
