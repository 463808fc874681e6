package balance_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/regd-io/regd/client/balance"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// payment returns a healthy instance of a service.
func payment(id, zone, version string) *registryv1.Instance {
	return &registryv1.Instance{
		Namespace: "default", Service: "payment", Id: id, Address: id + ".example.org", Region: "eu-west", Zone: zone,
		Ports:    []*registryv1.Port{{Name: "http", Number: 8080}},
		Metadata: map[string]string{"version": version}, Health: registryv1.Health_HEALTH_PASSING,
	}
}

func Example() {
	b, err := balance.New(balance.LeastRequests(), balance.WithEjection(balance.Ejection{}))
	if err != nil {
		fmt.Println(err)
		return
	}
	b.Update([]*registryv1.Instance{payment("a", "eu-west-1a", "1")})

	pick, err := b.Pick(balance.Request{})
	if err != nil {
		fmt.Println(err)
		return
	}
	address, err := balance.HostPort(pick.Instance(), "http")
	if err != nil {
		pick.Done(balance.Neutral)
		fmt.Println(err)
		return
	}
	fmt.Println("call", address)
	pick.Done(balance.OutcomeOf(nil)) // what the call returned
	// Output: call a.example.org:8080
}

// A call that failed is tried on another instance.
func ExampleAvoid() {
	b, _ := balance.New(balance.RoundRobin())
	b.Update([]*registryv1.Instance{payment("a", "", "1"), payment("b", "", "1"), payment("c", "", "1")})
	tried := map[string]bool{}

	var request balance.Request
	for range 3 {
		pick, err := b.Pick(request)
		if err != nil {
			fmt.Println(err)
			return
		}
		tried[pick.Instance().GetId()] = true
		pick.Done(balance.OutcomeOf(errors.New("connection refused")))
		request.Avoid.Add(pick)
	}
	fmt.Println(len(tried), "different instances")
	// Output: 3 different instances
}

// All calls about one user go to one instance, as long as that is there.
func ExampleRendezvous() {
	b, _ := balance.New(balance.Rendezvous())
	b.Update([]*registryv1.Instance{payment("a", "", "1"), payment("b", "", "1"), payment("c", "", "1")})

	request := balance.Request{Hash: balance.Hash("user-17")}
	seen := map[string]bool{}
	for range 100 {
		pick, err := b.Pick(request)
		if err != nil {
			fmt.Println(err)
			return
		}
		seen[pick.Instance().GetId()] = true
		pick.Done(balance.Success)
	}
	fmt.Println(len(seen), "instance")
	// Output: 1 instance
}

// What would be picked, and why.
func ExampleBalancer_Explain() {
	b, _ := balance.New(balance.Local("eu-west", "eu-west-1a",
		balance.Split(0.1, balance.HasMetadata("version", "2"), balance.RoundRobin())))
	draining := payment("d", "eu-west-1a", "1")
	draining.Draining = true
	b.Update([]*registryv1.Instance{
		payment("a", "eu-west-1a", "1"), payment("b", "eu-west-1a", "2"), payment("c", "eu-west-1b", "1"), draining,
	})

	explanation := b.Explain(balance.Request{})
	fmt.Println(explanation.Policy)
	for _, s := range explanation.Instances {
		fmt.Printf("%s %.0f%% %v\n", s.Instance.GetId(), 100*s.Share, s.Reason)
	}
	// Output:
	// local(eu-west/eu-west-1a, split(10% to metadata version="2", round robin))
	// a 84% none
	// b 9% none
	// c 7% none
	// d 0% draining
}

// Cancellations by the caller say nothing of the instance.
func ExampleOutcomeOf() {
	fmt.Println(balance.OutcomeOf(nil) == balance.Success, balance.OutcomeOf(context.Canceled) == balance.Neutral,
		balance.OutcomeOf(context.DeadlineExceeded) == balance.Failure)
	// Output: true true true
}
