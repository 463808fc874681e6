package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// registerFlags say what is registered.
type registerFlags struct {
	namespace, id, address, zone, region string
	ports, tags, metadata                []string
	weight                               uint32
	checkHTTP, checkTCP, checkGRPC       []string
	checkInterval, checkTimeout          time.Duration
	checkRise, checkFall                 uint32
	ttl, deregisterAfter                 time.Duration
	detach, ifAbsent, ttlGiven           bool
	drainTimeout, drainTime, stopTimeout time.Duration
}

func newRegisterCmd(a *app) *cobra.Command {
	f := &registerFlags{}
	cmd := &cobra.Command{
		Use:   "register SERVICE [flags] [-- COMMAND [ARG...]]",
		Short: "Register an instance, and keep it registered.",
		Example: `  # Until Ctrl-C; the registry asks http://HOST:8080/health every 10 s.
  regd register web --port 8080 --check-http /health

  # While a command runs. On SIGTERM all who watch the service are told before it is stopped.
  regd register web --port 8080 -- ./server --listen :8080

  # Something that can't hold a session: it stays until it is deregistered, and is critical when its port is closed.
  regd register db --id db-1 --address 10.0.0.5 --port 5432 --check-tcp 10.0.0.5:5432 --detach`,
		Long: `In the foreground, the instance hangs on a session that this process keeps alive: it is removed when the process ends,
and at the latest --ttl after its last sign of life. Lost connections and new leaders are no end of it.

With a COMMAND, regd exits with the command's exit code. On SIGTERM and SIGINT the instance is draining until all
who watch the service have been told, for --drain-timeout at most, and deregistered; then the signal goes to the command,
which is killed after --stop-timeout. Other signals go to the command at once.

With --detach the instance has no session. --ttl then adds a check that turns critical after so long without a report
by  regd report.`,
		Args: func(cmd *cobra.Command, args []string) error {
			own, _ := splitCommand(cmd, args)
			return arguments("SERVICE")(cmd, own)
		},
	}
	f.add(cmd)
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML, formatName)
	conn := a.addConnection(cmd)
	addNamespace(cmd, &f.namespace, "namespace of the instance")
	cmd.ValidArgsFunction = conn.completeServices
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		own, command := splitCommand(cmd, args)
		f.ttlGiven = cmd.Flags().Changed("ttl")
		instance, err := f.instance(own[0])
		if err != nil {
			return err
		}
		if instance.GetAddress() == "" {
			instance.Address = ownAddress(conn.addresses())
		}
		switch {
		case f.detach && len(command) > 0:
			return usageErrorf("--detach and a command exclude each other: the command's end is what ends the registration")
		case f.detach:
			return f.registerDetached(cmd, conn, out, instance)
		}
		return f.registerHere(cmd, conn, out, instance, command)
	}
	return cmd
}

// splitCommand separates the arguments before -- from the command behind it.
func splitCommand(cmd *cobra.Command, args []string) (own, command []string) {
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		return args[:dash], args[dash:]
	}
	return args, nil
}

func (f *registerFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.id, "id", "", "`id`, unique within the service; default: the host name and the first port")
	fs.StringVar(&f.address, "address", "", "`host` under which others reach it; default: this machine's address on the way to the cluster")
	fs.StringArrayVarP(&f.ports, "port", "p", nil, "`[name=]number` of a port; repeatable")
	fs.StringArrayVar(&f.tags, "tag", nil, "`tag`; repeatable")
	fs.StringArrayVar(&f.metadata, "meta", nil, "metadata as `key=value`; repeatable")
	fs.StringVar(&f.zone, "zone", "", "`zone` (failure domain)")
	fs.StringVar(&f.region, "region", "", "`region`")
	fs.Uint32Var(&f.weight, "weight", 100, "share of traffic, 1 to 65535")
	fs.StringArrayVar(&f.checkHTTP, "check-http", nil, "check by HTTP: a `url`, or a /path on the first port; repeatable")
	fs.StringArrayVar(&f.checkTCP, "check-tcp", nil, "check by connecting: a `host:port`, or the name of a port; repeatable")
	fs.StringArrayVar(&f.checkGRPC, "check-grpc", nil, "check by gRPC health: a `host:port` or the name of a port, with /service if wanted; repeatable")
	fs.DurationVar(&f.checkInterval, "check-interval", 10*time.Second, "time between checks, at least 1s")
	fs.DurationVar(&f.checkTimeout, "check-timeout", 5*time.Second, "time for one check, at most the interval")
	fs.Uint32Var(&f.checkRise, "check-rise", 1, "successes in a row that make it passing")
	fs.Uint32Var(&f.checkFall, "check-fall", 3, "failures in a row that make it critical")
	fs.DurationVar(&f.deregisterAfter, "deregister-critical-after", 0, "remove it once critical for so long, at least 10s; 0: never")
	fs.DurationVar(&f.ttl, "ttl", 15*time.Second, "how long it survives this process's silence, 2s to 24h")
	fs.BoolVar(&f.ifAbsent, "if-absent", false, "fail if somebody else has this id, instead of taking it over")
	fs.BoolVar(&f.detach, "detach", false, "register and return: it stays until it is deregistered")
	fs.DurationVar(&f.drainTimeout, "drain-timeout", 5*time.Second, "how long it waits until all who watch have been told, before the command is stopped")
	fs.DurationVar(&f.drainTime, "drain-time", 0, "how long the command goes on at least, for those who do not watch")
	fs.DurationVar(&f.stopTimeout, "stop-timeout", 10*time.Second, "how long the command may take to stop before it is killed")
}

// instance makes the specification. The registry checks it; here only what is written another way is read.
func (f *registerFlags) instance(service string) (*registryv1.Instance, error) {
	metadata, err := keyValues("--meta", f.metadata)
	if err != nil {
		return nil, err
	}
	ports, err := parsePorts(f.ports)
	if err != nil {
		return nil, err
	}
	i := &registryv1.Instance{
		Namespace: f.namespace, Service: service, Id: f.id, Address: f.address, Ports: ports, Tags: f.tags,
		Metadata: metadata, Zone: f.zone, Region: f.region, Weight: f.weight,
	}
	if i.GetId() == "" {
		i.Id = defaultID(ports)
	}
	if f.deregisterAfter > 0 {
		i.DeregisterCriticalAfter = durationpb.New(f.deregisterAfter)
	}
	i.Checks, err = f.checks(ports)
	return i, err
}

// parsePorts reads [name=]number.
func parsePorts(texts []string) ([]*registryv1.Port, error) {
	var ports []*registryv1.Port
	for _, text := range texts {
		name, number, named := strings.Cut(text, "=")
		if !named {
			name, number = "main", text
			if len(texts) > 1 {
				name = "port-" + number
			}
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 {
			return nil, usageErrorf("--port %q: must be a number from 1 to 65535, or name=number", text)
		}
		ports = append(ports, &registryv1.Port{Name: name, Number: uint32(n)})
	}
	return ports, nil
}

// ownAddress is the address from which this machine talks to the cluster: on a machine with several, the one that is on
// the way there.
func ownAddress(endpoints []string) string {
	for _, e := range endpoints {
		conn, err := net.Dial("udp", e) //nolint:noctx // Nothing is sent: the system only chooses a route.
		if err != nil {
			continue
		}
		conn.Close()
		if at, ok := conn.LocalAddr().(*net.UDPAddr); ok {
			return at.IP.String()
		}
	}
	return "127.0.0.1"
}

// defaultID tells the instances of a service on one machine apart by their port.
func defaultID(ports []*registryv1.Port) string {
	id, err := os.Hostname()
	if err != nil {
		id = "instance"
	}
	if len(ports) > 0 {
		id += fmt.Sprintf("-%d", ports[0].GetNumber())
	}
	return id
}

func (f *registerFlags) checks(ports []*registryv1.Port) ([]*registryv1.Check, error) {
	var checks []*registryv1.Check
	add := func(kind string, c *registryv1.Check) {
		c.Name = kind
		for n := 2; hasCheck(checks, c.GetName()); n++ {
			c.Name = fmt.Sprintf("%s-%d", kind, n)
		}
		checks = append(checks, c)
	}
	probe := func(kind string, c *registryv1.Check) {
		c.Interval, c.Timeout = durationpb.New(f.checkInterval), durationpb.New(min(f.checkTimeout, f.checkInterval))
		c.Rise, c.Fall = f.checkRise, f.checkFall
		add(kind, c)
	}
	for _, target := range f.checkHTTP {
		h := &registryv1.HTTPCheck{Path: target}
		if !strings.HasPrefix(target, "/") {
			if u, err := url.Parse(target); err != nil || u.Host == "" {
				return nil, usageErrorf("--check-http %q: must be a URL such as http://host:port/path, or a /path", target)
			}
			h = &registryv1.HTTPCheck{Url: target}
		} else if len(ports) == 0 {
			return nil, usageErrorf("--check-http %s: a path needs a --port to ask", target)
		}
		probe("http", &registryv1.Check{Kind: &registryv1.Check_Http{Http: h}})
	}
	for _, target := range f.checkTCP {
		t := &registryv1.TCPCheck{}
		t.Address, t.Port = addressOrPort(target)
		probe("tcp", &registryv1.Check{Kind: &registryv1.Check_Tcp{Tcp: t}})
	}
	for _, target := range f.checkGRPC {
		where, service, _ := strings.Cut(target, "/")
		g := &registryv1.GRPCCheck{Service: service}
		g.Address, g.Port = addressOrPort(where)
		probe("grpc", &registryv1.Check{Kind: &registryv1.Check_Grpc{Grpc: g}})
	}
	if f.detach && f.ttlGiven {
		add("ttl", &registryv1.Check{Kind: &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(f.ttl)}}})
	}
	return checks, nil
}

func hasCheck(checks []*registryv1.Check, name string) bool {
	for _, c := range checks {
		if c.GetName() == name {
			return true
		}
	}
	return false
}

// addressOrPort tells host:port from the name of a port.
func addressOrPort(target string) (address, port string) {
	if strings.Contains(target, ":") {
		return target, ""
	}
	return "", target
}

func (f *registerFlags) options() []client.RegisterOption {
	if f.ifAbsent {
		return []client.RegisterOption{client.IfAbsent()}
	}
	return nil
}

// registerDetached registers and returns.
func (f *registerFlags) registerDetached(cmd *cobra.Command, conn *connection, out *output, instance *registryv1.Instance) error {
	return conn.call(cmd, func(ctx context.Context, cl *client.Client) error {
		d, err := cl.RegisterDetached(ctx, instance, f.options()...)
		if err != nil {
			return err
		}
		return out.done(change{
			Name: instanceName(d.Key), Result: "registered", Changed: d.Changed, Revision: d.Revision, Incarnation: d.Incarnation,
		})
	})
}

// registerHere keeps the instance registered until ctx ends, or while a command runs.
func (f *registerFlags) registerHere(
	cmd *cobra.Command, conn *connection, out *output, instance *registryv1.Instance, command []string,
) error {
	cl, err := conn.dial(client.WithSessionTTL(f.ttl))
	if err != nil {
		return err
	}
	defer cl.Close() //nolint:errcheck // Deregistering comes first; a session that is left behind ends by its TTL.
	if len(command) > 0 {
		return f.runRegistered(cmd, conn, cl, instance, command)
	}
	ctx, cancel := conn.bounded(cmd)
	reg, err := cl.Register(ctx, instance, f.options()...)
	cancel()
	if err != nil {
		return err
	}
	if err := out.done(change{
		Name: instanceName(reg.Key()), Result: "registered", Changed: true, Incarnation: reg.Incarnation(),
	}); err != nil {
		return err
	}
	if isTerminal(conn.stderr) {
		conn.note("Ctrl-C deregisters it")
	}
	if err := conn.keep(cmd.Context(), reg); err != nil {
		return err
	}
	return conn.deregister(cmd, reg)
}

// keep waits until ctx ends, and tells what becomes of the registration. It returns an error when it was lost for good.
func (c *connection) keep(ctx context.Context, reg *client.Registration) error {
	name := instanceName(reg.Key())
	lost := false
	for state := range reg.States(ctx) {
		switch {
		case state == client.StateLost:
			lost = true
			c.note("%s: the connection to the registry is lost; registering again as soon as it is back", name)
		case state == client.StateRegistered && lost:
			lost = false
			c.note("%s: registered again", name)
		}
	}
	select {
	case <-ctx.Done():
		return nil // As asked.
	default:
	}
	return fmt.Errorf("%s is no longer registered by this process: %w", name, reg.Err())
}

// deregister removes the instance although the command's context has ended: that is why it is removed.
func (c *connection) deregister(cmd *cobra.Command, reg *client.Registration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), min(c.limit, 5*time.Second))
	defer cancel()
	if err := reg.Deregister(ctx); err != nil {
		return err
	}
	c.note("%s deregistered", instanceName(reg.Key()))
	return nil
}

// leave deregisters the instance once all who watch it have been told, or after a while.
func (c *connection) leave(ctx context.Context, reg *client.Registration, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	name := instanceName(reg.Key())
	d, err := reg.Leave(ctx)
	switch {
	case err != nil:
		c.note("%v; its session ends by itself", err)
	case d.Err != nil:
		c.note("%s deregistered: %v", name, d.Err)
	default:
		told := 0
		for _, n := range d.Delivery.Nodes {
			told += n.Acknowledged + n.Sent
		}
		c.note("%s deregistered; told before: %s", name, plural(told, "client"))
	}
}
