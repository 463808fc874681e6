package fsm

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// Apply returns the state after the entry, and what the entry led to. The receiver stays as it is. It may be called
// from several goroutines, also on one State: the results are independent.
//
// A command that is refused is an outcome, not an error. An error, [ErrUnknownCommand] or [ErrBadEntry], means that
// this state machine cannot follow the log any further: the node must stop.
func (s *State) Apply(e Entry) (*State, Result, error) {
	if e.Index <= s.index || e.Term < s.term {
		return s, Result{}, fmt.Errorf("%w: entry %d of term %d after entry %d of term %d",
			ErrBadEntry, e.Index, e.Term, s.index, s.term)
	}
	timeMs, commands, err := decodeEntry(e.Data)
	if err != nil {
		return s, Result{}, fmt.Errorf("apply entry %d: %w", e.Index, err)
	}
	t := begin(s, e, timeMs)
	outcomes := make([]Outcome, 0, commands)
	for rest := e.Data; len(outcomes) < commands; {
		var encoded []byte
		encoded, rest = nextCommand(rest)
		outcome, cmdErr := t.apply(encoded)
		if cmdErr != nil {
			return s, Result{}, fmt.Errorf("apply entry %d: command %d: %w", e.Index, len(outcomes), cmdErr)
		}
		outcomes = append(outcomes, outcome)
	}
	t.forgetIdleClients()
	t.sweepDelays()
	t.st.chain, _ = t.st.chain.extend(t.scratch, e.Index, e.Term, outcomes)
	return t.st, Result{Outcomes: outcomes, Events: t.events}, nil
}

// txn is the making of a state: the entry's one transaction. Each tree is copied at most once in it.
type txn struct {
	st     *State
	mark   *mark
	events []Event

	level       uint64   // of the command under way
	changed     bool     // the command under way has had an effect
	incarnation uint64   // given by the command under way, 0: none yet
	actor       []byte   // of the command under way
	judged      bool     // the actor must be allowed what it does
	identity    string   // of the actor, when it is judged
	reason      reason   // of what the command under way does to instances
	batch       bool     // it is one
	overfull    []string // namespaces in which a batch has put more instances than there may be

	// Space that is used again and again.
	scratch           []byte
	request           request
	spec              spec
	status, oldStatus status
	scratchArray      [128]byte
	tags              [4][]byte
	checks            [1]checkDef
	states, oldStates [1]checkState
}

func begin(s *State, e Entry, timeMs int64) *txn {
	st := *s
	st.index, st.term = e.Index, e.Term
	st.advance(timeMs)
	t := &txn{st: &st, mark: new(mark)}
	t.scratch = t.scratchArray[:0]
	t.spec.tags = t.tags[:0]
	t.spec.checks = t.checks[:0]
	t.status.checks = t.states[:0]
	t.oldStatus.checks = t.oldStates[:0]
	return t
}

// change returns the revision of the command under way, which it has from its first effect on.
func (t *txn) change() uint64 {
	if !t.changed {
		t.changed = true
		t.st.revision++
	}
	return t.st.revision
}

// nextNumber returns a number that was never given before.
func (t *txn) nextNumber() uint64 {
	t.st.number++
	return t.st.number
}

// addSum and subSum put an encoded record into the hash of its table, or take it out. Both use the scratch buffer, so
// encode must append to what it is given.
func (t *txn) addSum(id tableID, encoded []byte) { t.st.sums[id].add(hashRecord(id, encoded)) }

func (t *txn) subSum(id tableID, encoded []byte) { t.st.sums[id].sub(hashRecord(id, encoded)) }

// apply applies one encoded command. Only a command of a later version is an error: a malformed one is refused like any
// other that makes no sense, as stopping all nodes for it would be worse.
func (t *txn) apply(encoded []byte) (Outcome, error) {
	var cmd command
	wellFormed := cmd.decode(encoded, &t.request)
	switch {
	case !wellFormed && cmd.level <= FeatureLevel:
		return t.finish(refuse(raftlogv1.Code_CODE_INVALID, "command")), nil
	case !cmd.known() && cmd.maySkip:
		return t.finish(Outcome{}), nil
	case !cmd.known():
		return Outcome{}, fmt.Errorf("%w: kind %d of level %d", ErrUnknownCommand, cmd.kind, cmd.level)
	case !cmd.levelled():
		return t.finish(refuse(raftlogv1.Code_CODE_INVALID, "command")), nil
	}
	if outcome, nobody := t.identify(&cmd); nobody {
		return t.finish(outcome), nil
	}
	t.level = cmd.level
	if cmd.level >= HistoryLevel {
		t.st.beginHistory()
	}
	if cmd.level >= KVLevel {
		t.st.beginKeys()
	}
	switch {
	case cmd.request != nil:
		return t.once(&cmd), nil
	default:
		return t.execute(&cmd), nil
	}
}

// execute applies a command whether or not it was applied before.
func (t *txn) execute(cmd *command) Outcome {
	t.changed = false
	t.incarnation = 0
	t.reason = reason{}
	if outcome, denied := t.deniedKind(cmd.kind); denied {
		return t.finish(outcome)
	}
	return t.finish(t.dispatch(cmd))
}

// finish completes an outcome with what all have in common.
func (t *txn) finish(o Outcome) Outcome {
	o.Changed = t.changed && o.Code == raftlogv1.Code_CODE_UNSPECIFIED
	o.Revision = t.st.revision
	t.changed = false
	return o
}

//nolint:gocyclo // A table of the kinds.
func (t *txn) dispatch(cmd *command) Outcome {
	switch cmd.kind {
	case kindRegister:
		return t.applyRegister(cmd.body)
	case kindDeregister:
		return with(cmd.body, &raftlogv1.Deregister{}, t.deregister)
	case kindSetCheck:
		return with(cmd.body, &raftlogv1.SetCheck{}, t.setCheck)
	case kindSetDraining:
		return with(cmd.body, &raftlogv1.SetDraining{}, t.setDraining)
	case kindSetMaintenance:
		return with(cmd.body, &raftlogv1.SetMaintenance{}, t.setMaintenance)
	case kindOpenSession:
		return with(cmd.body, &raftlogv1.OpenSession{}, t.openSession)
	case kindCloseSession:
		return with(cmd.body, &raftlogv1.CloseSession{}, t.closeSession)
	case kindGrantLease:
		return with(cmd.body, &raftlogv1.GrantLease{}, t.grantLease)
	case kindRevokeLease:
		return with(cmd.body, &raftlogv1.RevokeLease{}, t.revokeLease)
	case kindExpire:
		return with(cmd.body, &raftlogv1.Expire{}, t.expire)
	case kindAcquireLock:
		return with(cmd.body, &raftlogv1.AcquireLock{}, t.acquireLock)
	case kindReleaseLock:
		return with(cmd.body, &raftlogv1.ReleaseLock{}, t.releaseLock)
	case kindSetMember:
		return with(cmd.body, &raftlogv1.SetMember{}, t.setMember)
	case kindRemoveMember:
		return with(cmd.body, &raftlogv1.RemoveMember{}, t.removeMember)
	case kindInitCluster:
		return with(cmd.body, &raftlogv1.InitCluster{}, t.initCluster)
	case kindBatch:
		return t.applyBatch(cmd.body)
	case kindPutPolicy:
		return with(cmd.body, &raftlogv1.PutPolicy{}, t.putPolicy)
	case kindDeletePolicy:
		return with(cmd.body, &raftlogv1.DeletePolicy{}, t.deletePolicy)
	case kindCreateToken:
		return with(cmd.body, &raftlogv1.CreateToken{}, t.createToken)
	case kindDeleteToken:
		return with(cmd.body, &raftlogv1.DeleteToken{}, t.deleteToken)
	case kindPutGrant:
		return with(cmd.body, &raftlogv1.PutGrant{}, t.putGrant)
	case kindDeleteGrant:
		return with(cmd.body, &raftlogv1.DeleteGrant{}, t.deleteGrant)
	case kindSetEnforcement:
		return with(cmd.body, &raftlogv1.SetEnforcement{}, t.setEnforcement)
	case kindBootstrap:
		return with(cmd.body, &raftlogv1.BootstrapAccess{}, t.bootstrapAccess)
	case kindPutNamespace:
		return with(cmd.body, &raftlogv1.PutNamespace{}, t.putNamespace)
	case kindDeleteNamespace:
		return with(cmd.body, &raftlogv1.DeleteNamespace{}, t.deleteNamespace)
	case kindKVTransaction:
		return with(cmd.body, &raftlogv1.KVTransaction{}, t.kvTransaction)
	default:
		return refuse(raftlogv1.Code_CODE_INVALID, "command")
	}
}

// with decodes the body of a command and hands it to its rule.
func with[M proto.Message](body []byte, m M, rule func(M) Outcome) Outcome {
	if err := proto.Unmarshal(body, m); err != nil {
		return refuse(raftlogv1.Code_CODE_INVALID, "command")
	}
	return rule(m)
}

// initCluster names the cluster unless it has a name.
func (t *txn) initCluster(cmd *raftlogv1.InitCluster) Outcome {
	if t.st.clusterID == "" {
		if !validName(cmd.GetClusterId()) {
			return refuse(raftlogv1.Code_CODE_INVALID, "cluster_id")
		}
		t.change()
		t.st.clusterID = cmd.GetClusterId()
	}
	return Outcome{ID: t.st.clusterID}
}
