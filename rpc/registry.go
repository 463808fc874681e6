package rpc

import (
	"context"
	"slices"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	"github.com/regd-io/regd/health"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	peerv1 "github.com/regd-io/regd/proto/peer/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// registryServer serves RegistryService: writes here, reads in list.go, streams in watch.go.
type registryServer struct {
	apiv1.UnimplementedRegistryServiceServer
	*core
}

// registryService describes RegistryService with methods of which the answers are encoded already, and streams that read
// requests themselves.
var registryService = func() *grpc.ServiceDesc { //nolint:gochecknoglobals // Like what is generated; nobody changes it.
	desc := apiv1.RegistryService_ServiceDesc
	desc.Methods = slices.Clone(desc.Methods)
	for i := range desc.Methods {
		switch m := &desc.Methods[i]; m.MethodName {
		case "Get":
			m.Handler = answerEncoded(apiv1.RegistryService_Get_FullMethodName, (*registryServer).get)
		case "ListInstances":
			m.Handler = answerEncoded(apiv1.RegistryService_ListInstances_FullMethodName, (*registryServer).listInstances)
		}
	}
	desc.Streams = slices.Clone(desc.Streams)
	for i := range desc.Streams {
		switch d := &desc.Streams[i]; d.StreamName {
		case "Watch":
			d.Handler = func(srv any, stream grpc.ServerStream) error { return srv.(*registryServer).watch(stream) }
		case "WatchService":
			d.Handler = func(srv any, stream grpc.ServerStream) error { return srv.(*registryServer).watchService(stream) }
		}
	}
	return &desc
}()

// aboutInstance explains an error of an order about one instance.
func aboutInstance(err error, verb string, k *raftlogv1.Key) error {
	return explain(err, verb+" instance "+k.GetNamespace()+"/"+k.GetService()+"/"+k.GetId(),
		"namespace", k.GetNamespace(), "service", k.GetService(), "id", k.GetId())
}

// Register puts an instance.
func (s *registryServer) Register(ctx context.Context, req *apiv1.RegisterRequest) (*apiv1.RegisterResponse, error) {
	var f faults
	open := f.ownSession(req.GetOpenSession())
	spec := f.instance("instance", req.GetInstance(), open)
	id := f.requestID(req.GetRequestId())
	if err := f.err(); err != nil {
		return nil, err
	}
	data, err := encodeSpec(spec)
	if err != nil {
		return nil, err
	}
	cmd := &raftlogv1.Register{
		Instance: data, IfAbsent: req.GetIfAbsent(), ExpectedRevision: req.GetExpectedRevision(), OpenSession: open,
	}
	switch {
	case id == nil:
	case open != nil: // A retry has another id of a session in its specification.
		id.BodyHash = bodyHash(req)
	default:
		id.BodyHash = registrationHash(cmd)
	}
	out, err := s.propose(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_Register{Register: cmd}})
	if err != nil {
		return nil, aboutInstance(err, "register", keyOf(spec))
	}
	return &apiv1.RegisterResponse{
		Header: s.writeHeader(out.Revision), Incarnation: out.Number, Changed: out.Changed, Session: s.opened(out, open, 1),
	}, nil
}

// registrationHash is bodyHash of a registration, from what is encoded already.
func registrationHash(cmd *raftlogv1.Register) uint64 {
	seed := cmd.GetExpectedRevision() << 1
	if cmd.GetIfAbsent() {
		seed |= 1
	}
	return xxh3.HashSeed(cmd.GetInstance(), seed)
}

func keyOf(spec *registryv1.Instance) *raftlogv1.Key {
	return &raftlogv1.Key{Namespace: spec.GetNamespace(), Service: spec.GetService(), Id: spec.GetId()}
}

// Deregister removes an instance.
func (s *registryServer) Deregister(ctx context.Context, req *apiv1.DeregisterRequest) (*apiv1.DeregisterResponse, error) {
	var f faults
	key, id := f.key("key", req.GetKey()), f.request(req)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.propose(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_Deregister{
		Deregister: &raftlogv1.Deregister{Key: key, Incarnation: req.GetIncarnation()},
	}})
	if err != nil {
		return nil, aboutInstance(err, "deregister", key)
	}
	return &apiv1.DeregisterResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// RegisterBatch registers and deregisters instances as one change.
func (s *registryServer) RegisterBatch(
	ctx context.Context, req *apiv1.RegisterBatchRequest,
) (*apiv1.RegisterBatchResponse, error) {
	var f faults
	open := f.ownSession(req.GetOpenSession())
	batch, err := f.batch(req, open)
	if err != nil {
		return nil, err
	}
	id := f.request(req)
	if faulty := f.err(); faulty != nil {
		return nil, faulty
	}
	out, err := s.propose(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_Batch{Batch: batch}})
	if err != nil {
		return nil, explain(err, "register batch")
	}
	return &apiv1.RegisterBatchResponse{
		Header: s.writeHeader(out.Revision), Incarnation: out.Number, Changed: out.Changed,
		Session: s.opened(out, open, len(batch.GetRegister())),
	}, nil
}

// batch checks the parts of a batch. No instance may be named twice: which order would win? The session that is opened for
// it, nil for none, is opened by its first registration.
func (f *faults) batch(req *apiv1.RegisterBatchRequest, open *raftlogv1.OpenSession) (*raftlogv1.Batch, error) {
	if open != nil && len(req.GetRegister()) == 0 {
		f.add("open_session", "needs an instance to register")
	}
	total := len(req.GetRegister()) + len(req.GetDeregister())
	if total == 0 {
		f.add("register", "is required, or deregister")
	}
	if !f.count("register", total, MaxBatch) {
		return nil, f.err()
	}
	type name struct{ namespace, service, id string }
	seen := make(map[name]bool, total)
	once := func(field string, k *raftlogv1.Key) {
		n := name{k.GetNamespace(), k.GetService(), k.GetId()}
		if seen[n] {
			f.add(field, "is there twice: %s", quote(n.namespace+"/"+n.service+"/"+n.id))
		}
		seen[n] = true
	}
	batch := &raftlogv1.Batch{}
	for i, in := range req.GetRegister() {
		spec := f.instance(index("register", i), in, open)
		if spec == nil {
			continue
		}
		once(index("register", i), keyOf(spec))
		data, err := encodeSpec(spec)
		if err != nil {
			return nil, err
		}
		batch.Register = append(batch.Register, &raftlogv1.Register{Instance: data})
	}
	for i, in := range req.GetDeregister() {
		if key := f.key(index("deregister", i), in); key != nil {
			once(index("deregister", i), key)
			batch.Deregister = append(batch.Deregister, &raftlogv1.Deregister{Key: key})
		}
	}
	if len(batch.GetRegister()) > 0 {
		batch.Register[0].OpenSession = open
	}
	return batch, nil
}

// SetHealth reports the status of a TTL check. A status that stands already only renews the check at the leader.
func (s *registryServer) SetHealth(ctx context.Context, req *apiv1.SetHealthRequest) (*apiv1.SetHealthResponse, error) {
	var f faults
	key, id := f.key("key", req.GetKey()), f.request(req)
	f.optionalName("check", req.GetCheck(), MaxCheckNameLen)
	f.lines("output", req.GetOutput(), MaxCheckOutputLen)
	switch req.GetStatus() {
	case registryv1.CheckStatus_CHECK_STATUS_PASSING, registryv1.CheckStatus_CHECK_STATUS_WARNING,
		registryv1.CheckStatus_CHECK_STATUS_CRITICAL:
	default:
		f.add("status", "must be passing, warning or critical, is %v", req.GetStatus())
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	resp, err := s.setHealth(ctx, req, key, id)
	if err != nil {
		return nil, aboutInstance(err, "set health of", key)
	}
	return resp, nil
}

func (s *registryServer) setHealth(
	ctx context.Context, req *apiv1.SetHealthRequest, key *raftlogv1.Key, id *raftlogv1.RequestID,
) (*apiv1.SetHealthResponse, error) {
	st, check, err := s.ttlCheck(ctx, key, req.GetCheck(), req.GetIncarnation())
	if err != nil {
		return nil, err
	}
	if check.Status == req.GetStatus() {
		done, renewErr := s.repeatHealth(ctx, key, check)
		if renewErr != nil {
			return nil, renewErr
		}
		if done {
			return &apiv1.SetHealthResponse{Header: s.writeHeader(st.Revision())}, nil
		}
	}
	out, err := s.propose(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_SetCheck{SetCheck: &raftlogv1.SetCheck{
		Key: key, Incarnation: req.GetIncarnation(), Check: check.Name, Status: req.GetStatus(), Output: req.GetOutput(),
	}}})
	if err != nil {
		return nil, err
	}
	return &apiv1.SetHealthResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// repeatHealth takes the report of a status that the check has already, by this node's State. False: the leader knows
// better, so the state machine has to judge.
func (s *registryServer) repeatHealth(ctx context.Context, key *raftlogv1.Key, check fsm.CheckHeader) (bool, error) {
	if check.Status == registryv1.CheckStatus_CHECK_STATUS_CRITICAL {
		// A critical check has no deadline that could be renewed.
		v, err := s.node.View(ctx, cluster.Freshness{Mode: cluster.ModeLinearizable})
		if err != nil {
			return false, err
		}
		now, err := findTTLCheck(v.State, key, check.Name, 0)
		return now.Status == check.Status, err
	}
	ended, err := s.node.Renew(ctx, peerv1.RenewKind_RENEW_KIND_CHECK,
		[]string{health.CheckID(key.GetNamespace(), key.GetService(), key.GetId(), check.Name)})
	return len(ended) == 0, err
}

// ttlCheck finds a TTL check in this node's State, or, when it is not there, in one that is sure to be current. name ""
// is the only one that there is.
func (s *registryServer) ttlCheck(
	ctx context.Context, key *raftlogv1.Key, name string, incarnation uint64,
) (*fsm.State, fsm.CheckHeader, error) {
	st := s.node.Feed().State()
	check, err := findTTLCheck(st, key, name, incarnation)
	if err == nil {
		return st, check, nil
	}
	v, err := s.node.View(ctx, cluster.Freshness{Mode: cluster.ModeLinearizable})
	if err != nil {
		return nil, fsm.CheckHeader{}, err
	}
	check, err = findTTLCheck(v.State, key, name, incarnation)
	return v.State, check, err
}

func findTTLCheck(st *fsm.State, key *raftlogv1.Key, name string, incarnation uint64) (fsm.CheckHeader, error) {
	none := fsm.CheckHeader{}
	record := st.Instance(key.GetNamespace(), key.GetService(), key.GetId())
	if record == nil {
		return none, fsm.ErrNotFound
	}
	if incarnation != 0 && incarnation != record.Incarnation() {
		return none, fsm.ErrStale
	}
	spec, err := record.Proto()
	if err != nil {
		return none, err
	}
	var found []string
	for _, c := range spec.GetChecks() {
		if c.GetTtl() != nil && (name == "" || name == c.GetName()) {
			found = append(found, c.GetName())
		}
	}
	switch {
	case len(found) == 0:
		return none, explain(fsm.ErrCheckNotFound, "find TTL check "+quote(name), "check", name)
	case len(found) > 1:
		return none, invalid("check", "is required: the instance has %d TTL checks", len(found))
	}
	for _, c := range record.Checks() {
		if c.Name == found[0] {
			return c, nil
		}
	}
	return none, explain(fsm.ErrCheckNotFound, "find TTL check "+quote(name), "check", name)
}

// Drain sets or clears draining.
func (s *registryServer) Drain(ctx context.Context, req *apiv1.DrainRequest) (*apiv1.DrainResponse, error) {
	var f faults
	key, id := f.key("key", req.GetKey()), f.request(req)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.propose(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_SetDraining{
		SetDraining: &raftlogv1.SetDraining{Key: key, Incarnation: req.GetIncarnation(), Draining: !req.GetCancel()},
	}})
	if err != nil {
		return nil, aboutInstance(err, "drain", key)
	}
	return &apiv1.DrainResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}

// SetMaintenance takes an instance out of service, or puts it back.
func (s *registryServer) SetMaintenance(
	ctx context.Context, req *apiv1.SetMaintenanceRequest,
) (*apiv1.SetMaintenanceResponse, error) {
	var f faults
	key, id := f.key("key", req.GetKey()), f.request(req)
	if err := f.err(); err != nil {
		return nil, err
	}
	out, err := s.propose(ctx, &raftlogv1.Command{Request: id, Kind: &raftlogv1.Command_SetMaintenance{
		SetMaintenance: &raftlogv1.SetMaintenance{Key: key, Maintenance: req.GetMaintenance()},
	}})
	if err != nil {
		return nil, aboutInstance(err, "set maintenance of", key)
	}
	return &apiv1.SetMaintenanceResponse{Header: s.writeHeader(out.Revision), Changed: out.Changed}, nil
}
