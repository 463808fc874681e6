package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/election"
	"github.com/regd-io/regd/client/lifecycle"
	"github.com/regd-io/regd/client/regdgrpc"
	"github.com/regd-io/regd/client/regdhttp"
	"github.com/regd-io/regd/client/regdotel"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// The bodies of these functions are the Go code of docs/client.md and docs/migrate-client.md: change both, a test compares
// them. What stands in for an application (work, show, update) is a parameter.

func Connect(work func(*client.Client, *discovery.Discovery) error) error {
	c, err := client.New([]string{"n1:7400", "n2:7400", "n3:7400"}, client.WithName("shop"))
	if err != nil {
		return err
	}
	defer c.Close()
	d, err := discovery.New(c, discovery.WithFile("/var/cache/shop/discovery"))
	if err != nil {
		return err
	}
	defer d.Close()
	return work(c, d)
}

func Register(ctx context.Context, c *client.Client, serve func(context.Context) error) error {
	reg, err := c.Register(ctx, &registryv1.Instance{
		Service: "payment", Id: "payment-1", Address: "10.0.0.7", Zone: "eu-west-1a",
		Ports: []*registryv1.Port{{Name: "http", Number: 8080}}, Tags: []string{"v2"},
	})
	if err != nil {
		return err
	}
	err = serve(ctx)
	// ctx may have ended: leaving has a time of its own.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, leaveErr := reg.Leave(ctx)
	return errors.Join(err, leaveErr)
}

func RegisterWithTTLCheck(ctx context.Context, c *client.Client) (*client.Registration, error) {
	reg, err := c.Register(ctx, &registryv1.Instance{
		Service: "payment", Id: "payment-1", Address: "10.0.0.7",
		Ports: []*registryv1.Port{{Name: "http", Number: 8080}},
		Checks: []*registryv1.Check{{
			Name: "queue",
			Kind: &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(30 * time.Second)}},
		}},
		DeregisterCriticalAfter: durationpb.New(10 * time.Minute),
	})
	if err != nil {
		return nil, err
	}
	// And again at least every 30 s.
	return reg, reg.SetHealth(ctx, "queue", registryv1.CheckStatus_CHECK_STATUS_PASSING, "17 jobs wait")
}

func Serve(ctx context.Context, c *client.Client, mux *http.ServeMux, listener net.Listener) error {
	ready := new(lifecycle.Readiness)
	mux.Handle("/readyz", ready)
	return lifecycle.Run(ctx, lifecycle.Config{
		Servers:   []lifecycle.Server{lifecycle.HTTP("http", &http.Server{Handler: mux}, listener)},
		Register:  lifecycle.Register(c, &registryv1.Instance{Service: "payment", Id: "payment-1", Address: "10.0.0.7"}),
		Readiness: ready,
	})
}

func List(ctx context.Context, c *client.Client) ([]*registryv1.Instance, error) {
	result, err := c.Instances(ctx, client.Filter{
		Service: "payment", Tags: []string{"v2"}, MinHealth: registryv1.Health_HEALTH_WARNING,
	}, client.Bounded(5*time.Second))
	if err != nil {
		return nil, err
	}
	return result.Instances, nil
}

func Discover(ctx context.Context, d *discovery.Discovery) ([]*registryv1.Instance, error) {
	payment, err := d.Service("payment") // keep it: while it is open the service is watched
	if err != nil {
		return nil, err
	}
	defer payment.Close()
	return payment.Healthy(ctx) // for each call: it is answered from memory
}

func Follow(ctx context.Context, payment *discovery.Service, balancer *balance.Balancer) error {
	for view, err := range payment.All(ctx) {
		if err != nil {
			return err
		}
		balancer.Update(view.Instances)
	}
	return nil
}

func Choose(ctx context.Context, balancer *balance.Balancer, call func(ctx context.Context, address string) error) error {
	pick, err := balancer.Pick(balance.Request{})
	if err != nil {
		return err
	}
	address, err := balance.HostPort(pick.Instance(), "http")
	if err != nil {
		pick.Done(balance.Neutral)
		return err
	}
	err = call(ctx, address)
	pick.Done(balance.OutcomeOf(err))
	return err
}

func NewBalancer() (*balance.Balancer, error) {
	return balance.New(
		balance.Local("eu-west", "eu-west-1a", balance.LeastRequests()),
		balance.WithBreaker(balance.Breaker{}), balance.WithEjection(balance.Ejection{}),
	)
}

func NewTransport(d *discovery.Discovery) (*regdhttp.Transport, error) {
	return regdhttp.New(d, regdhttp.WithBalancing(
		balance.Local("eu-west", "eu-west-1a", balance.LeastRequests()),
		balance.WithBreaker(balance.Breaker{}), balance.WithEjection(balance.Ejection{}),
	))
}

func CallHTTP(transport *regdhttp.Transport, w io.Writer) error {
	web := &http.Client{Transport: transport, Timeout: 5 * time.Second} // one for the process
	resp, err := web.Get("http://payment.service/v1/charges/17")
	if err != nil {
		return err
	}
	defer resp.Body.Close() // the call is in flight until then
	_, err = io.Copy(w, resp.Body)
	return err
}

func DialGRPC(d *discovery.Discovery, creds credentials.TransportCredentials) (*grpc.ClientConn, error) {
	return grpc.NewClient("regd:///payment?port=grpc",
		grpc.WithResolvers(regdgrpc.NewBuilder(d)),
		grpc.WithDefaultServiceConfig(regdgrpc.Config{Zone: "eu-west-1a", Ejection: &regdgrpc.Ejection{}}.ServiceConfig()),
		grpc.WithTransportCredentials(creds))
}

func Watch(ctx context.Context, c *client.Client, show func(instances int, revision uint64)) error {
	w, err := c.Watch(ctx, client.Filter{Service: "payment"})
	if err != nil {
		return err
	}
	defer w.Close()
	instances := make(map[client.Key]*registryv1.Instance)
	for change, err := range w.All(ctx) {
		if err != nil {
			return err
		}
		switch change.Kind {
		case client.ChangePut:
			instances[change.Key] = change.Instance
		case client.ChangeDelete:
			delete(instances, change.Key)
		case client.ChangeSynced: // what is in the map is the registry at this revision
			show(len(instances), change.Revision)
		}
	}
	return nil
}

func WatchAll(ctx context.Context, c *client.Client, handle func(client.Change)) error {
	w, err := c.Watch(ctx, client.Filter{Namespace: client.AllNamespaces, Tags: []string{"v2"}})
	if err != nil {
		return err
	}
	defer w.Close()
	for change, err := range w.All(ctx) {
		if err != nil {
			return err
		}
		handle(change)
	}
	return nil
}

func Resume(ctx context.Context, c *client.Client, point client.ResumePoint, known []*registryv1.Instance) (*client.Watch, error) {
	return c.Watch(ctx, client.Filter{Service: "payment"}, client.WatchFrom(point, known))
}

func Lock(ctx context.Context, c *client.Client, report func(ctx context.Context, token uint64) error) error {
	lock, err := c.Lock(ctx, "nightly-report", client.LockValue([]byte("10.0.0.7")))
	if err != nil {
		return err
	}
	err = report(lock.Context(), lock.Token())
	return errors.Join(err, lock.Unlock(ctx))
}

func Semaphore(ctx context.Context, c *client.Client, report func(ctx context.Context, token uint64) error) error {
	slot, err := c.Semaphore(ctx, "heavy-report", 3) // three processes at a time
	if err != nil {
		return err
	}
	err = report(slot.Context(), slot.Token())
	return errors.Join(err, slot.Unlock(ctx))
}

func Elect(ctx context.Context, c *client.Client, schedule func(ctx context.Context, token uint64) error) error {
	return election.New(c, "billing/scheduler").Run(ctx, []byte("10.0.0.7:8080"),
		func(ctx context.Context, l *election.Leadership) error { return schedule(ctx, l.Token()) })
}

func Observe(ctx context.Context, c *client.Client, show func(address string)) error {
	for leader, err := range election.New(c, "billing/scheduler").Observe(ctx) {
		if err != nil {
			return err
		}
		if leader.Elected() {
			show(string(leader.Value))
		}
	}
	return nil
}

func Telemetry(endpoints []string, work func(*client.Client, *discovery.Discovery, *regdhttp.Transport) error) error {
	telemetry, err := regdotel.New() // of otel's global providers and propagator, which the application sets
	if err != nil {
		return err
	}
	defer telemetry.Close()
	c, err := client.New(endpoints, client.WithTracer(telemetry))
	if err != nil {
		return err
	}
	defer c.Close()
	d, err := discovery.New(c, discovery.WithTracer(telemetry))
	if err != nil {
		return err
	}
	defer d.Close()
	web, err := regdhttp.New(d, regdhttp.WithTracer(telemetry))
	if err != nil {
		return err
	}
	defer web.Close()
	telemetry.ObserveClient(c)
	telemetry.ObserveDiscovery(d)
	telemetry.ObserveHTTP(web)
	return work(c, d, web)
}

func Explain(err error) string {
	var unreachable *client.UnreachableError
	var refused *client.Error
	switch {
	case errors.Is(err, client.ErrInstanceNotFound):
		return "it is not registered"
	case errors.Is(err, client.ErrOutcomeUnknown):
		return "it may have been done: look before you decide anew"
	case errors.As(err, &unreachable):
		return fmt.Sprintf("%d nodes were asked in vain: %v", len(unreachable.Attempts), unreachable.Attempts)
	case errors.As(err, &refused):
		return fmt.Sprintf("%v; faults in fields: %v", refused.Reason, refused.Violations)
	default:
		return err.Error()
	}
}
