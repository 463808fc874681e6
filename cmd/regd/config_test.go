package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// settingsFile makes a file of settings.
func settingsFile(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "regd.yaml")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestConfigCheckSaysWhatServeWouldSay(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, file string
		args       []string
		code       exitCode
		says       string
	}{
		{"valid", "data-dir: /x\nname: n1\n", nil, exitOK, "the settings are valid"},
		{"unknown key", "data-dri: /x\nname: n1\n", nil, exitConfig, `unknown key "data-dri"; did you mean "data-dir"?`},
		{"no value", "data-dir: /x\nheartbeat-timeout: soon\n", nil, exitConfig, "must be a duration with its unit"},
		{"a flag is missing", "name: n1\n", nil, exitConfig, "--data-dir: must be set"},
		{"a flag is wrong", "data-dir: /x\n", []string{"--grpc-listen", "0.0.0.0:1"}, exitConfig, "reaches beyond this machine without TLS"},
		{"no file", "", []string{"--config", "/nowhere.yaml"}, exitConfig, "read configuration"},
	} {
		r := newShell(t).run(append([]string{"config", "check", "--config", settingsFile(t, tt.file)}, tt.args...)...)
		if r.code != tt.code || !strings.Contains(r.stdout+r.stderr, tt.says) {
			t.Errorf("%s: exit code %d, want %d and %q:\n%s%s", tt.name, r.code, tt.code, tt.says, r.stdout, r.stderr)
		}
	}
}

func TestConfigShowTellsWhereEachSettingIsFrom(t *testing.T) {
	t.Parallel()
	file := settingsFile(t, "name: file\n\ninitial-peers: [a:1, b:1]\nlog-level: debug\nlog-store: wal\n")
	s := newShell(t)
	s.env["REGD_LOG_LEVEL"] = "warn"
	got := s.ok("config", "show", "--config", file, "--name", "n1")
	for _, want := range []string{
		"name n1 flag", "initial-peers a:1,b:1 " + file + ":3", "log-level warn environment",
		"log-store wal " + file + ":5", "shutdown-delay 0s default", "join <none> default",
	} {
		found := false
		for line := range strings.Lines(got) {
			found = found || strings.Join(strings.Fields(line), " ") == want
		}
		if !found {
			t.Errorf("no line %q in\n%s", want, got)
		}
	}
	if names := s.ok("config", "show", "--config", file, "-o", "name"); strings.Contains(names, "config") || strings.Contains(names, "color") {
		t.Errorf("these are no settings of a node:\n%s", names)
	}
}

func TestHealthAsksTheNode(t *testing.T) {
	t.Parallel()
	s, address := startNode(t)
	if got := s.ok("health", "--http", address); !strings.Contains(got, "[+]leader ok") {
		t.Errorf("ready: %s", got)
	}
	if got := s.ok("health", "live", "--http", address); !strings.Contains(got, "[+]node ok") {
		t.Errorf("live: %s", got)
	}
	for _, tt := range []struct {
		args []string
		code exitCode
		says string
	}{
		{[]string{"--http", freeAddress(t)}, exitUnreachable, "ask the node"},
		{[]string{"raedy"}, exitUsage, `did you mean "ready"?`},
	} {
		if r := s.run(append([]string{"health"}, tt.args...)...); r.code != tt.code || !strings.Contains(r.stderr, tt.says) {
			t.Errorf("health %v: exit code %d, want %d and %q:\n%s%s", tt.args, r.code, tt.code, tt.says, r.stdout, r.stderr)
		}
	}
}

func TestANodeThatWaitsIsLiveAndNotReady(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	ops := freeAddress(t)
	run := s.start("serve", "--name", "n1", "--data-dir", filepath.Join(t.TempDir(), "n1"), "--grpc-listen", "127.0.0.1:0",
		"--http-listen", ops, "--peer-listen", freeAddress(t), "--initial-peers", freeAddress(t))
	eventually(t, func() string {
		if strings.Contains(run.stderr.String(), "waiting for the cluster") {
			return ""
		}
		return "not started:\n" + run.stderr.String()
	})
	if r := s.run("health", "--http", ops); r.code != exitFailed || !strings.Contains(r.stdout, "[-]leader") {
		t.Errorf("ready: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	s.ok("health", "live", "--http", ops)
}
