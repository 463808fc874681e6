package rpc

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
)

// TestCallsAreCounted makes calls that end well, are refused, panic or are streams, and looks at each of their series.
func TestCallsAreCounted(t *testing.T) {
	r := newRig(t)
	r.register(t, instance("web", "1"))
	_, err := r.registry.Register(bg, &apiv1.RegisterRequest{})
	wantReason(t, err, codes.InvalidArgument, apiv1.Reason_REASON_INVALID_ARGUMENT)
	r.node.onPropose = func(context.Context, *raftlogv1.Command) error { panic("no") }
	_, err = r.registry.Register(bg, &apiv1.RegisterRequest{Instance: instance("web", "2")})
	wantReason(t, err, codes.Internal, apiv1.Reason_REASON_INTERNAL)
	stream, err := r.registry.Watch(bg)
	if err == nil {
		err = stream.CloseSend()
	}
	for err == nil {
		_, err = stream.Recv()
	}

	const register = `grpc_method="Register",grpc_service="regd.api.v1.RegistryService",grpc_type="unary"`
	const watch = `grpc_method="Watch",grpc_service="regd.api.v1.RegistryService",grpc_type="bidi_stream"`
	reg, page := prometheus.NewRegistry(), httptest.NewRecorder()
	reg.MustRegister(r.server.metrics)
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	text := page.Body.String()
	for _, line := range []string{
		"grpc_server_started_total{" + register + "} 3",
		"grpc_server_msg_received_total{" + register + "} 3",
		"grpc_server_msg_sent_total{" + register + "} 1",
		`grpc_server_handled_total{grpc_code="OK",` + register + "} 1",
		`grpc_server_handled_total{grpc_code="InvalidArgument",` + register + "} 1",
		`grpc_server_handled_total{grpc_code="Internal",` + register + "} 1",
		"grpc_server_handling_seconds_count{" + register + "} 3",
		"grpc_server_started_total{" + watch + "} 1",
		`grpc_server_handled_total{grpc_code="OK",` + watch + "} 1",
		"grpc_server_handling_seconds_count{" + watch + "} 1",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("metrics lack %q", line)
		}
	}
}
