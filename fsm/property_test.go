package fsm_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"github.com/regd-io/regd/fsm"
	"github.com/regd-io/regd/fsm/model"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// generator draws entries over a world small enough for things to meet.
type generator struct {
	t      *rapid.T
	term   uint64
	time   int64
	m      *model.Registry // to aim at what exists
	recent []*raftlogv1.Command
	left   int // entries to make
	silent int // how many of them, the next ones, are of a time in which no client is heard of
}

// upTo draws a number below n, all alike: rapid's own draws prefer small numbers, so that rare kinds would hardly come.
func upTo(t *rapid.T, label string, n int) int {
	raw := rapid.Uint32().Draw(t, label)
	return int(uint64(raw*2654435761) * uint64(n) >> 32)
}

func pick[T any](t *rapid.T, label string, from ...T) T { return from[upTo(t, label, len(from))] }

func (g *generator) chance(percent int) bool { return upTo(g.t, "chance", 100) < percent }

func (g *generator) session() string {
	return pick(g.t, "session", "s1", "s2", "s3", "s4", "")
}

func (g *generator) lease() string { return pick(g.t, "lease", "", "", "l1", "l2", "l3") }

func (g *generator) key() *raftlogv1.Key {
	return &raftlogv1.Key{
		Namespace: pick(g.t, "namespace", "default", "default", "dev"),
		Service:   pick(g.t, "service", "web", "web-1", "db"),
		Id:        pick(g.t, "id", "a", "b", "c", "d"),
	}
}

// incarnation is that of the instance, a wrong one, or any.
func (g *generator) incarnation(k *raftlogv1.Key) uint64 {
	i := g.m.Instances[model.Key{Namespace: k.GetNamespace(), Service: k.GetService(), ID: k.GetId()}]
	switch {
	case g.chance(40):
		return 0
	case i != nil && g.chance(70):
		return i.Message.GetIncarnation()
	default:
		return rapid.Uint64Range(1, g.m.Number+1).Draw(g.t, "incarnation")
	}
}

// fence is a term that a leader-side order carries.
func (g *generator) fence() uint64 {
	switch {
	case g.chance(40):
		return 0
	case g.chance(70):
		return g.term
	default:
		return g.term - 1
	}
}

func (g *generator) check(name string) *registryv1.Check {
	c := &registryv1.Check{Name: name, Initial: pick(g.t, "initial",
		registryv1.CheckStatus_CHECK_STATUS_UNSPECIFIED, registryv1.CheckStatus_CHECK_STATUS_PASSING,
		registryv1.CheckStatus_CHECK_STATUS_CRITICAL, registryv1.CheckStatus(9))}
	if g.chance(50) {
		c.Kind = &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(3e9)}}
	} else {
		c.Kind = &registryv1.Check_Http{Http: &registryv1.HTTPCheck{
			Path: "/health", Headers: map[string]string{"Host": "h", "X": "y"}, Tls: &registryv1.CheckTLS{SkipVerify: true},
		}}
	}
	return c
}

func (g *generator) register() *raftlogv1.Register {
	k := g.key()
	i := &registryv1.Instance{
		Namespace: k.GetNamespace(), Service: k.GetService(), Id: k.GetId(),
		Address: pick(g.t, "address", "10.0.0.1", "10.0.0.2"),
		Tags:    pick(g.t, "tags", nil, []string{"blue"}, []string{"blue", "green"}),
		Zone:    pick(g.t, "zone", "", "z1", "z2"), Region: pick(g.t, "region", "", "r1"),
		Weight: pick(g.t, "weight", uint32(0), 10), SessionId: g.session(), LeaseId: g.lease(),
		Metadata: pick(g.t, "metadata", nil, map[string]string{"k": "v", "a": "b"}),
	}
	for _, name := range []string{"one", "two"} {
		if g.chance(35) {
			i.Checks = append(i.Checks, g.check(name))
		}
	}
	r := &raftlogv1.Register{Instance: encode(g.t, i), IfAbsent: g.chance(15)}
	if g.chance(20) {
		r.OpenSession = openSession(g.session()).GetOpenSession()
		if g.chance(70) {
			i.SessionId = r.GetOpenSession().GetId()
			r.Instance = encode(g.t, i)
		}
	}
	switch {
	case g.chance(10):
		r.ExpectedRevision = rapid.Uint64Range(1, g.m.Revision+1).Draw(g.t, "expected")
	case g.chance(5):
		i.Id = ""
		r.Instance = encode(g.t, i)
	case g.chance(5):
		i.Incarnation = 7
		r.Instance = encode(g.t, i)
	case g.chance(5):
		i.Checks = append(i.Checks, g.check("two"), g.check("two"))
		r.Instance = encode(g.t, i)
	case g.chance(10):
		if old := g.m.Instances[model.Key{Namespace: k.GetNamespace(), Service: k.GetService(), ID: k.GetId()}]; old != nil {
			r.Instance = old.Spec
		}
	}
	return r
}

func (g *generator) deregister() *raftlogv1.Deregister {
	k := g.key()
	d := &raftlogv1.Deregister{Key: k, Incarnation: g.incarnation(k), Node: g.node()}
	if g.chance(15) {
		d.SessionId = g.session()
	}
	switch {
	case g.chance(20):
		d.Cause, d.Term = registryv1.Cause_CAUSE_CRITICAL_TOO_LONG, g.fence()
	case g.chance(5):
		d.Cause = pick(g.t, "cause", registryv1.Cause_CAUSE_REGISTERED, registryv1.Cause_CAUSE_RESYNC, registryv1.Cause(99))
	}
	return d
}

func (g *generator) setCheck() *raftlogv1.Command {
	k := g.key()
	return setCheck(&raftlogv1.SetCheck{
		Key: k, Incarnation: g.incarnation(k), Check: pick(g.t, "check", "one", "one", "two", "three"), Node: g.node(),
		Status: registryv1.CheckStatus(upTo(g.t, "status", 6)),
		Output: pick(g.t, "output", "", "boom", strings.Repeat("ä", 200), strings.Repeat("x", 257)), Term: g.fence(),
	})
}

func (g *generator) lock() *raftlogv1.Command {
	namespace, name := pick(g.t, "lock namespace", "default", ""), pick(g.t, "lock", "leader", "leader", "cron", "pool", "pool")
	if g.chance(60) {
		slots := uint32(0)
		if name == "pool" {
			slots = pick(g.t, "slots", uint32(2), 2, 2, 2, 3, 1, fsm.MaxLockSlots+1)
		}
		return acquire(&raftlogv1.AcquireLock{
			Namespace: namespace, Name: name, SessionId: g.session(), Wait: g.chance(70),
			Value: []byte(pick(g.t, "value", "", "here")), Slots: slots,
		})
	}
	c := &raftlogv1.ReleaseLock{Namespace: namespace, Name: name, SessionId: g.session(), WaitingOnly: g.chance(30)}
	if lock := g.m.Locks[model.Name{Namespace: namespace, Name: name}]; lock != nil && g.chance(60) {
		c.SessionId = lock.GetSessionId()
		token := lock.GetToken()
		if n := len(lock.GetOthers()); n > 0 && g.chance(50) {
			other := lock.GetOthers()[upTo(g.t, "other", n-1)]
			c.SessionId, token = other.GetSessionId(), other.GetToken()
		}
		if g.chance(50) {
			c.Token = token - uint64(upTo(g.t, "older", 2))
		}
	}
	return release(c)
}

func (g *generator) admin() *raftlogv1.Command {
	switch upTo(g.t, "admin", 3) {
	case 0:
		return &raftlogv1.Command{Kind: &raftlogv1.Command_InitCluster{InitCluster: &raftlogv1.InitCluster{
			ClusterId: pick(g.t, "cluster", "", "c1", "c2"),
		}}}
	case 1:
		return &raftlogv1.Command{Kind: &raftlogv1.Command_RemoveMember{RemoveMember: &raftlogv1.RemoveMember{
			Id: pick(g.t, "member", "n1", "n2", "n3"),
		}}}
	default:
		return &raftlogv1.Command{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{
			Member: &registryv1.Member{
				Id: pick(g.t, "member", "n1", "n2", "n3", ""), Name: pick(g.t, "name", "x", "y"),
				GrpcAddress: "h:7400", FeatureLevel: 1,
			},
		}}}
	}
}

func (g *generator) command() *raftlogv1.Command {
	var c *raftlogv1.Command
	switch n := upTo(g.t, "kind", 135); {
	case n < 30:
		c = &raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: g.register()}}
	case n < 40:
		c = deregister(g.deregister())
	case n < 52:
		c = g.setCheck()
	case n < 55:
		k := g.key()
		c = setDraining(&raftlogv1.SetDraining{Key: k, Incarnation: g.incarnation(k), Draining: g.chance(60)})
	case n < 58:
		k := g.key()
		c = setMaintenance(&raftlogv1.SetMaintenance{Key: k, Incarnation: g.incarnation(k), Maintenance: g.chance(60)})
	case n < 68:
		c = openSession(g.session())
	case n < 71:
		c = closeSession(g.session())
	case n < 76:
		c = grantLease(pick(g.t, "lease id", "l1", "l2", "l3"), pick(g.t, "of", "", "s1", "s2"))
	case n < 78:
		c = &raftlogv1.Command{Kind: &raftlogv1.Command_RevokeLease{RevokeLease: &raftlogv1.RevokeLease{Id: g.lease()}}}
	case n < 82:
		c = g.expire()
	case n < 92:
		c = g.lock()
	case n < 95:
		c = g.admin()
	case n < 103:
		c = g.access()
	case n < 106:
		c = g.namespace()
	case n < 127:
		c = kv(g.transaction())
	case n < 130:
		c = g.openOwner()
	default:
		b := &raftlogv1.Batch{}
		for range upTo(g.t, "registers", 5) {
			b.Register = append(b.Register, g.register())
		}
		for range upTo(g.t, "deregisters", 3) {
			b.Deregister = append(b.Deregister, g.deregister())
		}
		c = batch(b)
	}
	return g.request(g.on(c))
}

// request makes some commands exactly-once, and sometimes sends an earlier one again.
func (g *generator) request(c *raftlogv1.Command) *raftlogv1.Command {
	if len(g.recent) > 0 && g.chance(15) {
		c = proto.CloneOf(pick(g.t, "recent", g.recent...))
		if g.chance(10) {
			c.Request.BodyHash++
		}
		return c
	}
	if !g.chance(40) {
		return c
	}
	sequence := uint64(upTo(g.t, "sequence", 100))
	below := uint64(upTo(g.t, "below", 30))
	c = requested(c, pick(g.t, "client", "x", "y", "z"), sequence, below, sequence*7)
	g.recent = append(g.recent, c)
	return c
}

// entry makes the next of what is left to make. Now and then that is the first of many that let time pass in which no
// client is heard of.
func (g *generator) entry() *raftlogv1.Entry {
	g.left--
	if g.silent == 0 && g.chance(1) {
		g.silent = fsm.ClientIdleMs / fsm.MaxStepMs
		g.left += g.silent
	}
	if g.silent > 0 {
		g.silent--
		g.time += fsm.MaxStepMs
		return &raftlogv1.Entry{Version: 1, TimeUnixMs: g.time}
	}
	if g.chance(10) {
		g.term++
	}
	switch {
	case g.chance(3):
		g.time += 11 * 60 * 1000
	case g.chance(5):
		g.time -= 5000
	default:
		g.time += int64(upTo(g.t, "pass", 900))
	}
	e := &raftlogv1.Entry{Version: 1, TimeUnixMs: g.time}
	for range 1 + upTo(g.t, "commands", 5) {
		e.Commands = append(e.Commands, g.command())
	}
	return e
}

// visible is everything that a state shows, in a form in which fsm and model can be compared.
type visible struct {
	Index, Term, Revision, Epoch, Number uint64
	Time, Leaps                          int64
	ClusterID                            string
	Instances                            []*registryv1.Instance
	Services                             []string
	Sessions                             []*registryv1.Session
	Leases                               []*registryv1.Lease
	Locks                                []string
	Members                              []*registryv1.Member
	Clients                              []string
	Access                               []string
	Namespaces, History, Keys            []string
}

func visibleOf(t failer, s *fsm.State) *visible {
	t.Helper()
	v := &visible{
		Index: s.Index(), Term: s.Term(), Revision: s.Revision(), Epoch: s.Epoch(), Number: fsm.LastNumber(s),
		Time: s.Time(), Leaps: fsm.Leaps(s), ClusterID: s.ClusterID(), Members: s.Members(),
		Access: accessOf(s), Namespaces: namespacesOf(s), History: historyText(s), Keys: keysOf(s),
	}
	s.Services("", "", func(svc *fsm.Service) bool {
		v.Services = append(v.Services, fmt.Sprintf("%s/%s@%d", svc.Namespace(), svc.Name(), svc.Revision()))
		svc.Ascend("", func(r *fsm.Record) bool {
			i, err := r.Proto()
			if err != nil {
				t.Fatalf("decode: %v", err)
			}
			v.Instances = append(v.Instances, i)
			return true
		})
		return true
	})
	s.Sessions("", func(x *fsm.Session) bool { v.Sessions = append(v.Sessions, x.Proto(s)); return true })
	s.Leases("", func(x *fsm.Lease) bool { v.Leases = append(v.Leases, x.Proto(s)); return true })
	s.Locks("", "", func(x *fsm.Lock) bool {
		v.Locks = append(v.Locks, fmt.Sprintf("%s/%s %d %v %q", x.Namespace, x.Name, x.Slots, append([]fsm.Owner{x.Owner}, x.Others...), x.Waiters))
		return true
	})
	for _, c := range fsm.Clients(s) {
		text := fmt.Sprintf("%s last %d below %d:", c.ID, c.Last, c.AnsweredBelow)
		for i := range c.Sequences {
			text += fmt.Sprintf(" %d=%+v", c.Sequences[i], c.Outcomes[i])
		}
		v.Clients = append(v.Clients, text)
	}
	return v
}

func visibleOfModel(m *model.Registry) *visible {
	v := &visible{
		Index: m.Index, Term: m.Term, Revision: m.Revision, Epoch: m.Epoch, Number: m.Number,
		Time: m.Time, Leaps: m.Leaps, ClusterID: m.ClusterID,
		Access: accessOfModel(m), Namespaces: namespacesOfModel(m), History: historyTextOfModel(m), Keys: keysOfModel(m),
	}
	for name, revision := range m.Services {
		v.Services = append(v.Services, fmt.Sprintf("%s/%s@%d", name.Namespace, name.Name, revision))
	}
	for _, i := range m.Instances {
		v.Instances = append(v.Instances, i.Message)
	}
	for id := range m.Sessions {
		v.Sessions = append(v.Sessions, m.Session(id))
	}
	for id := range m.Leases {
		v.Leases = append(v.Leases, m.Lease(id))
	}
	for _, x := range m.Locks {
		var waiters []fsm.Waiter
		for _, w := range x.GetWaiters() {
			waiters = append(waiters, fsm.Waiter{SessionID: w.GetSessionId(), Value: w.GetValue()})
		}
		owners := []fsm.Owner{{SessionID: x.GetSessionId(), Token: x.GetToken(), Value: x.GetValue(), AcquireRevision: x.GetAcquireRevision()}}
		for _, o := range x.GetOthers() {
			owners = append(owners, fsm.Owner{
				SessionID: o.GetSessionId(), Token: o.GetToken(), Value: o.GetValue(), AcquireRevision: o.GetAcquireRevision(),
			})
		}
		v.Locks = append(v.Locks, fmt.Sprintf("%s/%s %d %v %q", x.GetNamespace(), x.GetName(), max(x.GetSlots(), 1), owners, waiters))
	}
	for _, x := range m.Members {
		v.Members = append(v.Members, x)
	}
	for id, c := range m.Clients {
		text := fmt.Sprintf("%s last %d below %d:", id, c.Last, c.AnsweredBelow)
		for seq := range uint64(200) {
			if o := c.Outcomes[seq]; o != nil {
				text += fmt.Sprintf(" %d=%+v", seq, fsm.OutcomeFromProto(o.GetOutcome()))
			}
		}
		v.Clients = append(v.Clients, text)
	}
	slices.Sort(v.Services)
	slices.Sort(v.Locks)
	slices.Sort(v.Clients)
	slices.SortFunc(v.Instances, func(a, b *registryv1.Instance) int {
		return slices.Compare([]string{a.GetNamespace(), a.GetService(), a.GetId()},
			[]string{b.GetNamespace(), b.GetService(), b.GetId()})
	})
	slices.SortFunc(v.Sessions, func(a, b *registryv1.Session) int { return strings.Compare(a.GetId(), b.GetId()) })
	slices.SortFunc(v.Leases, func(a, b *registryv1.Lease) int { return strings.Compare(a.GetId(), b.GetId()) })
	slices.SortFunc(v.Members, func(a, b *registryv1.Member) int {
		return slices.Compare([]string{a.GetName(), a.GetId()}, []string{b.GetName(), b.GetId()})
	})

	return v
}

func compare(t failer, s *fsm.State, m *model.Registry) {
	t.Helper()
	got, want := visibleOf(t, s), visibleOfModel(m)
	slices.Sort(got.Services)
	slices.Sort(got.Locks)
	slices.Sort(got.Keys)
	if diff := cmp.Diff(want, got, protocmp.Transform(), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("fsm and model differ at index %d (-model +fsm):\n%s", s.Index(), diff)
	}
}

// fold applies events to a picture of all instances.
func fold(t failer, picture map[model.Key]*fsm.Record, before, after uint64, events []fsm.Event) {
	t.Helper()
	last := before
	for _, e := range events {
		if e.Revision < last || e.Revision > after {
			t.Fatalf("event of revision %d after %d, up to %d", e.Revision, last, after)
		}
		last = e.Revision
		if e.Kind != fsm.EventInstance {
			continue
		}
		r := e.New
		if r == nil {
			r = e.Old
		}
		key := model.Key{Namespace: r.Namespace(), Service: r.Service(), ID: r.ID()}
		if picture[key] != e.Old {
			t.Fatalf("event of %v is not from the record before", key)
		}
		if e.New != nil {
			picture[key] = e.New
		} else {
			delete(picture, key)
		}
	}
}

// TestStateEqualsModel holds, over random histories: each outcome and everything visible equals the model; nothing that
// is kept incrementally or twice differs from a count from scratch; and the events lead from each state to the next.
func TestStateEqualsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := &generator{t: t, term: 1, time: 1_700_000_000_000, m: model.New(), left: 1 + upTo(t, "entries", 25)}
		s := fsm.New()
		picture := map[model.Key]*fsm.Record{}
		for i := 0; g.left > 0; i++ {
			e := g.entry()
			next, result, err := s.Apply(fsm.Entry{Index: uint64(i + 1), Term: g.term, Data: encodeEntry(t, e)})
			if err != nil {
				t.Fatalf("apply: %v", err)
			}
			outcomes, err := g.m.Apply(uint64(i+1), g.term, e)
			if err != nil {
				t.Fatalf("apply to model: %v", err)
			}
			for j, o := range outcomes {
				if got, want := result.Outcomes[j], fsm.OutcomeFromProto(o); got != want {
					t.Fatalf("entry %d command %d %v:\nfsm   %+v\nmodel %+v", i+1, j, e.GetCommands()[j], got, want)
				}
			}
			fold(t, picture, s.Revision(), next.Revision(), result.Events)
			if g.silent == 0 {
				compare(t, next, g.m)
				compareRights(t, next, g.m)
				audit(t, next)
			}
			s = next
		}
		if len(picture) != s.Counts().Instances {
			t.Fatalf("events lead to %d instances, the state has %d", len(picture), s.Counts().Instances)
		}
		for key, r := range picture {
			if s.Instance(key.Namespace, key.Service, key.ID) != r {
				t.Fatalf("events lead to another record of %v", key)
			}
		}
	})
}

// history applies random entries and returns them with the states before and after each.
func history(t *rapid.T) ([]fsm.Entry, []*fsm.State) { return historyOf(t, 1+upTo(t, "entries", 30)) }

// historyOf is history with so many entries, more if there is a time of silence among them.
func historyOf(t *rapid.T, entries int) ([]fsm.Entry, []*fsm.State) {
	return (&generator{t: t, term: 1, time: 1_700_000_000_000, m: model.New(), left: entries}).history()
}

func (g *generator) history() ([]fsm.Entry, []*fsm.State) {
	t := g.t
	states := []*fsm.State{fsm.New()}
	var entries []fsm.Entry
	for i := 0; g.left > 0; i++ {
		e := g.entry()
		entry := fsm.Entry{Index: uint64(i + 1), Term: g.term, Data: encodeEntry(t, e)}
		next, _, err := states[i].Apply(entry)
		if err != nil {
			t.Fatalf("apply: %v", err)
		}
		if _, err := g.m.Apply(entry.Index, g.term, e); err != nil {
			t.Fatalf("apply to model: %v", err)
		}
		entries, states = append(entries, entry), append(states, next)
	}
	return entries, states
}

func replay(t failer, s *fsm.State, entries []fsm.Entry) *fsm.State {
	t.Helper()
	for _, e := range entries {
		next, _, err := s.Apply(e)
		if err != nil {
			t.Fatalf("replay: %v", err)
		}
		s = next
	}
	return s
}

// TestReplayGivesEqualBytes holds: the same entries give the same hash, chain and snapshot, also when they are applied
// from a snapshot taken anywhere on the way.
func TestReplayGivesEqualBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries, states := history(t)
		last := states[len(states)-1]
		want := snapshotOf(t, last)
		again := replay(t, fsm.New(), entries)
		if !bytes.Equal(snapshotOf(t, again), want) || again.Chain() != last.Chain() {
			t.Fatalf("a replay gives another snapshot")
		}
		at := rapid.IntRange(0, len(entries)).Draw(t, "snapshot at")
		middle := restored(t, snapshotOf(t, states[at]))
		audit(t, middle)
		tail := replay(t, middle, entries[at:])
		audit(t, tail)
		if !bytes.Equal(snapshotOf(t, tail), want) {
			t.Fatalf("snapshot at %d and the tail give another snapshot", at)
		}
		if diff := cmp.Diff(visibleOf(t, last), visibleOf(t, tail), protocmp.Transform()); diff != "" {
			t.Fatalf("snapshot at %d and the tail show another state:\n%s", at, diff)
		}
	})
}

// TestOldStatesNeverChange holds: whatever was applied after a state, also in another history that branches off it, its
// content stays what its hash says.
func TestOldStatesNeverChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries, states := history(t)
		hashes := make([][16]byte, len(states))
		for i, s := range states {
			hashes[i] = s.Hash()
		}
		at := rapid.IntRange(0, len(entries)).Draw(t, "branch at")
		branch := states[at]
		for _, e := range entries {
			next, _, err := branch.Apply(fsm.Entry{Index: branch.Index() + 1, Term: 1000, Data: e.Data})
			if err != nil {
				t.Fatalf("branch: %v", err)
			}
			branch = next
		}
		audit(t, branch)
		for i, s := range states {
			audit(t, s)
			if s.Hash() != hashes[i] {
				t.Fatalf("state %d has another hash than when it was made", i)
			}
		}
	})
}

// TestDiffLeadsFromOneStateToTheOther holds for any two states of a history, in both directions.
func TestDiffLeadsFromOneStateToTheOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, states := history(t)
		a := states[rapid.IntRange(0, len(states)-1).Draw(t, "from")]
		b := states[rapid.IntRange(0, len(states)-1).Draw(t, "to")]
		if rapid.Bool().Draw(t, "restored") {
			b = restored(t, snapshotOf(t, b)) // shares nothing
		}
		got := instances(a)
		fsm.Diff(a, b, func(before, after *fsm.Record) bool {
			r := before
			if after != nil {
				r = after
			}
			key := model.Key{Namespace: r.Namespace(), Service: r.Service(), ID: r.ID()}
			if before == nil != (got[key] == nil) || before != nil && !bytes.Equal(before.Encoded(), got[key]) {
				t.Fatalf("%v: before is not what was before", key)
			}
			if after == nil {
				delete(got, key)
				return true
			}
			if bytes.Equal(got[key], after.Encoded()) {
				t.Fatalf("%v: reported without a difference", key)
			}
			got[key] = after.Encoded()
			return true
		})
		if diff := cmp.Diff(instances(b), got); diff != "" {
			t.Fatalf("the difference leads elsewhere:\n%s", diff)
		}
		keys := allKeys(a)
		fsm.DiffKeys(a, b, func(before, after *fsm.KeyValue) bool {
			k := after
			if k == nil {
				k = before
			}
			name := model.Name{Namespace: k.Namespace, Name: k.Key}
			if keys[name] != keyText(before) || keyText(before) == keyText(after) {
				t.Fatalf("%v: before is %s, after is %s, was %s", name, keyText(before), keyText(after), keys[name])
			}
			if delete(keys, name); after != nil {
				keys[name] = keyText(after)
			}
			return true
		})
		if diff := cmp.Diff(allKeys(b), keys); diff != "" {
			t.Fatalf("the difference leads to other keys:\n%s", diff)
		}
	})
}

func instances(s *fsm.State) map[model.Key][]byte {
	all := map[model.Key][]byte{}
	s.Services("", "", func(svc *fsm.Service) bool {
		svc.Ascend("", func(r *fsm.Record) bool {
			all[model.Key{Namespace: r.Namespace(), Service: r.Service(), ID: r.ID()}] = r.Encoded()
			return true
		})
		return true
	})
	return all
}

// TestRetryChangesNothing holds: a command that carries a request id and comes again, at once or later while it is
// remembered, is answered as the first time and leaves no trace in content, revision or events.
func TestRetryChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := &generator{t: t, term: 1, time: 1_700_000_000_000, m: model.New()}
		_, states := history(t)
		m := &machine{t: t, st: states[len(states)-1], term: 1000, time: 1_800_000_000_000}
		g.term = m.term
		cmd := requested(g.command(), "retrier", 5, 0, 1)
		if strings.HasPrefix(cmd.GetActor(), "token:") {
			cmd.Actor = "certificate:svc" // A token may be gone when it comes again: then it is denied.
		}
		if cmd.GetActor() != "" || cmd.GetKvTransaction() != nil {
			cmd.Level = fsm.KVLevel // What is no command is not remembered.
		}
		first := m.one(cmd)
		between := rapid.IntRange(0, 3).Draw(t, "between")
		for range between {
			m.one(g.command())
		}
		before := m.st
		m.time += rapid.Int64Range(0, 5000).Draw(t, "pass")
		result := m.apply(cmd)
		if result.Outcomes[0] != first {
			t.Fatalf("answered with %+v, the first time with %+v", result.Outcomes[0], first)
		}
		if len(result.Events) > 0 || m.st.Revision() != before.Revision() || m.st.ContentHash() != before.ContentHash() {
			t.Fatalf("the retry left a trace")
		}
		audit(t, m.st)
	})
}

// TestOrdersOfThePastChangeNothing holds for expiry and verdicts of an older term, and for orders that carry an older
// incarnation.
func TestOrdersOfThePastChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, states := history(t)
		m := &machine{t: t, st: states[len(states)-1], term: 1000, time: 1_800_000_000_000}
		m.one(&raftlogv1.Command{Level: fsm.AccessLevel, Kind: &raftlogv1.Command_SetEnforcement{
			SetEnforcement: &raftlogv1.SetEnforcement{},
		}})
		g := &generator{t: t, term: m.term, m: model.New()}
		k := g.key()
		m.one(deleteNamespace(k.GetNamespace()))
		m.one(register(t, &registryv1.Instance{
			Namespace: k.GetNamespace(), Service: k.GetService(), Id: k.GetId(), Address: "first",
			Checks: []*registryv1.Check{{Name: "one", Initial: registryv1.CheckStatus_CHECK_STATUS_CRITICAL}},
		}))
		incarnation := m.st.Instance(k.GetNamespace(), k.GetService(), k.GetId()).Incarnation()
		m.must(register(t, &registryv1.Instance{
			Namespace: k.GetNamespace(), Service: k.GetService(), Id: k.GetId(), Address: "second",
			Checks: []*registryv1.Check{{Name: "one", Initial: registryv1.CheckStatus_CHECK_STATUS_CRITICAL}},
		}))
		term := rapid.Uint64Range(1, m.term-1).Draw(t, "term")
		before := m.st
		for _, c := range []*raftlogv1.Command{
			expire(term, []string{"s1", "s2", "s3", "s4"}, []string{"l1", "l2", "l3"}),
			deregister(&raftlogv1.Deregister{Key: k, Incarnation: incarnation}),
			deregister(&raftlogv1.Deregister{Key: k, Cause: registryv1.Cause_CAUSE_CRITICAL_TOO_LONG, Term: term}),
			setCheck(&raftlogv1.SetCheck{Key: k, Check: "one", Status: 2, Term: term}),
			setCheck(&raftlogv1.SetCheck{Key: k, Check: "one", Status: 2, Incarnation: incarnation}),
			setDraining(&raftlogv1.SetDraining{Key: k, Draining: true, Incarnation: incarnation}),
			setMaintenance(&raftlogv1.SetMaintenance{Key: k, Maintenance: true, Incarnation: incarnation}),
		} {
			result := m.apply(c)
			if o := result.Outcomes[0]; o.Code != raftlogv1.Code_CODE_STALE || o.Changed || len(result.Events) > 0 {
				t.Fatalf("%v: outcome %+v", c, o)
			}
		}
		if m.st.Revision() != before.Revision() || m.st.ContentHash() != before.ContentHash() {
			t.Fatalf("an order of the past changed something")
		}
	})
}
