package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// The interceptors run in this order: metrics, edge, deadline, admit. What is refused is counted, and whatever goes wrong
// leaves through the error table.

// edge turns errors into statuses and panics into internal errors.
func (s *Server) edge(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer func() { err = s.outcome(ctx, info.FullMethod, err, recover()) }()
	return next(ctx, req)
}

// streamEdge is edge for streams.
func (s *Server) streamEdge(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer func() { err = s.outcome(ss.Context(), info.FullMethod, err, recover()) }()
	return next(srv, ss)
}

// outcome is what the client gets for an error or a panic of a handler.
func (s *Server) outcome(ctx context.Context, method string, err error, panicked any) error {
	if panicked != nil {
		return s.internal(ctx, method, fmt.Errorf("panic: %v", panicked), slog.String("stack", string(debug.Stack())))
	}
	if err == nil {
		return nil
	}
	if fault, known := faultOf(s.faults, err); known {
		return toStatus(fault, err, s.core.node.Info().LeaderAddress).Err()
	}
	// What gRPC itself says about a stream, or a service of its own.
	var own interface{ GRPCStatus() *status.Status }
	if errors.As(err, &own) && own.GRPCStatus().Code() != codes.Unknown {
		return err
	}
	return s.internal(ctx, method, err)
}

// internal hides what is a bug behind an id, under which the log has it.
func (s *Server) internal(ctx context.Context, method string, err error, attrs ...slog.Attr) error {
	id := uuid.NewString()
	attrs = append(attrs, slog.String("method", method), slog.String("id", id), slog.Any("err", err))
	s.core.log.LogAttrs(ctx, slog.LevelError, "internal error", attrs...)
	fault, _ := faultOf(s.faults, ErrInternal)
	return toStatus(fault, explain(ErrInternal, "error "+id, "id", id), "").Err()
}

// deadline gives each unary call an end.
func (s *Server) deadline(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	timeout, limit := DefaultTimeout, MaxTimeout
	if acquire, ok := req.(*apiv1.AcquireRequest); ok && acquire.GetWait() {
		timeout, limit = MaxLockWait, MaxLockWait
	}
	if end, ok := ctx.Deadline(); ok {
		if time.Until(end) <= limit {
			return next(ctx, req)
		}
		timeout = limit
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return next(ctx, req)
}

// admit lets a unary call in, or refuses it. Acquire does that itself, since it must not count while it waits.
func (s *Server) admit(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if info.FullMethod == apiv1.LockService_Acquire_FullMethodName {
		return next(ctx, req)
	}
	if err := s.core.admission.enter(classOf(info.FullMethod)); err != nil {
		return nil, err
	}
	defer s.core.admission.leave()
	return next(ctx, req)
}
