package main

import (
	"fmt"

	"github.com/regd-io/regd/rpc"
	"github.com/regd-io/regd/rpc/sd"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// openSD opens the door for Prometheus, at the port for operations: who scrapes the nodes reaches that anyway.
func (s *server) openSD() error {
	h := sd.New(s.node, rpc.Credential)
	for _, c := range h.Collectors() {
		if err := s.ops.registry.Register(c); err != nil {
			return fmt.Errorf("register metrics of service discovery: %w", err)
		}
	}
	s.ops.ops.Handle("GET "+sd.Path, registryv1.Action_ACTION_DISCOVER, h.ServeHTTP)
	return nil
}
