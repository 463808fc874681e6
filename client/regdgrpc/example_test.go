package regdgrpc_test

import (
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdgrpc"
)

func Example() {
	c, err := client.New([]string{"n1:7400", "n2:7400", "n3:7400"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	d, err := discovery.New(c)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()

	conn, err := grpc.NewClient("regd:///payment?namespace=prod",
		grpc.WithResolvers(regdgrpc.NewBuilder(d)),
		grpc.WithDefaultServiceConfig(regdgrpc.Config{Zone: "eu-west-1a", Ejection: &regdgrpc.Ejection{}}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	// Make the generated client of conn.
}

// The policy is one entry of a service config, beside which others, such as retries, find their place.
func ExampleConfig_ServiceConfig() {
	fmt.Println(regdgrpc.Config{
		Policy: "rendezvous", HashHeader: "user-id", Breaker: &regdgrpc.Breaker{OpenTime: regdgrpc.Duration(3 * time.Second)},
	}.ServiceConfig())
	// Output: {"loadBalancingConfig":[{"regd_balance":{"policy":"rendezvous","hashHeader":"user-id","breaker":{"openTime":"3s"}}}]}
}
