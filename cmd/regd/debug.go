package main

import (
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// What the port for operations shows to operators beside profiles, and `regd debug bundle` asks for. None holds a secret or what is
// registered.
const (
	pageSettings = "/debug/settings"
	pageLog      = "/debug/log"
	pageFiles    = "/debug/files"
	pageRaft     = "/debug/raft"
)

// showPages shows those of this node to operators, also while it opens.
func (s *server) showPages() {
	const asJSON = "application/json"
	show := func(path, contentType string, write func(w io.Writer) error) {
		s.ops.ops.Handle("GET "+path, registryv1.Action_ACTION_OPERATE, func(w http.ResponseWriter, _ *http.Request) {
			var page bytes.Buffer
			if err := write(&page); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", contentType)
			w.Header().Set("Cache-Control", "no-store")
			_, _ = page.WriteTo(w) // Who has gone needs no answer.
		})
	}
	show(pageLog, "text/plain; charset=utf-8", s.cfg.LogLines.write)
	show(pageSettings, asJSON, func(w io.Writer) error { return writeIndented(w, s.cfg.Settings) })
	show(pageFiles, asJSON, func(w io.Writer) error {
		files, err := listFiles(s.cfg.DataDir)
		if err != nil {
			return err
		}
		return writeIndented(w, files)
	})
	show(pageRaft, asJSON, func(w io.Writer) error {
		var stats map[string]string // null while the node opens
		if node := s.opened.Load(); node != nil {
			stats = node.RaftStats()
		}
		return writeIndented(w, stats)
	})
}

func writeIndented(w io.Writer, doc any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(doc)
}

// fileView is a file of the data folder.
type fileView struct {
	Path     string    `json:"path"`
	Bytes    int64     `json:"bytes"`
	Mode     string    `json:"mode"`
	Modified time.Time `json:"modified"`
}

// maxListedFiles bounds a list of files.
const maxListedFiles = 1000

// listFiles lists what is in a folder, up to 1,000 files and folders, without what is in them.
func listFiles(dir string) ([]fileView, error) {
	files := []fileView{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // It has just been deleted: snapshots and segments come and go.
		}
		info, err := entry.Info()
		if err != nil {
			return nil //nolint:nilerr // As above.
		}
		if len(files) == maxListedFiles {
			return filepath.SkipAll
		}
		name, err := filepath.Rel(dir, path)
		files = append(files, fileView{Path: name, Bytes: info.Size(), Mode: info.Mode().String(), Modified: info.ModTime().UTC()})
		return err
	})
	return files, err
}

const (
	// keptLines is how many lines of the log a node keeps in memory.
	keptLines = 1000
	// maxKeptLine bounds one, in bytes: of a longer one the beginning is kept.
	maxKeptLine = 4 << 10
)

// lastLines keeps the last lines that were written to it, of at most 4 KiB each. Nil keeps none. Its methods are safe for
// concurrent use.
type lastLines struct {
	mu    sync.Mutex
	lines [][]byte
	next  int // where the next one goes, once there are keptLines
}

// Write implements io.Writer: p is one line.
func (l *lastLines) Write(p []byte) (int, error) {
	line := slices.Clone(p[:min(len(p), maxKeptLine)])
	if len(line) < len(p) {
		line = append(line, '\n')
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) < keptLines {
		l.lines = append(l.lines, line)
		return len(p), nil
	}
	l.lines[l.next] = line
	l.next = (l.next + 1) % keptLines
	return len(p), nil
}

// write writes the lines, the oldest first.
func (l *lastLines) write(w io.Writer) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	lines := slices.Concat(l.lines[l.next:], l.lines[:l.next])
	l.mu.Unlock()
	for _, line := range lines {
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	return nil
}
