package rpc

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/tap"

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

// share is the part of the calls in flight, in percent, up to which a class is let in. What adds or reads may take half:
// of the default limit that is one full log entry of registrations. More would wait longer, and wake
// all at once when theirs is applied: then what tells the followers that the leader lives waits its turn behind them. The other half is for what keeps alive and takes away, so that a node that has little of its
// processor and is slow for all has room for them.
func (c class) share() int64 {
	return [...]int64{100, 90, 80, 50, 40, 30}[c]
}

// admission bounds the calls that are worked on at once. There is no queue: a call is let in or refused at once, so an
// overloaded node answers fast, and what it works on is what matters most.
type admission struct {
	limit    int64
	inFlight atomic.Int64
	rejected [classes]atomic.Uint64
	refusals [classes]atomic.Pointer[refusal]
	full     [classes]atomic.Int64 // when a call of the class was refused last, Unix nanoseconds
}

// refusal is what a call is told that is refused before it is read. It is kept, as under overload most calls get the same.
type refusal struct {
	status error
	leader string // that the status names
}

func newAdmission(limit int) *admission { return &admission{limit: int64(limit)} }

// most is how many calls may be in flight with one of a class.
func (a *admission) most(c class) int64 { return max(1, a.limit*c.share()/100) }

// enter lets a call in, or fails with ErrOverloaded. Whoever was let in calls leave once it is done.
func (a *admission) enter(c class) error {
	if a.take(c) {
		return nil
	}
	return a.refuse(c)
}

// take takes a place for a call, if there is one.
func (a *admission) take(c class) bool {
	if a.inFlight.Add(1) <= a.most(c) {
		return true
	}
	a.inFlight.Add(-1)
	a.full[c].Store(time.Now().UnixNano())
	return false
}

func (a *admission) leave() { a.inFlight.Add(-1) }

// isFull tells whether enter would fail now.
func (a *admission) isFull(c class) bool { return a.inFlight.Load() >= a.most(c) }

// crowded tells whether calls of the class were refused a moment ago.
func (a *admission) crowded(c class) bool {
	return time.Now().UnixNano()-a.full[c].Load() < int64(crowdedFor)
}

// refuse counts a call that is refused and returns why it is. Under overload gRPC encodes this text, twice, for most calls: it
// is short.
func (a *admission) refuse(c class) error {
	a.rejected[c].Add(1)
	return explain(fmt.Errorf("%w: %d calls are in flight", ErrOverloaded, a.most(c)), "admit "+c.String()+" call", "class", c.String())
}

// refuseUnread refuses a call, of which only the headers have come, that admit would refuse. To read and decode a message
// and to start a goroutine for it costs several times what the refusal does, and under overload that is what a node would
// mostly do. While calls are refused, what passes here has its place from now on: else, whenever places become free, all
// connections would read on before the first call takes one, and thousands of goroutines would start to be refused. What else
// a node has to do, and to tell its followers that it lives is part of that, would wait behind them. At other times nobody
// gets a place by headers alone, or who sends nothing else could take those of all.
//
// Calls of classRenew are left to admit and to the streams, which know what is in flight when they need a place, and so are
// calls that wait, and those with more time than most: until a call's time is over, gRPC keeps the timer of one that is
// refused here. It holds a lock of the connection meanwhile, so this must be quick. Interceptors, and with them the metrics
// of gRPC, do not see what is refused here; regd_admission_rejected_total counts it.
func (s *Server) refuseUnread(ctx context.Context, call *tap.Info) (context.Context, error) {
	a, c := s.core.admission, classOf(call.FullMethodName)
	if c == classRenew {
		return ctx, nil
	}
	if end, ok := ctx.Deadline(); ok && time.Until(end) > DefaultTimeout {
		return ctx, nil
	}
	if !a.crowded(c) || waits(call.FullMethodName) {
		if !a.isFull(c) {
			return ctx, nil
		}
		a.full[c].Store(time.Now().UnixNano())
	} else if a.take(c) {
		return a.reserve(ctx), nil
	}
	holdBack(ctx)
	leader := s.core.node.Info().LeaderAddress
	if r := a.refusals[c].Load(); r != nil && r.leader == leader {
		a.rejected[c].Add(1)
		return ctx, r.status
	}
	err := a.refuse(c)
	fault, _ := faultOf(s.faults, err)
	r := &refusal{status: toStatus(fault, err, leader).Err(), leader: leader}
	a.refusals[c].Store(r)
	return ctx, r.status
}

const (
	// unreadFor is how long a place is kept for a call whose headers have come but not its message. They mostly come together.
	unreadFor = 250 * time.Millisecond
	// crowdedFor is how long after a refusal calls have their places before they are read.
	crowdedFor = time.Second
)

// reservation is the place of a call that is not read yet, in its context. Whoever sets taken first decides about it.
type reservation struct {
	taken atomic.Bool
	stops [2]func() bool
}

// reservationKey is the key of a reservation in a context.
type reservationKey struct{}

// reserve keeps the place that was taken for a call which is not read yet. If its message is late, or the call ends before it
// comes, the place is free again.
func (a *admission) reserve(ctx context.Context) context.Context {
	r := &reservation{}
	free := func() {
		if r.taken.CompareAndSwap(false, true) {
			a.leave()
		}
	}
	r.stops = [2]func() bool{time.AfterFunc(unreadFor, free).Stop, context.AfterFunc(ctx, free)}
	return context.WithValue(ctx, reservationKey{}, r)
}

// reserved tells whether a call has its place already. It does so once.
func reserved(ctx context.Context) bool {
	r, ok := ctx.Value(reservationKey{}).(*reservation)
	if !ok || !r.taken.CompareAndSwap(false, true) {
		return false
	}
	for _, stop := range r.stops {
		stop()
	}
	return true
}

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
	case apiv1.RegistryService_Deregister_FullMethodName, apiv1.RegistryService_AwaitDelivery_FullMethodName, apiv1.SessionService_Close_FullMethodName,
		apiv1.LeaseService_Revoke_FullMethodName, apiv1.LockService_Release_FullMethodName, apiv1.KVService_DeleteKey_FullMethodName:
		return classDeregister
	case apiv1.RegistryService_SetHealth_FullMethodName, apiv1.RegistryService_Drain_FullMethodName,
		apiv1.RegistryService_SetMaintenance_FullMethodName:
		return classHealth
	case apiv1.RegistryService_Register_FullMethodName, apiv1.RegistryService_RegisterBatch_FullMethodName,
		apiv1.SessionService_Open_FullMethodName, apiv1.LeaseService_Grant_FullMethodName,
		apiv1.LockService_Acquire_FullMethodName, apiv1.KVService_PutKey_FullMethodName, apiv1.KVService_Transact_FullMethodName:
		return classRegister
	case apiv1.RegistryService_Explain_FullMethodName, apiv1.NamespaceService_GetNamespace_FullMethodName, apiv1.NamespaceService_ListNamespaces_FullMethodName,
		apiv1.RegistryService_Get_FullMethodName, apiv1.RegistryService_ListServices_FullMethodName,
		apiv1.RegistryService_ListInstances_FullMethodName, apiv1.SessionService_List_FullMethodName,
		apiv1.LeaseService_GetLease_FullMethodName, apiv1.LeaseService_ListLeases_FullMethodName,
		apiv1.LockService_GetLock_FullMethodName, apiv1.LockService_ListLocks_FullMethodName,
		apiv1.KVService_GetKey_FullMethodName, apiv1.KVService_ListKeys_FullMethodName:
		return classList
	default:
		return classRenew
	}
}
