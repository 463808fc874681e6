package health

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/fsm"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// TestVerdictsAreSignedOnceAllMembersKnow holds that who judged, and after how long a silence, is in each verdict that the
// cluster knows to read, and in none that a member would not.
func TestVerdictsAreSignedOnceAllMembersKnow(t *testing.T) {
	t.Parallel()
	for level, want := range map[uint32]string{fsm.AccessLevel: "", fsm.HistoryLevel: "n2"} {
		bubble(t, func(c *Config) { c.Node = "n2" }, func(t *testing.T, w *world) {
			w.do(&raftlogv1.Command{Kind: &raftlogv1.Command_SetMember{SetMember: &raftlogv1.SetMember{
				Member: &registryv1.Member{Id: "id2", Name: "n2", FeatureLevel: level},
			}}})
			w.lead()
			w.openSession("s", ttl)
			w.grantLease("l", 2*ttl)
			w.register("web-1", func(i *registryv1.Instance) { i.DeregisterCriticalAfter = durationpb.New(time.Minute) }, &registryv1.Check{
				Name: "beat", Kind: &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(ttl)}},
				Initial: registryv1.CheckStatus_CHECK_STATUS_PASSING,
			})
			wait(ttl / 2)
			w.renew(renewSession, "s")
			before := len(w.applied(0))
			wait(2 * time.Minute)
			kinds := map[string]bool{}
			for _, c := range w.applied(before) {
				node, silence := "", []uint64(nil)
				switch kind := c.GetKind().(type) {
				case *raftlogv1.Command_Expire:
					node, silence = kind.Expire.GetNode(), append(kind.Expire.GetSessionSilenceMs(), kind.Expire.GetLeaseSilenceMs()...)
					kinds["expire"] = true
				case *raftlogv1.Command_SetCheck:
					node = kind.SetCheck.GetNode()
					kinds["check"] = true
				case *raftlogv1.Command_Deregister:
					node = kind.Deregister.GetNode()
					kinds["deregister"] = true
				}
				if signed := c.GetLevel() == fsm.HistoryLevel; node != want || signed != (want != "") {
					t.Errorf("level %d: %v is signed by %q", level, c, node)
				}
				for _, ms := range silence {
					if d := time.Duration(ms) * time.Millisecond; want == "" || d < ttl || d > 2*ttl+late {
						t.Errorf("level %d: silent for %v", level, d)
					}
				}
				if e := c.GetExpire(); want != "" && len(silence) != len(e.GetSessions())+len(e.GetLeases()) {
					t.Errorf("%v lacks a silence", c)
				}
			}
			if len(kinds) != 3 {
				t.Errorf("level %d: verdicts %v, want all three kinds", level, kinds)
			}
		})
	}
}
