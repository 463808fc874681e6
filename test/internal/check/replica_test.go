package check_test

import (
	"testing"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	"github.com/regd-io/regd/test/internal/check"
)

func TestReplicaSeesEachBrokenRule(t *testing.T) {
	verified := func(w *world) *apiv1.VerifyResponse { return w.nth("Verify", 0).Response.(*apiv1.VerifyResponse) }
	for _, tt := range []struct {
		name  string
		rules []string
		spoil func(*world)
	}{
		{"two entries at one index", []string{"replica-clash"}, func(w *world) { w.log.Add("n2", 1, 1, []byte("other")) }},
		{"another state", []string{"replica-hash"}, func(w *world) {
			verified(w).Replicas[1].StateHash[0]++ // They share it: all differ from the log alike.
		}},
		{"another chain", []string{"replica-hash"}, func(w *world) { verified(w).Replicas[0].Chain[0]++ }},
		{"another revision", []string{"replica-hash"}, func(w *world) { verified(w).Replicas[2].Revision++ }},
		{"unequal, and said to be equal", []string{"replica-equal", "replica-hash"}, func(w *world) {
			verified(w).Replicas[1].StateHash = []byte("other")
		}},
		{"no answer, and said to be equal", []string{"replica-equal"}, func(w *world) {
			verified(w).Replicas[1] = &apiv1.ReplicaState{Node: "n2", Problem: "down"}
		}},
		{"equal, and said not to be", []string{"replica-equal"}, func(w *world) { verified(w).Equal = false }},
		{"a list that does not show the end", []string{"replica-final"}, func(w *world) {
			w.nth("ListInstances", 4).Header().Revision--
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := story(t)
			tt.spoil(w)
			found, _ := check.Replica(w.judged())
			expect(t, found, tt.rules...)
		})
	}
}

func TestModelSeesAStateMachineThatDiffers(t *testing.T) {
	outcome := story(t).judged()
	expect(t, check.Model(outcome))
	outcome.Timeline.Steps()[3].Result.Outcomes[0].Number++
	expect(t, check.Model(outcome), "model")

	content := story(t).judged()
	steps := content.Timeline.Steps()
	steps[len(steps)-1].State = steps[3].State
	found := check.Model(content)
	expect(t, found, "model")
}
