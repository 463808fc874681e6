package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// settings are flags of several types, as serve has them.
func settings() (*pflag.FlagSet, *serveConfig) {
	cfg := &serveConfig{}
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	cfg.addFlags(fs)
	fs.VisitAll(func(f *pflag.Flag) { bindEnv(fs, f.Name, envName(f.Name)) })
	return fs, cfg
}

func TestFlagWinsOverEnvironmentOverFileOverDefault(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "regd.yaml")
	content := "name: file\nzone: 1\ndata-dir: /file\nheartbeat-timeout: 2s\ninitial-peers: [a:1, b:1]\njoin: c:1,d:1\ninsecure: true\n"
	if err := os.WriteFile(file, []byte(strings.Replace(content, "zone: 1\n", "", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	fs, cfg := settings()
	if err := fs.Parse([]string{"--name", "flag"}); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"REGD_NAME": "env", "REGD_DATA_DIR": "/env"}
	if err := applyEnv(fs, func(name string) string { return env[name] }); err != nil {
		t.Fatal(err)
	}
	if err := applyFile(fs, file); err != nil {
		t.Fatal(err)
	}
	want := serveConfig{
		Name: "flag", DataDir: "/env", LogStore: "boltdb", HeartbeatTimeout: 2 * time.Second, InitialPeers: []string{"a:1", "b:1"},
		Join: []string{"c:1", "d:1"}, Insecure: true, GRPCListen: defaultGRPC, PeerListen: defaultPeer, HTTPListen: defaultHTTP,
		TLS: tlsSettings{ClientAuth: "none", MinVersion: "1.3"}, Limits: defaultLimits(),
		Trace: traceSettings{Sample: defaultTraceSample}, Backup: backupSettings{Every: defaultBackupEvery, Keep: defaultBackupKeep},
	}
	if diff := cmp.Diff(want, *cfg); diff != "" {
		t.Errorf("settings differ (-want +got):\n%s", diff)
	}
}

func TestFileReportsAllFaultsWithTheirPlace(t *testing.T) {
	t.Parallel()
	fs, _ := settings()
	err := applyYAML(fs, "regd.yaml", []byte(`name: x
grpc-lisen: 127.0.0.1:1
name: y
heartbeat-timeout: 5
initial-peers: [a:1, [b:1]]
insecure: maybe
data-dir: {a: b}
`))
	if err == nil {
		t.Fatal("no error")
	}
	golden(t, "config-faults.txt", err.Error()+"\n")
}

func TestFileThatIsNoListOfKeysIsRefused(t *testing.T) {
	t.Parallel()
	for content, says := range map[string]string{
		"a: b: c":                 "regd.yaml:1:",
		"- name":                  "must be a list of  key: value",
		"just text":               "must be a list of  key: value",
		"name: x\n---\nname: y\n": "regd.yaml:2:1: a second document",
		"name: x\n---":            "regd.yaml:2:1: a second document",
		"name: x\n...\ny: z":      "regd.yaml:2:1: a second document",
		"config: other.yaml":      `unknown key "config"`,
		"\tname: x":               "regd.yaml:1:",
	} {
		fs, _ := settings()
		if err := applyYAML(fs, "regd.yaml", []byte(content)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: error %v, want %q", content, err, says)
		}
	}
}

func TestEmptyFileIsFine(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"", "# nothing\n", "---\n"} {
		fs, _ := settings()
		if err := applyYAML(fs, "regd.yaml", []byte(content)); err != nil {
			t.Errorf("%q: %v", content, err)
		}
	}
}

func TestEnvironmentReportsAllFaults(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.env["REGD_HEARTBEAT_TIMEOUT"], s.env["REGD_INSECURE"] = "5", "maybe"
	r := s.run("serve")
	if r.code != exitUsage ||
		!strings.Contains(r.stderr, `REGD_HEARTBEAT_TIMEOUT="5": must be a duration with its unit`) ||
		!strings.Contains(r.stderr, `REGD_INSECURE="maybe": must be true or false`) {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
}
