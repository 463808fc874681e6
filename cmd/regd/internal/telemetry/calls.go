package telemetry

import (
	"context"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

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
	for _, service := range []grpc.ServiceDesc{
		apiv1.RegistryService_ServiceDesc, apiv1.SessionService_ServiceDesc, apiv1.LeaseService_ServiceDesc,
		apiv1.LockService_ServiceDesc, apiv1.ClusterService_ServiceDesc, apiv1.AccessService_ServiceDesc,
	} {
		for _, s := range service.Streams {
			streams["/"+service.ServiceName+"/"+s.StreamName] = true
		}
	}
	return func(call *stats.RPCTagInfo) bool {
		return strings.HasPrefix(call.FullMethodName, "/regd.api.") && !streams[call.FullMethodName]
	}
}
