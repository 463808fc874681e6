package telemetry

import (
	"context"
	"fmt"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// Attributes of spans. Those of what a call is about are named as package regdotel names them.
const (
	nodeKey      = attribute.Key("regd.node")
	leaderKey    = attribute.Key("regd.leader")
	indexKey     = attribute.Key("regd.raft.index")
	commandsKey  = attribute.Key("regd.entry.commands")
	bytesKey     = attribute.Key("regd.entry.bytes")
	remoteKey    = attribute.Key("regd.forwarded")
	namespaceKey = attribute.Key("regd.namespace")
	serviceKey   = attribute.Key("regd.service")
	instanceKey  = attribute.Key("regd.instance.id")
	nameKey      = attribute.Key("regd.name")
)

// calls makes the spans of calls, and adds what they are about.
type calls struct{ stats.Handler }

// HandleRPC implements stats.Handler.
func (c calls) HandleRPC(ctx context.Context, s stats.RPCStats) {
	c.Handler.HandleRPC(ctx, s)
	if in, ok := s.(*stats.InPayload); ok {
		if span := trace.SpanFromContext(ctx); span.IsRecording() {
			span.SetAttributes(about(in.Payload)...)
		}
	}
}

// about tells what a request is about. It is what paths of the API would name, never what is registered.
func about(req any) []attribute.KeyValue {
	var attributes []attribute.KeyValue
	add := func(key attribute.Key, value string) {
		if value != "" {
			attributes = append(attributes, key.String(value))
		}
	}
	instance := func(i interface {
		GetNamespace() string
		GetService() string
		GetId() string
	},
	) {
		add(namespaceKey, i.GetNamespace())
		add(serviceKey, i.GetService())
		add(instanceKey, i.GetId())
	}
	switch r := req.(type) {
	case *apiv1.RegisterRequest:
		instance(r.GetInstance())
	case interface{ GetKey() *apiv1.InstanceKey }:
		instance(r.GetKey())
	case interface{ GetFilter() *apiv1.Filter }:
		add(namespaceKey, r.GetFilter().GetNamespace())
		add(serviceKey, r.GetFilter().GetService())
	case interface {
		GetNamespace() string
		GetName() string
	}:
		add(namespaceKey, r.GetNamespace())
		add(nameKey, r.GetName())
	}
	return attributes
}

// worthASpan leaves out streams, and what is not regd's own: health checks and reflection.
func worthASpan() otelgrpc.Filter {
	streams := map[string]bool{}
	protoregistry.GlobalFiles.RangeFilesByPackage("regd.api.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				streams[fmt.Sprintf("/%s/%s", service.FullName(), m.Name())] = m.IsStreamingClient() || m.IsStreamingServer()
			}
		}
		return true
	})
	return func(call *stats.RPCTagInfo) bool {
		return strings.HasPrefix(call.FullMethodName, "/regd.api.") && !streams[call.FullMethodName]
	}
}
