package sim

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/regd-io/regd/fsm"
	"github.com/regd-io/regd/test/internal/history"
	"github.com/regd-io/regd/test/internal/workload"
)

func TestWritesGoOnWithoutTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		load, err := workload.New(workload.Config{
			Dial: w.dial, Nodes: w.Names(), Recorder: w.recorder, Seed: 1,
			Counts: workload.Counts{Pinned: 3, Roaming: 2},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		done := make(chan struct{})
		go func() { load.Run(ctx); close(done) }()
		time.Sleep(5 * time.Second)
		leader := w.Leader().Info().Name
		w.Net.Isolate(leader)
		w.note("isolated %s", leader)
		time.Sleep(5 * time.Second)
		w.Net.Heal()
		w.note("healed")
		leader = w.Leader().Info().Name
		w.crash(leader)
		time.Sleep(5 * time.Second)
		w.restart(leader)
		<-done
		timeline, err := w.log.Replay(fsm.New())
		if err != nil {
			t.Fatal(err)
		}
		if clashes := w.log.Clashes(); len(clashes) > 0 {
			t.Errorf("clashes: %q", clashes)
		}
		acknowledged := 0
		for _, write := range w.recorder.History().Writes() {
			if write.Outcome != history.OK {
				continue
			}
			acknowledged++
			if timeline.Request(write.ClientID, write.Sequence) == nil {
				t.Errorf("request %d of %s was acknowledged and is not in the log", write.Sequence, write.ClientID)
			}
		}
		if acknowledged < 100 || t.Failed() {
			t.Errorf("%d writes were acknowledged, want 100 at least\n%s", acknowledged, w.trace.String())
		}
	})
}
