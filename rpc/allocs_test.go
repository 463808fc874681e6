package rpc

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc/tap"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// TestHotPathsAllocateLittle holds what a read, the check of a registration and the refusal of one may allocate besides gRPC.
func TestHotPathsAllocateLittle(t *testing.T) {
	r, send := newRig(t), sent(t)
	many(10, func(i int) { r.register(t, benchInstance("web", fmt.Sprint(i))) })
	server := &registryServer{core: r.server.core}
	list := &apiv1.ListInstancesRequest{Filter: &apiv1.Filter{Service: "web"}}
	get := &apiv1.GetRequest{Key: webKey("1")}
	register := benchInstance("web", "1")
	call, ctx := intercepted(t)
	full := newRig(t).server
	full.core.admission.inFlight.Store(full.core.admission.limit)
	defer full.core.admission.inFlight.Store(0)
	short, cancel := context.WithTimeout(bg, DefaultTimeout)
	defer cancel()
	unread := &tap.Info{FullMethodName: apiv1.RegistryService_Register_FullMethodName}
	for _, tt := range []struct {
		name string
		most float64
		run  func()
	}{
		{"call that does nothing", 0, func() { call(ctx) }},
		{"refusal", 0, func() {
			if _, err := full.refuseUnread(short, unread); err == nil {
				t.Fatal("a registration was let in")
			}
		}},
		{"list of ten", 9, func() { send(server.listInstances(bg, list)) }},
		{"get", 9, func() { send(server.get(bg, get)) }},
		{"check of a registration", 6, func() {
			var f faults
			if f.instance("instance", register, nil); f.err() != nil {
				t.Fatal(f.err())
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := testing.AllocsPerRun(100, tt.run); got > tt.most {
				t.Errorf("%v allocations, want at most %v", got, tt.most)
			}
		})
	}
}
