package cluster

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestRepeatedMessagesOfRaftAreFolded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := newRaftLogger(slog.New(slog.NewTextHandler(&out, nil)))
		for range 5 {
			log.With("peer", "n2").Error("failed to heartbeat")
		}
		log.Warn("something else")
		time.Sleep(foldFor)
		log.Error("failed to heartbeat")
		if got := strings.Count(out.String(), "failed to heartbeat"); got != 2 {
			t.Errorf("said %d times, want 2:\n%s", got, out.String())
		}
		if !strings.Contains(out.String(), "repeated=4") || !strings.Contains(out.String(), "something else") {
			t.Errorf("the count or another message is missing:\n%s", out.String())
		}
	})
}
