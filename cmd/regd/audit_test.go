package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A node whose audit log can't be written has neither made nor joined anything when it says so.
func TestANodeDoesNotStartWithoutItsAuditLog(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "n1")
	peerAddress := freeAddress(t)
	err := serve(t.Context(), serveConfig{
		Name: "n1", DataDir: folder, AuditLog: filepath.Join(t.TempDir(), "none", "audit.log"), GRPCListen: "127.0.0.1:0",
		HTTPListen: "127.0.0.1:0", PeerListen: peerAddress, InitialPeers: []string{peerAddress}, HeartbeatTimeout: time.Second,
		Logger: slog.New(slog.DiscardHandler), Limits: defaultLimits(),
	})
	if codeOf(err) != exitConfig || !strings.Contains(err.Error(), "--audit-log") {
		t.Errorf("%v, want that it names the setting", err)
	}
	if _, err = os.Stat(folder); err == nil {
		t.Error("its data folder was made")
	}
}

func TestAuditLogIsAddedTo(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	for _, name := range []string{"first", "second\n{\"msg\":\"forged\"}"} {
		a, err := openAudit(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		a.log.Info("done", "id", name)
		if err = a.close(); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode: %v, %v", info, err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines, want 2:\n%s", len(lines), content)
	}
	for i, want := range []string{"first", "second\n{\"msg\":\"forged\"}"} {
		var record struct{ Msg, ID string }
		if err = json.Unmarshal([]byte(lines[i]), &record); err != nil || record.Msg != "done" || record.ID != want {
			t.Errorf("line %d is %+v, %v", i+1, record, err)
		}
	}
	var out bytes.Buffer
	a, err := openAudit("-", &out)
	if err != nil {
		t.Fatal(err)
	}
	a.log.Info("done")
	if !strings.Contains(out.String(), `"msg":"done"`) || a.close() != nil {
		t.Errorf("on stdout: %s", out.String())
	}
	if a, err = openAudit("", nil); err != nil || a.log != nil {
		t.Errorf("none: %v, %v", a, err)
	}
	if _, err = openAudit(filepath.Join(path, "below"), nil); codeOf(err) != exitConfig || !strings.Contains(err.Error(), "--audit-log") {
		t.Errorf("a file below a file: %v", err)
	}
}
