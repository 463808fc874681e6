package nodes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/regd-io/regd/test/chaos/internal/nodes/owner"
)

// period is the time in which a starved process gets its share.
const period = 100 * time.Millisecond

// Starve leaves the process a share of one processor, above 0 and at most 1, until end is called. end returns how often
// the process was held back: the evidence. It may be called once, also after the process has ended.
//
// A quota of the kernel's is set if that is possible, as it is for root; else the process is stopped and let go on in turn.
func (n *Node) Starve(share float64) (end func() (held int)) {
	n.c.tb.Helper()
	if share <= 0 || share > 1 {
		n.c.tb.Fatalf("starve %s: share %v, must be above 0 and at most 1", n.Name, share)
	}
	if group, err := newCPUGroup(n.Name); err == nil {
		return n.starveByQuota(group, share)
	}
	return n.starveByTurns(share)
}

func (n *Node) starveByQuota(group *cpuGroup, share float64) (end func() int) {
	n.c.tb.Helper()
	if err := group.starve(n.PID(), share); err != nil {
		n.c.tb.Fatal(errors.Join(fmt.Errorf("starve %s: %w", n.Name, err), group.remove()))
	}
	return func() int {
		n.c.tb.Helper()
		held, err := group.held()
		if err = errors.Join(err, group.remove()); err != nil {
			n.c.tb.Fatalf("starve %s: %v", n.Name, err)
		}
		return held
	}
}

func (n *Node) starveByTurns(share float64) (end func() int) {
	process := n.cmd.Process
	quit := make(chan struct{})
	held := 0
	var wg sync.WaitGroup
	wg.Go(func() {
		running := time.Duration(share * float64(period))
		for {
			if process.Signal(syscall.SIGSTOP) == nil {
				held++
			}
			stopped := wait(quit, period-running)
			_ = process.Signal(syscall.SIGCONT) // It may have ended.
			if stopped || wait(quit, running) {
				return
			}
		}
	})
	return func() int {
		close(quit)
		wg.Wait()
		return held
	}
}

// wait returns true at once when quit is closed, and false when the time has passed.
func wait(quit <-chan struct{}, d time.Duration) bool {
	select {
	case <-quit:
		return true
	case <-time.After(d):
		return false
	}
}

// cpuGroup is a control group of the kernel with a quota of processor time.
type cpuGroup struct {
	dir, parent string
	version     int
}

// kind is what groups are named by.
const kind = "nodes"

// newCPUGroup makes an empty group. What a harness that has died left behind is removed first.
func newCPUGroup(name string) (*cpuGroup, error) {
	var errs []error
	for i, parent := range []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup"} {
		removeCPUGroups(parent)
		dir := filepath.Join(parent, owner.Tag(kind)+name)
		g := &cpuGroup{dir: dir, parent: parent, version: i + 1}
		if err := os.Mkdir(g.dir, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		if _, err := os.Stat(filepath.Join(g.dir, g.quotaFile())); err != nil {
			errs = append(errs, err, os.Remove(g.dir))
			continue
		}
		return g, nil
	}
	return nil, errors.Join(errs...)
}

// removeCPUGroups removes the groups of harnesses that have died: their processes have died with them.
func removeCPUGroups(parent string) {
	dirs, err := filepath.Glob(filepath.Join(parent, owner.Pattern(kind)))
	if err != nil {
		return // Only a malformed pattern.
	}
	for _, dir := range dirs {
		if owner.Dead(kind, filepath.Base(dir)) {
			_ = os.Remove(dir) // An empty group costs nothing.
		}
	}
}

func (g *cpuGroup) quotaFile() string {
	if g.version == 2 {
		return "cpu.max"
	}
	return "cpu.cfs_quota_us"
}

func (g *cpuGroup) write(dir, file, content string) error {
	return os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600)
}

// starve puts a process into the group and limits that.
func (g *cpuGroup) starve(pid int, share float64) error {
	quota := strconv.FormatInt(time.Duration(share*float64(period)).Microseconds(), 10)
	whole := strconv.FormatInt(period.Microseconds(), 10)
	var err error
	if g.version == 2 {
		err = g.write(g.dir, g.quotaFile(), quota+" "+whole)
	} else {
		err = errors.Join(g.write(g.dir, "cpu.cfs_period_us", whole), g.write(g.dir, g.quotaFile(), quota))
	}
	return errors.Join(err, g.write(g.dir, "cgroup.procs", strconv.Itoa(pid)))
}

// held is the number of periods in which the quota was used up.
func (g *cpuGroup) held() (int, error) {
	stat, err := os.ReadFile(filepath.Join(g.dir, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(stat)) {
		if value, ok := strings.CutPrefix(line, "nr_throttled "); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("%s/cpu.stat has no nr_throttled", g.dir)
}

// remove moves the group's processes back and removes the group.
func (g *cpuGroup) remove() error {
	members, err := os.ReadFile(filepath.Join(g.dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for pid := range strings.FieldsSeq(string(members)) {
		if err := g.write(g.parent, "cgroup.procs", pid); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return os.Remove(g.dir)
}
