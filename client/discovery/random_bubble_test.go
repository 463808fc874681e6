package discovery_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// story is a random course of changes, outages, lagging nodes, lost history, restores and restarts.
type story struct {
	t     *testing.T
	rnd   *rand.Rand
	r     *registry
	dir   string
	c     *client.Client
	d     *discovery.Discovery
	users []*discovery.Service
	last  map[string]client.ResumePoint // by service, since the last restart
	views atomic.Int64
}

var storyServices = []string{"web", "api"}

// begin starts the Discovery, and a reader of each service that checks every view.
func (s *story) begin() {
	s.t.Helper()
	s.c = s.r.client()
	d, err := discovery.New(s.c, discovery.WithFile(s.dir))
	if err != nil {
		s.t.Fatal(err)
	}
	s.d, s.users, s.last = d, nil, map[string]client.ResumePoint{}
	for _, name := range storyServices {
		handle := service(s.t, d, name)
		s.users = append(s.users, handle)
		go func() {
			for v, err := range handle.All(s.t.Context()) {
				if err != nil {
					return
				}
				s.views.Add(1)
				s.check(v)
			}
		}()
	}
	synctest.Wait()
}

func (s *story) end() {
	s.d.Close()
	if err := s.c.Close(); err != nil {
		s.t.Error(err)
	}
	synctest.Wait()
}

// check compares a view with what the registry had at its revision.
func (s *story) check(v *discovery.View) {
	s.t.Helper()
	got := map[string]uint64{}
	for _, i := range v.Instances {
		if _, ok := slices.BinarySearch(v.Protected, i.GetId()); !ok {
			got[i.GetId()] = i.GetModifyRevision()
		}
	}
	if diff := cmp.Diff(s.r.ids(v.Service, v.Point.Revision), got); diff != "" {
		s.t.Errorf("%s at %d, %s: %s", v.Service, v.Point.Revision, v.Source, diff)
	}
	if len(got)+len(v.Protected) != len(v.Instances) {
		s.t.Errorf("%d listed and %d protected are %d", len(got), len(v.Protected), len(v.Instances))
	}
}

// step does one thing.
func (s *story) step() {
	node := s.r.nodes[s.rnd.IntN(len(s.r.nodes))]
	now := uint64(len(s.r.states) - 1)
	switch n := s.rnd.IntN(40); {
	case n < 20:
		s.r.change(s.events()...)
	case n < 24:
		node.stop()
	case n < 29:
		node.start()
	case n < 31:
		s.r.set(func() { node.held = node.revision() })
	case n < 34:
		s.r.set(func() { node.held = 0 })
	case n < 35:
		s.r.set(func() { s.r.kept = now })
	case n < 36 && now > 2:
		s.r.restore(1 + s.rnd.Uint64N(now))
	case n < 37:
		s.end()
		s.begin()
	default:
		time.Sleep(time.Duration(s.rnd.Int64N(int64(20 * time.Second))))
	}
	if s.rnd.IntN(3) == 0 {
		synctest.Wait()
	}
}

// events are one to four changes of one revision.
func (s *story) events() []*registryv1.Event {
	have := map[string]map[string]uint64{}
	for _, name := range storyServices {
		have[name] = s.r.ids(name, uint64(len(s.r.states)-1))
	}
	var events []*registryv1.Event
	for range 1 + s.rnd.IntN(4) {
		name, id := storyServices[s.rnd.IntN(2)], fmt.Sprintf("i%d", s.rnd.IntN(8))
		event := put(id)[0]
		if _, ok := have[name][id]; ok && s.rnd.IntN(2) == 0 {
			event = del([]registryv1.Cause{deregistered, expired}[s.rnd.IntN(2)], id)[0]
			delete(have[name], id)
		} else {
			have[name][id] = 1
		}
		event.Instance.Service = name
		if !slices.ContainsFunc(events, func(e *registryv1.Event) bool {
			return e.GetInstance().GetService() == name && e.GetInstance().GetId() == id
		}) {
			events = append(events, event)
		}
	}
	return events
}

// sample checks what View gives at any time: a whole revision, that never falls.
func (s *story) sample() {
	for n, name := range storyServices {
		synctest.Wait()
		if s.d.Stats()[1-n].Source == 0 { // by name: api comes first
			continue
		}
		v, _ := s.users[n].View(s.t.Context())
		s.check(v)
		last := s.last[name]
		if v.Point.Epoch < last.Epoch || v.Point.Epoch == last.Epoch && v.Point.Revision < last.Revision {
			s.t.Errorf("%s is at %v after %v", name, v.Point, last)
		}
		s.last[name] = v.Point
	}
}

func TestEveryViewIsAStateOfTheRegistry(t *testing.T) {
	stories, views := 12, int64(0)
	for seed := range uint64(stories) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &story{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), r: newRegistry(t, 3), dir: t.TempDir()}
				s.begin()
				for range 120 {
					s.step()
					s.sample()
				}
				s.r.start()
				s.r.set(func() {
					for _, n := range s.r.nodes {
						n.held = 0
					}
				})
				time.Sleep(20 * time.Second)
				s.sample()
				for n, name := range storyServices {
					v, _ := s.users[n].View(t.Context())
					if want := uint64(len(s.r.states) - 1); v.Source != discovery.SourceLive || v.Point.Revision != want {
						t.Errorf("%s ends %s at %d, want it live at %d", name, v.Source, v.Point.Revision, want)
					}
				}
				views += s.views.Load()
				s.end()
			})
		})
	}
	t.Logf("%d views in %d stories", views, stories)
}
