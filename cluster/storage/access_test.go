package storage

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDataFolderIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "n1")
	var said bytes.Buffer
	cfg := Config{Dir: dir, NoSync: true, Logger: slog.New(slog.NewTextHandler(&said, nil))}
	open := func() error {
		said.Reset()
		s, err := Open(cfg)
		if err != nil {
			return err
		}
		return s.Close()
	}
	mode := func(path string) fs.FileMode {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if want := map[bool]fs.FileMode{true: dirMode, false: fileMode}[entry.IsDir()]; mode(path) != want {
			t.Errorf("%s has mode %v, want %v", path, mode(path), want)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, path string
		mode       fs.FileMode
		refused    bool
		after      fs.FileMode
		warns      bool
	}{
		{"all may write in the folder", dir, 0o777, true, 0o777, false},
		{"all may write the database", filepath.Join(dir, databaseFile), 0o602, true, 0o602, false},
		{"all may read the database", filepath.Join(dir, databaseFile), 0o644, false, 0o640, true},
		{"all may look into the snapshots", filepath.Join(dir, snapshotsDir), 0o755, false, 0o750, true},
		{"a mount point", dir, 0o755, false, 0o755, false},
		{"a volume of Kubernetes", dir, 0o775, false, 0o775, false},
	} {
		was := mode(tt.path)
		if err := os.Chmod(tt.path, tt.mode); err != nil {
			t.Fatal(err)
		}
		if err := open(); errors.Is(err, ErrExposed) != tt.refused || (err != nil) != tt.refused {
			t.Errorf("%s: %v", tt.name, err)
		}
		if got := mode(tt.path); got != tt.after {
			t.Errorf("%s: mode %v afterwards, want %v", tt.name, got, tt.after)
		}
		if warned := strings.Contains(said.String(), "level=WARN"); warned != tt.warns {
			t.Errorf("%s: it says %q", tt.name, said.String())
		}
		if err := os.Chmod(tt.path, was); err != nil {
			t.Fatal(err)
		}
	}
}
