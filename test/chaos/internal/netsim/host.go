package netsim

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/regd-io/regd/test/chaos/internal/nodes/owner"
)

const (
	// netnsDir is where ip(8) keeps the names of namespaces.
	netnsDir = "/run/netns"
	// kind is what namespaces are named by, and what prefixes are held under.
	kind = "netsim"
)

// Probe returns nil if networks can be made here, else why not.
func Probe() error {
	for _, program := range []string{"ip", "nsenter"} { // Debian packages: iproute2, util-linux
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("netsim: %w", err)
		}
	}
	if os.Geteuid() != 0 {
		return errors.New("netsim: only root can make network namespaces")
	}
	p, err := openPort()
	if err != nil {
		return fmt.Errorf("netsim: %w", err)
	}
	_ = p.file.Close() // Nothing was written.
	name := fmt.Sprintf("%s%d-probe", owner.Tag(kind), runs.Add(1))
	if err := ip("", "netns add "+name, "netns del "+name); err != nil {
		return fmt.Errorf("netsim: %w", err)
	}
	return nil
}

// removeLeftovers removes the namespaces of harnesses that have died, with what still runs in them. Their interfaces are
// gone already: those end with the process that holds the other end.
func removeLeftovers() error {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("netsim: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if !owner.Dead(kind, name) {
			continue
		}
		if err := removeNamespace(name); err != nil && exists(name) { // Another harness may be as quick.
			return fmt.Errorf("netsim: remove what a dead process left behind: %w", err)
		}
	}
	return nil
}

func exists(namespace string) bool {
	_, err := os.Stat(filepath.Join(netnsDir, namespace))
	return err == nil
}

// removeNamespace removes a namespace once what runs in it is gone: that may still use a disk.
func removeNamespace(name string) error {
	for deadline := time.Now().Add(killTimeout); ; time.Sleep(10 * time.Millisecond) {
		pids, err := processes(name)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return ip("", "netns del "+name)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v in %s can't be killed", pids, name)
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill process %d in %s: %w", pid, name, err)
			}
		}
	}
}

// killTimeout bounds the end of what was killed.
const killTimeout = 10 * time.Second

// processes returns the ids of what runs in a namespace.
func processes(namespace string) ([]int, error) {
	out, err := exec.Command("ip", "netns", "pids", namespace).Output() //nolint:gosec // Ours.
	if err != nil {
		return nil, fmt.Errorf("list the processes in %s: %w", namespace, err)
	}
	var pids []int
	for field := range strings.FieldsSeq(string(out)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("list the processes in %s: %w", namespace, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// reservePrefix finds a private /24 that this machine has no route into, and holds it against other harnesses until the
// listener is closed.
func reservePrefix() (prefix [3]byte, hold net.Listener, err error) {
	routes, err := readRoutes()
	if err != nil {
		return prefix, nil, err
	}
	for _, base := range [][2]byte{{10, 77}, {172, 29}, {192, 168}} {
		for third := byte(1); third < 255; third++ {
			prefix = [3]byte{base[0], base[1], third}
			if overlaps(routes, netip.PrefixFrom(netip.AddrFrom4([4]byte{prefix[0], prefix[1], prefix[2], 0}), 24)) {
				continue
			}
			// A name that the kernel gives to one process only and frees when that ends.
			hold, err = net.Listen("unix", fmt.Sprintf("@regd-%s-%d.%d.%d", kind, prefix[0], prefix[1], prefix[2]))
			if errors.Is(err, syscall.EADDRINUSE) {
				continue
			}
			return prefix, hold, err
		}
	}
	return prefix, nil, errors.New("no private /24 is free: the routes of this machine cover them all")
}

func overlaps(routes []netip.Prefix, p netip.Prefix) bool {
	for _, r := range routes {
		if r.Overlaps(p) {
			return true
		}
	}
	return false
}

// readRoutes returns the targets of this machine's IPv4 routes, without the default ones.
func readRoutes() ([]netip.Prefix, error) {
	f, err := os.Open("/proc/net/route")
	if err != nil {
		return nil, fmt.Errorf("read the routes: %w", err)
	}
	defer f.Close()
	var routes []netip.Prefix
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 8 || fields[0] == "Iface" {
			continue
		}
		target, err1 := hex.DecodeString(fields[1])
		mask, err2 := hex.DecodeString(fields[7])
		if err := errors.Join(err1, err2); err != nil || len(target) != 4 || len(mask) != 4 {
			return nil, fmt.Errorf("read the routes: %q: %w", lines.Text(), err)
		}
		// The kernel prints the number as it lies in memory.
		var addr [4]byte
		binary.BigEndian.PutUint32(addr[:], binary.LittleEndian.Uint32(target))
		ones, _ := net.IPMask{mask[3], mask[2], mask[1], mask[0]}.Size()
		if ones > 0 {
			routes = append(routes, netip.PrefixFrom(netip.AddrFrom4(addr), ones))
		}
	}
	return routes, lines.Err()
}
