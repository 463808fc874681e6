package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// unpacked is what is in an archive, by its names below the archive's folder. What is compressed in it is unpacked too.
func unpacked(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(z); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if inner, err := gzip.NewReader(bytes.NewReader(content)); err == nil {
			if content, err = io.ReadAll(inner); err != nil {
				t.Fatal(err)
			}
		}
		_, name, _ := strings.Cut(header.Name, "/")
		files[name] = string(content)
	}
}

func TestBundleHoldsWhatIsKnownAndNoSecret(t *testing.T) {
	t.Parallel()
	var lines lastLines
	s, _ := startNodeWith(t, tlsSettings{}, func(cfg *serveConfig) {
		cfg.LogLines = &lines
		cfg.Logger = slog.New(slog.NewJSONHandler(&lines, nil))
		cfg.Settings = []settingView{{Name: "data-dir", Value: cfg.DataDir, Source: "flag"}}
	})
	s.ok("register", "canary-service", "--id", "canary-instance", "--detach", "--port", "80", "--meta", "canary=canary-value", "--tag", "canary-tag")
	dir := t.TempDir()
	tokenFile := filepath.Join(dir, "token")
	s.ok("access", "bootstrap", "--out", tokenFile)
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.SplitN(strings.TrimSpace(string(token)), "_", 3)[2] // regd_ID_SECRET
	s.env["REGD_TOKEN_FILE"] = tokenFile
	s.ok("instances", "canary-service")
	if r := s.run("instances", "nothing", "--token-file", os.DevNull); r.code != exitDenied && r.code != exitUsage {
		t.Errorf("an empty token: exit code %d\n%s", r.code, r.stderr)
	}
	eventually(t, func() string {
		var log strings.Builder
		if err = lines.write(&log); err != nil || !strings.Contains(log.String(), `"msg":"ready"`) {
			return "it does not say that it is ready: " + log.String()
		}
		return ""
	})
	file := filepath.Join(dir, "b.tar.gz")
	said := s.ok("debug", "bundle", "-f", file, "--cpu", "1s")
	if !strings.Contains(said, "b.tar.gz saved, ") || !strings.Contains(said, " of 1 node\n") {
		t.Errorf("it says %q", said)
	}
	if info, statErr := os.Stat(file); statErr != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", info.Mode(), statErr)
	}
	files := unpacked(t, file)
	for name, holds := range map[string]string{
		"version.json": `"v1.2.3"`, "status.json": `"healthy"`, "nodes/n1/status.json": `"n1"`, "nodes/n1/readyz.txt": "[+]leader ok", "nodes/n1/metrics.txt": "regd_has_leader 1",
		"nodes/n1/settings.json": "data-dir", "nodes/n1/log.jsonl": `"msg":"ready"`, "nodes/n1/files.json": `"raft.db"`, "nodes/n1/raft.json": `"Leader"`,
		"nodes/n1/goroutines.txt": "goroutine profile:", "nodes/n1/heap.pb.gz": "inuse_space", "nodes/n1/cpu.pb.gz": "nanoseconds", "manifest.json": `"missing": []`,
	} {
		if !strings.Contains(files[name], holds) {
			t.Errorf("%s lacks %q: %.200q", name, holds, files[name])
		}
		delete(files, name)
	}
	if len(files) > 0 {
		t.Errorf("it also holds %v", files)
	}
	for name, content := range unpacked(t, file) {
		for _, canary := range []string{secret, "canary"} {
			if strings.Contains(content, canary) {
				t.Errorf("%s holds %q", name, canary)
			}
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("files left behind: %v, %v", left, err)
	}
}

// Without the permission, and of a node that is down, the bundle says what is missing.
func TestBundleTellsWhatItLacks(t *testing.T) {
	t.Parallel()
	s, http := startNode(t)
	dir := t.TempDir()
	operator, reader := filepath.Join(dir, "operator"), filepath.Join(dir, "reader")
	s.ok("access", "bootstrap", "--out", operator)
	s.env["REGD_TOKEN_FILE"] = operator
	s.ok("access", "grants", "put", "reader", "observer")
	s.ok("access", "tokens", "create", "reader", "--out", reader)
	dead := freeAddress(t)
	file := filepath.Join(dir, "b.tar.gz")
	said := s.ok("debug", "bundle", "-f", file, "--token-file", reader, "--http", dead, "-o", "json")
	var m bundleManifest
	if err := json.Unmarshal([]byte(said), &m); err != nil {
		t.Fatal(err)
	}
	why := map[string]string{}
	for _, missing := range m.Missing {
		why[missing.File] = missing.Why
	}
	for name, says := range map[string]string{"nodes/n1/log.jsonl": "403 Forbidden", "nodes/n1/heap.pb.gz": "403 Forbidden", "nodes/" + pathWord(dead) + "/": "connection refused"} {
		if !strings.Contains(why[name], says) {
			t.Errorf("%s is missing since %q, want %q", name, why[name], says)
		}
	}
	if !slices.Contains(m.Entries, bundleEntry{"nodes/n1/metrics.txt", len(unpacked(t, file)["nodes/n1/metrics.txt"])}) {
		t.Errorf("there are no metrics among %v", m.Entries)
	}
	if m.Nodes != 1 {
		t.Errorf("%d nodes have told something, want 1: %s", m.Nodes, http)
	}
}

func TestBundleOfNobodyIsSavedAndFails(t *testing.T) {
	t.Parallel()
	s, dead := newShell(t), freeAddress(t)
	file := filepath.Join(t.TempDir(), "b.tar.gz")
	r := s.run("debug", "bundle", "-f", file, "--endpoint", dead, "--http", dead, "--timeout", "100ms")
	if r.code != exitUnreachable || !strings.Contains(r.stderr, "missing status.json: ") {
		t.Errorf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if files := unpacked(t, file); files["version.json"] == "" || files["manifest.json"] == "" {
		t.Errorf("the archive holds %v", files)
	}
}

func TestNamesOfNodesStayInTheArchive(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"n1": "n1", "127.0.0.1:7400": "127.0.0.1_7400", "..": "_..", "../../etc": ".._.._etc", "": "_"} {
		if got := pathWord(name); got != want {
			t.Errorf("pathWord(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestOnlyTheLastLinesOfTheLogAreKept(t *testing.T) {
	t.Parallel()
	var l lastLines
	for i := range keptLines + 2 {
		if _, err := fmt.Fprintf(&l, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Write(bytes.Repeat([]byte("x"), 2*maxKeptLine)); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := l.write(&got); err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(got.String(), "\n")
	if len(lines) != keptLines+1 || lines[0] != "line 3\n" || len(lines[keptLines-1]) != maxKeptLine+1 {
		t.Errorf("%d lines from %q, the last of %d bytes", len(lines)-1, lines[0], len(lines[keptLines-1]))
	}
}
