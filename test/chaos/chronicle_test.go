package chaos_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// chronicle is what a service was, from revision to revision. One scribe alone writes it, one write after the other, so that
// nothing is left to guess.
type chronicle struct {
	name   string
	quiet  bool // it is written only when all are
	states []*chronicled
}

// chronicled is a service after a write.
type chronicled struct {
	revision     uint64
	begun, acked time.Time // of the write
	members      map[string]entry
	all, a, srv  string // as a client of Consul sees it, and as clients of DNS do
}

// entry is an instance. Each registration has an address of its own, so that no two look alike.
type entry struct {
	address string
	port    uint16
	passing bool
}

// String is how a client of Consul sees it.
func (e entry) String() string { return fmt.Sprintf("%s:%d:%t", e.address, e.port, e.passing) }

// fold sorts and joins texts, so that they can be compared.
func fold(texts []string) string {
	slices.Sort(texts)
	return strings.Join(texts, " ")
}

// describe makes the texts from the members.
func (s *chronicled) describe() {
	var all, a, srv []string
	for id, e := range s.members {
		all = append(all, id+"="+e.String())
		if e.passing {
			a = append(a, e.address)
			srv = append(srv, fmt.Sprintf("%s:%d", e.address, e.port))
		}
	}
	s.all, s.a, s.srv = fold(all), fold(a), fold(srv)
}

// at is the service at a revision, nil before its first write.
func (c *chronicle) at(revision uint64) *chronicled {
	k := 0
	for n := len(c.states); k < n; { // The first that is later.
		if mid := (k + n) / 2; c.states[mid].revision <= revision {
			k = mid + 1
		} else {
			n = mid
		}
	}
	if k == 0 {
		return nil
	}
	return c.states[k-1]
}

// reporter is the check of each instance: the scribe says how it is.
const reporter = "up"

// scribe writes some services in turns.
type scribe struct {
	number   int
	c        *client.Client
	services []*chronicle
	rng      *rand.Rand
	made     int
	rest     time.Duration // between two writes
	hurry    atomic.Int64  // how many writes are to be made without rest, the quiet services included
	failed   error
}

// noted is the key of a context's place for the revision of a write.
type noted struct{}

// note is an interceptor: what a write answers says at which revision it was done.
func note(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, do grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := do(ctx, method, req, reply, cc, opts...)
	if at, ok := ctx.Value(noted{}).(*uint64); ok && err == nil {
		*at = reply.(interface{ GetHeader() *apiv1.ResponseHeader }).GetHeader().GetRevision()
	}
	return err
}

// newScribe is a scribe of some services, each of which it registers first.
func newScribe(t *testing.T, number int, endpoints []string, services []*chronicle, rest time.Duration) *scribe {
	t.Helper()
	s := &scribe{
		number: number, services: services, rest: rest, rng: rand.New(rand.NewPCG(1, uint64(number))),
		c: newClient(t, endpoints, client.WithDialOptions(grpc.WithChainUnaryInterceptor(note))),
	}
	for _, c := range services {
		c.states = []*chronicled{{members: map[string]entry{}}}
		for range 3 {
			s.write(t.Context(), c)
		}
		c.states = c.states[1:]
	}
	if s.failed != nil {
		t.Fatal(s.failed)
	}
	return s
}

// run writes until ctx ends or a write fails.
func (s *scribe) run(ctx context.Context) {
	for turn := 0; s.failed == nil; turn++ {
		c := s.services[turn%len(s.services)]
		if s.hurry.Add(-1) < 0 {
			s.hurry.Store(0) // Nobody else but the test writes it, and that only when it means the next turns.
			select {
			case <-time.After(s.rest):
			case <-ctx.Done():
				return
			}
			if c.quiet {
				continue
			}
		}
		s.write(context.WithoutCancel(ctx), c) // To its end: what came of it must be known.
		if ctx.Err() != nil {
			return
		}
	}
}

// write makes a write of a service: it registers an instance, anew perhaps, takes one away, or says how one is. One at least
// passes all the time.
func (s *scribe) write(ctx context.Context, c *chronicle) {
	was := c.states[len(c.states)-1]
	now := &chronicled{members: maps.Clone(was.members), begun: time.Now()}
	id := fmt.Sprintf("i%d", s.rng.IntN(6))
	old, there := was.members[id]
	spare := there && slices.ContainsFunc(slices.Collect(maps.Keys(was.members)), func(other string) bool {
		return other != id && was.members[other].passing
	})
	key := client.Key{Service: c.name, ID: id}
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, noted{}, &now.revision), 30*time.Second)
	defer cancel()
	var err error
	switch kind := s.rng.IntN(3); {
	case there && kind == 0 && (spare || !old.passing):
		delete(now.members, id)
		_, err = s.c.Deregister(ctx, key)
	case there && kind == 1 && (spare || !old.passing):
		old.passing = !old.passing
		now.members[id] = old
		status := registryv1.CheckStatus_CHECK_STATUS_CRITICAL
		if old.passing {
			status = registryv1.CheckStatus_CHECK_STATUS_PASSING
		}
		err = s.c.SetHealth(ctx, key, reporter, status, "")
	default:
		s.made++
		fresh := entry{fmt.Sprintf("10.%d.%d.%d", s.number, s.made/256, s.made%256), uint16(1024 + s.made%60_000), !there || old.passing} // Its check stays as it is.
		now.members[id] = fresh
		_, err = s.c.RegisterDetached(ctx, &registryv1.Instance{
			Service: c.name, Id: id, Address: fresh.address, Ports: []*registryv1.Port{{Number: uint32(fresh.port)}},
			Checks: []*registryv1.Check{{
				Name: reporter, Initial: registryv1.CheckStatus_CHECK_STATUS_PASSING,
				Kind: &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(time.Hour)}},
			}},
		})
	}
	now.acked = time.Now()
	switch {
	case err != nil:
		s.failed = fmt.Errorf("write %s: %w", c.name, err)
	case now.revision <= was.revision:
		s.failed = fmt.Errorf("write %s: it was done at revision %d, the write before at %d", c.name, now.revision, was.revision)
	default:
		now.describe()
		c.states = append(c.states, now)
	}
}
