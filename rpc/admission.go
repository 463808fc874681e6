package rpc

import (
	"fmt"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// class orders calls by what is lost when they are refused. Under overload the last ones are refused first.
type class int

const (
	// classRenew keeps what is registered alive: refusing it would make an overload an outage. With it goes what an
	// operator does, who may be there to end the overload.
	classRenew class = iota
	// classDeregister takes away: it makes room, and keeps consumers from calling what is gone.
	classDeregister
	// classHealth changes what consumers choose.
	classHealth
	// classRegister adds.
	classRegister
	// classResync starts a watch: its cut is a large answer, and the client holds an older one meanwhile.
	classResync
	// classList reads: clients have what they read before.
	classList
	classes
)

func (c class) String() string {
	return [...]string{"renew", "deregister", "health", "register", "resync", "list"}[c]
}

// share is the part of the calls in flight, in percent, up to which a class is let in.
func (c class) share() int64 {
	return [...]int64{100, 95, 90, 80, 65, 50}[c]
}

// admission bounds the calls that are worked on at once. There is no queue: a call is let in or refused at once, so an
// overloaded node answers fast, and what it works on is what matters most.
type admission struct {
	limit    int64
	inFlight atomic.Int64
	rejected [classes]atomic.Uint64
}

func newAdmission(limit int) *admission { return &admission{limit: int64(limit)} }

// enter lets a call in, or fails with ErrOverloaded. Whoever was let in calls leave once it is done.
func (a *admission) enter(c class) error {
	n := a.inFlight.Add(1)
	if n <= max(1, a.limit*c.share()/100) {
		return nil
	}
	a.inFlight.Add(-1)
	a.rejected[c].Add(1)
	return explain(fmt.Errorf("%w: %d calls are in flight, %s calls are let in up to %d",
		ErrOverloaded, n-1, c, a.limit*c.share()/100), "admit call", "class", c.String())
}

func (a *admission) leave() { a.inFlight.Add(-1) }

// collectors are the metrics of admission.
func (a *admission) collectors() []prometheus.Collector {
	out := []prometheus.Collector{prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "regd_requests_in_flight",
		Help: "Number of calls that are worked on now.",
	}, func() float64 { return float64(a.inFlight.Load()) })}
	for c := range classes {
		out = append(out, prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name:        "regd_admission_rejected_total",
			Help:        "Number of calls refused because too many were in flight, by class.",
			ConstLabels: prometheus.Labels{"class": c.String()},
		}, func() float64 { return float64(a.rejected[c].Load()) }))
	}
	return out
}

// classOf is the class of a unary call. What is not listed is an operator's or infrastructure (health, reflection).
func classOf(method string) class {
	switch method {
	case apiv1.RegistryService_Deregister_FullMethodName, apiv1.SessionService_Close_FullMethodName,
		apiv1.LeaseService_Revoke_FullMethodName, apiv1.LockService_Release_FullMethodName:
		return classDeregister
	case apiv1.RegistryService_SetHealth_FullMethodName, apiv1.RegistryService_Drain_FullMethodName,
		apiv1.RegistryService_SetMaintenance_FullMethodName:
		return classHealth
	case apiv1.RegistryService_Register_FullMethodName, apiv1.RegistryService_RegisterBatch_FullMethodName,
		apiv1.SessionService_Open_FullMethodName, apiv1.LeaseService_Grant_FullMethodName,
		apiv1.LockService_Acquire_FullMethodName:
		return classRegister
	case apiv1.RegistryService_Get_FullMethodName, apiv1.RegistryService_ListServices_FullMethodName,
		apiv1.RegistryService_ListInstances_FullMethodName, apiv1.SessionService_List_FullMethodName,
		apiv1.LeaseService_GetLease_FullMethodName, apiv1.LeaseService_ListLeases_FullMethodName,
		apiv1.LockService_GetLock_FullMethodName, apiv1.LockService_ListLocks_FullMethodName:
		return classList
	default:
		return classRenew
	}
}
