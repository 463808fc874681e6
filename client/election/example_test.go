package election_test

import (
	"context"
	"fmt"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/election"
)

func ExampleElection_Run() {
	ctx := context.Background()
	c, err := client.New([]string{"n1:7400", "n2:7400", "n3:7400"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	// Returns when ctx ends, or when schedule returns though it still leads.
	err = election.New(c, "billing/scheduler").Run(ctx, []byte("10.0.0.7:8080"),
		func(ctx context.Context, l *election.Leadership) error { return schedule(ctx, l.Token()) })
	if err != nil {
		fmt.Println(err)
	}
}

func ExampleElection_Observe() {
	ctx := context.Background()
	c, err := client.New([]string{"n1:7400"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	for leader, err := range election.New(c, "billing/scheduler").Observe(ctx) {
		switch {
		case err != nil:
			fmt.Println(err)
			return
		case leader.Elected():
			fmt.Printf("%s leads, with token %d\n", leader.Value, leader.Token)
		default:
			fmt.Println("nobody leads")
		}
	}
}

func ExampleElection_Campaign() {
	ctx := context.Background()
	c, err := client.New([]string{"n1:7400"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	leadership, err := election.New(c, "billing/scheduler").Campaign(ctx, []byte("10.0.0.7:8080"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer leadership.Resign(ctx) //nolint:errcheck // The client goes on trying.
	if err := schedule(leadership.Context(), leadership.Token()); err != nil {
		fmt.Println(err)
	}
}

// schedule is the work of which one shall be done: until ctx ends, under the token.
func schedule(context.Context, uint64) error { return nil }
