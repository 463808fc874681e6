package regdgrpc_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/internal/registrytest"
	"github.com/regd-io/regd/client/regdgrpc"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// tagKey is the key of what tagger puts into the contexts of calls.
type tagKey struct{}

// tagger is a stats.Handler, as one that makes spans is.
type tagger struct{}

func (tagger) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, tagKey{}, "span")
}
func (tagger) HandleRPC(context.Context, stats.RPCStats)                         {}
func (tagger) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (tagger) HandleConn(context.Context, stats.ConnStats)                       {}

// picks is a Tracer that writes down what it is told.
type picks struct {
	mu    sync.Mutex
	lines []string
}

func (p *picks) Picked(ctx context.Context, i *registryv1.Instance, breaker balance.BreakerState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = append(p.lines, fmt.Sprintf("%v on %s, breaker %s", ctx.Value(tagKey{}), i.GetId(), breaker))
}

// TestTracerStatsAndLog checks that a Tracer is told of picks in the context that stats handlers have made, that calls and
// breakers are counted, and that breakers are logged.
func TestTracerStatsAndLog(t *testing.T) {
	t.Parallel()
	r := registrytest.New(t)
	a := serve(t, "a", func(context.Context) error { return status.Error(codes.Internal, "broken") })
	r.Put(a.instance)
	trace := &picks{}
	var log bytes.Buffer
	builder := regdgrpc.NewBuilder(r.Discovery(), regdgrpc.WithTracer(trace),
		regdgrpc.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	conn, err := grpc.NewClient("regd:///payment", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithResolvers(builder), grpc.WithStatsHandler(tagger{}),
		grpc.WithDefaultServiceConfig(regdgrpc.Config{Breaker: &regdgrpc.Breaker{ConsecutiveFailures: 2}}.ServiceConfig()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := builder.Stats(); len(got) != 0 {
		t.Errorf("before the first call: %+v", got)
	}
	for range 2 {
		if _, err := check(timed(t), conn, grpc.WaitForReady(true)); status.Code(err) != codes.Internal {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(trace.lines); got != "[span on a, breaker closed span on a, breaker closed]" {
		t.Errorf("picks %s", got)
	}
	s := builder.Stats()
	if len(s) != 1 || s[0].Namespace != "default" || s[0].Service != "payment" || len(s[0].Instances) != 1 ||
		s[0].Instances[0].Breaker != balance.BreakerOpen || s[0].Counts != (balance.Counts{Calls: 2, Failures: 2, Openings: 1}) {
		t.Errorf("stats %+v", s)
	}
	if strings.Count(log.String(), "breaker opened") != 1 || !strings.Contains(log.String(), "instance=default/payment/a") {
		t.Errorf("logged %s", &log)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if got := builder.Stats(); len(got) != 0 {
		t.Errorf("after the channel's end: %+v", got)
	}
}
