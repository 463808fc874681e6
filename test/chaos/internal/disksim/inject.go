package disksim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Injection is strace at work on the syncs of one process. There can be one at a time for a process, and all that the
// process does is slower meanwhile.
type Injection struct {
	cmd      *exec.Cmd
	attached chan struct{} // closed once all threads are traced
	ended    chan struct{} // closed once strace has ended
	hits     atomic.Int64
	said     strings.Builder // what strace complained of; read after ended
	stopping atomic.Bool
}

// SyncErrors lets every fsync and fdatasync of a process fail with an I/O error, without syncing, until Stop.
func SyncErrors(pid int) (*Injection, error) { return inject(pid, "error=EIO") }

// SlowSync delays every fsync and fdatasync of a process until Stop.
func SlowSync(pid int, delay time.Duration) (*Injection, error) {
	return inject(pid, fmt.Sprintf("delay_enter=%d", delay.Microseconds()))
}

const (
	syncs = "fsync,fdatasync"
	// attachTimeout bounds attaching to a process and letting go of it.
	attachTimeout = 10 * time.Second
)

func inject(pid int, what string) (*Injection, error) {
	i := &Injection{attached: make(chan struct{}), ended: make(chan struct{})}
	i.cmd = exec.Command("strace", "-f", "-p", strconv.Itoa(pid), "-e", "trace="+syncs, "-e", "inject="+syncs+":"+what)
	i.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // The process goes on untraced then.
	out, err := i.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := i.cmd.Start(); err != nil {
		return nil, err
	}
	go i.follow(out)
	select {
	case <-i.attached:
		return i, nil
	case <-i.ended:
		return nil, fmt.Errorf("strace process %d: %s", pid, i.said.String())
	case <-time.After(attachTimeout):
		return nil, errors.Join(fmt.Errorf("strace process %d: not attached after %v", pid, attachTimeout), i.Stop())
	}
}

// follow reads what strace says until it ends.
func (i *Injection) follow(out io.Reader) {
	defer close(i.ended)
	attached := false
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasSuffix(line, "(INJECTED)") || strings.HasSuffix(line, "(DELAYED)"):
			i.hits.Add(1)
		case !attached && strings.Contains(line, " attached"):
			attached = true
			close(i.attached)
		case !attached:
			i.said.WriteString(line + "\n")
		}
	}
	if err := i.cmd.Wait(); err != nil {
		i.said.WriteString(err.Error())
	}
}

// Hits is how many syncs were hit: the evidence.
func (i *Injection) Hits() int64 { return i.hits.Load() }

// Stop lets go of the process, if it still runs. Calling it again does nothing.
func (i *Injection) Stop() error {
	if !i.stopping.Swap(true) {
		_ = i.cmd.Process.Signal(syscall.SIGTERM) // It has ended if the process has.
	}
	select {
	case <-i.ended:
		return nil
	case <-time.After(attachTimeout):
		_ = i.cmd.Process.Kill() // The kernel lets go of the process then.
		<-i.ended
		return fmt.Errorf("strace process %d: had to be killed", i.cmd.Process.Pid)
	}
}
