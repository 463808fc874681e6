package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestForegroundRegistrationEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	reg := s.start("register", "web", "--id", "w1", "--port", "80", "--ttl", "10s")
	reg.says("instance/web/w1 registered\n")
	i := s.only("web")
	sessions := decode[struct{ Sessions []sessionView }](t, s.ok("sessions", "-o", "json")).Sessions
	if len(sessions) != 1 || sessions[0].ID != i.SessionID || sessions[0].TTLSeconds != 10 || sessions[0].Instances != 1 {
		t.Errorf("sessions %+v, instance %+v", sessions, i)
	}
	s.ok("sessions", "list")
	if code := reg.wait(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, reg.stderr.String())
	}
	if left := s.instances("web"); len(left) != 0 {
		t.Errorf("instances %+v are left", left)
	}
}

func TestIfAbsentLeavesTheOwner(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	s.start("register", "web", "--id", "w1", "--port", "80").says("registered")
	r := s.run("register", "web", "--id", "w1", "--port", "81", "--if-absent")
	if r.code != exitConflict {
		t.Errorf("exit code %d, want 7\n%s", r.code, r.stderr)
	}
}

func TestNewestOwnerOfAnInstanceWins(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	old := s.start("register", "web", "--id", "w1", "--port", "80", "--ttl", "2s")
	old.says("registered")
	s.start("register", "web", "--id", "w1", "--port", "81").says("registered")
	if i := s.only("web"); i.endpoint() != "127.0.0.1:81" {
		t.Errorf("instance %+v: want that of the newest owner", i)
	}
}

func TestWrappedCommandIsRegisteredWhileItRuns(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	gate := filepath.Join(t.TempDir(), "gate")
	run := s.start("register", "job", "--id", "j1", "--port", "80", "--", "sh", "-c",
		`echo "$REGD_SERVICE/$REGD_INSTANCE_ID"; while [ ! -e `+gate+` ]; do sleep 0.05; done; exit 42`)
	run.says("job/j1\n")
	eventually(t, func() string {
		if len(s.instances("job")) == 1 {
			return ""
		}
		return "the command is not registered: " + run.stderr.String()
	})
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	<-run.ended
	if run.code != 42 {
		t.Errorf("exit code %d, want the command's 42\n%s", run.code, run.stderr.String())
	}
	if left := s.instances("job"); len(left) != 0 {
		t.Errorf("instances %+v are left", left)
	}
}

func TestWrappedCommandIsDrainedBeforeItIsStopped(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	watch := s.start("watch", "job", "-o", "jsonl")
	watch.says(`"type":"synced"`)
	run := s.start("register", "job", "--id", "j1", "--port", "80", "--drain-time", "300ms", "--", "sh", "-c",
		`trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 0.05; done`)
	run.says("up\n")
	watch.says(`"cause":"registered"`)
	eventually(t, func() string { // Its own process learns of it last.
		if strings.Contains(run.stderr.String(), "instance/job/j1 registered\n") {
			return ""
		}
		return "not registered: " + run.stderr.String()
	})
	run.stop()
	watch.says(`"cause":"drain"`)
	if strings.Contains(run.stdout.String(), "asked") {
		t.Error("the command was stopped before it was drained")
	}
	if code := run.wait(); code != 5 {
		t.Errorf("exit code %d, want the command's 5", code)
	}
	watch.says(`"type":"delete"`)
	if code := watch.wait(); code != exitOK {
		t.Errorf("watch: exit code %d\n%s", code, watch.stderr.String())
	}
}

// The watchers are told first, and there is no sleep in it.
func TestWrappedCommandIsStoppedOnceAllAreTold(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	watch := s.start("watch", "job", "-o", "jsonl")
	watch.says(`"type":"synced"`)
	run := s.start("register", "job", "--id", "j1", "--port", "80", "--drain-timeout", "10m", "--", "sh", "-c",
		`trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 0.05; done`)
	eventually(t, func() string {
		if strings.Contains(run.stderr.String(), "instance/job/j1 registered\n") {
			return ""
		}
		return "not registered: " + run.stderr.String()
	})
	run.says("up\n")
	if code := run.wait(); code != 5 {
		t.Errorf("exit code %d, want the command's 5\n%s", code, run.stderr.String())
	}
	if said := run.stderr.String(); !strings.Contains(said, "instance/job/j1 deregistered; told before: 1 client\n") {
		t.Errorf("it says %s", said)
	}
	watch.says(`"cause":"drain"`)
	watch.says(`"type":"delete"`)
	if code := watch.wait(); code != exitOK {
		t.Errorf("watch: exit code %d\n%s", code, watch.stderr.String())
	}
}

func TestWrappedCommandThatDoesNotStopIsKilled(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	run := s.start("register", "job", "--port", "80", "--stop-timeout", "100ms", "--", "sh", "-c",
		`trap '' TERM; echo up; while :; do sleep 0.05; done`)
	run.says("up\n")
	if code := run.wait(); code != 128+9 {
		t.Errorf("exit code %d, want that of a killed process", code)
	}
}

func TestRefusedRegistrationStopsTheCommand(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	r := s.run("register", "job", "--id", "bad id", "--port", "80", "--", "sleep", "60")
	if r.code != exitUsage || !strings.Contains(r.stderr, "instance.id") {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
	r = s.run("register", "job", "--port", "80", "--", "/no/such/command")
	if r.code != exitNotFound {
		t.Errorf("exit code %d, want 3\n%s", r.code, r.stderr)
	}
}
