package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func Example() {
	ctx := context.Background()
	c, err := client.New([]string{"n1:7400", "n2:7400", "n3:7400"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	d, err := discovery.New(c,
		discovery.WithFile("/var/cache/shop/discovery"),
		discovery.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))),
	)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	payment, err := d.Service("payment")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer payment.Close()

	instances, err := payment.Healthy(ctx)
	switch {
	case errors.Is(err, discovery.ErrNoSuchService):
		fmt.Println("is its name right?", err)
	case errors.Is(err, discovery.ErrNoneHealthy):
		fmt.Println("try later:", err)
	case err != nil:
		fmt.Println(err)
	default:
		fmt.Println(instances[0].GetAddress())
	}
}

// A balancer is told of every change, and of the last one only when there were several meanwhile.
func ExampleService_All() {
	var d *discovery.Discovery // see the example of the package
	payment, err := d.Service("payment", discovery.InNamespace("prod"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer payment.Close()
	var balancer interface{ Update([]*registryv1.Instance) }
	for view, err := range payment.All(context.Background()) {
		if err != nil {
			fmt.Println(err)
			return
		}
		balancer.Update(view.Instances)
	}
}

// A caller that may act on old news only within limits.
func ExampleWithMaxStale() {
	var c *client.Client
	d, err := discovery.New(c, discovery.WithMaxStale(10*time.Minute))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	payment, err := d.Service("payment")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer payment.Close()
	view, err := payment.View(context.Background())
	if errors.Is(err, discovery.ErrStale) {
		fmt.Println("it was last known to be current", view.Age(), "ago:", view.Instances)
	}
}
