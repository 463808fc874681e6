package disksim

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/regd-io/regd/test/chaos/internal/nodes/owner"
)

// kind is what images are named by.
const kind = "disksim"

// abilities is what a small disk could do when it was tried; nil errors are good.
type abilities struct{ mount, freeze, powerLoss error }

var tried = sync.OnceValue(func() abilities {
	fail := func(err error) abilities { return abilities{err, err, err} }
	if os.Geteuid() != 0 {
		return fail(errors.New("disksim: only root can mount"))
	}
	dir, err := os.MkdirTemp("", "regd-disksim-probe-")
	if err != nil {
		return fail(fmt.Errorf("disksim: %w", err))
	}
	d, err := open(dir, "probe", 16<<20)
	defer func() { _ = errors.Join(d.close(), os.RemoveAll(dir)) }() // What went wrong has been told by then.
	if err != nil {
		return fail(fmt.Errorf("disksim: %w", err))
	}
	var a abilities
	if a.freeze = d.Freeze(); a.freeze == nil {
		_, a.freeze = d.Thaw()
	}
	if a.powerLoss = d.CutPower(); a.powerLoss == nil {
		a.powerLoss = d.RestorePower()
	}
	return a
})

// Probe returns nil if disks can be made, filled and damaged here, else why not.
func Probe() error { return tried().mount }

// ProbeFreeze returns nil if Freeze works here, else why not.
func ProbeFreeze() error { return tried().freeze }

// ProbePowerLoss returns nil if CutPower works here, else why not.
func ProbePowerLoss() error { return tried().powerLoss }

// ProbeInject returns nil if SyncErrors and SlowSync work here, else why not.
func ProbeInject() error { return traced() }

var traced = sync.OnceValue(func() error {
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("disksim: %w", err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	i, err := SlowSync(cmd.Process.Pid, time.Millisecond)
	if err != nil {
		return fmt.Errorf("disksim: %w", err)
	}
	return i.Stop()
})

// removeLeftovers unmounts and deletes the disks of harnesses that have died.
func removeLeftovers() error {
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, loop := range loops {
		content, err := os.ReadFile(loop)
		if err != nil {
			continue // Let go of since.
		}
		image := strings.TrimSuffix(strings.TrimSpace(string(content)), " (deleted)")
		if !owner.Dead(kind, filepath.Base(image)) {
			continue
		}
		device := "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(loop)))
		if err := removeDisk(device, image); err != nil {
			return fmt.Errorf("remove what a dead process left behind: %w", err)
		}
	}
	return nil
}

func removeDisk(device, image string) error {
	dirs, err := mountPoints(device)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		d := Disk{Dir: dir}
		_ = d.control(fsThaw, 0)                                                     // It mostly isn't frozen.
		if err := unix.Unmount(dir, 0); err != nil && !errors.Is(err, unix.EINVAL) { // Another harness may be as quick.
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	if err := os.Remove(image); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// mountPoints returns where a device is mounted.
func mountPoints(device string) ([]string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var dirs []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == device {
			dirs = append(dirs, strings.ReplaceAll(fields[1], `\040`, " "))
		}
	}
	return dirs, lines.Err()
}
