package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSnapshotComesBack(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	file := filepath.Join(t.TempDir(), "s.regd")
	s.ok("register", "web", "--id", "w1", "--port", "1", "--detach")
	saved := decode[snapshotView](t, s.ok("snapshot", "save", file, "-o", "json"))
	inspected := decode[snapshotView](t, s.ok("snapshot", "inspect", file, "-o", "json"))
	if saved != inspected || saved.Instances != 1 || saved.ContentHash == "" || saved.Bytes == 0 {
		t.Errorf("saved %+v, inspected %+v", saved, inspected)
	}
	s.ok("deregister", "web", "w1")

	fresh, _ := startNode(t) // Another cluster.
	for name, at := range map[string]*shell{"same": s, "other": fresh} {
		watch := at.start("watch", "-o", "jsonl")
		watch.says(`"type":"synced"`)
		restored := decode[snapshotView](t, at.ok("snapshot", "restore", file, "--yes", "-o", "json"))
		if restored.Epoch <= saved.Epoch && name == "same" || restored.Revision < saved.Revision {
			t.Errorf("%s cluster: restored %+v after %+v", name, restored, saved)
		}
		if i := at.only("web"); i.ID != "w1" {
			t.Errorf("%s cluster: instance %+v", name, i)
		}
		watch.says(`"id":"w1"`)
		got := decode[struct {
			ContentHash string `json:"content_hash"`
		}](t, at.ok("verify", "-o", "json"))
		if got.ContentHash != saved.ContentHash {
			t.Errorf("%s cluster: content %s, want %s", name, got.ContentHash, saved.ContentHash)
		}
	}
	if parts, _ := filepath.Glob(file + ".part-*"); len(parts) > 0 {
		t.Errorf("left behind: %v", parts)
	}
}

func TestDamagedSnapshotIsRefused(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	file := filepath.Join(t.TempDir(), "s.regd")
	s.ok("snapshot", "save", file)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"snapshot", "inspect", file}, {"snapshot", "restore", file, "--yes"}} {
		if r := s.run(args...); r.code != exitFailed || !strings.Contains(r.stderr, "bad snapshot") {
			t.Errorf("regd %v: exit code %d\n%s", args, r.code, r.stderr)
		}
	}
}
