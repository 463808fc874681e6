package pods

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

func TestAPodGetsTheEnvironmentOfTheManifest(t *testing.T) {
	m, err := readManifest("../../../../deploy/kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	env, err := m.environment("regd-1", "shop")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"REGD_INSECURE=true", "REGD_NAME=regd-1", "REGD_DATA_DIR=/var/lib/regd/node", "GOMEMLIMIT=1073741824",
		"REGD_ADVERTISE_PEER=regd-1.regd-peers.shop.svc:7401",
	} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is missing of:\n%s", want, strings.Join(env, "\n"))
		}
	}
	c := m.container()
	if !slices.Equal(c.Args, []string{"serve"}) || c.VolumeMounts[0].MountPath != "/var/lib/regd" ||
		c.ReadinessProbe.HTTPGet.Path != "/readyz" || c.ReadinessProbe.period() <= 0 || c.ReadinessProbe.timeout() <= 0 ||
		c.StartupProbe.FailureThreshold <= 0 || m.Spec.Template.Spec.TerminationGracePeriodSeconds <= 0 {
		t.Errorf("read of the manifest: %+v", m)
	}
}

func TestAProbeFailsAfterItsThresholdAndPassesAtOnce(t *testing.T) {
	v := newVerdict(probe{FailureThreshold: 2}, false)
	var got []bool
	for _, ok := range []bool{false, true, false, true, false, false, false, true} {
		got = append(got, v.take(ok))
	}
	if want := []bool{false, true, true, true, true, false, false, true}; !slices.Equal(got, want) {
		t.Errorf("verdicts %v, want %v", got, want)
	}
}

func TestANameStandsForThePodThatHasItNow(t *testing.T) {
	n := &names{known: map[string]netip.Addr{}}
	ask := func() dnsmessage.Message {
		t.Helper()
		q := dnsmessage.Message{Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName("Regd-0.regd-peers.regd.svc.cluster.local."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
		}}}
		packed, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		var answer dnsmessage.Message
		if err := answer.Unpack(n.answer(packed)); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	if got := ask().RCode; got != dnsmessage.RCodeNameError {
		t.Errorf("before it runs: %v", got)
	}
	for _, addr := range []string{"10.0.0.1", "10.0.0.2"} {
		n.set("regd-0.regd-peers.regd.svc.cluster.local", netip.MustParseAddr(addr))
		if got := ask().Answers; len(got) != 1 || net.IP(got[0].Body.(*dnsmessage.AResource).A[:]).String() != addr {
			t.Errorf("answers %v, want %s", got, addr)
		}
	}
	if n.answer([]byte("no question")) != nil {
		t.Error("what is no question was answered")
	}
}

// A pod that runs something else than regd is never ready, and Create gives a new address each time.
func TestPodsHaveTheirNamesAndPlaces(t *testing.T) {
	nodes.Alone(t)
	nodes.Require(t, Probe())
	s := New(t, "/bin/sleep", "../../../../deploy/kubernetes")
	s.m.container().Args = []string{"60"}
	s.m.container().StartupProbe.FailureThreshold = 1000 // It is asked in vain.
	s.Create(t, 0)
	first := s.Addr(0)
	s.Wait(t, "the pod to be set up", 10*time.Second, func() bool {
		out, err := s.pod(0).command(t.Context(), nil, "true")
		return err == nil && out.Run() == nil
	})
	if s.Ready(0) || len(s.endpoints()) > 0 {
		t.Error("a pod that answers no probe is ready")
	}
	s.Delete(t, 0)
	s.Create(t, 0)
	if s.Addr(0) == first {
		t.Errorf("the pod has its old address %v", first)
	}
}
