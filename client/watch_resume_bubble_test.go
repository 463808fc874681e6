package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

func TestWatchResumesAtAnotherNode(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(s *fakeStream) error
		in   time.Duration
	}{
		{"error", func(*fakeStream) error { return errBroken }, time.Second},
		{"clean end", func(*fakeStream) error { return nil }, time.Second},
		{"silence", func(s *fakeStream) error { return s.idle() }, 15 * time.Second},
		{"go elsewhere", func(s *fakeStream) error {
			return errors.Join(s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_GoElsewhere{
				GoElsewhere: &apiv1.GoElsewhere{},
			}}), s.idle())
		}, time.Second},
		{"cut off from its leader", func(s *fakeStream) error {
			return errors.Join(s.progress(11, time.Minute), s.idle())
		}, time.Second},
		{"in the middle of a cut", func(s *fakeStream) error {
			_ = s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Cut{Cut: full(1, inst("z", 90))}})
			return errBroken
		}, time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeCluster(t, 2)
				var resumed *apiv1.ResumePoint
				var served []string
				script := func(s *fakeStream) error {
					f.mu.Lock()
					served = append(served, s.n.address)
					n := len(served)
					f.mu.Unlock()
					if n == 1 {
						id, err := first(s)
						return errors.Join(err, s.events(11, put("a", 11, id)), test.end(s))
					}
					sub, err := s.subscribe()
					if err != nil {
						return err
					}
					resumed = sub.GetResume()
					id := sub.GetSubscriptionId()
					return errors.Join(s.events(12, put("a", 11, id), put("b", 12, id)), s.synced(id, 1, 12), s.idle())
				}
				for _, n := range f.nodes {
					n.scripts(script)
				}
				w := watch(t, f.client(nil))
				begin := time.Now()
				wantChanges(t, w, "+b3 +a5 =10 +a11 =11")
				for {
					change, err := w.Next(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if change.Kind == client.ChangeSynced && change.Revision == 11 {
						continue // a sign of life
					}
					if got := told(change); got != "+b12" {
						t.Fatalf("got %s, want +b12", got)
					}
					break
				}
				wantChanges(t, w, "=12")
				if took := time.Since(begin); took > test.in {
					t.Errorf("resumed after %s, want at most %s", took, test.in)
				}
				synctest.Wait()
				if resumed.GetRevision() != 11 || resumed.GetEpoch() != 1 || resumed.GetClusterId() != "cluster" {
					t.Errorf("resumed from %v, want 11", resumed)
				}
				if len(served) != 2 || served[0] == served[1] {
					t.Errorf("served by %v, want by one and then the other", served)
				}
			})
		})
	}
}

func TestNodeThatNeverAnswersAWatchIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 2)
		var served atomic.Int32
		script := func(s *fakeStream) error {
			if served.Add(1) == 1 {
				return s.idle()
			}
			_, err := first(s)
			return errors.Join(err, s.idle())
		}
		for _, n := range f.nodes {
			n.scripts(script)
		}
		begin := time.Now()
		wantChanges(t, watch(t, f.client(nil)), "+b3 +a5 =10")
		if took := time.Since(begin); took > 15*time.Second {
			t.Errorf("left after %s", took)
		}
	})
}

func TestFullCutIsDeliveredAsTheDifference(t *testing.T) {
	for _, test := range []struct {
		name  string
		epoch uint64
		cut   []*registryv1.Instance
		want  string
	}{
		{"nothing changed", 1, []*registryv1.Instance{inst("a", 5), inst("b", 3)}, "=50"},
		{"changed, new and gone", 1, []*registryv1.Instance{inst("a", 40), inst("c", 30)}, "+c30 +a40 -b50 =50"},
		{"all gone", 1, nil, "-a50 -b50 =50"},
		{"restored: equal revisions prove nothing", 2, []*registryv1.Instance{inst("a", 5)}, "+a50 -b50 =50"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeCluster(t, 1)
				f.nodes[0].scripts(
					func(s *fakeStream) error {
						_, err := first(s)
						return errors.Join(err, errBroken)
					},
					func(s *fakeStream) error {
						sub, err := s.subscribe()
						if err != nil {
							return err
						}
						return errors.Join(s.cut(full(sub.GetSubscriptionId(), test.cut...), test.epoch, 50), s.idle())
					})
				w := watch(t, f.client(nil))
				wantChanges(t, w, "+b3 +a5 =10")
				wantChanges(t, w, test.want)
				if got, want := w.ResumePoint(), (client.ResumePoint{ClusterID: "cluster", Epoch: test.epoch, Revision: 50}); got != want {
					t.Errorf("resume point %+v, want %+v", got, want)
				}
			})
		})
	}
}

func TestPartialCutAmendsTheState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].scripts(func(s *fakeStream) error {
			id, err := first(s)
			send := func(cut *apiv1.Cut) error {
				return s.Send(&apiv1.WatchResponse{Payload: &apiv1.WatchResponse_Cut{Cut: cut}})
			}
			return errors.Join(err,
				send(&apiv1.Cut{SubscriptionId: id, Instances: []*registryv1.Instance{inst("c", 30)}}),
				s.events(41, put("d", 41, id)), // after the state that the cut shows
				send(&apiv1.Cut{
					SubscriptionId: id, Instances: []*registryv1.Instance{inst("a", 5), inst("b", 20)},
					Deleted: []*apiv1.InstanceKey{
						{Namespace: "default", Service: "web", Id: "a"}, {Namespace: "default", Service: "web", Id: "x"},
					},
				}),
				s.synced(id, 1, 40), s.events(41, put("d", 41, id)), s.idle())
		})
		w := watch(t, f.client(nil))
		wantChanges(t, w, "+b3 +a5 =10 +b20 +c30 -a40 +d41")
	})
}

func TestNodeThatIsBehindRollsNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		f.nodes[0].scripts(
			func(s *fakeStream) error {
				_, err := first(s)
				return errors.Join(err, errBroken)
			},
			func(s *fakeStream) error {
				sub, err := s.subscribe()
				if err != nil {
					return err
				}
				return errors.Join(s.cut(full(sub.GetSubscriptionId(), inst("b", 3)), 1, 4), s.idle())
			},
			func(s *fakeStream) error {
				sub, err := s.subscribe()
				if err != nil {
					return err
				}
				return errors.Join(s.synced(sub.GetSubscriptionId(), 1, 11), s.idle())
			})
		w := watch(t, f.client(nil))
		wantChanges(t, w, "+b3 +a5 =10 =11")
	})
}

// TestResumeNeverSkipsWhatWasAnnouncedForOthers plays a stream that breaks between the Synced of a late subscription and
// an event for it, whose revision had been announced to the others before.
func TestResumeNeverSkipsWhatWasAnnouncedForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t, 1)
		points := make(map[uint32]uint64)
		f.nodes[0].scripts(
			func(s *fakeStream) error {
				one, err := first(s)
				if err != nil {
					return err
				}
				sub, err := s.subscribe()
				return errors.Join(err, s.events(15, put("a", 15, one)),
					s.cut(full(sub.GetSubscriptionId()), 1, 14), errBroken)
			},
			func(s *fakeStream) error {
				for range 2 {
					sub, err := s.subscribe()
					if err != nil {
						return err
					}
					points[sub.GetSubscriptionId()] = sub.GetResume().GetRevision()
				}
				return s.idle()
			})
		c := f.client(nil)
		one := watch(t, c)
		wantChanges(t, one, "+b3 +a5 =10")
		two := watch(t, c)
		wantChanges(t, two, "=14")
		time.Sleep(time.Second)
		synctest.Wait()
		if points[1] != 15 || points[2] != 14 {
			t.Errorf("resumed from %v, want 15 and 14", points)
		}
	})
}

func TestWatchGoesOnFromAStoredPoint(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer func(s *fakeStream, id uint32) error
		want   string
	}{
		{"history is kept", func(s *fakeStream, id uint32) error {
			return errors.Join(s.events(12, del("a", 12, id)), s.synced(id, 1, 12))
		}, "-a12 =12"},
		{"history is gone", func(s *fakeStream, id uint32) error {
			return s.cut(full(id, inst("b", 3), inst("c", 30)), 1, 50)
		}, "+c30 -a50 =50"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeCluster(t, 1)
				f.nodes[0].scripts(func(s *fakeStream) error {
					sub, err := s.subscribe()
					if err != nil {
						return err
					}
					if sub.GetResume().GetRevision() != 10 {
						return fmt.Errorf("resume %v, want 10", sub.GetResume())
					}
					return errors.Join(test.answer(s, sub.GetSubscriptionId()), s.idle())
				})
				point := client.ResumePoint{ClusterID: "cluster", Epoch: 1, Revision: 10}
				w := watch(t, f.client(nil), client.WatchFrom(point, []*registryv1.Instance{inst("a", 5), inst("b", 3)}))
				if w.ResumePoint() != point {
					t.Errorf("resume point %+v, want the given one", w.ResumePoint())
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				var got []string
				for change, err := range w.All(ctx) {
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, told(change))
					if change.Kind == client.ChangeSynced {
						break
					}
				}
				if s := strings.Join(got, " "); s != test.want {
					t.Errorf("got %s, want %s", s, test.want)
				}
			})
		})
	}
}
