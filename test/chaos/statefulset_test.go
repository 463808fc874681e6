package chaos_test

import (
	"context"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/regd-io/regd/test/chaos/internal/nodes"
	"github.com/regd-io/regd/test/chaos/internal/pods"
)

// TestTheStatefulSetLivesThroughWhatKubernetesDoesToIt plays the StatefulSet of deploy/kubernetes, with its environment, its probes,
// its Services and the names of its pods. One after the other: pods come one by one, then all are gone at once and come back
// under other addresses, one comes back with an empty volume, the set grows to five and shrinks to three, and is rolled out
// anew. It stays one cluster, and from the second on no write fails while there is a majority (G1, G9, G11).
func TestTheStatefulSetLivesThroughWhatKubernetesDoesToIt(t *testing.T) {
	nodes.Alone(t)
	nodes.Require(t, pods.Probe())
	set := &statefulSet{Set: pods.New(t, nodes.Binary(t), "../../deploy/kubernetes")}
	if set.Replicas() != 3 || !set.Parallel() {
		t.Fatalf("the manifest wants %d pods, in parallel: %v. The play is for 3, in parallel", set.Replicas(), set.Parallel())
	}
	for _, act := range []struct {
		name string
		play func(*testing.T, *statefulSet)
	}{
		{"pods that come one by one found one cluster", onePodAfterTheOther},
		{"pods that come back elsewhere are the same nodes", newAddresses},
		{"an empty volume founds no second cluster", emptyVolume},
		{"from three to five and back", growAndShrink},
		{"a rollout fails no write", rollout},
	} {
		begun := time.Now()
		if !t.Run(act.name, func(t *testing.T) { act.play(t, set) }) {
			return // The next one needs what this one leaves.
		}
		t.Logf("%s: %v", act.name, time.Since(begun).Round(100*time.Millisecond))
	}
}

// statefulSet is the set, and what it is expected to be.
type statefulSet struct {
	*pods.Set

	cluster string // its id
}

// podReady is how long a pod may take: some seconds, and more where others share the processors.
const podReady = 40 * time.Second

// nodeStatus is a part of what `regd members list -o json` says.
type nodeStatus struct {
	Header struct {
		ClusterID string `json:"cluster_id"`
	}
	Members []member
}

// status asks a pod, as the runbooks do.
func (s *statefulSet) status(t *testing.T, ordinal int) nodeStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := s.Exec(ctx, ordinal, "members", "list", "-o", "json")
	var status nodeStatus
	if err == nil {
		err = json.Unmarshal(out, &status)
	}
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// awaitVoters waits until exactly so many pods, from ordinal 0 on, vote and answer, and checks that it is one cluster still.
func (s *statefulSet) awaitVoters(t *testing.T, want int) {
	t.Helper()
	var status nodeStatus
	s.Wait(t, "voters", podReady, func() bool {
		status = s.status(t, 0)
		for _, m := range status.Members {
			if m.Suffrage != "voter" || !m.Reachable {
				return false
			}
		}
		return len(status.Members) == want
	})
	id := status.Header.ClusterID
	if s.cluster == "" {
		s.cluster = id
	}
	if id == "" || id != s.cluster {
		t.Fatalf("the cluster is %q, and was %q", id, s.cluster)
	}
}

// write loads the set through its Service for clients, until it is judged.
func (s *statefulSet) write(t *testing.T) *writes {
	t.Helper()
	w := load(t, []string{s.Address()}, 4)
	w.rest.Store(int64(20 * time.Millisecond))
	s.progress(t, w)
	return w
}

func (s *statefulSet) progress(t *testing.T, w *writes) {
	t.Helper()
	before := w.count()
	s.Wait(t, "writes to go on", 20*time.Second, func() bool { return w.count() > before+20 })
}

// judge is that of the load, whose client has the Service's address.
func (s *statefulSet) judge(t *testing.T, w *writes) {
	t.Helper()
	w.judge(t, newClient(t, []string{s.Address()}))
}

// onePodAfterTheOther: until the third has come there is no cluster, and none of them is ready.
func onePodAfterTheOther(t *testing.T, set *statefulSet) {
	for ordinal := range 2 {
		set.Create(t, ordinal)
		time.Sleep(2 * time.Second)
	}
	for ordinal := range 2 {
		if set.Ready(ordinal) {
			t.Errorf("pod %d is ready with one of three missing", ordinal)
		}
	}
	set.Create(t, 2)
	set.AwaitReady(t, podReady, 0, 1, 2)
	set.awaitVoters(t, 3)
}

// newAddresses: all are gone at once, without notice, and come back in the wrong order.
func newAddresses(t *testing.T, set *statefulSet) {
	w := set.write(t)
	w.stop()
	var before []netip.Addr
	for ordinal := range 3 {
		before = append(before, set.Addr(ordinal))
	}
	set.Kill(0, 1, 2)
	set.Create(t, 2, 1, 0)
	set.AwaitReady(t, podReady, 0, 1, 2)
	for ordinal, old := range before {
		if set.Addr(ordinal) == old {
			t.Errorf("pod %d has its old address %v: this proves nothing", ordinal, old)
		}
	}
	set.awaitVoters(t, 3)
	set.judge(t, w)
}

// emptyVolume: the first pod, which clients and other pods are likeliest to ask, loses its claim.
func emptyVolume(t *testing.T, set *statefulSet) {
	w := set.write(t)
	set.Delete(t, 0)
	set.DeleteClaim(t, 0)
	set.Create(t, 0)
	set.AwaitReady(t, podReady, 0)
	set.awaitVoters(t, 3)
	set.progress(t, w)
	set.judge(t, w)
}

// growAndShrink does what docs/operations.md says: the number is raised, and nodes are removed before it is lowered, and their
// claims deleted after.
func growAndShrink(t *testing.T, set *statefulSet) {
	w := set.write(t)
	set.Create(t, 3, 4)
	set.AwaitReady(t, podReady, 3, 4)
	set.awaitVoters(t, 5)
	set.progress(t, w)
	for _, name := range []string{"regd-4", "regd-3"} {
		if _, err := set.Exec(t.Context(), 0, "members", "remove", name, "--yes"); err != nil {
			t.Fatal(err)
		}
	}
	set.Delete(t, 4, 3)
	set.DeleteClaim(t, 4)
	set.DeleteClaim(t, 3)
	set.awaitVoters(t, 3)
	set.progress(t, w)
	set.judge(t, w)
}

// rollout replaces each pod, the last ordinal first, once the one before is ready.
func rollout(t *testing.T, set *statefulSet) {
	w := set.write(t)
	for ordinal := 2; ordinal >= 0; ordinal-- {
		set.Delete(t, ordinal)
		set.Create(t, ordinal)
		set.AwaitReady(t, podReady, ordinal)
	}
	set.awaitVoters(t, 3)
	set.progress(t, w)
	set.judge(t, w)
	out, err := set.Exec(t.Context(), 1, "verify")
	if err != nil || !strings.Contains(string(out), "all 3 replicas are the same") {
		t.Errorf("regd verify: %v\n%s", err, out)
	}
}
