package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/regd-io/regd/cluster/peer"
)

// serveArgs start a node on free ports.
func serveArgs(t *testing.T, dir string, more ...string) []string {
	t.Helper()
	return append([]string{
		"serve", "--name", "n1", "--data-dir", dir, "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
		"--peer-listen", freeAddress(t), "--heartbeat-timeout", "100ms",
	}, more...)
}

// used makes the data folder of a node that has run.
func used(t *testing.T, more ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "n1")
	peers := freeAddress(t)
	run := newShell(t).start(append([]string{
		"serve", "--name", "n1", "--data-dir", dir, "--grpc-listen", "127.0.0.1:0",
		"--http-listen", "127.0.0.1:0", "--peer-listen", peers, "--initial-peers", peers, "--heartbeat-timeout", "100ms",
	}, more...)...)
	eventually(t, func() string {
		if strings.Contains(run.stderr.String(), `"msg":"ready"`) {
			return ""
		}
		return "not ready:\n" + run.stderr.String()
	})
	if code := run.wait(); code != exitOK {
		t.Fatalf("exit code %d\n%s", code, run.stderr.String())
	}
	return dir
}

func TestUnusableDataFolderHasItsExitCode(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T) (dir string)
		want  exitCode
	}{
		{"in use", func(t *testing.T) string {
			t.Helper()
			dir := filepath.Join(t.TempDir(), "n1")
			run := newShell(t).start(serveArgs(t, dir)...)
			eventually(t, func() string {
				if strings.Contains(run.stderr.String(), "waiting for the cluster") {
					return ""
				}
				return "not started:\n" + run.stderr.String()
			})
			return dir
		}, exitDataLocked},
		{"damaged", func(t *testing.T) string {
			t.Helper()
			dir := used(t)
			db := filepath.Join(dir, "raft.db")
			data, err := os.ReadFile(db)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(db, data[:len(data)/2], 0o600); err != nil {
				t.Fatal(err)
			}
			return dir
		}, exitDataCorrupt},
		{"not writable", func(t *testing.T) string {
			t.Helper()
			file := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(file, "n1")
		}, exitDataDenied},
		{"of another log store", func(t *testing.T) string { t.Helper(); return used(t, "--log-store", "wal") }, exitConfig},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := tt.spoil(t)
			r := newShell(t).run(serveArgs(t, dir)...)
			last := r.stderr[strings.LastIndex(r.stderr, "error: "):]
			if r.code != tt.want || strings.Count(strings.SplitN(last, "hint:", 2)[0], "\n") != 1 {
				t.Errorf("exit code %d, want %d and one line:\n%s", r.code, tt.want, r.stderr)
			}
		})
	}
}

func TestConfigurationFaultsAreToldAtOnce(t *testing.T) {
	t.Parallel()
	r := newShell(t).run("serve", "--name", strings.Repeat("x", 64), "--grpc-listen", "0.0.0.0:1", "--peer-listen", "nonsense",
		"--heartbeat-timeout", "1ms", "--shutdown-delay", "-1s", "--join", "x", "--trace-otlp", "collector:4317", "--trace-sample", "nan",
		"--backup-dir", "b", "--backup-every", "1s", "--backup-keep", "0")
	if r.code != exitConfig {
		t.Errorf("exit code %d, want 78", r.code)
	}
	for _, says := range []string{
		"--name ", "--data-dir: must be set", "--heartbeat-timeout 1ms: must be 50ms", "--shutdown-delay -1s",
		"--grpc-listen 0.0.0.0:1: reaches beyond this machine without TLS", `--advertise-grpc "0.0.0.0:1": nobody can reach that`,
		`--peer-listen "nonsense": must be host:port`, `--join "x": must be host:port`,
		`--trace-otlp "collector:4317": must be http://host:port`, "--trace-sample NaN: must be 0 to 1",
		"--backup-every 1s: must be at least 1m0s", "--backup-keep 0: must be 1 to 10000",
	} {
		if !strings.Contains(r.stderr, says) {
			t.Errorf("stderr lacks %q:\n%s", says, r.stderr)
		}
	}
}

func TestOnlyLoopbackNeedsNoConsent(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.9.9.9": true, "::1": true, "localhost": true,
		"": false, "0.0.0.0": false, "::": false, "10.0.0.1": false, "example.com": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("isLoopback(%q) = %v", host, got)
		}
	}
}

func TestTakenPortIsToldInOneLine(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, flag := range []string{"--http-listen", "--grpc-listen", "--peer-listen"} {
		r := newShell(t).run(serveArgs(t, t.TempDir(), flag, l.Addr().String())...)
		if r.code != exitFailed || !strings.Contains(r.stderr, "address already in use\n  hint: another process listens there") {
			t.Errorf("%s: exit code %d\n%s", flag, r.code, r.stderr)
		}
	}
}

func TestOpsPortTellsHowTheNodeIs(t *testing.T) {
	t.Parallel()
	_, address := startNode(t)
	for path, want := range map[string]string{
		"/livez": "ok\n", "/readyz": "ok\n", "/startupz": "ok\n",
		"/readyz?verbose": "[+]started ok\n[+]member ok\n[+]serving ok\n[+]leader ok\n[+]state ok\nok\n",
		"/livez?verbose":  "[+]process ok\n[+]node ok\nok\n",
	} {
		if code, body := get(t, "http://"+address+path); code != http.StatusOK || body != want {
			t.Errorf("%s: %d %q, want %q", path, code, body, want)
		}
	}
	_, body := get(t, "http://"+address+"/metrics")
	for _, m := range clusterMetrics() {
		if !strings.Contains(body, "# HELP "+m.name+" "+m.help+"\n") || !strings.Contains(body, "\n"+m.name+" ") {
			t.Errorf("/metrics lacks %s", m.name)
		}
	}
	for _, line := range []string{
		"\nregd_has_leader 1\n", "\nregd_is_leader 1\n", "\nregd_is_voter 1\n", "\nregd_voters 1\n", "\nregd_snapshot_index 0\n", "\nregd_log_append_seconds{quantile=\"0.99\"} ",
		"\nregd_log_store_info{log_store=\"boltdb\"} 1\n",
		"\nregd_build_info{commit=\"abc\",go_version=\"go1\",version=\"v1.2.3\"} 1\n", "\ngo_goroutines ", "\nprocess_open_fds ",
		"\ngrpc_server_handled_total{", "\nregd_expirations_total", "\nregd_watchers ",
	} {
		if !strings.Contains(body, line) {
			t.Errorf("/metrics lacks %q", line)
		}
	}
}

func TestCutNodeReachesNobodyUntilItIsHealed(t *testing.T) {
	t.Parallel()
	n := newPeerCut(peer.TCP())
	lis, err := n.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		for {
			c, acceptErr := lis.Accept()
			if acceptErr != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := n.Dial(ctx, lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	in := <-accepted
	n.set(true)
	for _, c := range []net.Conn{out, in} {
		if _, err = c.Read(make([]byte, 1)); err == nil {
			t.Error("an open connection outlived the cut")
		}
		c.Close()
	}
	if _, err = n.Dial(ctx, lis.Addr().String()); !errors.Is(err, errCut) {
		t.Errorf("dial while cut: %v", err)
	}
	stranger, err := peer.TCP().Dial(ctx, lis.Addr().String()) // The other side does not know yet.
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err = stranger.Read(make([]byte, 1)); err == nil {
		t.Error("a connection was taken while cut")
	}
	n.set(false)
	again, err := n.Dial(ctx, lis.Addr().String())
	if err != nil {
		t.Fatalf("dial after healing: %v", err)
	}
	defer again.Close()
	(<-accepted).Close()
}
