package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

func TestFolderSurvivesReopen(t *testing.T) { eachStore(t, folderSurvivesReopen) }

func folderSurvivesReopen(t *testing.T, store LogStore) {
	dir := builtIn(t, store, 300)
	first := open(t, dir)
	id := first.Identity()
	if err := uuid.Validate(id.NodeID); err != nil {
		t.Errorf("node id %q: %v", id.NodeID, err)
	}
	if err := first.SetClusterID("cluster-1"); err != nil {
		t.Fatal(err)
	}
	closeStore(t, first)

	s := open(t, dir)
	if want := (Identity{NodeID: id.NodeID, ClusterID: "cluster-1", LogStore: store}); s.Identity() != want {
		t.Errorf("identity is %+v, want %+v", s.Identity(), want)
	}
	wantEntries(t, s.Logs(), 1, 300)
	if term, err := s.Stable().GetUint64([]byte("CurrentTerm")); term != 7 || err != nil {
		t.Errorf("term is %d, %v, want 7", term, err)
	}
	if vote, err := s.Stable().Get([]byte("LastVoteCand")); string(vote) != "node-b" || err != nil {
		t.Errorf("vote is %q, %v, want node-b", vote, err)
	}
}

func TestEmptyUntilRaftStores(t *testing.T) { eachStore(t, emptyUntilRaftStores) }

func emptyUntilRaftStores(t *testing.T, in LogStore) {
	for name, store := range map[string]func(s *Store){
		"a term":     func(s *Store) { check(t, s.Stable().SetUint64([]byte("CurrentTerm"), 1)) },
		"an entry":   func(s *Store) { check(t, s.Logs().StoreLog(entry(1))) },
		"a snapshot": func(s *Store) { makeSnapshot(t, s, 5, "state") },
	} {
		t.Run(name, func(t *testing.T) {
			s := openConfig(t, inStore(in, t.TempDir()))
			if empty, err := s.Empty(); !empty || err != nil {
				t.Fatalf("a new folder: empty %v, %v", empty, err)
			}
			store(s)
			if empty, err := s.Empty(); empty || err != nil {
				t.Errorf("with %s: empty %v, %v", name, empty, err)
			}
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOnlyTheOwnerMayRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "data")
	s := open(t, dir)
	check(t, s.SetClusterID("c"))
	id := makeSnapshot(t, s, 3, "state")
	for path, want := range map[string]fs.FileMode{
		"": dirMode, "node.json": fileMode, "LOCK": fileMode, "raft.db": fileMode, "snapshots": dirMode, "snapshots/" + id: dirMode,
	} {
		info, err := os.Stat(filepath.Join(dir, path))
		check(t, err)
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%q has mode %v, want %v", path, got, want)
		}
	}
}

func TestSecondOpenNamesTheHolder(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	err := refused(t, dir)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("second open: %v", err)
	}
	closeStore(t, s)
	closeStore(t, s) // Twice is fine.
	closeStore(t, open(t, dir))
}

func TestDatabaseOpenElsewhereIsAnErrorNotAHang(t *testing.T) {
	dir := built(t, 1)
	file, err := os.Open(filepath.Join(dir, databaseFile))
	check(t, err)
	defer file.Close()
	check(t, unix.Flock(int(file.Fd()), unix.LOCK_EX))
	if err := refused(t, dir); !errors.Is(err, ErrLocked) {
		t.Errorf("open: %v", err)
	}
	if _, err := openDatabase(filepath.Join(dir, databaseFile), true); !errors.Is(err, ErrLocked) {
		t.Errorf("bbolt: %v", err)
	}
}

func TestNewerFormatIsRefused(t *testing.T) {
	dir := built(t, 1)
	edit(t, filepath.Join(dir, identityFile), func(b []byte) []byte {
		return []byte(strings.Replace(string(b), `"format": 1`, `"format": 3, "new": {}`, 1))
	})
	if err := refused(t, dir); !errors.Is(err, ErrNewerFormat) {
		t.Errorf("open: %v", err)
	}
}

func TestClusterIsSetOnce(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	check(t, s.SetClusterID("one"))
	check(t, s.SetClusterID("one"))
	if err := s.SetClusterID("two"); !errors.Is(err, ErrForeignCluster) {
		t.Errorf("another cluster: %v", err)
	}
	if err := s.SetClusterID(""); err == nil {
		t.Error("an empty id was taken")
	}
	if got := s.Identity().ClusterID; got != "one" {
		t.Errorf("cluster is %q, want one", got)
	}
}

func TestFolderThatCannotBeMadeIsNotWritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, fileMode))
	dirs := map[string]string{"the folder is a file": file, "a parent is a file": filepath.Join(file, "data"), "a parent takes no files": "/proc/regd/data"}
	if os.Geteuid() != 0 {
		closed := t.TempDir()
		check(t, os.Chmod(closed, 0o500))
		dirs["no permission"] = closed
	}
	for name, dir := range dirs {
		t.Run(name, func(t *testing.T) {
			if _, err := Open(config(dir)); !errors.Is(err, ErrNotWritable) {
				t.Errorf("open: %v", err)
			}
		})
	}
}

func TestConfigReportsAllFaults(t *testing.T) {
	_, err := Open(Config{LogStore: "paper", SnapshotRetain: 1, LogCacheEntries: -1})
	for _, want := range []string{"dir", "paper", "retain", "cache", "logger"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func TestInterruptedFirstStartGoesOn(t *testing.T) {
	made := t.TempDir()
	closeStore(t, open(t, made))
	database, err := os.ReadFile(filepath.Join(made, databaseFile))
	check(t, err)
	check(t, writeIdentity(made, Identity{NodeID: uuid.NewString(), LogStore: LogStoreWAL}))
	identity, err := os.ReadFile(filepath.Join(made, identityFile))
	check(t, err)
	for name, left := range map[string]map[string]string{
		"after the lock":            {"LOCK": "1\n"},
		"while making the database": {"raft.db.tmp": "half", "snapshots/.keep": ""},
		"before the identity":       {"raft.db": string(database), "node.json.tmp": "{"},
		"after the identity":        {"raft.db": string(database), "node.json": string(identity)},
		"while making a segment":    {"raft.db": string(database), "node.json": string(identity), "wal/00000000000000000001-0000000000000000.wal": "\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, content := range left {
				check(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), dirMode))
				check(t, os.WriteFile(filepath.Join(dir, file), []byte(content), fileMode))
			}
			s := openConfig(t, inStore(LogStoreWAL, dir))
			appendEntries(t, s, 1, 3)
			closeStore(t, s)
			wantEntries(t, open(t, dir).Logs(), 1, 3)
		})
	}
}

func TestMissingFilesAreDamage(t *testing.T) {
	eachStore(t, missingFilesAreDamage)
}

func missingFilesAreDamage(t *testing.T, store LogStore) {
	for _, file := range []string{identityFile, databaseFile} {
		t.Run(file, func(t *testing.T) {
			dir := builtIn(t, store, 3)
			check(t, os.Remove(filepath.Join(dir, file)))
			wantCorrupt(t, refused(t, dir), file)
		})
	}
}

func wantCorrupt(t *testing.T, err error, file string) {
	t.Helper()
	_ = damageOf(t, err, file)
}

// damageOf returns the CorruptError, which must be about a file.
func damageOf(t *testing.T, err error, file string) *CorruptError {
	t.Helper()
	var damage *CorruptError
	if !errors.As(err, &damage) || !errors.Is(err, ErrCorrupt) {
		t.Fatalf("not a CorruptError: %v", err)
	}
	if !strings.Contains(damage.File, file) || damage.Where == "" || !strings.Contains(damage.Repair, "mv ") {
		t.Errorf("file %q, where %q, repair %q", damage.File, damage.Where, damage.Repair)
	}
	return damage
}

func TestIdentityWithAnyByteChangedIsRefused(t *testing.T) {
	dir := built(t, 1)
	want, err := readIdentity(dir)
	check(t, err)
	path := filepath.Join(dir, identityFile)
	good, err := os.ReadFile(path)
	check(t, err)
	refusals := 0
	for i := range good {
		for bit := range 8 {
			edit(t, path, func([]byte) []byte {
				bad := append([]byte(nil), good...)
				bad[i] ^= 1 << bit
				return bad
			})
			switch got, err := readIdentity(dir); {
			case errors.Is(err, ErrCorrupt), errors.Is(err, ErrNewerFormat):
				refusals++
			case err != nil:
				t.Fatalf("byte %d bit %d: %v", i, bit, err)
			case got != want: // White space may change.
				t.Fatalf("byte %d bit %d: read %+v", i, bit, got)
			}
		}
	}
	if refusals < len(good)*6 {
		t.Errorf("%d refusals of %d", refusals, len(good)*8)
	}
	for _, content := range []string{"", "{", "null", "{}", "[]"} {
		check(t, os.WriteFile(path, []byte(content), fileMode))
		wantCorrupt(t, refused(t, dir), identityFile)
	}
}

func TestRefusalErrorIsOneLine(t *testing.T) {
	err := corrupt("/data", "raft.db", "page 3", errors.New("several\nlines\tof text"))
	want := "/data/raft.db is damaged at page 3: several lines of text; to repair: "
	if !strings.HasPrefix(err.Error(), want) {
		t.Error(cmp.Diff(want, err.Error()))
	}
}
