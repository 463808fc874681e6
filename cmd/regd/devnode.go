package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// devNode is one node of a dev cluster: a child process that may be started again after it has ended. Its methods may
// be called from any goroutine.
type devNode struct {
	devAddresses
	dir  string
	log  string
	args []string // of the child process
	exe  string

	// died is called once a child has ended that nobody told to.
	died func(n *devNode, state *os.ProcessState)

	mu   sync.Mutex
	proc *devProcess // nil before the first start
}

// devProcess is one life of a node.
type devProcess struct {
	cmd    *exec.Cmd
	ended  chan struct{} // closed once the process has ended
	wanted bool          // guarded by devNode.mu: it was told to end
	paused bool          // guarded by devNode.mu
	cut    bool          // guarded by devNode.mu: its connections with other nodes are cut
}

var (
	errDevRunning = errors.New("is running")
	errDevDown    = errors.New("is down")
)

// start starts the process unless it runs.
func (n *devNode) start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.alive() {
		return fmt.Errorf("%s %w", n.Name, errDevRunning)
	}
	logFile, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open log of %s: %w", n.Name, err)
	}
	defer logFile.Close()                 //nolint:errcheck // The child has its own handle.
	cmd := exec.Command(n.exe, n.args...) //nolint:noctx // It outlives the call; stop and kill end it.
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = detached()
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "REGD_") // Meant for the commands of whoever typed this one.
	})
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	p := &devProcess{cmd: cmd, ended: make(chan struct{})}
	n.proc = p
	go n.await(p) // Ends with the process, for which stop waits.
	return nil
}

func (n *devNode) await(p *devProcess) {
	_ = p.cmd.Wait() // The state says it all.
	n.mu.Lock()
	wanted := p.wanted
	close(p.ended)
	n.mu.Unlock()
	if !wanted {
		n.died(n, p.cmd.ProcessState)
	}
}

// alive tells whether there is a process. Called with mu held.
func (n *devNode) alive() bool {
	if n.proc == nil {
		return false
	}
	select {
	case <-n.proc.ended:
		return false
	default:
		return true
	}
}

// signal sends a signal to the process and notes by fn what that means.
func (n *devNode) signal(sig syscall.Signal, fn func(p *devProcess)) (*devProcess, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.alive() {
		return nil, fmt.Errorf("%s %w", n.Name, errDevDown)
	}
	if err := n.proc.cmd.Process.Signal(sig); err != nil {
		return nil, fmt.Errorf("signal %s: %w", n.Name, err)
	}
	fn(n.proc)
	return n.proc, nil
}

// kill ends the process at once, as a crash would, and waits for its end.
func (n *devNode) kill() error {
	p, err := n.signal(syscall.SIGKILL, func(p *devProcess) { p.wanted = true })
	if err != nil {
		return err
	}
	<-p.ended
	return nil
}

// stop asks the process to end. It returns what is closed once it has.
func (n *devNode) stop() <-chan struct{} {
	if p, err := n.signal(syscall.SIGTERM, func(p *devProcess) { p.wanted = true }); err == nil {
		_ = p.cmd.Process.Signal(syscall.SIGCONT) // A paused process can't end by itself.
		return p.ended
	}
	gone := make(chan struct{})
	close(gone)
	return gone
}

// pause stops the process from running, resume lets it run on.
func (n *devNode) pause() error {
	_, err := n.signal(syscall.SIGSTOP, func(p *devProcess) { p.paused = true })
	return err
}

func (n *devNode) resume() error {
	_, err := n.signal(syscall.SIGCONT, func(p *devProcess) { p.paused = false })
	return err
}

// partition cuts the node's connections with the other nodes, heal lets it connect again. See peerCut.
func (n *devNode) partition() error {
	_, err := n.signal(signalCut, func(p *devProcess) { p.cut = true })
	return err
}

func (n *devNode) heal() error {
	_, err := n.signal(signalHeal, func(p *devProcess) { p.cut = false })
	return err
}

// isCut tells whether the node runs and is partitioned.
func (n *devNode) isCut() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.alive() && n.proc.cut
}

// isAlive tells whether the process lives.
func (n *devNode) isAlive() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.alive()
}

// lastLines returns the end of the node's log.
func (n *devNode) lastLines(count int) []string {
	const most = 8 << 10
	f, err := os.Open(n.log)
	if err != nil {
		return nil
	}
	defer f.Close() //nolint:errcheck // Only read.
	if size, sizeErr := f.Seek(0, io.SeekEnd); sizeErr == nil {
		_, _ = f.Seek(max(0, size-most), io.SeekStart) // Else all of it is as good.
	}
	data, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return lines[max(0, len(lines)-count):]
}

// newDevNode prepares a node; peers are the peer addresses of all.
func newDevNode(exe, dataDir string, at devAddresses, peers []string) *devNode {
	dir := filepath.Join(dataDir, at.Name)
	return &devNode{
		devAddresses: at,
		dir:          dir,
		log:          filepath.Join(dataDir, "logs", at.Name+".log"),
		exe:          exe,
		args: []string{
			"serve", "--name", at.Name, "--data-dir", dir,
			"--grpc-listen", at.GRPC, "--peer-listen", at.Peer, "--http-listen", at.HTTP,
			"--initial-peers", strings.Join(peers, ","), "--log-format", logText, "--dev-child",
		},
	}
}
