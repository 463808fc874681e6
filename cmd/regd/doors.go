package main

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/regd-io/regd/rpc"
)

// A door lets clients of a foreign protocol in. It is a package under rpc, a file door*.go here with its settings, and a line in
// doors: without these three there is nothing of it. It is closed unless the flag --NAME-listen says where it listens.
type door interface {
	// name begins the names of its flags, such as "dns".
	name() string
	// title is what people call it.
	title() string
	addFlags(fs *pflag.FlagSet)
	// validate reports what is wrong with its settings, as serveConfig.validate does; secure tells whether clients use TLS.
	validate(secure bool, bad func(format string, args ...any))
	// open listens and returns what serves the node, nil if the door is to stay closed. The door lets its clients in as api does.
	open(ctx context.Context, node servedNode, api *rpc.Server, log *slog.Logger) (doorServer, error)
}

// doorServer serves a foreign protocol.
type doorServer interface {
	// Serve answers until Shutdown; then it returns nil.
	Serve() error
	// Shutdown finishes what is under way, until ctx ends, and waits for the end of everything.
	Shutdown(ctx context.Context) error
	Collectors() []prometheus.Collector
}

// doors are those that this binary has.
func doors() []door {
	return []door{
		new(consulDoor),
		new(dnsDoor),
	}
}

// openRoutes opens the doors that are at the port for operations: they have no settings, only a package, a file and a line.
func (s *server) openRoutes() {
	for _, open := range []func(){
		s.openSD,
	} {
		open()
	}
}

// openDoors opens the doors that are to be open.
func (s *server) openDoors(ctx context.Context, node servedNode) error {
	for _, d := range s.cfg.Doors {
		opened, err := d.open(ctx, node, s.api, s.log)
		if err != nil {
			return err
		}
		if opened == nil {
			continue
		}
		if shows, ok := opened.(interface{ Gather(g prometheus.Gatherer) }); ok {
			shows.Gather(s.ops.registry) // It shows the metrics of the node to its clients.
		}
		s.doors = append(s.doors, opened)
	}
	return nil
}
