// Package model is the registry's rules once more, naive and slow: plain maps of messages, whole copies, no index, no
// sharing, no incremental anything. It is the judge of package fsm in property and chaos tests, so it is written from the
// rules and not from fsm's code; when the two differ, one of them is wrong.
//
// Start with [Registry] and [Registry.Apply]. Nothing in it is safe for concurrent use.
package model

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"sort"
	"strings"

	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Limits of the rules. They repeat those of package fsm on purpose.
const (
	maxName       = 256
	maxSpec       = 64 << 10
	maxChecks     = 64
	maxOutput     = 256
	maxBatch      = 1000
	maxWaiters    = 1000
	maxLockValue  = 1024
	maxSlots      = 1000
	maxOutcomes   = 64
	maxClients    = 100_000
	clientIdleMs  = 600_000
	maxStepMs     = 10_000
	clientTouchMs = 1000
	maxForgotten  = 128
	maxPolicies   = 1000
	maxRules      = 64
	maxTokens     = 10_000
	maxGrants     = 10_000
	maxNamespaces = 1000
)

// Key names an instance.
type Key struct{ Namespace, Service, ID string }

// Name names a service or a lock.
type Name struct{ Namespace, Name string }

// Instance is an instance as it was registered and as it stands.
type Instance struct {
	// Spec is the specification as it came.
	Spec []byte
	// Message is the whole instance.
	Message *registryv1.Instance
}

// Client is what is remembered of a client.
type Client struct {
	// Last is the log time of its last use without the leaps until then, to the grain of one second.
	Last int64
	// AnsweredBelow is the sequence below which all is forgotten.
	AnsweredBelow uint64
	// Outcomes are by sequence.
	Outcomes map[uint64]*raftlogv1.RememberedOutcome
}

// Registry is the whole state. Its fields may be read between calls.
type Registry struct {
	Index, Term, Revision, Epoch, Number uint64
	Time                                 int64
	Leaps                                int64 // sum of what single entries moved Time by beyond maxStepMs
	ClusterID                            string
	Enforced                             bool
	Bootstraps, AccessRevision           uint64

	Instances map[Key]*Instance
	Services  map[Name]uint64 // revision of the last change, for services with instances
	Sessions  map[string]*raftlogv1.SessionRecord
	Leases    map[string]*raftlogv1.LeaseRecord
	Locks     map[Name]*raftlogv1.LockRecord
	Members   map[string]*registryv1.Member
	Clients   map[string]*Client
	Policies  map[string]*registryv1.Policy
	Tokens    map[string]*raftlogv1.TokenRecord
	Grants    map[string]*registryv1.Grant

	Namespaces map[string]*registryv1.Namespace
	// History is all transitions since it was begun, of which the state machine forgets the oldest in time.
	History      []*registryv1.Transition
	HistoryBegun bool
	HistoryAfter uint64 // the revision when it was begun

	Keys    map[Name]*registryv1.KeyValue
	Delays  map[Name]int64    // keys that nobody may acquire: until when
	Deleted map[string]uint64 // revision of the last deletion of a key, by namespace

	level uint32                 // of the command under way
	why   *registryv1.Transition // of the command under way: what there is to say of its changes
	actor actor                  // of the command under way
}

// New returns the registry before the first entry.
func New() *Registry {
	return &Registry{
		Epoch:     1,
		Instances: map[Key]*Instance{},
		Services:  map[Name]uint64{},
		Sessions:  map[string]*raftlogv1.SessionRecord{},
		Leases:    map[string]*raftlogv1.LeaseRecord{},
		Locks:     map[Name]*raftlogv1.LockRecord{},
		Members:   map[string]*registryv1.Member{},
		Clients:   map[string]*Client{},
		Policies:  map[string]*registryv1.Policy{},
		Tokens:    map[string]*raftlogv1.TokenRecord{},
		Grants:    map[string]*registryv1.Grant{},

		Namespaces: map[string]*registryv1.Namespace{},

		Keys:    map[Name]*registryv1.KeyValue{},
		Delays:  map[Name]int64{},
		Deleted: map[string]uint64{},
	}
}

// Clone returns a copy that shares nothing.
func (m *Registry) Clone() *Registry {
	c := *m
	c.Instances = map[Key]*Instance{}
	for k, v := range m.Instances {
		c.Instances[k] = &Instance{Spec: bytes.Clone(v.Spec), Message: proto.CloneOf(v.Message)}
	}
	c.Services = map[Name]uint64{}
	for k, v := range m.Services {
		c.Services[k] = v
	}
	c.Sessions = cloneMessages(m.Sessions)
	c.Leases = cloneMessages(m.Leases)
	c.Locks = cloneMessages(m.Locks)
	c.Members = cloneMessages(m.Members)
	c.Policies = cloneMessages(m.Policies)
	c.Tokens = cloneMessages(m.Tokens)
	c.Grants = cloneMessages(m.Grants)
	c.Namespaces = cloneMessages(m.Namespaces)
	c.History = slices.Clone(m.History)
	c.Keys = cloneMessages(m.Keys)
	c.Delays = maps.Clone(m.Delays)
	c.Deleted = maps.Clone(m.Deleted)
	c.Clients = map[string]*Client{}
	for k, v := range m.Clients {
		c.Clients[k] = &Client{Last: v.Last, AnsweredBelow: v.AnsweredBelow, Outcomes: cloneMessages(v.Outcomes)}
	}
	return &c
}

func cloneMessages[K comparable, M proto.Message](in map[K]M) map[K]M {
	out := map[K]M{}
	for k, v := range in {
		out[k] = proto.CloneOf(v)
	}
	return out
}

// Apply applies an entry and returns an outcome for each command.
func (m *Registry) Apply(index, term uint64, entry *raftlogv1.Entry) ([]*raftlogv1.Outcome, error) {
	if index <= m.Index || term < m.Term {
		return nil, fmt.Errorf("entry %d of term %d does not follow %d of term %d", index, term, m.Index, m.Term)
	}
	m.Index, m.Term = index, term
	before := m.Time
	m.Time = max(before, entry.GetTimeUnixMs())
	if before > 0 {
		m.Leaps += max(0, m.Time-before-maxStepMs)
	}
	var outcomes []*raftlogv1.Outcome
	for _, cmd := range entry.GetCommands() {
		outcomes = append(outcomes, m.command(cmd))
	}
	m.forgetIdle()
	m.forgetDelays()
	return outcomes, nil
}

func fail(code raftlogv1.Code, subject string) *raftlogv1.Outcome {
	return &raftlogv1.Outcome{Code: code, Subject: subject}
}

func done() *raftlogv1.Outcome { return &raftlogv1.Outcome{} }

// command applies a command, once if it carries a request.
func (m *Registry) command(cmd *raftlogv1.Command) *raftlogv1.Outcome {
	req := cmd.GetRequest()
	refused := func(o *raftlogv1.Outcome) *raftlogv1.Outcome {
		o.Revision = m.Revision
		return o
	}
	if malformed(cmd) {
		return refused(fail(raftlogv1.Code_CODE_INVALID, "command"))
	}
	if nobody := m.act(cmd); nobody != nil {
		return refused(nobody)
	}
	m.level = cmd.GetLevel()
	m.beginHistory(cmd.GetLevel())
	if req == nil {
		return m.execute(cmd)
	}
	bodyHash := m.bodyHash(cmd)
	client := m.Clients[req.GetClientId()]
	if client == nil {
		client = &Client{Last: -1, Outcomes: map[uint64]*raftlogv1.RememberedOutcome{}}
	}
	if old := client.Outcomes[req.GetSequence()]; old != nil {
		if old.GetBodyHash() != bodyHash {
			return refused(fail(raftlogv1.Code_CODE_REQUEST_REUSED, ""))
		}
		m.touch(client)
		return proto.CloneOf(old.GetOutcome())
	}
	if req.GetSequence() < client.AnsweredBelow || req.GetSequence() < req.GetAnsweredBelow() {
		return refused(fail(raftlogv1.Code_CODE_REQUEST_TOO_OLD, ""))
	}
	outcome := m.execute(cmd)
	if m.Clients[req.GetClientId()] == nil && len(m.Clients) >= maxClients {
		delete(m.Clients, m.clientsByAge()[0])
	}
	m.Clients[req.GetClientId()] = client
	m.touch(client)
	client.AnsweredBelow = max(client.AnsweredBelow, req.GetAnsweredBelow())
	client.Outcomes[req.GetSequence()] = &raftlogv1.RememberedOutcome{
		Sequence: req.GetSequence(), BodyHash: bodyHash, Outcome: proto.CloneOf(outcome),
	}
	for _, seq := range sortedKeys(client.Outcomes) {
		if len(client.Outcomes) > maxOutcomes {
			client.AnsweredBelow = max(client.AnsweredBelow, seq+1)
		}
		if seq < client.AnsweredBelow {
			delete(client.Outcomes, seq)
		}
	}
	return outcome
}

// bodyHash tells bodies apart and, from level 4 on, who has sent them.
func (m *Registry) bodyHash(cmd *raftlogv1.Command) uint64 {
	identity, known := m.Identity(cmd.GetActor())
	if cmd.GetLevel() < 4 || !known || identity == "" || identity == "anonymous" {
		return cmd.GetRequest().GetBodyHash()
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s", cmd.GetRequest().GetBodyHash(), identity)
	return h.Sum64()
}

// malformed tells of a command that is none: its actor needs a level, its request a client and a number.
func malformed(cmd *raftlogv1.Command) bool {
	req := cmd.GetRequest()
	return cmd.GetLevel() < 2 && cmd.GetActor() != "" ||
		cmd.GetLevel() < 3 && (cmd.GetPutNamespace() != nil || cmd.GetDeleteNamespace() != nil) ||
		cmd.GetLevel() < 4 && cmd.GetKvTransaction() != nil ||
		req != nil && (req.GetClientId() == "" || len(req.GetClientId()) > 64 || req.GetSequence() == 0)
}

func (m *Registry) touch(c *Client) {
	if now := m.Time - m.Leaps; c.Last < 0 || now-c.Last >= clientTouchMs {
		c.Last = now
	}
}

// clientsByAge returns the clients' ids, longest silent first.
func (m *Registry) clientsByAge() []string {
	ids := sortedKeys(m.Clients)
	sort.SliceStable(ids, func(i, j int) bool { return m.Clients[ids[i]].Last < m.Clients[ids[j]].Last })
	return ids
}

func (m *Registry) forgetIdle() {
	for i, id := range m.clientsByAge() {
		if i < maxForgotten && m.Time-m.Leaps-m.Clients[id].Last > clientIdleMs {
			delete(m.Clients, id)
		}
	}
}

// execute applies a command. Whatever it changes belongs to one revision, which is taken only if it changes something.
func (m *Registry) execute(cmd *raftlogv1.Command) *raftlogv1.Outcome {
	before := m.Clone()
	m.Revision++
	m.why = &registryv1.Transition{}
	changed, outcome := m.dispatch(cmd)
	if outcome.GetCode() != raftlogv1.Code_CODE_UNSPECIFIED || !changed {
		*m = *before
		changed = false
	}
	outcome.Changed = changed
	outcome.Revision = m.Revision
	return outcome
}

//nolint:gocyclo // A table of the kinds.
func (m *Registry) dispatch(cmd *raftlogv1.Command) (changed bool, outcome *raftlogv1.Outcome) {
	switch cmd.GetKind().(type) {
	case *raftlogv1.Command_Expire, *raftlogv1.Command_SetMember, *raftlogv1.Command_RemoveMember,
		*raftlogv1.Command_InitCluster:
		if refused := m.deniedCluster(operate, "operate"); refused != nil {
			return false, refused
		}
	}
	switch kind := cmd.GetKind().(type) {
	case *raftlogv1.Command_Register:
		return m.register(kind.Register, 0, true)
	case *raftlogv1.Command_Deregister:
		return m.deregister(kind.Deregister)
	case *raftlogv1.Command_SetCheck:
		return m.setCheck(kind.SetCheck)
	case *raftlogv1.Command_SetDraining:
		return m.setDraining(kind.SetDraining)
	case *raftlogv1.Command_SetMaintenance:
		return m.setMaintenance(kind.SetMaintenance)
	case *raftlogv1.Command_OpenSession:
		return m.openSession(kind.OpenSession)
	case *raftlogv1.Command_CloseSession:
		if refused := m.deniedSession(kind.CloseSession.GetId()); refused != nil {
			return false, refused
		}
		return m.endSession(kind.CloseSession.GetId(),
			registryv1.Cause_CAUSE_SESSION_CLOSED, registryv1.Cause_CAUSE_LEASE_REVOKED), done()
	case *raftlogv1.Command_GrantLease:
		return m.grantLease(kind.GrantLease)
	case *raftlogv1.Command_RevokeLease:
		if refused := m.deniedLease(kind.RevokeLease.GetId()); refused != nil {
			return false, refused
		}
		return m.endLease(kind.RevokeLease.GetId(), registryv1.Cause_CAUSE_LEASE_REVOKED), done()
	case *raftlogv1.Command_Expire:
		if kind.Expire.GetTerm() != m.Term {
			return false, fail(raftlogv1.Code_CODE_STALE, "term")
		}
		return m.expire(kind.Expire), done()
	case *raftlogv1.Command_AcquireLock:
		return m.acquire(kind.AcquireLock)
	case *raftlogv1.Command_ReleaseLock:
		return m.release(kind.ReleaseLock)
	case *raftlogv1.Command_SetMember:
		return m.setMember(kind.SetMember.GetMember())
	case *raftlogv1.Command_RemoveMember:
		_, known := m.Members[kind.RemoveMember.GetId()]
		delete(m.Members, kind.RemoveMember.GetId())
		return known, done()
	case *raftlogv1.Command_InitCluster:
		return m.initCluster(kind.InitCluster.GetClusterId())
	case *raftlogv1.Command_Batch:
		return m.batch(kind.Batch)
	case *raftlogv1.Command_KvTransaction:
		return m.kvTransaction(kind.KvTransaction)
	default:
		return m.dispatchAccess(cmd)
	}
}

func (m *Registry) initCluster(id string) (bool, *raftlogv1.Outcome) {
	if m.ClusterID != "" {
		return false, &raftlogv1.Outcome{Id: m.ClusterID}
	}
	if !name(id) {
		return false, fail(raftlogv1.Code_CODE_INVALID, "cluster_id")
	}
	m.ClusterID = id
	return true, &raftlogv1.Outcome{Id: id}
}

func (m *Registry) setMember(member *registryv1.Member) (bool, *raftlogv1.Outcome) {
	if !name(member.GetId()) {
		return false, fail(raftlogv1.Code_CODE_INVALID, "id")
	}
	if proto.Equal(m.Members[member.GetId()], member) {
		return false, done()
	}
	m.Members[member.GetId()] = proto.CloneOf(member)
	return true, done()
}

func (m *Registry) batch(b *raftlogv1.Batch) (bool, *raftlogv1.Outcome) {
	if len(b.GetRegister())+len(b.GetDeregister()) > maxBatch {
		return false, fail(raftlogv1.Code_CODE_LIMIT, "batch")
	}
	present := m.Clone()
	before := m.Number
	changed, incarnation, session := false, uint64(0), ""
	for _, r := range b.GetRegister() {
		c, o := m.register(r, incarnation, false)
		if o.GetCode() != raftlogv1.Code_CODE_UNSPECIFIED {
			return false, o
		}
		changed = changed || c
		if m.Number > before {
			incarnation = m.Number
		}
		if o.GetId() != "" {
			session = o.GetId()
		}
	}
	for _, d := range b.GetDeregister() {
		c, o := m.deregister(d)
		if o.GetCode() != raftlogv1.Code_CODE_UNSPECIFIED {
			return false, o
		}
		changed = changed || c
	}
	if refused := m.overfilled(b, present); refused != nil {
		return false, refused
	}
	return changed, &raftlogv1.Outcome{Id: session, Number: incarnation}
}

func name(s string) bool {
	return s != "" && len(s) <= maxName && !strings.Contains(s, "\x00")
}

func compareNames(a, b Name) int {
	return slices.Compare([]string{a.Namespace, a.Name}, []string{b.Namespace, b.Name})
}

func sortedKeys[K string | uint64, V any](in map[K]V) []K {
	keys := make([]K, 0, len(in))
	for k := range in {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
