package storage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// openIn lists the open files below a folder.
func openIn(t *testing.T, dir string) (list []string) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	check(t, err)
	for _, fd := range fds {
		if path, err := os.Readlink(fd); err == nil && strings.HasPrefix(path, dir) {
			list = append(list, path)
		}
	}
	return list
}

func TestASinkLeavesNoFileOpen(t *testing.T) {
	for name, end := range map[string]func(raft.SnapshotSink) error{
		"closed": raft.SnapshotSink.Close, "cancelled": raft.SnapshotSink.Cancel,
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			s := open(t, dir)
			folder := filepath.Join(dir, snapshotsDir)
			sink, err := s.Snapshots().Create(raft.SnapshotVersionMax, 1, 1, raft.Configuration{}, 1, nil)
			check(t, err)
			if n := len(openIn(t, folder)); n != 2 { // The other is Raft's.
				t.Fatalf("a sink has %d files open", n)
			}
			_, err = sink.Write(make([]byte, 3*writebackEvery))
			check(t, err)
			check(t, end(sink))
			if left := openIn(t, folder); left != nil {
				t.Errorf("still open: %q", left)
			}
		})
	}
}
