package rpc

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

func TestCallsAreAudited(t *testing.T) {
	var log lockedLog
	r := newRig(t, func(c *Config) { c.Audit = logTo(&log) })
	for _, method := range methodsOf(r.server) {
		reads := strings.Contains(method, "List") || strings.Contains(method, "Get") || strings.Contains(method, "Watch") ||
			strings.Contains(method, "Health/") || strings.Contains(method, "Reflection")
		renews := slices.Contains([]string{
			apiv1.SessionService_Attach_FullMethodName, apiv1.SessionService_Renew_FullMethodName, apiv1.LeaseService_KeepAlive_FullMethodName,
			apiv1.RegistryService_AwaitDelivery_FullMethodName, apiv1.RegistryService_Explain_FullMethodName, apiv1.ClusterService_Status_FullMethodName,
			apiv1.ClusterService_Members_FullMethodName, apiv1.ClusterService_Verify_FullMethodName, apiv1.AccessService_WhoAmI_FullMethodName,
		}, method)
		if audited(method) == (reads || renews) {
			t.Errorf("%s is audited: %t", method, audited(method))
		}
	}
	r.node.enforce(t)
	root := showing(t.Context(), "root")
	in := instance("web", "i")
	if _, err := r.registry.Register(root, &apiv1.RegisterRequest{Instance: in}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.registry.Get(root, &apiv1.GetRequest{Key: &apiv1.InstanceKey{Service: "web", Id: "i"}}); err != nil {
		t.Fatal(err)
	}
	forged := &apiv1.InstanceKey{Service: "web\nmsg=done identity=root", Id: "i"}
	if _, err := r.registry.Get(t.Context(), &apiv1.GetRequest{Key: forged}); status.Code(err) != codes.PermissionDenied {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d records, want one of the registration and one of what was denied:\n%s", len(lines), log.String())
	}
	for i, parts := range [][]string{
		{"msg=done", "identity=operator", "credential=token:root", "on.service=web", "on.id=i", "revision=", "RegistryService/Register"},
		{"msg=refused", "identity=anonymous", `on.service="web\nmsg=done identity=root"`, "RegistryService/Get"},
	} {
		for _, part := range parts {
			if !strings.Contains(lines[i], part) {
				t.Errorf("record %q lacks %q", lines[i], part)
			}
		}
	}
	if strings.Contains(log.String(), "secret") {
		t.Errorf("a secret is in the log:\n%s", log.String())
	}
}
