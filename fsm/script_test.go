package fsm_test

import (
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

var rewrite = flag.Bool("rewrite", false, "write what is into the expectations of the scripts")

// TestScripts runs the scripts of testdata. A line that begins with a word is a command, the lines below it that begin
// with a space are what it is expected to print, all else is for people. With -rewrite the expectations are written
// anew, to be reviewed as a diff.
//
//	time MS                      let so much time pass (the log time of the next entries)
//	term N                       a new leader
//	entry CMD ; CMD              commands in one entry
//	batch CMD ; CMD              registers and deregisters as one batch
//	register NS/SERVICE/ID       [address= session= lease= zone= tags=A,B check=NAME:INITIAL if-absent expected=]
//	deregister KEY               [incarnation= session= cause= term= node=]
//	check KEY NAME STATUS        [incarnation= output= term= node=]
//	drain|maintain KEY on|off    [incarnation=]
//	session open|close ID        [ttl= name= behavior= delay= node=]
//	lease grant|revoke ID        [ttl= session=]
//	expire                       [term= sessions=A,B leases=A,B node= silence=]
//	lock acquire|release NS/NAME SESSION  [wait value= token= slots=]
//	member set|remove ID         [name=]
//	cluster ID
//	policy put|delete NAME       [rule=ACTION,ACTION:NS/NAME rule=...]
//	token create|delete ID       [identity= expires= secret=]
//	grant put|delete IDENTITY    [policies=A,B]
//	enforce on|off
//	bootstrap TOKEN              [resets=]
//	namespace put|delete NAME    [description= instances= locks= watches= writes= keys= bytes=]
//	kv NS OP KEY ; OP KEY        [value= flags= expected= session=], OP is a KVOpKind: set, set_if, delete_prefix, check_absent...
//	may CREDENTIAL ACTION NS/NAME
//	raw HEX                      an encoded command as it is
//	query instances|services|sessions|leases|locks|members|clients|access|namespaces|history|keys|meta
//	why KEY                      [most=]
//	prefix NS PREFIX             [after=]
//	snapshot NAME, restore NAME, rebase NAME
//
// Every command of the log may carry request=CLIENT:SEQUENCE:ANSWERED_BELOW:HASH, the last two optional, and
// as=CREDENTIAL; as=cluster is the cluster itself. A command without it is of a version that knows no actors. level=N raises the
// level of a command.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		if slices.ContainsFunc(goldens(), func(g golden) bool { return g.name == name }) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			in, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			out := runScript(t, string(in))
			if out == string(in) {
				return
			}
			if !*rewrite {
				t.Fatalf("%s (-want +got):\n%s", file, cmp.Diff(strings.Split(string(in), "\n"), strings.Split(out, "\n")))
			}
			if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// runScript returns the script with what its commands print in the place of what they were expected to.
func runScript(t *testing.T, in string) string {
	s := &script{machine: newMachine(t), snapshots: map[string][]byte{}}
	for line := range strings.Lines(in) {
		text := strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(text, " "):
			continue
		case text == "" || strings.HasPrefix(text, "#"):
			s.out.WriteString(line)
		default:
			s.out.WriteString(line)
			s.run(text)
			audit(t, s.st)
		}
	}
	return s.out.String()
}

type script struct {
	*machine
	snapshots map[string][]byte
	out       strings.Builder
}

func (s *script) printf(format string, args ...any) { fmt.Fprintf(&s.out, " "+format+"\n", args...) }

func (s *script) run(line string) {
	s.t.Helper()
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "time":
		s.time += s.number(rest)
	case "pass":
		s.pass(s.number(rest))
	case "term":
		s.term = uint64(s.number(rest))
	case "query":
		s.query(rest)
	case "may":
		a := parseArgs(rest)
		on := parseKey(a.word(2))
		action := registryv1.Action(registryv1.Action_value["ACTION_"+strings.ToUpper(a.word(1))])
		s.printf("%t", s.st.Allowed(a.word(0), action, on.GetNamespace(), on.GetService()))
	case "why":
		a := parseArgs(rest)
		on := parseKey(a.word(0))
		found, more := s.st.Transitions(on.GetNamespace(), on.GetService(), on.GetId(), int(a.uint(s, "most", 100)))
		if more {
			s.printf("and older ones")
		}
		for _, tr := range found {
			s.printf("%s", strings.TrimLeft(transitionText(tr), " "))
		}
	case "snapshot":
		s.snapshots[rest] = snapshotOf(s.t, s.st)
	case "restore":
		s.st = restored(s.t, s.snapshots[rest])
	case "rebase":
		s.st = fsm.Rebase(restored(s.t, s.snapshots[rest]), s.st)
	case "raw":
		command, err := hex.DecodeString(rest)
		if err != nil {
			s.t.Fatalf("%s: %v", line, err)
		}
		next, result, err := s.st.Apply(fsm.Entry{
			Index: s.st.Index() + 1, Term: s.term, Data: fsm.AppendEntry(nil, s.time, [][]byte{command}),
		})
		if err != nil {
			s.printf("%v", err)
			return
		}
		s.st = next
		s.print(result)
	case "prefix":
		a := parseArgs(rest)
		s.st.Keys(a.word(0), a.word(1), a.options["after"], func(k *fsm.KeyValue) bool {
			s.printf("%s", k.Key)
			return true
		})
	case "entry":
		var commands []*raftlogv1.Command
		for part := range strings.SplitSeq(rest, " ; ") {
			commands = append(commands, s.command(part))
		}
		s.print(s.apply(commands...))
	default:
		s.print(s.apply(s.command(line)))
	}
}

func (s *script) number(text string) int64 {
	s.t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		s.t.Fatalf("number %q: %v", text, err)
	}
	return n
}

// args are the words of a command, the options among them by name.
type args struct {
	words   []string
	options map[string]string
	checks  []string
	rules   []string
}

func parseArgs(line string) args {
	a := args{options: map[string]string{}}
	for _, word := range strings.Fields(line) {
		key, value, ok := strings.Cut(word, "=")
		switch {
		case ok && key == "check":
			a.checks = append(a.checks, value)
		case ok && key == "rule":
			a.rules = append(a.rules, value)
		case ok:
			a.options[key] = value
		case word == "if-absent" || word == "wait" || word == "waiting":
			a.options[word] = "true"
		default:
			a.words = append(a.words, word)
		}
	}
	return a
}

func (a args) word(i int) string {
	if i < len(a.words) {
		return a.words[i]
	}
	return ""
}

func (a args) list(name string) []string {
	if a.options[name] == "" {
		return nil
	}
	return strings.Split(a.options[name], ",")
}

func (a args) uint(s *script, name string, otherwise uint64) uint64 {
	if a.options[name] == "" {
		return otherwise
	}
	return uint64(s.number(a.options[name]))
}

func parseKey(text string) *raftlogv1.Key {
	parts := strings.SplitN(text+"//", "/", 4)
	return &raftlogv1.Key{Namespace: parts[0], Service: parts[1], Id: parts[2]}
}

// command reads a command of the log.
func (s *script) command(line string) *raftlogv1.Command {
	s.t.Helper()
	a := parseArgs(line)
	var c *raftlogv1.Command
	switch a.word(0) {
	case "register":
		c = &raftlogv1.Command{Kind: &raftlogv1.Command_Register{Register: s.registration(a)}}
	case "deregister":
		c = deregister(s.deregistration(a))
	case "check":
		c = setCheck(&raftlogv1.SetCheck{
			Key: parseKey(a.word(1)), Check: a.word(2), Status: status(a.word(3)), Output: a.options["output"],
			Incarnation: a.uint(s, "incarnation", 0), Term: a.uint(s, "term", 0), Node: a.options["node"],
		})
	case "drain":
		c = setDraining(&raftlogv1.SetDraining{
			Key: parseKey(a.word(1)), Draining: a.word(2) == "on", Incarnation: a.uint(s, "incarnation", 0),
		})
	case "maintain":
		c = setMaintenance(&raftlogv1.SetMaintenance{
			Key: parseKey(a.word(1)), Maintenance: a.word(2) == "on", Incarnation: a.uint(s, "incarnation", 0),
		})
	case "expire":
		c = expire(a.uint(s, "term", s.term), a.list("sessions"), a.list("leases"))
		c.GetExpire().Node = a.options["node"]
		if silence := a.uint(s, "silence", 0); silence > 0 {
			c.GetExpire().SessionSilenceMs = []uint64{silence}
			c.GetExpire().LeaseSilenceMs = []uint64{silence}
		}
	case "batch":
		c = s.batch(strings.TrimPrefix(line, "batch "))
	case "cluster":
		c = &raftlogv1.Command{Kind: &raftlogv1.Command_InitCluster{
			InitCluster: &raftlogv1.InitCluster{ClusterId: a.word(1)},
		}}
	case "namespace":
		if c = deleteNamespace(a.word(2)); a.word(1) == "put" {
			c = putNamespace(&registryv1.Namespace{
				Name: a.word(2), Description: a.options["description"], Quota: &registryv1.Quota{
					MaxInstances: a.uint(s, "instances", 0), MaxLocks: a.uint(s, "locks", 0),
					MaxWatches: a.uint(s, "watches", 0), MaxWritesPerSecond: a.uint(s, "writes", 0),
					MaxKeys: a.uint(s, "keys", 0), MaxKvBytes: a.uint(s, "bytes", 0),
				},
			})
		}
	case "kv":
		c = s.transaction(a.word(1), strings.TrimPrefix(line, "kv "+a.word(1)+" "))
	case "policy", "token", "grant", "enforce", "bootstrap":
		c = s.access(a)
	default:
		c = s.owner(a)
	}
	if who := a.options["as"]; who != "" {
		c = as(strings.TrimPrefix(who, "cluster"), c)
	}
	c.Level = max(c.GetLevel(), uint32(a.uint(s, "level", 0)))
	if request := strings.Split(a.options["request"], ":"); len(request) > 1 {
		var numbers [3]uint64
		for i, text := range request[1:] {
			numbers[i] = uint64(s.number(text))
		}
		c = requested(c, request[0], numbers[0], numbers[1], numbers[2])
	}
	return c
}

// owner reads a command about sessions, leases, locks or members.
func (s *script) owner(a args) *raftlogv1.Command {
	s.t.Helper()
	id, ttl := a.word(2), a.uint(s, "ttl", 15_000)
	lock := parseKey(id)
	switch a.word(0) + " " + a.word(1) {
	case "session open":
		return &raftlogv1.Command{Kind: &raftlogv1.Command_OpenSession{
			OpenSession: &raftlogv1.OpenSession{
				Id: id, ClientName: a.options["name"], TtlMs: ttl, LockDelayMs: a.uint(s, "delay", 0), Node: a.options["node"],
				Behavior: registryv1.SessionBehavior(registryv1.SessionBehavior_value["SESSION_BEHAVIOR_"+strings.ToUpper(a.options["behavior"])]),
			},
		}}
	case "session close":
		return closeSession(id)
	case "lease grant":
		return &raftlogv1.Command{Kind: &raftlogv1.Command_GrantLease{
			GrantLease: &raftlogv1.GrantLease{Id: id, TtlMs: ttl, SessionId: a.options["session"]},
		}}
	case "lease revoke":
		return &raftlogv1.Command{Kind: &raftlogv1.Command_RevokeLease{RevokeLease: &raftlogv1.RevokeLease{Id: id}}}
	case "lock acquire":
		return acquire(&raftlogv1.AcquireLock{
			Namespace: lock.GetNamespace(), Name: lock.GetService(), SessionId: a.word(3),
			Wait: a.options["wait"] != "", Value: []byte(a.options["value"]), Slots: uint32(a.uint(s, "slots", 0)),
		})
	case "lock release":
		return release(&raftlogv1.ReleaseLock{
			Namespace: lock.GetNamespace(), Name: lock.GetService(), SessionId: a.word(3), Token: a.uint(s, "token", 0),
			WaitingOnly: a.options["waiting"] != "",
		})
	case "member set":
		return &raftlogv1.Command{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{
			Member: &registryv1.Member{Id: id, Name: a.options["name"]},
		}}}
	case "member remove":
		return &raftlogv1.Command{Kind: &raftlogv1.Command_RemoveMember{RemoveMember: &raftlogv1.RemoveMember{Id: id}}}
	default:
		s.t.Fatalf("unknown command %v", a.words)
		return nil
	}
}

// access reads a command about who may do what.
func (s *script) access(a args) *raftlogv1.Command {
	s.t.Helper()
	switch name := a.word(2); a.word(0) + " " + a.word(1) {
	case "policy put":
		c := putPolicy(name)
		for _, text := range a.rules {
			actions, on, _ := strings.Cut(text, ":")
			r := &registryv1.Rule{Namespace: parseKey(on).GetNamespace(), Name: parseKey(on).GetService()}
			for action := range strings.SplitSeq(actions, ",") {
				r.Actions = append(r.Actions, registryv1.Action(registryv1.Action_value["ACTION_"+strings.ToUpper(action)]))
			}
			c.GetPutPolicy().Policy.Rules = append(c.GetPutPolicy().GetPolicy().GetRules(), r)
		}
		return c
	case "policy delete":
		return as("", &raftlogv1.Command{Kind: &raftlogv1.Command_DeletePolicy{DeletePolicy: &raftlogv1.DeletePolicy{Name: name}}})
	case "token create":
		c := createToken(name, a.options["identity"], int64(a.uint(s, "expires", 0)))
		if secret := a.options["secret"]; secret != "" {
			c.GetCreateToken().SecretHash = []byte(secret)
		}
		return c
	case "token delete":
		return deleteToken(name)
	case "grant put":
		return putGrant(name, a.list("policies")...)
	case "grant delete":
		return as("", &raftlogv1.Command{Kind: &raftlogv1.Command_DeleteGrant{DeleteGrant: &raftlogv1.DeleteGrant{Identity: name}}})
	case "enforce on", "enforce off":
		return as("", &raftlogv1.Command{Kind: &raftlogv1.Command_SetEnforcement{
			SetEnforcement: &raftlogv1.SetEnforcement{Enforced: a.word(1) == "on"},
		}})
	default:
		return bootstrap(a.word(1), a.uint(s, "resets", 0))
	}
}

// transaction reads operations on keys.
func (s *script) transaction(namespace, text string) *raftlogv1.Command {
	tx := &raftlogv1.KVTransaction{Namespace: namespace}
	for part := range strings.SplitSeq(text, " ; ") {
		a := parseArgs(part)
		tx.Ops = append(tx.Ops, &raftlogv1.KVOp{
			Kind: raftlogv1.KVOpKind(raftlogv1.KVOpKind_value["KV_OP_KIND_"+strings.ToUpper(a.word(0))]), Key: a.word(1),
			Value: []byte(a.options["value"]), Flags: a.uint(s, "flags", 0), ExpectedRevision: a.uint(s, "expected", 0),
			SessionId: a.options["session"],
		})
	}
	return kv(tx)
}

func (s *script) registration(a args) *raftlogv1.Register {
	s.t.Helper()
	k := parseKey(a.word(1))
	i := &registryv1.Instance{
		Namespace: k.GetNamespace(), Service: k.GetService(), Id: k.GetId(), Address: a.options["address"],
		Tags: a.list("tags"), Zone: a.options["zone"], SessionId: a.options["session"], LeaseId: a.options["lease"],
	}
	for _, text := range a.checks {
		name, initial, _ := strings.Cut(text, ":")
		i.Checks = append(i.Checks, &registryv1.Check{
			Name: name, Initial: status(initial),
			Kind: &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(5e9)}},
		})
	}
	r := &raftlogv1.Register{
		Instance: encode(s.t, i), IfAbsent: a.options["if-absent"] != "", ExpectedRevision: a.uint(s, "expected", 0),
	}
	if id := a.options["open"]; id != "" {
		r.OpenSession = &raftlogv1.OpenSession{Id: id, ClientName: a.options["name"], TtlMs: a.uint(s, "ttl", 15_000)}
	}
	return r
}

func (s *script) deregistration(a args) *raftlogv1.Deregister {
	return &raftlogv1.Deregister{
		Key: parseKey(a.word(1)), Incarnation: a.uint(s, "incarnation", 0), SessionId: a.options["session"],
		Cause: registryv1.Cause(registryv1.Cause_value["CAUSE_"+strings.ToUpper(a.options["cause"])]),
		Term:  a.uint(s, "term", 0), Node: a.options["node"],
	}
}

func (s *script) batch(text string) *raftlogv1.Command {
	s.t.Helper()
	b := &raftlogv1.Batch{}
	for part := range strings.SplitSeq(text, " ; ") {
		a := parseArgs(part)
		switch a.word(0) {
		case "register":
			b.Register = append(b.Register, s.registration(a))
		case "deregister":
			b.Deregister = append(b.Deregister, s.deregistration(a))
		}
	}
	return batch(b)
}

func status(text string) registryv1.CheckStatus {
	return registryv1.CheckStatus(registryv1.CheckStatus_value["CHECK_STATUS_"+strings.ToUpper(text)])
}

// print prints what an entry led to.
func (s *script) print(result fsm.Result) {
	for _, o := range result.Outcomes {
		s.printf("%s", outcomeText(o))
	}
	for _, e := range result.Events {
		s.printf("event %s", eventText(e))
	}
}

func outcomeText(o fsm.Outcome) string {
	text := "unchanged"
	switch {
	case o.Err() != nil:
		text = "refused: " + o.Err().Error()
	case o.Changed:
		text = "changed"
	}
	text += fmt.Sprintf(", revision %d", o.Revision)
	if o.Number != 0 {
		text += fmt.Sprintf(", number %d", o.Number)
	}
	if o.ID != "" {
		text += ", id " + o.ID
	}
	return text
}

func eventText(e fsm.Event) string {
	cause := strings.ToLower(strings.TrimPrefix(e.Cause.String(), "CAUSE_"))
	if e.Kind != fsm.EventInstance {
		text := fmt.Sprintf("%d %s %s", e.Revision, e.Kind, strings.TrimPrefix(e.Namespace+"/"+e.Name, "/"))
		if e.Created {
			return text
		}
		return text + " gone (" + cause + ")"
	}
	if e.New == nil {
		return fmt.Sprintf("%d instance %s gone (%s)", e.Revision, instanceKeyText(e.Old), cause)
	}
	return fmt.Sprintf("%d instance %s %s (%s)", e.Revision, instanceKeyText(e.New), healthText(e.New), cause)
}

func instanceKeyText(r *fsm.Record) string { return r.Namespace() + "/" + r.Service() + "/" + r.ID() }

func healthText(r *fsm.Record) string {
	return strings.ToLower(strings.TrimPrefix(r.Health().String(), "HEALTH_"))
}

func recordText(t failer, r *fsm.Record) string {
	i, err := r.Proto()
	if err != nil {
		t.Fatalf("decode: %v", err)
	}
	text := fmt.Sprintf("%s %s incarnation %d created %d modified %d registered %d",
		instanceKeyText(r), healthText(r), r.Incarnation(), r.CreateRevision(), r.ModifyRevision(), i.GetRegisteredUnixMs())
	for _, part := range [][2]string{
		{"address", i.GetAddress()},
		{"session", r.SessionID()},
		{"lease", r.LeaseID()},
		{"zone", r.Zone()},
		{"tags", strings.Join(r.Tags(), ",")},
	} {
		if part[1] != "" {
			text += " " + part[0] + "=" + part[1]
		}
	}
	if r.Draining() {
		text += " draining"
	}
	if r.Maintenance() {
		text += " maintenance"
	}
	for _, c := range i.GetCheckStates() {
		verdict := strings.ToLower(strings.TrimPrefix(c.GetStatus().String(), "CHECK_STATUS_"))
		text += fmt.Sprintf(" [%s %s since %d at %d", c.GetName(), verdict, c.GetChangedRevision(), c.GetChangedUnixMs())
		if c.GetOutput() != "" {
			text += fmt.Sprintf(" %q", c.GetOutput())
		}
		text += "]"
	}
	if r.CriticalSince() != 0 {
		text += fmt.Sprintf(" critical since %d", r.CriticalSince())
	}
	return text
}

// queries are what a script can ask for, in the order in which a golden state shows them.
var queries = []string{"meta", "services", "instances", "sessions", "leases", "locks", "members", "clients"}

func (s *script) query(what string) {
	s.t.Helper()
	st := s.st
	switch what {
	case "instances":
		st.Services("", "", func(svc *fsm.Service) bool {
			svc.Ascend("", func(r *fsm.Record) bool { s.printf("%s", recordText(s.t, r)); return true })
			return true
		})
	case "services":
		st.Services("", "", func(svc *fsm.Service) bool {
			s.printf("%s/%s revision %d %+v", svc.Namespace(), svc.Name(), svc.Revision(), svc.Counts())
			return true
		})
	case "sessions":
		st.Sessions("", func(x *fsm.Session) bool {
			s.printf("%s client %q ttl %d created %d opened %d: %d instances, %d locks%s%s",
				x.ID(), x.ClientName, x.TTLMs, x.CreateRevision, x.OpenedUnixMs, x.Proto(st).GetInstances(), x.Proto(st).GetLocks(),
				ownerText(x.Owner), termsText(x, st))
			return true
		})
	case "leases":
		st.Leases("", func(x *fsm.Lease) bool {
			s.printf("%s session %q ttl %d created %d: %d instances%s",
				x.ID(), x.SessionID(), x.TTLMs, x.CreateRevision, x.Proto(st).GetInstances(), ownerText(x.Owner))
			return true
		})
	case "locks":
		st.Locks("", "", func(x *fsm.Lock) bool {
			s.printf("%s/%s owner %s token %d since %d value %q waiting %q",
				x.Namespace, x.Name, x.SessionID, x.Token, x.AcquireRevision, x.Value, x.Waiters)
			for _, o := range x.Others {
				s.printf("  and %s token %d since %d value %q", o.SessionID, o.Token, o.AcquireRevision, o.Value)
			}
			return true
		})
	case "members":
		for _, x := range st.Members() {
			s.printf("%s %s", x.GetId(), x.GetName())
		}
	case "clients":
		for _, x := range fsm.Clients(st) {
			s.printf("%s last %d answered below %d remembers %d", x.ID, x.Last, x.AnsweredBelow, x.Sequences)
		}
	case "access":
		for _, line := range accessOf(st) {
			s.printf("%s", line)
		}
	case "namespaces":
		for _, line := range namespacesOf(st) {
			s.printf("%s", line)
		}
	case "history":
		for _, line := range historyText(st) {
			s.printf("%s", line)
		}
	case "keys":
		for _, line := range keysOf(st) {
			s.printf("%s", line)
		}
	case "meta":
		s.printf("cluster %q index %d term %d epoch %d revision %d number %d time %d",
			st.ClusterID(), st.Index(), st.Term(), st.Epoch(), st.Revision(), fsm.LastNumber(st), st.Time())
		s.printf("%+v", st.Counts())
	default:
		s.t.Fatalf("unknown query %q", what)
	}
}

// ownerText says whose a session or a lease is, if it is anybody's.
func ownerText(owner string) string {
	if owner == "" {
		return ""
	}
	return ", of " + owner
}

// termsText says what a session says about keys, if it says anything.
func termsText(s *fsm.Session, st *fsm.State) string {
	var text string
	if n := s.Proto(st).GetKeys(); n > 0 {
		text += fmt.Sprintf(", %d keys", n)
	}
	if s.Behavior() == registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE {
		text += ", deletes"
	}
	if s.LockDelayMs() > 0 {
		text += fmt.Sprintf(", lock delay %d", s.LockDelayMs())
	}
	if s.Node() != "" {
		text += ", at " + s.Node()
	}
	return text
}

// stateText is everything that a state shows.
func stateText(t failer, st *fsm.State) string {
	s := &script{machine: &machine{t: t, st: st}}
	s.printf("hash %x", st.Hash())
	s.printf("content hash %x", st.ContentHash())
	s.printf("chain %x", st.Chain())
	for _, what := range queries {
		s.out.WriteString(what + "\n")
		s.query(what)
	}
	if st.AccessRevision() > 0 { // Versions that knew nothing of it have written texts, too.
		s.out.WriteString("access\n")
		s.query("access")
	}
	if _, _, begun := st.HistoryAfter(); begun {
		s.out.WriteString("namespaces\n")
		s.query("namespaces")
		s.out.WriteString("history\n")
		s.query("history")
	}
	if fsm.HasKeyspace(st) {
		s.out.WriteString("keys\n")
		s.query("keys")
	}
	return s.out.String()
}

// golden is the log of a version of the software.
type golden struct {
	name  string
	kinds int // of commands that there were then
}

func (g golden) log() string  { return "testdata/" + g.name + ".log" }
func (g golden) text() string { return "testdata/" + g.name + ".txt" }

// goldens are the logs of all versions, the newest last.
func goldens() []golden { return []golden{{"v1", 16}, {"v2", 24}, {"v3", 26}, {"v4", 27}} }

// TestGoldenLogsReplay holds that the log of each version leads to the state that it led to when it was written. A log is
// never changed: -rewrite makes the newest only, where it is missing.
func TestGoldenLogsReplay(t *testing.T) {
	newest := goldens()[len(goldens())-1]
	if _, err := os.Stat(newest.log()); os.IsNotExist(err) && *rewrite {
		writeGolden(t, newest)
	}
	for _, g := range goldens() {
		t.Run(g.name, func(t *testing.T) { replayGolden(t, g) })
	}
}

func replayGolden(t *testing.T, g golden) {
	t.Helper()
	log, err := os.ReadFile(g.log())
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(g.text())
	if err != nil {
		t.Fatal(err)
	}
	s := fsm.New()
	changed := map[string]int{}
	for _, e := range decodeGolden(t, log) {
		next, result, err := s.Apply(e)
		if err != nil {
			t.Fatal(err)
		}
		countKinds(t, e, result, changed)
		s = next
	}
	audit(t, s)
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(stateText(t, s), "\n")); diff != "" {
		t.Errorf("final state (-want +got):\n%s", diff)
	}
	if len(changed) != g.kinds {
		t.Errorf("the log has an effective command of %d of %d kinds: %v", len(changed), g.kinds, changed)
	}
	if again := restored(t, snapshotOf(t, s)); stateText(t, again) != string(want) {
		t.Errorf("a snapshot of the final state is another state")
	}
}
