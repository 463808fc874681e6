package storage

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// config opens a folder with the log store that it has; a new one gets boltdb.
func config(dir string) Config {
	id, _ := readIdentity(dir) // Without one it is new, or not to be opened at all.
	return Config{
		Dir: dir, LogStore: id.LogStore, NoSync: true, MinFreeBytes: 1, Logger: slog.New(slog.DiscardHandler),
		segmentSize: 16 << 10,
	}
}

// inStore is config for a new folder with a log store.
func inStore(store LogStore, dir string) Config {
	cfg := config(dir)
	cfg.LogStore = store
	return cfg
}

// eachStore runs a test with each log store.
func eachStore(t *testing.T, test func(t *testing.T, store LogStore)) {
	t.Helper()
	for _, store := range LogStores() {
		t.Run(string(store), func(t *testing.T) { test(t, store) })
	}
}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	return openConfig(t, config(dir))
}

func openConfig(t *testing.T, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func closeStore(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// entry has something in every field.
func entry(index uint64) *raft.Log {
	return &raft.Log{
		Index: index, Term: 1 + index/10, Type: raft.LogCommand,
		Data:       []byte(strings.Repeat(fmt.Sprintf("entry %d ", index), 40)),
		Extensions: []byte("ext"),
		AppendedAt: time.Unix(1_700_000_000, int64(index)),
	}
}

func entries(low, high uint64) []*raft.Log {
	var list []*raft.Log
	for i := low; i <= high; i++ {
		list = append(list, entry(i))
	}
	return list
}

func appendEntries(t *testing.T, s *Store, low, high uint64) {
	t.Helper()
	for i := low; i <= high; i++ {
		if err := s.Logs().StoreLog(entry(i)); err != nil {
			t.Fatalf("store entry %d: %v", i, err)
		}
	}
}

func wantEntries(t *testing.T, l raft.LogStore, low, high uint64) {
	t.Helper()
	for i := low; i <= high; i++ {
		var got raft.Log
		if err := l.GetLog(i, &got); err != nil {
			t.Fatalf("get entry %d: %v", i, err)
		}
		if diff := cmp.Diff(*entry(i), got); diff != "" {
			t.Fatalf("entry %d (-stored +got):\n%s", i, diff)
		}
	}
}

func makeSnapshot(t *testing.T, s *Store, index uint64, state string) string {
	t.Helper()
	_, trans := raft.NewInmemTransport("a")
	members := raft.Configuration{Servers: []raft.Server{{ID: "node-a", Address: "a:1"}}}
	sink, err := s.Snapshots().Create(1, index, 1+index/10, members, 1, trans)
	if err != nil {
		t.Fatalf("create snapshot: %v", err)
	}
	if _, err := sink.Write([]byte(state)); err != nil {
		t.Fatalf("write snapshot: %v", err)
	}
	if err := sink.Close(); err != nil {
		t.Fatalf("close snapshot: %v", err)
	}
	return sink.ID()
}

// files is what is in a folder: path, mode, time of change and content; not the lock.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == lockFile || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := fmt.Sprint(info.Mode(), info.ModTime())
		if !d.IsDir() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += string(content)
		}
		found[path] = text
		return nil
	})
	if err != nil {
		t.Fatalf("read folder: %v", err)
	}
	return found
}

// refused opens a folder that must be refused and left as it is.
func refused(t *testing.T, dir string) error {
	t.Helper()
	before := files(t, dir)
	s, err := Open(config(dir))
	if err == nil {
		closeStore(t, s)
		t.Fatal("open succeeded")
	}
	if diff := cmp.Diff(before, files(t, dir)); diff != "" {
		t.Errorf("refusing changed the folder:\n%s", diff)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("not one line: %q", err)
	}
	return err
}

func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(content), fileMode); err != nil {
		t.Fatal(err)
	}
}

// built makes a closed folder with entries 1 to n and a vote, the log in raft.db.
func built(t *testing.T, n uint64) string {
	t.Helper()
	return builtIn(t, LogStoreBoltDB, n)
}

// builtIn is built with a log store.
func builtIn(t *testing.T, store LogStore, n uint64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	s := openConfig(t, inStore(store, dir))
	appendEntries(t, s, 1, n)
	if err := s.Stable().SetUint64([]byte("CurrentTerm"), 7); err != nil {
		t.Fatal(err)
	}
	if err := s.Stable().Set([]byte("LastVoteCand"), []byte("node-b")); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	return dir
}
