package disksim_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/regd-io/regd/test/chaos/internal/disksim"
	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// syncing makes this binary a process that appends to the file of that name, syncs it, and tells the result of each sync
// and its time in a line.
const syncing = "DISKSIM_TEST_SYNCING"

func TestMain(m *testing.M) {
	if path := os.Getenv(syncing); path != "" {
		syncForever(path)
	}
	os.Exit(m.Run())
}

func syncForever(path string) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	for err == nil {
		if _, err = f.Write([]byte("x")); err != nil {
			break
		}
		began := time.Now()
		result := "ok"
		if syncErr := f.Sync(); syncErr != nil {
			result = errors.Unwrap(syncErr).Error()
		}
		_, err = fmt.Printf("%s;%d\n", result, time.Since(began).Milliseconds())
		time.Sleep(5 * time.Millisecond)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func disk(t *testing.T) *disksim.Disk {
	t.Helper()
	nodes.Require(t, disksim.Probe(), disksim.ProbeFreeze(), disksim.ProbePowerLoss())
	began := time.Now()
	d := disksim.New(t, t.TempDir(), "n1", disksim.DefaultSize)
	t.Logf("a disk took %v", time.Since(began).Round(time.Millisecond))
	return d
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAPowerLossLosesWhatWasNotSyncedAndNoMore(t *testing.T) {
	d := disk(t)
	path := filepath.Join(d.Dir, "log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	check(t, err)
	defer f.Close()
	write := func(s string) {
		_, err := f.WriteString(s)
		check(t, err)
	}
	write("synced")
	check(t, f.Sync())
	write(", not synced")
	check(t, d.CutPower())
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("a sync without power: %v", err)
	}
	if err := d.RestorePower(); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("restored while a file is open: %v", err)
	}
	check(t, f.Close())
	check(t, d.RestorePower())
	if got, err := os.ReadFile(path); err != nil || string(got) != "synced" {
		t.Errorf("after the power loss: %q, %v", got, err)
	}
	if err := d.RestorePower(); err == nil {
		t.Error("power that was not cut was restored")
	}
	check(t, os.WriteFile(path, []byte("works again"), 0o600))
	check(t, d.CutPower()) // And once more.
	check(t, d.RestorePower())
}

func TestAFrozenDiskLetsWritersWait(t *testing.T) {
	d := disk(t)
	check(t, d.Freeze())
	written := make(chan error, 1)
	go func() { written <- os.WriteFile(filepath.Join(d.Dir, "f"), []byte("x"), 0o600) }()
	select {
	case err := <-written:
		t.Errorf("a frozen disk was written: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	stalled, err := d.Thaw()
	check(t, err)
	if stalled < 200*time.Millisecond {
		t.Errorf("it was frozen for %v only", stalled)
	}
	check(t, <-written)
	check(t, d.Freeze()) // Taken down with the test.
}

func TestAFullDiskHasRoomForWhatIsLeft(t *testing.T) {
	d := disk(t)
	before, err := d.FreeBytes()
	check(t, err)
	for _, leave := range []int64{20 << 20, 1 << 20, 0} {
		left, err := d.Fill(leave)
		check(t, err)
		if left > leave || left < leave-64<<10 {
			t.Errorf("%d bytes are left, want %d", left, leave)
		}
	}
	path := filepath.Join(d.Dir, "f")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write to a full disk: %v", err)
	}
	check(t, d.Free())
	check(t, os.Remove(path))
	if after, err := d.FreeBytes(); err != nil || after < before-1<<20 {
		t.Errorf("%d bytes were free before and %d after, %v", before, after, err)
	}
	check(t, os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<20), 0o600))
}

func TestDamageIsWhatItSays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	content := append(bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)...)
	for name, tc := range map[string]struct {
		damage func() error
		want   []byte // nil: an error
	}{
		"flip":            {func() error { return disksim.FlipByte(path, 4097) }, replaced(content, 4097, 1, ^byte(2))},
		"flip beyond":     {func() error { return disksim.FlipByte(path, 8192) }, nil},
		"zero":            {func() error { return disksim.ZeroPage(path, 1) }, replaced(content, 4096, 4096, 0)},
		"zero beyond":     {func() error { return disksim.ZeroPage(path, 2) }, nil},
		"truncate":        {func() error { return disksim.Truncate(path, 5000) }, content[:5000]},
		"truncate beyond": {func() error { return disksim.Truncate(path, 8192) }, nil},
	} {
		check(t, os.WriteFile(path, content, 0o600))
		err := tc.damage()
		got, readErr := os.ReadFile(path)
		check(t, readErr)
		switch {
		case tc.want == nil && (err == nil || !bytes.Equal(got, content)):
			t.Errorf("%s: %v, changed: %v", name, err, !bytes.Equal(got, content))
		case tc.want != nil && (err != nil || !bytes.Equal(got, tc.want)):
			t.Errorf("%s: %v, as wanted: %v", name, err, bytes.Equal(got, tc.want))
		}
	}
	check(t, os.WriteFile(path, make([]byte, 4096), 0o600))
	if err := disksim.ZeroPage(path, 0); err == nil {
		t.Error("zeros were damaged by zeros")
	}
}

func replaced(b []byte, at, size int, value byte) []byte {
	b = bytes.Clone(b)
	copy(b[at:], bytes.Repeat([]byte{value}, size))
	return b
}

// syncer starts a process that syncs a file over and over. next returns the next result and how long the sync took.
func syncer(t *testing.T) (pid int, next func() (string, time.Duration)) {
	t.Helper()
	nodes.Require(t, disksim.ProbeInject())
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), syncing+"="+filepath.Join(t.TempDir(), "f"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	return cmd.Process.Pid, func() (string, time.Duration) {
		if !lines.Scan() {
			t.Fatalf("the syncing process says no more: %v", lines.Err())
		}
		result, ms, _ := strings.Cut(lines.Text(), ";")
		k, err := strconv.Atoi(ms)
		check(t, err)
		return result, time.Duration(k) * time.Millisecond
	}
}

// until returns once a sync is as wanted.
func until(t *testing.T, next func() (string, time.Duration), want func(string, time.Duration) bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		result, took := next()
		if want(result, took) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the last sync: %s after %v", result, took)
		}
	}
}

func TestSyncErrorsLastUntilTheyAreStopped(t *testing.T) {
	pid, next := syncer(t)
	until(t, next, func(result string, _ time.Duration) bool { return result == "ok" })
	i, err := disksim.SyncErrors(pid)
	check(t, err)
	until(t, next, func(result string, _ time.Duration) bool { return result == syscall.EIO.Error() })
	for range 3 {
		if result, _ := next(); result != syscall.EIO.Error() {
			t.Errorf("sync: %s", result)
		}
	}
	check(t, i.Stop())
	if i.Hits() < 4 {
		t.Errorf("%d hits were counted, want 4", i.Hits())
	}
	until(t, next, func(result string, _ time.Duration) bool { return result == "ok" })
	check(t, i.Stop())
}

func TestSlowSyncTakesItsTime(t *testing.T) {
	pid, next := syncer(t)
	i, err := disksim.SlowSync(pid, 300*time.Millisecond)
	check(t, err)
	until(t, next, func(result string, took time.Duration) bool { return result == "ok" && took >= 300*time.Millisecond })
	check(t, i.Stop())
	if i.Hits() < 1 {
		t.Error("no hit was counted")
	}
}

func TestAProcessThatIsGoneCantBeInjected(t *testing.T) {
	nodes.Require(t, disksim.ProbeInject())
	dead := exec.Command("true")
	check(t, dead.Run())
	if i, err := disksim.SyncErrors(dead.Process.Pid); err == nil {
		t.Error("a dead process was traced", i.Stop())
	} else if !strings.Contains(err.Error(), "attach") {
		t.Errorf("the error does not say what strace said: %v", err)
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	nodes.Require(t, disksim.Probe())
	dir := t.TempDir()
	t.Run("disk", func(t *testing.T) {
		d := disksim.New(t, dir, "n1", disksim.DefaultSize)
		check(t, d.Freeze())
	})
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	if mounts := mounts(t); strings.Contains(mounts, dir) {
		t.Errorf("still mounted:\n%s", mounts)
	}
}

func mounts(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile("/proc/self/mounts")
	check(t, err)
	return string(content)
}

func TestWhatADeadHarnessLeftIsRemovedAndOnlyThat(t *testing.T) {
	nodes.Require(t, disksim.Probe())
	gone := exec.Command("true")
	check(t, gone.Run())
	dir := t.TempDir()
	mount := func(pid int) (image, at string) {
		name := fmt.Sprintf("regd-disksim-%d-1-n1", pid)
		image, at = filepath.Join(dir, name+".ext4"), filepath.Join(dir, name)
		check(t, os.Mkdir(at, 0o700))
		for _, command := range [][]string{
			{"truncate", "-s", "16M", image}, {"mkfs.ext4", "-q", "-F", image}, {"mount", "-o", "loop", image, at},
		} {
			if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", command, err, out)
			}
		}
		return image, at
	}
	image, dead := mount(gone.Process.Pid)
	_, living := mount(os.Getppid())
	defer func() {
		if out, err := exec.Command("umount", living).CombinedOutput(); err != nil {
			t.Errorf("the disk of a living harness: %v: %s", err, out)
		}
	}()
	if out, err := exec.Command("fsfreeze", "-f", dead).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	disksim.New(t, dir, "n1", disksim.DefaultSize)
	if _, err := os.Stat(image); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the image of a dead harness: %v", err)
	}
	if out, err := exec.Command("losetup", "--all").CombinedOutput(); err != nil || bytes.Contains(out, []byte(image)) {
		t.Errorf("the loop device of a dead harness is still there: %v: %s", err, out)
	}
	if all := mounts(t); strings.Contains(all, dead+" ") || !strings.Contains(all, living+" ") {
		t.Errorf("mounted are:\n%s", all)
	}
}
