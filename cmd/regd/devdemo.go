package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// demo is a few small services with real HTTP ports, each with a client and thus a session of its own, as if each were
// a process.
type demo struct {
	services []*demoService
}

// demoService is one instance of a demo service.
type demoService struct {
	service, id, zone string
	flaps             bool
	client            *client.Client

	mu      sync.Mutex
	address string       // stays the same when the port is opened again
	server  *http.Server // nil while the port is closed
	wg      sync.WaitGroup
}

// How a demo service flaps: of each period it is well for the first part only.
const (
	flapPeriod = 90 * time.Second
	flapWell   = 70 * time.Second
)

// startDemo opens the ports of the demo services, from firstPort on if they are free, registers the services and waits
// until their checks pass.
func startDemo(ctx context.Context, endpoints []string, firstPort int, opts ...client.Option) (*demo, error) {
	d := &demo{services: []*demoService{
		{service: "web", id: "web-1", zone: "zone-a"},
		{service: "web", id: "web-2", zone: "zone-b"},
		{service: "api", id: "api-1", zone: "zone-a"},
		{service: "api", id: "api-2", zone: "zone-b", flaps: true},
	}}
	for i, s := range d.services {
		s.address = localPort(firstPort + i)
		if !portFree(s.address) {
			s.address = localPort(0)
		}
		err := s.open()
		if err == nil {
			err = s.register(ctx, endpoints, opts)
		}
		if err != nil {
			d.close() //nolint:contextcheck // Also when ctx has ended.
			return nil, fmt.Errorf("start demo service %s: %w", s.id, err)
		}
	}
	if err := d.awaitPassing(ctx); err != nil {
		d.close() //nolint:contextcheck // Also when ctx has ended.
		return nil, fmt.Errorf("start demo services: %w", err)
	}
	return d, nil
}

// open opens the service's port.
func (s *demoService) open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != nil {
		return nil
	}
	lis, err := net.Listen("tcp", s.address) //nolint:noctx // Binding does not wait.
	if err != nil {
		return fmt.Errorf("open port of %s: %w", s.id, err)
	}
	s.address = lis.Addr().String()
	begun := time.Now()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "hello from %s in %s\n", s.id, s.zone)
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		if s.flaps && time.Since(begun)%flapPeriod > flapWell {
			http.Error(w, "unwell for a while, as demo services are", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	s.server = server
	s.wg.Go(func() { _ = server.Serve(lis) }) // Ends with shut.
	return nil
}

// shut closes the service's port. The service stays registered.
func (s *demoService) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != nil {
		_ = s.server.Close() // Connections are to be cut.
		s.server = nil
		s.wg.Wait()
	}
}

// register registers the service with an HTTP check.
func (s *demoService) register(ctx context.Context, endpoints []string, opts []client.Option) error {
	cl, err := client.New(endpoints, append(slices.Clone(opts), client.WithName(s.id), client.WithCloseTimeout(time.Second))...)
	if err != nil {
		return err
	}
	s.client = cl
	host, port, err := net.SplitHostPort(s.address)
	if err != nil {
		return fmt.Errorf("split address: %w", err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fmt.Errorf("port %s: %w", port, err)
	}
	_, err = cl.Register(ctx, &registryv1.Instance{
		Service: s.service, Id: s.id, Address: host, Zone: s.zone, Region: "local",
		Ports:    []*registryv1.Port{{Name: "http", Number: uint32(number)}},
		Tags:     []string{"demo"},
		Metadata: map[string]string{"version": "1.0"},
		Checks: []*registryv1.Check{{
			Name: "http", Interval: durationpb.New(time.Second), Timeout: durationpb.New(time.Second), Rise: 1, Fall: 2,
			Kind: &registryv1.Check_Http{Http: &registryv1.HTTPCheck{Path: "/health"}},
		}},
	})
	return err
}

// turn opens or closes the ports of a service or of one instance, and says of which.
func (d *demo) turn(name string, on bool) (string, error) {
	var names, all []string
	for _, s := range d.services {
		all = append(all, s.id)
		if name != s.service && name != s.id {
			continue
		}
		names = append(names, s.id)
		if !on {
			s.shut()
		} else if err := s.open(); err != nil {
			return "", err
		}
	}
	if len(names) == 0 {
		return "", &exitError{
			code: exitNotFound,
			err:  fmt.Errorf("no demo service %q; there are web and api, with the instances %s", name, strings.Join(all, ", ")),
		}
	}
	if on {
		return strings.Join(names, " and ") + ": port open again", nil
	}
	return strings.Join(names, " and ") + ": port closed; open it with  regd dev start-service " + name, nil
}

// describe lists the services for the block that dev prints.
func (d *demo) describe() []string {
	var lines []string
	for _, s := range d.services {
		line := fmt.Sprintf("%s  http://%s  %s", s.id, s.address, s.zone)
		if s.flaps {
			line += "  (flaps)"
		}
		lines = append(lines, line)
	}
	return lines
}

// close closes ports and sessions.
func (d *demo) close() {
	var wg sync.WaitGroup
	for _, s := range d.services {
		wg.Go(func() {
			s.shut()
			if s.client != nil {
				_ = s.client.Close() // Without a cluster the session ends by its TTL.
			}
		})
	}
	wg.Wait()
}

// awaitPassing waits until the checks of all services have passed once: what is printed then holds.
func (d *demo) awaitPassing(ctx context.Context) error {
	const limit = 20 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	w, err := d.services[0].client.Watch(ctx, client.Filter{MinHealth: registryv1.Health_HEALTH_PASSING, Tags: []string{"demo"}})
	if err != nil {
		return err
	}
	defer w.Close()
	passing := map[client.Key]bool{}
	for c, err := range w.All(ctx) {
		if err != nil {
			return err
		}
		switch c.Kind {
		case client.ChangePut:
			passing[c.Key] = true
		case client.ChangeDelete:
			delete(passing, c.Key)
		case client.ChangeSynced, client.ChangeStalled:
		}
		if len(passing) == len(d.services) {
			return nil
		}
	}
	return ctx.Err()
}
