package sim

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/fsm"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/test/internal/workload"
)

// usurpations is how often a leader is replaced without being told.
const usurpations = 6

// A leader hands over to one of its peers, and what they say from then on is held back: for as long as its lease runs it
// believes that it leads still, as one does that was paused. Then it is told all at once, the answers to its old
// heartbeats first. Meanwhile its clients ask for what must not be old, and renew what must not end.
func TestALeaderThatWasReplacedUnnoticedServesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOptions(1, *callsEvery)
		o.nodes, o.heartbeat, o.latency, o.counts = 3, time.Second, time.Millisecond, workload.Counts{}
		o.lease, o.grace = o.heartbeat, 100*time.Millisecond // What is wrong shows for as long as can be.
		w := newWorld(t, o)
		defer w.tell()
		for _, from := range w.Names() {
			for _, to := range w.others(from) {
				w.Net.Delay(from, to, apart)
			}
		}
		for round := range usurpations {
			w.Ready()
			w.usurp(o.lease * time.Duration(usurpations+round) / usurpations / 2)
		}
		_, figures := w.judge(w.recorder.History(), fsm.New(), 0)
		if usurped := len(w.led()) - 1; usurped < usurpations || figures.Lease.Expired < usurpations {
			t.Errorf("%d times another one led, %d sessions expired: want %d of each", usurped, figures.Lease.Expired, usurpations)
		}
	})
}

// apart is how long nodes hear nothing of what another one says.
const apart = 50 * time.Millisecond

// usurp replaces the leader, and lets it hear of that only some time after its peers were last heard.
func (w *world) usurp(after time.Duration) {
	old := w.leader()
	others := w.others(old)
	session := w.openSession(old)
	time.Sleep(w.o.heartbeat) // Nobody is behind.
	ctx, cancel := context.WithCancel(w.t.Context())
	var work sync.WaitGroup
	work.Go(func() { _, _ = w.Node(old).TransferLeadership(ctx, "") }) // It does not learn what came of it.
	time.Sleep(apart * 3 / 2)                                          // The other one has been told, its call for votes is on the way.
	for _, other := range others {
		w.Net.CutOneWay(other, old)
	}
	w.note("%s does not hear %v", old, others)
	for i, other := range others {
		// They see the session end, too.
		work.Go(func() { w.ask(fmt.Sprint("writer", i), other, after+minSession+time.Second, 100*time.Millisecond, put) })
	}
	for i := range 2 {
		work.Go(func() { w.ask(fmt.Sprint("reader", i), old, after+2*apart, 25*time.Millisecond, get) })
	}
	work.Go(func() { w.ask("owner", old, after, 50*time.Millisecond, renew(session)) })
	time.Sleep(after)
	w.Net.Heal()
	w.note("healed")
	time.Sleep(time.Second)
	cancel()
	work.Wait()
}

// question is one call of somebody who asks again and again.
type question func(ctx context.Context, conn *grpc.ClientConn) error

func get(ctx context.Context, conn *grpc.ClientConn) error {
	_, err := apiv1.NewRegistryServiceClient(conn).Get(ctx, &apiv1.GetRequest{Key: &apiv1.InstanceKey{Service: "usurper", Id: "a"}})
	return err
}

func put(ctx context.Context, conn *grpc.ClientConn) error {
	_, err := apiv1.NewRegistryServiceClient(conn).Register(ctx, &apiv1.RegisterRequest{Instance: &registryv1.Instance{
		Service: "usurper", Id: "a", Address: "10.0.0.1", Metadata: map[string]string{"at": time.Now().String()},
	}})
	return err
}

func renew(session string) question {
	return func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := apiv1.NewSessionServiceClient(conn).Renew(ctx, &apiv1.RenewRequest{SessionIds: []string{session}})
		return err
	}
}

// ask has a recorded client ask a node for some time, with a pause between two questions.
func (w *world) ask(client, node string, d, pause time.Duration, q question) {
	conn, err := w.dial(client, node, w.recorder.DialOptions(client, node)...)
	if err != nil {
		w.t.Error(err)
		return
	}
	defer conn.Close()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(pause) {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
		_ = q(ctx, conn)
		cancel()
	}
}

// minSession is the shortest TTL of a session.
const minSession = 2 * time.Second

// openSession opens a session of the shortest TTL through a node.
func (w *world) openSession(node string) string {
	w.t.Helper()
	conn, err := w.dial("owner", node, w.recorder.DialOptions("owner", node)...)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	resp, err := apiv1.NewSessionServiceClient(conn).Open(w.t.Context(), &apiv1.OpenRequest{Ttl: durationpb.New(minSession)})
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.GetSession().GetId()
}
