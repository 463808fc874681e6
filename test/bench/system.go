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

// system is a registry that can be measured: how it is started, what its clients send, and how they judge what they hear. The
// messages are its own, over plain gRPC, so that no client library stands between. Most of each is encoded once.
type system interface {
	name() string
	// command is the command line of a node.
	command(node int, all []addresses, dir string) []string
	// leads tells whether the node at the other end leads.
	leads(ctx context.Context, conn *grpc.ClientConn) bool

	// opening makes an owner, that instances hang on: a session or a lease. It is left in the turn.
	opening(ttl time.Duration) step
	// registering registers an instance on the turn's owner, if it has one. Its metadata is of so many bytes, if that is more
	// than usual and the system is regd.
	registering(metadata int, what func(t *turn) instance) step
	// registeringAlone makes an owner and registers an instance on it, in as few calls as the system offers.
	registeringAlone(what func(t *turn) instance) exchange
	// reading reads all instances of a service, of which there must be so many.
	reading(service func(t *turn) string, linearizable bool, want int) step
	// renewing is for one stream.
	renewing() renewals
	// watching is for one stream.
	watching(service string) changes
}

// owner is a session or lease.
type owner struct {
	id     string
	number int64
}

// instance is what is registered: about 230 bytes, unless it has more metadata.
type instance struct {
	service, id string
	version     int // is in its metadata, so that each registration is a change
}

// renewals are a stream on which owners are renewed.
type renewals struct {
	method string
	// request appends a request to renew an owner.
	request func(b []byte, who owner) []byte
	// answer returns how many requests a message answers.
	answer func(message []byte) (int, error)
}

// changes are a stream that tells of each change of a service's instances.
type changes struct {
	method  string
	request []byte
	open    bool // lasts as long as more requests may follow
	// heard calls changed with the version of each instance that a message tells of. From when it has returned true, all
	// changes that are made are heard.
	heard func(message []byte, changed func(version int)) (stands bool, err error)
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
