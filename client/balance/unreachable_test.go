package balance

import "testing"

// TestUnreachableInstanceIsEjectedAtOnce: one call is enough, but never for the last instance.
func TestUnreachableInstanceIsEjectedAtOnce(t *testing.T) {
	b := balancer(t, RoundRobin(), fleet(3, false), WithEjection(Ejection{MaxShare: 1}))
	seen := make(map[string]int)
	for range 100 {
		pick, err := b.Pick(Request{})
		if err != nil {
			t.Fatal(err)
		}
		id := pick.Instance().GetId()
		seen[id]++
		if id == "payment-2" {
			pick.Done(Success)
		} else {
			pick.Done(Unreachable)
		}
	}
	if seen["payment-0"] != 1 || seen["payment-1"] != 1 {
		t.Errorf("picked %v: want those that can't be reached once each", seen)
	}
	for _, s := range b.Stats() {
		if s.Instance.GetId() != "payment-2" && (s.Reason != ReasonEjected || s.Calls != 1 || s.Failures != 1) {
			t.Errorf("%+v: want it ejected after one failure", s)
		}
	}
	for range 3 {
		pick, err := b.Pick(Request{})
		if err != nil || pick.Instance().GetId() != "payment-2" {
			t.Fatalf("got %v, %v: the last one has to stay", pick.Instance(), err)
		}
		pick.Done(Unreachable)
	}
}
