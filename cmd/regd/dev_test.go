package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// devRun is `regd dev` as a real process, with real processes for nodes.
type devRun struct {
	*shell
	cmd            *exec.Cmd
	dir            string
	stdout, stderr *syncBuffer
	ended          chan struct{}
}

// startDev starts a dev cluster on ports that no other test uses.
func startDev(t *testing.T, args ...string) *devRun {
	t.Helper()
	d := &devRun{
		shell: newShell(t), dir: filepath.Join(t.TempDir(), "dev"),
		stdout: &syncBuffer{}, stderr: &syncBuffer{}, ended: make(chan struct{}),
	}
	d.cmd = exec.Command(os.Args[0], append([]string{"dev", "--data-dir", d.dir, "--port", devPort(t)}, args...)...)
	d.cmd.Env = append(os.Environ(), asRegd+"=1", "XDG_STATE_HOME="+d.env["XDG_STATE_HOME"])
	d.cmd.Stdout, d.cmd.Stderr = d.stdout, d.stderr
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = d.cmd.Wait()
		close(d.ended)
	}()
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		<-d.ended
		if t.Failed() {
			d.showLogs()
		}
	})
	eventually(t, func() string {
		select {
		case <-d.ended:
			t.Fatalf("dev has ended\n%s%s", d.stdout, d.stderr)
		default:
		}
		if strings.Contains(d.stdout.String(), "Ctrl-C stops everything.\n") {
			return ""
		}
		return "dev is not ready\n" + d.stdout.String() + d.stderr.String()
	})
	return d
}

// devPort is the first of the ports of a dev cluster.
func devPort(t *testing.T) string {
	t.Helper()
	return strconv.Itoa(freePort(t, devBlock))
}

func (d *devRun) showLogs() {
	logs, _ := filepath.Glob(filepath.Join(d.dir, "logs", "*.log"))
	for _, path := range logs {
		data, _ := os.ReadFile(path)
		d.t.Logf("%s:\n%s", filepath.Base(path), data[max(0, len(data)-3000):])
	}
}

// addresses are those of all nodes, for all purposes.
func (d *devRun) addresses() []string {
	state, err := readDevState(filepath.Join(d.dir, devStateFile))
	if err != nil || len(state.Nodes) == 0 {
		d.t.Fatalf("state %+v: %v", state, err)
	}
	var all []string
	for _, n := range state.Nodes {
		all = append(all, n.GRPC, n.Peer, n.HTTP)
	}
	return all
}

func (d *devRun) verdict() statusView {
	d.t.Helper()
	return decode[statusView](d.t, d.run("status", "-o", "json").stdout)
}

// stop ends dev by a signal and checks that nothing of it is left.
func (d *devRun) stop() {
	d.t.Helper()
	addresses := d.addresses()
	begun := time.Now()
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		d.t.Fatal(err)
	}
	select {
	case <-d.ended:
	case <-time.After(15 * time.Second):
		d.t.Fatalf("dev does not end\n%s", d.stderr)
	}
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		d.t.Errorf("dev: exit code %d\n%s", code, d.stderr)
	}
	d.t.Logf("stopped after %v", time.Since(begun).Round(time.Millisecond))
	for _, address := range addresses {
		if !portFree(address) {
			d.t.Errorf("somebody still listens on %s", address)
		}
	}
}

func TestDevClusterSurvivesWhatItsUserDoesToIt(t *testing.T) {
	t.Parallel()
	d := startDev(t, "--demo")
	block := regexp.MustCompile(`:\d{4,5}\b`).ReplaceAllString(d.stdout.String(), ":PORT")
	block = regexp.MustCompile(`ready after [\d.]+ s`).ReplaceAllString(block, "ready after S")
	block = strings.NewReplacer(d.dir, "DIR", os.Args[0], "regd").Replace(block)
	for _, door := range doors() { // Each has a line; that is not in the file, so that it does not depend on which there are.
		without := regexp.MustCompile(`(?m)^  `+door.title()+` .*\n`).ReplaceAllString(block, "")
		if without == block {
			t.Errorf("dev does not tell where %s is:\n%s", door.title(), block)
		}
		block = without
	}
	golden(t, "dev-block.txt", block)

	if web := d.instances("web"); len(web) != 2 || web[0].Health != "passing" || web[1].Health != "passing" {
		t.Errorf("web is %+v", web)
	}
	watch := d.start("watch", "-o", "jsonl")
	watch.says(`"type":"synced"`)

	said := d.ok("dev", "kill", "leader")
	killed := strings.Fields(said)[0]
	d.ok("register", "hello", "--id", "h1", "--port", "1", "--detach")
	if r := d.run("dev", "kill", killed); r.code == exitOK {
		t.Errorf("a dead node was killed: %s", r.stdout)
	}
	if v := d.verdict(); v.Verdict != verdictDegraded || v.VotersReachable != 2 || v.Leader == killed {
		t.Errorf("status without %s: %+v", killed, v)
	}
	d.ok("dev", "restart", killed)
	d.ok("status", "--wait")
	d.ok("verify")

	d.ok("dev", "stop-service", "web-1")
	watch.says(`"health":"critical"`)
	d.ok("dev", "start-service", "web")
	eventually(t, func() string {
		if web := d.instances("web"); web[0].Health == "passing" && web[1].Health == "passing" {
			return ""
		}
		return "web does not get well"
	})
	watch.says(`"id":"h1"`)
	if code := watch.wait(); code != exitOK {
		t.Errorf("watch: exit code %d\n%s", code, watch.stderr.String())
	}
	d.checkWatch(watch.stdout.String())
	d.stop()
}

// checkWatch finds nothing repeated and no instance that was lost although it lived.
func (d *devRun) checkWatch(lines string) {
	d.t.Helper()
	var last uint64
	synced := false
	for line := range strings.Lines(lines) {
		v := decode[changeView](d.t, line)
		switch {
		case v.Type == "synced":
			synced = true
		case synced && v.Revision < last:
			d.t.Errorf("revision %d came after %d", v.Revision, last)
		case v.Type == "delete":
			d.t.Errorf("%s/%s was lost: %s", v.Service, v.ID, v.Cause)
		}
		last = max(last, v.Revision)
	}
}

func TestDevClusterSurvivesAPartitionAndAPause(t *testing.T) {
	t.Parallel()
	d := startDev(t)
	cut := strings.Fields(d.ok("dev", "partition", "leader"))[0]
	d.ok("register", "a", "--id", "a1", "--port", "1", "--detach")
	if v := d.verdict(); v.Leader == cut {
		t.Errorf("%s leads although it is cut off", cut)
	}
	d.expect(cut+" can reach the other nodes again\n", d.ok("dev", "heal"))
	d.expect("no node was cut off\n", d.ok("dev", "heal"))
	paused := strings.Fields(d.ok("dev", "pause", "leader"))[0]
	d.ok("register", "b", "--id", "b1", "--port", "1", "--detach")
	d.ok("dev", "resume", paused)
	d.ok("status", "--wait", "--timeout", "20s")
	d.ok("verify")

	for args, says := range map[string]string{
		"dev kill n9":                `no node "n9"; there are n1, n2, n3`,
		"dev stop-service web":       "there are no demo services",
		"dev --data-dir " + d.dir:    "a dev cluster is running in " + d.dir + " already",
		"dev kill n1 --data-dir nix": "no dev cluster is running",
	} {
		if r := d.run(strings.Fields(args)...); r.code == exitOK || !strings.Contains(r.stderr, says) {
			t.Errorf("regd %s: exit code %d, want %q\n%s", args, r.code, says, r.stderr)
		}
	}
	d.ok("dev", "pause", "n2") // Stopping must cope with that.
	d.stop()
}

func TestDevClusterComesBackWithItsData(t *testing.T) {
	t.Parallel()
	d := startDev(t, "--nodes", "1")
	d.ok("register", "a", "--id", "a1", "--port", "1", "--detach")
	before := d.addresses()
	d.stop()
	again := exec.Command(os.Args[0], "dev", "--data-dir", d.dir)
	again.Env = d.cmd.Env
	var out syncBuffer
	again.Stdout, again.Stderr = &out, &out
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if strings.Contains(out.String(), "Ctrl-C") {
			return ""
		}
		return "not ready again: " + out.String()
	})
	if after := d.addresses(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("addresses %v, were %v", after, before)
	}
	if i := d.only("a"); i.ID != "a1" {
		t.Errorf("instance %+v", i)
	}
	r := d.run("dev", "--data-dir", d.dir, "--nodes", "3")
	if r.code == exitOK {
		t.Error("a second dev cluster was started in the same folder")
	}
	// Killed outright, it takes its nodes along.
	if err := again.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = again.Wait()
	eventually(t, func() string {
		for _, address := range before {
			if !portFree(address) {
				return "somebody still listens on " + address
			}
		}
		return ""
	})
}

func TestDevTellsWhyANodeDied(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dev")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "n1"), nil, 0o600); err != nil { // A file where a folder must be.
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "dev", "--nodes", "1", "--data-dir", dir, "--port", devPort(t))
	cmd.Env = append(os.Environ(), asRegd+"=1", "XDG_STATE_HOME="+t.TempDir())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err == nil || stdout.Len() > 0 || !strings.Contains(stderr.String(), "n1 has ended: exit status 74") ||
		!strings.Contains(stderr.String(), "data folder is not writable") || !strings.Contains(stderr.String(), "error: node n1 could not be started") {
		t.Errorf("%v\n%s%s", err, stdout.String(), stderr.String())
	}
}

func TestPortsOfAnotherClusterAreSkipped(t *testing.T) {
	t.Parallel()
	first := freePort(t, 2*devBlock)
	taken, err := net.Listen("tcp", localPort(first+devStride+1))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	var notes syncBuffer
	d := &devCluster{app: newShell(t).app(&syncBuffer{}, &notes)}
	nodes, err := d.freeAddresses(devPlan{count: 2, firstPort: first})
	if err != nil || strings.Count(notes.String(), "\n") != 1 || !strings.Contains(notes.String(), taken.Addr().String()+" is in use") {
		t.Errorf("notes %s: %v", notes.String(), err)
	}
	at := first + devBlock
	want := []devAddresses{
		{Name: "n1", GRPC: localPort(at), Peer: localPort(at + 1), HTTP: localPort(at + 2)},
		{Name: "n2", GRPC: localPort(at + 10), Peer: localPort(at + 11), HTTP: localPort(at + 12)},
	}
	if diff := cmp.Diff(want, nodes); diff != "" {
		t.Errorf("nodes differ (-want +got):\n%s", diff)
	}
}

func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	d := startDev(t)
	peerAddress := freeAddress(t)
	n4 := d.start("serve", "--name", "n4", "--data-dir", filepath.Join(d.dir, "n4"), "--peer-listen", peerAddress,
		"--grpc-listen", freeAddress(t), "--http-listen", freeAddress(t))
	eventually(t, func() string {
		if strings.Contains(n4.stderr.String(), "regd members join "+peerAddress) {
			return ""
		}
		return "n4 does not wait for a cluster: " + n4.stderr.String()
	})
	if r := d.run("members", "join", freeAddress(t), "--timeout", "5s"); r.code == exitOK {
		t.Errorf("nobody was joined: %s", r.stdout)
	}
	d.expect("member/n4 joined\n", d.ok("members", "join", peerAddress, "--wait", "--timeout", "30s"))
	d.expect("member/n4 unchanged\n", d.ok("members", "join", peerAddress))
	d.expect("member/n4 is a non-voter\n", d.ok("members", "demote", "n4"))
	d.expect("member/n4 unchanged\n", d.ok("members", "demote", "n4"))
	d.expect("member/n4 would be unchanged (dry run)\n", d.ok("members", "demote", "n4", "--dry-run"))
	d.expect("member/n4 is a voter\n", d.ok("members", "promote", "n4"))
	for _, verb := range []string{"remove", "demote"} {
		p := decode[voterPlan](t, d.ok("members", verb, "n2", "--dry-run", "-o", "json"))
		if p.Before.Voters != 4 || p.Before.Quorum != 3 || p.After.Voters != 3 || p.After.Quorum != 2 || !p.Changed {
			t.Errorf("%s: plan %+v", verb, p)
		}
	}
	d.expect("member/n2 leads\n", d.ok("leader", "transfer", "n2"))
	d.expect("member/n2 removed\n", d.ok("members", "remove", "n2", "--yes"))
	eventually(t, func() string {
		v := d.verdict()
		if v.Verdict == verdictHealthy && v.Voters == 3 && v.Leader != "n2" {
			return ""
		}
		return v.summary()
	})
	if got := d.ok("members", "-o", "name"); got != "member/n1\nmember/n3\nmember/n4\n" {
		t.Errorf("members:\n%s", got)
	}
	d.ok("verify", "--endpoint", d.addresses()[0])
	d.ok("members", "remove", "n4", "--yes", "--endpoint", d.addresses()[0])
	d.stop()
}

func TestDevClusterWithTLSIsFoundWithoutFlags(t *testing.T) {
	t.Parallel()
	d := startDev(t, "--tls")
	ca := filepath.Join(d.dir, "tls", "ca.crt")
	for _, says := range []string{"TLS         on", "export REGD_CA_CERT=" + ca, "export REGD_CERT="} {
		if !strings.Contains(d.stdout.String(), says) {
			t.Errorf("the block lacks %q:\n%s", says, d.stdout.String())
		}
	}
	d.ok("status", "--wait")
	plain := &shell{t: t, env: map[string]string{"REGD_ENDPOINTS": d.addresses()[0]}}
	if r := plain.run("members", "--timeout", "2s"); r.code != exitUnreachable {
		t.Errorf("without TLS: exit code %d\n%s", r.code, r.stdout)
	}
	plain.env["REGD_CA_CERT"] = ca
	plain.ok("members")
	cut := strings.Fields(d.ok("dev", "partition", "leader"))[0]
	d.ok("register", "a", "--id", "a1", "--port", "1", "--detach")
	if v := d.verdict(); v.Leader == cut {
		t.Errorf("%s leads although it is cut off", cut)
	}
	d.ok("dev", "heal")
	d.ok("status", "--wait", "--timeout", "20s")
	d.ok("verify")
	d.stop()
}
