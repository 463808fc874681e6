package workload

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// kind is what can be kept alive: sessions and leases.
type kind struct {
	// open makes one, and end ends it.
	open func(context.Context, *grpc.ClientConn, *apiv1.RequestID, time.Duration) (string, error)
	end  func(context.Context, *grpc.ClientConn, *apiv1.RequestID, string) error
	// stream opens a stream of renewals.
	stream func(context.Context, *grpc.ClientConn) (renewals, error)
	// once renews by a single call. nil: there is none.
	once func(context.Context, *grpc.ClientConn, string) (ended []string, err error)
	// hang makes an instance end with it.
	hang func(*registryv1.Instance, string)
}

// renewals is a stream of them. ended is true when the last one said so, elsewhere when the node leaves.
type renewals interface {
	ask(id string, sequence uint64) error
	answer() (ended []string, elsewhere bool, err error)
}

type attachStream struct {
	grpc.BidiStreamingClient[apiv1.AttachRequest, apiv1.AttachResponse]
}

func (s attachStream) ask(id string, sequence uint64) error {
	return s.Send(&apiv1.AttachRequest{SessionIds: []string{id}, Sequence: sequence})
}

func (s attachStream) answer() ([]string, bool, error) {
	resp, err := s.Recv()
	return resp.GetEnded(), resp.GetGoElsewhere(), err
}

type keepAliveStream struct {
	grpc.BidiStreamingClient[apiv1.KeepAliveRequest, apiv1.KeepAliveResponse]
}

func (s keepAliveStream) ask(id string, sequence uint64) error {
	return s.Send(&apiv1.KeepAliveRequest{LeaseIds: []string{id}, Sequence: sequence})
}

func (s keepAliveStream) answer() ([]string, bool, error) {
	resp, err := s.Recv()
	return resp.GetEnded(), resp.GetGoElsewhere(), err
}

var sessions = kind{
	open: func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID, ttl time.Duration) (string, error) {
		if id.GetSequence()%2 == 0 { // Together with an instance.
			resp, err := apiv1.NewRegistryServiceClient(conn).Register(ctx, &apiv1.RegisterRequest{
				RequestId:   id,
				Instance:    &registryv1.Instance{Service: services[0], Id: "own-" + id.GetClientId(), Address: "10.0.0.9"},
				OpenSession: &apiv1.NewSession{ClientName: id.GetClientId(), Ttl: durationpb.New(ttl)},
			})
			return resp.GetSession().GetId(), err
		}
		resp, err := apiv1.NewSessionServiceClient(conn).Open(ctx, &apiv1.OpenRequest{
			RequestId: id, ClientName: id.GetClientId(), Ttl: durationpb.New(ttl),
		})
		return resp.GetSession().GetId(), err
	},
	end: func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID, session string) error {
		_, err := apiv1.NewSessionServiceClient(conn).Close(ctx, &apiv1.CloseRequest{RequestId: id, SessionId: session})
		return err
	},
	stream: func(ctx context.Context, conn *grpc.ClientConn) (renewals, error) {
		stream, err := apiv1.NewSessionServiceClient(conn).Attach(ctx)
		return attachStream{stream}, err
	},
	once: func(ctx context.Context, conn *grpc.ClientConn, session string) ([]string, error) {
		resp, err := apiv1.NewSessionServiceClient(conn).Renew(ctx, &apiv1.RenewRequest{SessionIds: []string{session}})
		return resp.GetEnded(), err
	},
	hang: func(instance *registryv1.Instance, session string) { instance.SessionId = session },
}

var leases = kind{
	open: func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID, ttl time.Duration) (string, error) {
		resp, err := apiv1.NewLeaseServiceClient(conn).Grant(ctx, &apiv1.GrantRequest{RequestId: id, Ttl: durationpb.New(ttl)})
		return resp.GetLease().GetId(), err
	},
	end: func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID, lease string) error {
		_, err := apiv1.NewLeaseServiceClient(conn).Revoke(ctx, &apiv1.RevokeRequest{RequestId: id, LeaseId: lease})
		return err
	},
	stream: func(ctx context.Context, conn *grpc.ClientConn) (renewals, error) {
		stream, err := apiv1.NewLeaseServiceClient(conn).KeepAlive(ctx)
		return keepAliveStream{stream}, err
	},
	hang: func(instance *registryv1.Instance, lease string) { instance.LeaseId = lease },
}

// life is a session or lease that is renewed in the background, until it ends or its owner falls silent.
type life struct {
	kind
	id     string
	ttl    time.Duration
	c      *caller // of the background
	cancel context.CancelFunc
	over   atomic.Bool // it was told that it has ended
	done   sync.WaitGroup
}

// live opens a session or lease for a caller and renews it. It returns nil when that fails.
func (c *caller) live(ctx context.Context, k kind) *life {
	l := &life{kind: k, ttl: c.within(c.w.cfg.MinTTL, c.w.cfg.MaxTTL)}
	err := c.write(ctx, func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID) (err error) {
		l.id, err = k.open(ctx, conn, id, l.ttl)
		return err
	})
	if err != nil {
		return nil
	}
	c.lives++
	l.c = c.w.newNamed(fmt.Sprintf("%s.life%d", c.role, c.lives), "")
	l.speak(ctx)
	return l
}

// speak goes on renewing after silence.
func (l *life) speak(ctx context.Context) {
	ctx, l.cancel = context.WithCancel(ctx)
	unary := l.once != nil && l.c.rng.IntN(3) == 0
	l.done.Go(func() {
		for ctx.Err() == nil && !l.over.Load() {
			if unary {
				l.renew(ctx)
			} else {
				l.attach(ctx)
			}
		}
	})
}

// silence stops renewing, as if the client had died.
func (l *life) silence() {
	l.cancel()
	l.done.Wait()
}

// leave is silence for good.
func (l *life) leave() {
	l.silence()
	l.c.close()
}

// heard takes in what an answer says.
func (l *life) heard(ended []string) {
	if slices.Contains(ended, l.id) {
		l.over.Store(true)
	}
}

// renew renews by a single call, and waits until it is time for the next.
func (l *life) renew(ctx context.Context) {
	err := l.c.call(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		ended, err := l.once(ctx, conn, l.id)
		l.heard(ended)
		return err
	})
	if err != nil {
		sleep(ctx, l.c.within(0, l.ttl/10))
		return
	}
	sleep(ctx, l.ttl/3)
}

// attach renews over a stream until that breaks or keeps silent for a third of the TTL. Then it is another node's turn.
func (l *life) attach(alive context.Context) {
	defer func() {
		l.c.move()
		sleep(alive, l.c.within(0, l.ttl/10))
	}()
	conn, err := l.c.conn()
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(alive)
	defer cancel()
	patience := time.AfterFunc(l.ttl/3, cancel)
	defer patience.Stop()
	stream, err := l.stream(ctx, conn)
	if err != nil {
		return
	}
	for sequence := uint64(1); !l.over.Load(); sequence++ {
		patience.Reset(l.ttl / 3)
		if stream.ask(l.id, sequence) != nil {
			return
		}
		ended, elsewhere, err := stream.answer()
		if err != nil || elsewhere {
			return
		}
		patience.Stop()
		l.heard(ended)
		if !sleep(ctx, l.ttl/3) {
			return
		}
	}
}

// finish ends it at the registry, and stops renewing.
func (l *life) finish(ctx context.Context, c *caller) {
	_ = c.write(ctx, func(ctx context.Context, conn *grpc.ClientConn, id *apiv1.RequestID) error {
		return l.end(ctx, conn, id, l.id)
	})
	l.leave()
}
