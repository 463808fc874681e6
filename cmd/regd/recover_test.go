package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// What a recovery does is held in cluster, and by test/chaos, which follows the runbook. Here is what is refused.
func TestNothingIsRecoveredWhereNothingIs(t *testing.T) {
	t.Parallel()
	s, dir := newShell(t), t.TempDir()
	none := filepath.Join(dir, "none")
	for _, c := range []struct {
		args string
		code exitCode
		says string
	}{
		{"--data-dir " + dir, exitUsage, "both must be given"},
		{"--lost n2 --data-dir " + none, exitNotFound, "holds nothing to recover from"},
		{"--lost n2 --data-dir " + dir, exitNotFound, "is not a member of a cluster"},
	} {
		got := s.run(append([]string{"recover"}, strings.Fields(c.args)...)...)
		if got.code != c.code || !strings.Contains(got.stderr, c.says) {
			t.Errorf("recover %s: code %d, want %d:\n%s", c.args, got.code, c.code, got.stderr)
		}
	}
	if _, err := os.Stat(none); !os.IsNotExist(err) {
		t.Errorf("a folder was made: %v", err)
	}
}

func TestAMajorityIsStartedNotRecovered(t *testing.T) {
	t.Parallel()
	remains := &cluster.Remains{State: fsm.New()}
	for _, name := range []string{"n1", "n2", "n3", "n4", "n5"} {
		remains.Voters = append(remains.Voters, &registryv1.Member{Id: "id-of-" + name, Name: name})
	}
	remains.Self = remains.Voters[0]
	for lost, want := range map[string]exitCode{
		"n2 n3 n4": exitOK, "n2 id-of-n3 n4 n5": exitOK, "n2 n3": exitConflict, "n2 n3 n9": exitNotFound, "n1 n2 n3": exitUsage,
		"n2 n2 n3": exitConflict,
	} {
		if _, err := planRecovery(remains, strings.Fields(lost)); codeOf(err) != want {
			t.Errorf("without %s: %v, want code %d", lost, err, want)
		}
	}
}
