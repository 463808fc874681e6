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

// unary is what each unary call goes through: it is counted, given an end, let in or refused, and allowed or
// denied. Panics and errors leave
// through the error table. It is one function, as gRPC would make closures for a chain of them at each call.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	began, m := time.Now(), s.metrics.of(info.FullMethod)
	m.started.Inc()
	m.received.Inc()
	defer func() {
		panicked := recover()
		s.audit.note(ctx, info.FullMethod, req, resp, err)
		if err = s.outcome(ctx, info.FullMethod, err, panicked); err == nil {
			m.sent.Inc()
		}
		m.ended(began, err)
	}()
	ctx, cancel := limited(ctx, req)
	defer cancel()
	// What waits is let in by its handler, since it must not count while it does.
	if !waits(info.FullMethod) {
		if !reserved(ctx) {
			if err = s.core.admission.enter(classOf(info.FullMethod)); err != nil {
				holdBack(ctx)
				return nil, err
			}
		}
		defer s.core.admission.leave()
	}
	if ctx, err = s.core.check(ctx, info.FullMethod, req); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// waits tells whether most of what a call takes is waiting.
func waits(method string) bool {
	return method == apiv1.LockService_Acquire_FullMethodName || method == apiv1.RegistryService_AwaitDelivery_FullMethodName
}

// stream is what each stream goes through: it is counted, and panics and errors leave through the error table. Its messages
// are not counted: that would cost a good part of what sending one does.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	began, m := time.Now(), s.metrics.of(info.FullMethod)
	m.started.Inc()
	ctx := ss.Context()
	defer func() {
		panicked := recover()
		s.audit.note(ctx, info.FullMethod, nil, nil, err)
		err = s.outcome(ctx, info.FullMethod, err, panicked)
		m.ended(began, err)
	}()
	if ctx, err = s.core.check(ctx, info.FullMethod, nil); err != nil {
		return err
	}
	if ctx != ss.Context() { // Most have nothing to know, and there are many.
		ss = &calledStream{ss, ctx}
	}
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

// limited gives a unary call an end, if it has none or one that is too far away. cancel must be called.
func limited(ctx context.Context, req any) (_ context.Context, cancel func()) {
	timeout, limit := DefaultTimeout, MaxTimeout
	if acquire, ok := req.(*apiv1.AcquireRequest); ok && acquire.GetWait() {
		timeout, limit = MaxLockWait, MaxLockWait
	}
	if end, ok := ctx.Deadline(); ok {
		if time.Until(end) <= limit {
			return ctx, func() {}
		}
		timeout = limit
	}
	return context.WithTimeout(ctx, timeout)
}
