package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func ExampleNew() {
	c, err := client.New([]string{"n1:7400", "n2:7400", "n3:7400"},
		client.WithName("payment"),
		client.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))),
	)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
}

func ExampleClient_Register() {
	ctx := context.Background()
	c, err := client.New([]string{"n1:7400"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	reg, err := c.Register(ctx, &registryv1.Instance{
		Service: "payment", Id: "payment-1", Address: "10.0.0.7",
		Ports: []*registryv1.Port{{Name: "http", Number: 8080}},
		Tags:  []string{"v2"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	go func() {
		for state := range reg.States(ctx) {
			fmt.Println(reg.Key(), state)
		}
	}()

	// ... serve ...

	telling, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	departure, err := reg.Leave(telling) // consumers send nothing new
	if err != nil {
		fmt.Println(err)
	}
	if departure.Err != nil {
		fmt.Println("some may not know yet:", departure.Err)
	}
	// ... finish what is under way ...
}

func ExampleClient_Instances() {
	c, err := client.New([]string{"n1:7400"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	result, err := c.Instances(context.Background(),
		client.Filter{Service: "payment", MinHealth: registryv1.Health_HEALTH_WARNING}, client.Bounded(5*time.Second))
	var unreachable *client.UnreachableError
	switch {
	case errors.As(err, &unreachable):
		for _, attempt := range unreachable.Attempts {
			fmt.Println(attempt.Address, attempt.Err)
		}
	case err != nil:
		fmt.Println(err)
	default:
		fmt.Println(len(result.Instances), "instances, at most", result.Staleness, "old")
	}
}

func ExampleClient_Watch() {
	c, err := client.New([]string{"n1:7400"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	ctx := context.Background()
	w, err := c.Watch(ctx, client.Filter{Service: "payment"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer w.Close()
	instances := make(map[client.Key]*registryv1.Instance)
	for change, err := range w.All(ctx) {
		if err != nil {
			fmt.Println(err)
			return
		}
		switch change.Kind {
		case client.ChangePut:
			instances[change.Key] = change.Instance
		case client.ChangeDelete:
			delete(instances, change.Key)
		case client.ChangeSynced:
			fmt.Println(len(instances), "instances at revision", change.Revision)
		}
	}
}

func ExampleClient_Lock() {
	c, err := client.New([]string{"n1:7400"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	ctx := context.Background()
	leader, err := c.Lock(ctx, "billing/leader", client.LockValue([]byte("10.0.0.7:8080")))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() {
		if err := leader.Unlock(ctx); err != nil {
			fmt.Println(err)
		}
	}()
	// Work under the lock's context, which ends when ownership is in doubt, and hand the token to what is written to.
	lead(leader.Context(), leader.Token())
}

func ExampleClient_Semaphore() {
	c, err := client.New([]string{"n1:7400"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	ctx := context.Background()
	slot, err := c.Semaphore(ctx, "heavy-report", 3) // three processes at a time
	if err != nil {
		fmt.Println(err)
		return
	}
	defer slot.Unlock(ctx) //nolint:errcheck // The client goes on trying.
	lead(slot.Context(), slot.Token())
}

func lead(context.Context, uint64) {}
