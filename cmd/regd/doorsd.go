package main

import (
	"github.com/regd-io/regd/rpc"
	"github.com/regd-io/regd/rpc/sd"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// openSD opens the door for Prometheus, at the port for operations: who scrapes the nodes reaches that anyway.
func (s *server) openSD() {
	h := sd.New(s.node, rpc.Credential)
	s.routes = append(s.routes, h.Collectors()...)
	s.ops.ops.Handle("GET "+sd.Path, registryv1.Action_ACTION_DISCOVER, h.ServeHTTP)
}
