package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// child is a wrapped command while it runs.
type child struct {
	cmd     *exec.Cmd
	ended   chan struct{} // closed once it has ended
	signals chan os.Signal
}

// startChild starts a command with this process's streams and further variables in its environment. It has a process
// group of its own: a Ctrl-C on the terminal reaches this process, which decides when the command hears of it.
func (a *app) startChild(command, env []string) (*child, error) {
	cmd := exec.Command(command[0], command[1:]...) //nolint:noctx // It is stopped by signals, in order.
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = detached()
	c := &child{cmd: cmd, ended: make(chan struct{}), signals: make(chan os.Signal, 16)}
	signal.Notify(c.signals, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGQUIT)
	if err := cmd.Start(); err != nil {
		signal.Stop(c.signals)
		code := exitFailed
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			code = exitNotFound
		}
		return nil, &exitError{code: code, err: fmt.Errorf("start %s: %w", command[0], err)}
	}
	go c.serve() // Ends with the command, for which every caller waits.
	return c, nil
}

// serve forwards signals until the command has ended.
func (c *child) serve() {
	defer signal.Stop(c.signals)
	go func() {
		_ = c.cmd.Wait() // The state says it all.
		close(c.ended)
	}()
	for {
		select {
		case <-c.ended:
			return
		case s := <-c.signals:
			_ = c.cmd.Process.Signal(s) // It may just have ended.
		}
	}
}

// stop asks the command to end, kills it when it has not after a while or when hurry closes, and waits for its end.
func (c *child) stop(timeout time.Duration, hurry <-chan struct{}) {
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // It may just have ended.
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-c.ended:
	case <-hurry:
		c.kill()
	case <-timer.C:
		c.kill()
	}
}

// kill ends the command and what it started at once, and waits for its end.
func (c *child) kill() {
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // Its group; it may just have ended.
	<-c.ended
}

// exit is the error that ends this process as the command ended: with its code, or as a shell tells of a signal.
func (c *child) exit() error {
	state := c.cmd.ProcessState
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return &silentError{exitCode(128 + int(status.Signal()))}
	}
	if code := state.ExitCode(); code != 0 {
		return &silentError{exitCode(code)}
	}
	return nil
}

// runRegistered runs a command and keeps the instance registered meanwhile.
//
// The registry is asked before the command starts: when nobody can be reached, nothing has happened. An instance that is
// refused ends the command again, since nobody would find it.
func (f *registerFlags) runRegistered(
	cmd *cobra.Command, conn *connection, cl *client.Client, instance *registryv1.Instance, command []string,
) error {
	if err := conn.reach(cmd, cl); err != nil {
		return err
	}
	c, err := conn.startChild(command, []string{
		"REGD_SERVICE=" + instance.GetService(), "REGD_INSTANCE_ID=" + instance.GetId(),
	})
	if err != nil {
		return err
	}
	ctx, cancel := conn.bounded(cmd)
	defer cancel()
	reg, err := cl.Register(ctx, instance, f.options()...)
	if err != nil {
		c.stop(f.stopTimeout, nil)
		if codeOf(err) == exitInterrupted {
			return c.exit() // As when it was registered: what counts is how the command ended.
		}
		return err
	}
	conn.note("%s registered", instanceName(reg.Key()))
	kept := make(chan error, 1)
	watching, unwatch := context.WithCancel(cmd.Context())
	go func() { kept <- conn.keep(watching, reg) }()
	select {
	case <-c.ended:
	case <-cmd.Context().Done():
		f.leaveAndStop(cmd, conn, reg, c)
	}
	unwatch()
	if err := <-kept; err != nil {
		conn.note("%v", err) // The command went on all the same: its exit code counts.
		return c.exit()
	}
	select {
	case <-reg.Done():
	default:
		if err := conn.deregister(cmd, reg); err != nil {
			conn.note("%v; its session ends by itself", err)
		}
	}
	return c.exit()
}

// leaveAndStop takes the instance out of traffic before its command hears of the end.
func (f *registerFlags) leaveAndStop(cmd *cobra.Command, conn *connection, reg *client.Registration, c *child) {
	began := time.Now()
	ctx, cancel := context.WithCancel(context.WithoutCancel(cmd.Context())) // It has ended: that is why.
	defer cancel()
	go func() { // Ends with ctx, or the command: nobody serves any more, so nobody is waited for.
		select {
		case <-c.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	conn.leave(ctx, reg, f.drainTimeout)
	timer := time.NewTimer(time.Until(began.Add(f.drainTime)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.ended:
		return
	}
	c.stop(f.stopTimeout, nil)
}
