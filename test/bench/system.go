package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
)

// nodes is how many processes a cluster has, where nothing else is said.
const nodes = 3

// addresses are where a node listens. All nodes know all.
type addresses struct{ client, peer, metrics string }

// system is a registry that can be measured. The calls are its own protobuf messages over plain gRPC, so that no client
// library stands between.
type system interface {
	name() string
	// command is the command line of a node.
	command(node int, all []addresses, dir string) []string
	// leads tells whether the node at the other end leads.
	leads(ctx context.Context, conn *grpc.ClientConn) bool

	// open makes an owner, that instances hang on: a session or a lease.
	open(ctx context.Context, conn *grpc.ClientConn) (owner, error)
	// register registers an instance.
	register(ctx context.Context, conn *grpc.ClientConn, who owner, in instance) error
	// registerAlone makes an owner and registers an instance on it, in as few calls as the system offers.
	registerAlone(ctx context.Context, conn *grpc.ClientConn, in instance) error
	// read reads all instances of a service, and returns how many there are.
	read(ctx context.Context, conn *grpc.ClientConn, service string, linearizable bool) (int, error)
	// renew opens a stream of renewals.
	renew(ctx context.Context, conn *grpc.ClientConn) (renewals, error)
	// watch opens a stream that tells of each change of a service's instances. It returns when the stream stands.
	watch(ctx context.Context, conn *grpc.ClientConn, service string) (changes, error)
}

// owner is a session or lease.
type owner struct {
	id     string
	number int64
}

// instance is what is registered: about 230 bytes, where nothing else is said.
type instance struct {
	client, sequence int // who writes it, and how often it has
	service, id      string
	metadata         int // bytes of its metadata, if more than usual; only of regd
}

// version is in the instance, so that each registration is a change.
func (in instance) version() string { return strconv.Itoa(in.sequence) }

type renewals interface {
	ask(who owner) error
	// answer waits for answers to some that were asked, and returns how many.
	answer() (int, error)
}

// changes is a stream of changes.
type changes interface {
	// next returns the versions of the next changes.
	next() ([]string, error)
}

// systems are those that are measured, each as a function that makes it.
func systems(o options, alone bool) []func() system {
	list := []func() system{func() system { return &regd{binary: o.regd, logStore: o.logStore} }}
	if o.etcd != "" && !alone {
		list = append(list, func() system { return &etcd{binary: o.etcd} })
	}
	return list
}

// dial connects to an address.
func dial(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)), grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1, MaxDelay: 50 * time.Millisecond}, // A process may just start.
			MinConnectTimeout: 10 * time.Second,
		}))
}

// connect waits until a connection stands.
func connect(ctx context.Context, conn *grpc.ClientConn) error {
	for {
		state := conn.GetState()
		if state == connectivity.Ready {
			return nil
		}
		conn.Connect()
		if !conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("connect to %s: %w", conn.Target(), ctx.Err())
		}
	}
}

// freeAddresses are local ones on which nobody listens, below the ports that the system gives to connections.
func freeAddresses(n, from int) ([]string, error) {
	var list []string
	for port := from; len(list) < n; port++ {
		if port > 32_000 {
			return nil, fmt.Errorf("no %d ports are free from %d on", n, from)
		}
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		_ = l.Close()
		list = append(list, address)
	}
	return list, nil
}
