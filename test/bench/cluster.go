package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// cluster is some processes of a system.
type cluster struct {
	system
	addresses []addresses
	dir       string
	processes []*exec.Cmd
	conns     []*grpc.ClientConn // one to each node
}

// newCluster starts the processes and waits until all serve and one leads.
func newCluster(ctx context.Context, s system, nodes int, dir string) (*cluster, error) {
	free, err := freeAddresses(3*nodes, 10_000+rand.IntN(20_000)) //nolint:gosec // It need not be hard to guess.
	if err != nil {
		return nil, err
	}
	c := &cluster{system: s, dir: dir, processes: make([]*exec.Cmd, nodes)}
	for i := range nodes {
		c.addresses = append(c.addresses, addresses{free[3*i], free[3*i+1], free[3*i+2]})
		conn, err := dial(free[3*i])
		if err != nil {
			return nil, err
		}
		c.conns = append(c.conns, conn)
	}
	for i := range nodes {
		if err := c.start(i); err != nil {
			c.stop()
			return nil, err
		}
	}
	waiting, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := c.ready(waiting); err != nil {
		c.stop()
		return nil, fmt.Errorf("%w; last of the first node's log: %s", err, c.log(0))
	}
	return c, nil
}

func (c *cluster) ready(ctx context.Context) error {
	for _, conn := range c.conns {
		if err := connect(ctx, conn); err != nil {
			return err
		}
		if err := serves(ctx, conn); err != nil {
			return err
		}
	}
	_, err := c.leader(ctx)
	return err
}

// serves waits until a node says that it serves.
func serves(ctx context.Context, conn *grpc.ClientConn) error {
	for {
		reply, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		switch {
		case err == nil && reply.GetStatus() == healthpb.HealthCheckResponse_SERVING:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("wait until %s serves: %v: %w", conn.Target(), reply.GetStatus(), errors.Join(ctx.Err(), err))
		}
		wait(ctx, 10*time.Millisecond)
	}
}

// start starts a node, anew or again.
func (c *cluster) start(i int) error {
	args := c.command(i, c.addresses, filepath.Join(c.dir, strconv.Itoa(i)))
	log, err := os.OpenFile(c.logFile(i), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...) //nolint:gosec // As the user says; it is ended by stop.
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.processes[i] = cmd
	return nil
}

func (c *cluster) logFile(i int) string { return filepath.Join(c.dir, strconv.Itoa(i)+".log") }

// log is the end of a node's log.
func (c *cluster) log(i int) string {
	text, _ := os.ReadFile(c.logFile(i))
	return string(text[max(0, len(text)-2000):])
}

// keepLogs copies the nodes' logs to a new folder in another, and returns which.
func (c *cluster) keepLogs(in string) (string, error) {
	if err := os.MkdirAll(in, 0o755); err != nil { //nolint:gosec // A report is nobody's secret.
		return "", err
	}
	to, err := os.MkdirTemp(in, "failed-")
	for i := range c.processes {
		text, readErr := os.ReadFile(c.logFile(i))
		err = errors.Join(err, readErr, os.WriteFile(filepath.Join(to, strconv.Itoa(i)+".log"), text, 0o600))
	}
	return to, err
}

// kill ends a node at once.
func (c *cluster) kill(i int) {
	if p := c.processes[i]; p != nil {
		_ = p.Process.Kill()
		_ = p.Wait() // It was killed.
		c.processes[i] = nil
	}
}

func (c *cluster) stop() {
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	for i := range c.processes {
		c.kill(i)
	}
}

// leader waits until a node leads, and returns which.
func (c *cluster) leader(ctx context.Context) (int, error) {
	for ctx.Err() == nil {
		for i, conn := range c.conns {
			callCtx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			leads := c.leads(callCtx, conn)
			cancel()
			if leads {
				return i, nil
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return 0, fmt.Errorf("no node leads: %w", ctx.Err())
}

// dialled opens connections, spread over the given nodes, and waits until they stand.
func (c *cluster) dialled(ctx context.Context, n int, at ...int) ([]*grpc.ClientConn, func(), error) {
	var list []*grpc.ClientConn
	closeAll := func() {
		for _, conn := range list {
			_ = conn.Close()
		}
	}
	for i := range n {
		conn, err := dial(c.addresses[at[i%len(at)]].client)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		list = append(list, conn)
		if err := connect(ctx, conn); err != nil {
			closeAll()
			return nil, nil, err
		}
	}
	return list, closeAll, nil
}

// wired opens wires, spread over the given nodes.
func (c *cluster) wired(ctx context.Context, n int, at ...int) ([]*wire, func(), error) {
	var list []string
	for _, node := range at {
		list = append(list, c.addresses[node].client)
	}
	return wired(ctx, tcp, n, list...)
}

// place is which nodes the clients of a job call.
type place func(ctx context.Context, c *cluster) ([]int, error)

// atLeader has them call the leader.
func atLeader(ctx context.Context, c *cluster) ([]int, error) {
	leader, err := c.leader(ctx)
	return []int{leader}, err
}

// everywhere has them call all nodes alike, as clients do that know one of them.
func everywhere(_ context.Context, c *cluster) ([]int, error) {
	all := make([]int, len(c.addresses))
	for i := range all {
		all[i] = i
	}
	return all, nil
}

// wired opens the wires of a job.
func (p place) wired(ctx context.Context, c *cluster, n int) ([]*wire, func(), error) {
	at, err := p(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	return c.wired(ctx, n, at...)
}

// dialled opens connections as a client library does, for what is no measured rate.
func (p place) dialled(ctx context.Context, c *cluster, n int) ([]*grpc.ClientConn, func(), error) {
	at, err := p(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	return c.dialled(ctx, n, at...)
}

// used is what the processes have taken.
type used struct {
	cpu    time.Duration // since they were started
	memory int64         // bytes that are resident, of all
}

func (c *cluster) usage() used {
	var u used
	for _, p := range c.processes {
		if p == nil {
			continue
		}
		cpu, memory, err := usageOf(p.Process.Pid)
		if err != nil {
			continue // It has ended.
		}
		u.cpu += cpu
		u.memory += memory
	}
	return u
}

func (c *cluster) cpu() time.Duration { return c.usage().cpu }

// ownCPU is the CPU time that this process, the load, has taken.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// usageOf reads what Linux tells of a process.
func usageOf(pid int) (cpu time.Duration, memory int64, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	_, rest, found := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if !found || len(fields) < 22 {
		return 0, 0, errors.New("unexpected /proc/<pid>/stat")
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	pages, err3 := strconv.ParseInt(fields[21], 10, 64)
	const ticks = 100 // A second, on all that Go runs on.
	return time.Duration(user+system) * time.Second / ticks, pages * int64(os.Getpagesize()), errors.Join(err1, err2, err3)
}
