package rpc

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/cluster"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// LivenessService is the name under which grpc.health.v1 tells whether the node is alive; every other name tells
// whether it can serve.
const LivenessService = "liveness"

// healthServer serves grpc.health.v1. It asks the node each time, so there is nothing that could lag behind.
type healthServer struct {
	healthpb.UnimplementedHealthServer
	*core
}

// healthServices are the names that the health service knows.
func healthServices() []string {
	return []string{
		"", LivenessService,
		apiv1.RegistryService_ServiceDesc.ServiceName, apiv1.SessionService_ServiceDesc.ServiceName,
		apiv1.LeaseService_ServiceDesc.ServiceName, apiv1.LockService_ServiceDesc.ServiceName,
		apiv1.ClusterService_ServiceDesc.ServiceName, apiv1.AccessService_ServiceDesc.ServiceName,
		apiv1.KVService_ServiceDesc.ServiceName,
	}
}

// status is the present status of a service.
func (s *healthServer) status(service string) healthpb.HealthCheckResponse_ServingStatus {
	for _, known := range healthServices() {
		if service == known {
			return s.statusOfKnown(service)
		}
	}
	return healthpb.HealthCheckResponse_SERVICE_UNKNOWN
}

func (s *healthServer) statusOfKnown(service string) healthpb.HealthCheckResponse_ServingStatus {
	fit := !s.unready.Load() && s.node.Ready() == nil
	if service == LivenessService {
		fit = s.node.Live() == nil
	}
	if fit {
		return healthpb.HealthCheckResponse_SERVING
	}
	return healthpb.HealthCheckResponse_NOT_SERVING
}

// Check tells the status of one service.
func (s *healthServer) Check(_ context.Context, req *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	st := s.status(req.GetService())
	if st == healthpb.HealthCheckResponse_SERVICE_UNKNOWN {
		return nil, status.Error(codes.NotFound, "unknown service "+quote(req.GetService())) // As its protocol demands.
	}
	return &healthpb.HealthCheckResponse{Status: st}, nil
}

// List tells the status of all services.
func (s *healthServer) List(context.Context, *healthpb.HealthListRequest) (*healthpb.HealthListResponse, error) {
	out := make(map[string]*healthpb.HealthCheckResponse)
	for _, service := range healthServices() {
		out[service] = &healthpb.HealthCheckResponse{Status: s.statusOfKnown(service)}
	}
	return &healthpb.HealthListResponse{Statuses: out}, nil
}

// Watch sends the status of a service now and whenever it changes, and ends when the server leaves.
func (s *healthServer) Watch(
	req *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse],
) error {
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	sent := healthpb.HealthCheckResponse_ServingStatus(-1)
	for leaving := false; ; {
		if now := s.status(req.GetService()); now != sent {
			if err := stream.Send(&healthpb.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			sent = now
		}
		if leaving {
			return cluster.ErrClosed
		}
		select {
		case <-ticker.C:
		case <-s.leaving:
			leaving = true
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}
