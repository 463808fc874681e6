package fsm

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// actions is a set of registryv1.Actions, as bits.
type actions uint16

// bit returns an action as a set, the empty one for what is no action.
func bit(action registryv1.Action) actions {
	if !validAction(action) {
		return 0
	}
	return 1 << action
}

func validAction(action registryv1.Action) bool {
	return action > registryv1.Action_ACTION_UNSPECIFIED && action <= registryv1.Action_ACTION_KV_WRITE
}

// knownActions returns the last action, and how many of them a rule may have, to commands of a level.
func knownActions(level uint64) (last registryv1.Action, most int) {
	if level < KVLevel {
		return registryv1.Action_ACTION_ADMINISTER, 7
	}
	return registryv1.Action_ACTION_KV_WRITE, MaxActions
}

const (
	// clusterWide are the actions for which names don't matter.
	clusterWide = actions(1<<registryv1.Action_ACTION_OBSERVE | 1<<registryv1.Action_ACTION_OPERATE |
		1<<registryv1.Action_ACTION_ADMINISTER)
	// owning are the actions that take a session or a lease.
	owning = actions(1<<registryv1.Action_ACTION_REGISTER | 1<<registryv1.Action_ACTION_LOCK |
		1<<registryv1.Action_ACTION_KV_WRITE)
)

// allowing returns the actions each of which allows the given one: itself, and what implies it.
func allowing(action registryv1.Action) actions {
	either := bit(action)
	switch action {
	case registryv1.Action_ACTION_DISCOVER:
		either |= bit(registryv1.Action_ACTION_REGISTER)
	case registryv1.Action_ACTION_SEE_LOCK:
		either |= bit(registryv1.Action_ACTION_LOCK)
	case registryv1.Action_ACTION_OBSERVE:
		either |= bit(registryv1.Action_ACTION_OPERATE)
	case registryv1.Action_ACTION_KV_READ:
		either |= bit(registryv1.Action_ACTION_KV_WRITE)
	default:
	}
	return either
}

// actionName names an action for people: "register".
func actionName(action registryv1.Action) string {
	return strings.ToLower(strings.TrimPrefix(action.String(), "ACTION_"))
}

// The policies that are built in. They allow their actions everywhere.
const (
	operatorPolicy = "operator"
	servicePolicy  = "service"
	readerPolicy   = "reader"
	observerPolicy = "observer"
)

// builtInNames are the names of the policies that are built in.
//
//nolint:gochecknoglobals // A table.
var builtInNames = [...]string{observerPolicy, operatorPolicy, readerPolicy, servicePolicy}

// builtIn returns what a policy that is built in allows everywhere, false for all others.
func builtIn(name string) (actions, bool) {
	switch name {
	case operatorPolicy:
		return ^actions(1), true
	case servicePolicy:
		return 1<<registryv1.Action_ACTION_DISCOVER | 1<<registryv1.Action_ACTION_REGISTER |
			1<<registryv1.Action_ACTION_SEE_LOCK | 1<<registryv1.Action_ACTION_LOCK |
			1<<registryv1.Action_ACTION_KV_READ | 1<<registryv1.Action_ACTION_KV_WRITE, true
	case readerPolicy: // Not keys: it is often granted to everybody, and keys are where people put secrets.
		return 1<<registryv1.Action_ACTION_DISCOVER | 1<<registryv1.Action_ACTION_SEE_LOCK, true
	case observerPolicy:
		return 1 << registryv1.Action_ACTION_OBSERVE, true
	default:
		return 0, false
	}
}

// BuiltInPolicy reports whether a policy of that name is built in: it is always there, and can't be put or deleted.
func BuiltInPolicy(name string) bool {
	_, ok := builtIn(name)
	return ok
}

// builtInPolicy returns a policy that is built in as a message.
func builtInPolicy(name string, everywhere actions) *registryv1.Policy {
	p := &registryv1.Policy{Name: name, Rules: []*registryv1.Rule{{}}}
	if everywhere&^clusterWide&^1 != 0 {
		p.Rules[0].Namespace, p.Rules[0].Name = "*", "*" // As whoever puts a policy must say it.
	}
	switch name {
	case operatorPolicy:
		p.Description = "Everything."
	case servicePolicy:
		p.Description = "Discover and register any service, use any lock, change any key."
	case readerPolicy:
		p.Description = "Discover any service, see any lock, read no keys."
	default:
		p.Description = "See how the cluster is."
	}
	for action := registryv1.Action_ACTION_DISCOVER; validAction(action); action++ {
		if everywhere&bit(action) != 0 {
			p.Rules[0].Actions = append(p.Rules[0].Actions, action)
		}
	}
	return p
}

// policy is a policy that somebody put, made ready for judging. It never changes.
type policy struct {
	message *registryv1.Policy
	rules   []rule
	actions actions // of all rules
}

// rule is a registryv1.Rule made ready.
type rule struct {
	actions         actions
	namespace, name pattern
}

// pattern is a name, or a prefix of names.
type pattern struct {
	text   string
	prefix bool
}

func newPattern(text string) pattern {
	text, prefix := strings.CutSuffix(text, "*")
	return pattern{text, prefix}
}

func (p pattern) matches(name string) bool {
	if p.prefix {
		return strings.HasPrefix(name, p.text)
	}
	return name == p.text
}

// covers reports whether the pattern matches all names that begin with the prefix.
func (p pattern) covers(prefix string) bool { return p.prefix && strings.HasPrefix(prefix, p.text) }

// validPattern accepts a name, a prefix followed by "*", and "*".
func validPattern(text string) bool {
	return validName(text) && !strings.Contains(text[:len(text)-1], "*")
}

// allows reports whether the policy has any of the actions for these names.
func (p *policy) allows(either actions, namespace, name string) bool {
	if either&clusterWide != 0 {
		return p.actions&either != 0
	}
	if p.actions&either == 0 {
		return false
	}
	for i := range p.rules {
		r := &p.rules[i]
		if r.actions&either != 0 && r.namespace.matches(namespace) && r.name.matches(name) {
			return true
		}
	}
	return false
}

// allowsPrefix reports whether one rule of the policy has any of the actions for all names that begin with the prefix.
func (p *policy) allowsPrefix(either actions, namespace, prefix string) bool {
	return slices.ContainsFunc(p.rules, func(r rule) bool {
		return r.actions&either != 0 && r.namespace.matches(namespace) && r.name.covers(prefix)
	})
}

// newPolicy makes a policy ready, of which it copies what commands of the level know. It returns the name of what is malformed, if anything.
func newPolicy(from *registryv1.Policy, level uint64) (made *policy, malformed string) {
	switch {
	case !validName(from.GetName()) || BuiltInPolicy(from.GetName()):
		return nil, "name"
	case len(from.GetDescription()) > MaxDescriptionBytes:
		return nil, "description"
	case len(from.GetRules()) > MaxRules:
		return nil, "rules"
	}
	p := &policy{message: &registryv1.Policy{
		Name: from.GetName(), Description: from.GetDescription(), ModifyRevision: from.GetModifyRevision(),
	}}
	for i, r := range from.GetRules() {
		ready, malformed := newRule(r, level)
		if malformed != "" {
			return nil, fmt.Sprintf("rules[%d].%s", i, malformed)
		}
		p.rules = append(p.rules, ready)
		p.actions |= ready.actions
		p.message.Rules = append(p.message.Rules, &registryv1.Rule{
			Actions: r.GetActions(), Namespace: r.GetNamespace(), Name: r.GetName(),
		})
	}
	return p, ""
}

// newRule makes a rule ready, or names what is malformed.
func newRule(from *registryv1.Rule, level uint64) (r rule, malformed string) {
	last, most := knownActions(level)
	if n := len(from.GetActions()); n == 0 || n > most {
		return rule{}, "actions"
	}
	for _, action := range from.GetActions() {
		if !validAction(action) || action > last {
			return rule{}, "actions"
		}
		r.actions |= bit(action)
	}
	named := r.actions&^clusterWide != 0
	switch {
	case !validPattern(from.GetNamespace()) && (named || from.GetNamespace() != ""):
		return rule{}, "namespace"
	case !validPattern(from.GetName()) && (named || from.GetName() != ""):
		return rule{}, "name"
	}
	r.namespace, r.name = newPattern(from.GetNamespace()), newPattern(from.GetName())
	return r, ""
}

// appendPolicy encodes a policy by hand: what is hashed must not depend on the version of a library.
func appendPolicy(b []byte, p *registryv1.Policy) []byte {
	b = appendString(b, 1, p.GetName())
	b = appendString(b, 2, p.GetDescription())
	for _, r := range p.GetRules() {
		b = protowire.AppendTag(b, 3, protowire.BytesType)
		b = protowire.AppendBytes(b, appendRule(nil, r))
	}
	return appendUint(b, 4, p.GetModifyRevision())
}

func appendRule(b []byte, r *registryv1.Rule) []byte {
	packed := make([]byte, 0, MaxActions)
	for _, action := range r.GetActions() {
		packed = protowire.AppendVarint(packed, uint64(action))
	}
	b = appendBytes(b, 1, packed)
	b = appendString(b, 2, r.GetNamespace())
	return appendString(b, 3, r.GetName())
}

// putPolicy puts a policy in the place of the one of its name, if any.
func (t *txn) putPolicy(cmd *raftlogv1.PutPolicy) Outcome {
	next, malformed := newPolicy(cmd.GetPolicy(), t.level)
	if malformed != "" {
		return refuse(raftlogv1.Code_CODE_INVALID, malformed)
	}
	name, rules := next.message.GetName(), t.st.rules()
	old, ok := rules.policies.get(name)
	switch {
	case ok:
		next.message.ModifyRevision = old.message.GetModifyRevision()
		if proto.Equal(old.message, next.message) {
			return Outcome{}
		}
	case rules.policies.len() >= MaxPolicies:
		return refuse(raftlogv1.Code_CODE_LIMIT, "policies")
	}
	a := t.changeAccess(policyEvent+name, true, nil)
	next.message.ModifyRevision = a.record.revision
	if ok {
		t.subPolicy(old)
	}
	t.scratch = appendPolicy(t.scratch[:0], next.message)
	t.addSum(tablePolicies, t.scratch)
	a.policies.set(t.mark, name, next)
	return Outcome{}
}

// policyEvent is what the Name of an event about a policy begins with.
const policyEvent = "policy:"

// deletePolicy deletes a policy. One that is not there is deleted already.
func (t *txn) deletePolicy(cmd *raftlogv1.DeletePolicy) Outcome {
	if BuiltInPolicy(cmd.GetName()) {
		return refuse(raftlogv1.Code_CODE_INVALID, "name")
	}
	old, ok := t.st.rules().policies.get(cmd.GetName())
	if !ok {
		return Outcome{}
	}
	a := t.changeAccess(policyEvent+cmd.GetName(), false, nil)
	t.subPolicy(old)
	a.policies.delete(t.mark, cmd.GetName())
	return Outcome{}
}

func (t *txn) subPolicy(p *policy) {
	t.scratch = appendPolicy(t.scratch[:0], p.message)
	t.subSum(tablePolicies, t.scratch)
}
