package main

import (
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Not parallel, as the socket is told by the environment.
func TestAServiceManagerHearsOfStartAndStop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	var lc net.ListenConfig
	socket, err := lc.ListenPacket(t.Context(), "unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000000")

	peers := freeAddress(t)
	run := newShell(t).start("serve", "--name", "n1", "--data-dir", filepath.Join(t.TempDir(), "n1"), "--grpc-listen", "127.0.0.1:0",
		"--http-listen", "127.0.0.1:0", "--peer-listen", peers, "--initial-peers", peers, "--heartbeat-timeout", "100ms")
	told := []string{}
	hears := func(state string) {
		t.Helper()
		for buf := make([]byte, 1024); !slices.Contains(told, state); {
			if err := socket.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, _, err := socket.ReadFrom(buf)
			if err != nil {
				t.Fatalf("it never told %s, but %q: %v\n%s", state, told, err, run.stderr.String())
			}
			told = append(told, strings.Split(string(buf[:n]), "\n")...)
		}
	}
	for _, state := range []string{"READY=1", "WATCHDOG=1", "STATUS=ready"} {
		hears(state)
	}
	run.stop()
	hears("STOPPING=1")
	if code := run.wait(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, run.stderr.String())
	}
}
