package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
)

// maxLockSlots is the most that the registry allows.
const maxLockSlots = 1000

func newLockCmd(a *app) *cobra.Command {
	var namespace, value string
	var ttl, stopTimeout time.Duration
	var slots int
	var noWait bool
	cmd := &cobra.Command{
		Use:   "lock NAME [flags] [-- COMMAND [ARG...]]",
		Short: "Hold a lock, or run a command while holding it.",
		Example: `  # Until Ctrl-C. Prints the fencing token.
  regd lock nightly-backup

  # One of several machines runs it; the others wait in line.
  regd lock nightly-backup -- ./backup.sh

  # At most three at a time, wherever they run.
  regd lock heavy-report --slots 3 -- ./report.sh

  # Leader election: the value says where the leader is.
  regd lock scheduler --value 10.0.0.5:9000 -- ./scheduler`,
		Long: `The command finds the fencing token in REGD_LOCK_TOKEN. It grows with each owner: hand it to what the lock protects,
which must refuse smaller ones than it has seen. When ownership can no longer be proved, the command is killed, and regd
exits with 7. Else it exits with the command's exit code.

--timeout bounds the wait for the lock only if it is given: in line one waits as long as it takes.`,
		Args: func(cmd *cobra.Command, args []string) error {
			own, _ := splitCommand(cmd, args)
			return arguments("NAME")(cmd, own)
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&value, "value", "", "`text` that is shown with the lock, at most 1 KiB")
	fs.IntVar(&slots, "slots", 1, "how many may hold it at once, 1 to 1000, the same for all")
	fs.BoolVar(&noWait, "no-wait", false, "fail if somebody holds it")
	fs.DurationVar(&ttl, "ttl", 15*time.Second, "how long it is held beyond this process's silence, 2s to 24h")
	fs.DurationVar(&stopTimeout, "stop-timeout", 10*time.Second, "how long the command may take to stop before it is killed")
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML)
	conn := a.addConnection(cmd)
	addNamespace(cmd, &namespace, "namespace of the lock")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		own, command := splitCommand(cmd, args)
		if slots < 1 || slots > maxLockSlots {
			return usageErrorf("--slots %d: must be 1 to %d", slots, maxLockSlots)
		}
		cl, err := conn.dial(client.WithSessionTTL(ttl), client.WithNamespace(namespace))
		if err != nil {
			return err
		}
		defer cl.Close() //nolint:errcheck // Unlock comes first; a session that is left behind ends by its TTL.
		lock, err := conn.takeLock(cmd, cl, own[0], slots, client.LockValue([]byte(value)), noWait)
		if err != nil {
			return err
		}
		if len(command) > 0 {
			err = conn.runLocked(cmd.Context(), lock, command, stopTimeout)
		} else {
			err = conn.holdLock(cmd.Context(), lock, out)
		}
		conn.unlock(cmd, lock)
		return err
	}
	return cmd
}

// takeLock waits for the lock: for --timeout if that was given, else as long as it takes.
func (c *connection) takeLock(
	cmd *cobra.Command, cl *client.Client, name string, slots int, value client.LockOption, noWait bool,
) (*client.Lock, error) {
	if noWait {
		ctx, cancel := c.bounded(cmd)
		defer cancel()
		return cl.TrySemaphore(ctx, name, slots, value)
	}
	if err := c.reach(cmd, cl); err != nil {
		return nil, err
	}
	c.timeout = 0
	ctx := cmd.Context()
	if cmd.Flags().Changed("timeout") {
		bounded, cancel := c.bounded(cmd)
		defer cancel()
		ctx = bounded
	}
	p := c.newProgress()
	defer p.end()
	p.phase("waiting for lock %s", name)
	lock, err := cl.Semaphore(ctx, name, slots, value)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, &exitError{code: exitTimeout, err: fmt.Errorf("lock/%s: still held by somebody else after %v", name, c.limit)}
	}
	return lock, err
}

// holdLock holds the lock until ctx ends or ownership can't be proved.
func (c *connection) holdLock(ctx context.Context, lock *client.Lock, out *output) error {
	if out.isDocument() {
		if err := out.printDocument(struct {
			Name  string `json:"name"`
			Token uint64 `json:"token"`
		}{lock.Name(), lock.Token()}); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintf(c.answer(), "lock/%s held, token %d\n", clean(lock.Name()), lock.Token()); err != nil {
		return wrapWrite(err)
	}
	select {
	case <-ctx.Done():
		return nil
	case <-lock.Lost():
		return fmt.Errorf("lock/%s: %w", lock.Name(), client.ErrLockLost)
	}
}

// runLocked runs a command while the lock is held, and kills it when that can't be proved any more.
func (c *connection) runLocked(ctx context.Context, lock *client.Lock, command []string, stopTimeout time.Duration) error {
	child, err := c.startChild(command, []string{
		fmt.Sprintf("REGD_LOCK_TOKEN=%d", lock.Token()), "REGD_LOCK_NAME=" + lock.Name(),
	})
	if err != nil {
		return err
	}
	select {
	case <-child.ended:
	case <-ctx.Done():
		child.stop(stopTimeout, lock.Lost())
	case <-lock.Lost():
		child.kill()
		return fmt.Errorf("lock/%s: the command was killed: %w", lock.Name(), client.ErrLockLost)
	}
	return child.exit()
}

// unlock gives the lock back although the command's context may have ended.
func (c *connection) unlock(cmd *cobra.Command, lock *client.Lock) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), min(c.limit, 5*time.Second))
	defer cancel()
	if err := lock.Unlock(ctx); err != nil && !errors.Is(err, client.ErrLockLost) {
		c.note("%v; the lock is free once its session has ended", err)
	}
}
