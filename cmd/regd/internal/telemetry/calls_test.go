package telemetry

import (
	"testing"

	"google.golang.org/grpc/stats"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

func TestOnlyCallsOfRegdHaveSpans(t *testing.T) {
	worth := worthASpan()
	for method, want := range map[string]bool{
		apiv1.RegistryService_Register_FullMethodName:      true,
		apiv1.NamespaceService_PutNamespace_FullMethodName: true,
		apiv1.RegistryService_WatchService_FullMethodName:  false,
		apiv1.SessionService_Attach_FullMethodName:         false,
		apiv1.LockService_WatchLock_FullMethodName:         false,
		"/grpc.health.v1.Health/Check":                     false,
	} {
		if got := worth(&stats.RPCTagInfo{FullMethodName: method}); got != want {
			t.Errorf("%s has a span: %v, want %v", method, got, want)
		}
	}
}
