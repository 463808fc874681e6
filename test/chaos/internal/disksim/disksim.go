// Package disksim gives each process under test a disk of its own that can lose power, stall, fill up and fail: an ext4
// file system in an image on a loop device. It needs root; the Probe functions say what can't work here and why.
//
// Start at New. A method that returns nil has seen the effect that it is named after, so its call is the evidence of the
// fault. A Disk is used by one goroutine. Debian packages: e2fsprogs, mount, strace.
package disksim

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/regd-io/regd/test/chaos/internal/nodes/owner"
)

// DefaultSize is the size of an image in bytes: room for a node with small snapshots. The file is sparse.
const DefaultSize = 96 << 20

// Disk is one file system.
type Disk struct {
	// Dir is where it is mounted.
	Dir string

	image   string
	mounted bool
	cut     bool      // power was cut, and not yet restored
	frozen  time.Time // zero: it isn't
}

// disks numbers the disks of this process.
var disks atomic.Int64

// New makes a file system of so many bytes in a file in dir, and mounts it on dir/name. It is unmounted and deleted with
// the test, whose processes must have ended by then. What a harness that has died left behind is removed first.
func New(tb testing.TB, dir, name string, size int64) *Disk {
	tb.Helper()
	if err := removeLeftovers(); err != nil {
		tb.Fatalf("disk %s: %v", name, err)
	}
	d, err := open(dir, name, size)
	tb.Cleanup(func() {
		if closeErr := d.close(); closeErr != nil {
			tb.Errorf("disk %s: %v", name, closeErr)
		}
	})
	if err != nil {
		tb.Fatalf("disk %s: %v", name, err)
	}
	return d
}

// open returns a disk that has to be closed, also with an error.
func open(dir, name string, size int64) (*Disk, error) {
	d := &Disk{
		Dir:   filepath.Join(dir, name),
		image: filepath.Join(dir, fmt.Sprintf("%s%d-%s.ext4", owner.Tag(kind), disks.Add(1), name)),
	}
	f, err := os.Create(d.image)
	if err != nil {
		return d, err
	}
	if err = errors.Join(f.Truncate(size), f.Close()); err != nil {
		return d, err
	}
	// Blocks as large as pages of the database, nothing reserved for root, and no work left for later.
	err = run("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-N", "1024", "-E", "lazy_itable_init=0,nodiscard", d.image)
	if err != nil {
		return d, err
	}
	if err := os.Mkdir(d.Dir, 0o700); err != nil {
		return d, err
	}
	return d, d.mount()
}

func (d *Disk) mount() error {
	err := run("mount", "-o", "loop,noatime", d.image, d.Dir)
	d.mounted = err == nil
	return err
}

func (d *Disk) unmount() error {
	if err := unix.Unmount(d.Dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", d.Dir, err)
	}
	d.mounted = false
	return nil
}

func (d *Disk) close() error {
	var errs []error
	if !d.frozen.IsZero() {
		_, err := d.Thaw()
		errs = append(errs, err)
	}
	if d.mounted {
		errs = append(errs, d.unmount())
	}
	for _, path := range []string{d.image, d.Dir} {
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	return nil
}

// control makes an ioctl on the mount point.
func (d *Disk) control(request uint, argument int) error {
	f, err := os.Open(d.Dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if argument == 0 {
		return unix.IoctlSetInt(int(f.Fd()), request, 0)
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), request, argument)
}

// Requests of the kernel that package unix has no names for.
const (
	fsShutdown = 0x8004587d // FS_IOC_SHUTDOWN
	fsFreeze   = 0xc0045877 // FIFREEZE
	fsThaw     = 0xc0045878 // FITHAW

	// noLogFlush is the kind of shutdown that does not even write out the journal.
	noLogFlush = 2
)

// CutPower loses everything that was not synced: the disk does nothing any more, and answers all with errors. Whatever
// used it must be killed, then RestorePower brings the disk back as it would be found after a power loss.
func (d *Disk) CutPower() error {
	if err := d.control(fsShutdown, noLogFlush); err != nil {
		return fmt.Errorf("cut the power of %s: %w", d.Dir, err)
	}
	d.cut = true
	probe := filepath.Join(d.Dir, "powered")
	if err := os.WriteFile(probe, nil, 0o600); !errors.Is(err, unix.EIO) {
		return errors.Join(fmt.Errorf("cut the power of %s: writing to it is not an I/O error", d.Dir), err)
	}
	return nil
}

// RestorePower mounts a disk again whose power was cut. Nothing may use it. It fails unless the disk's journal has to be
// replayed, as it has after a power loss and has not after an orderly unmount.
func (d *Disk) RestorePower() error {
	if !d.frozen.IsZero() {
		if _, err := d.Thaw(); err != nil {
			return err
		}
	}
	if !d.cut {
		return fmt.Errorf("restore the power of %s: it was not cut", d.Dir)
	}
	if err := d.unmount(); err != nil {
		return err
	}
	unclean, err := needsRecovery(d.image)
	if err != nil {
		return err
	}
	if err := d.mount(); err != nil {
		return err
	}
	d.cut = false
	if !unclean {
		return fmt.Errorf("restore the power of %s: it was unmounted in order", d.Dir)
	}
	return nil
}

// needsRecovery tells whether an ext4 image was left with a journal to replay.
func needsRecovery(image string) (bool, error) {
	const (
		position = 1024 + 0x60 // superblock, s_feature_incompat
		journal  = 0x4         // EXT4_FEATURE_INCOMPAT_RECOVER
	)
	f, err := os.Open(image)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var features [1]byte
	if _, err := f.ReadAt(features[:], position); err != nil {
		return false, err
	}
	return features[0]&journal != 0, nil
}

// Freeze stalls the disk: whoever writes waits, for ever and deaf to SIGKILL, until Thaw.
func (d *Disk) Freeze() error {
	if err := d.control(fsFreeze, 0); err != nil {
		return fmt.Errorf("freeze %s: %w", d.Dir, err)
	}
	d.frozen = time.Now()
	if err := d.control(fsFreeze, 0); !errors.Is(err, unix.EBUSY) {
		return errors.Join(fmt.Errorf("freeze %s: it does not count as frozen", d.Dir), err)
	}
	return nil
}

// Thaw ends a Freeze and returns how long it was.
func (d *Disk) Thaw() (time.Duration, error) {
	if err := d.control(fsThaw, 0); err != nil {
		return 0, fmt.Errorf("thaw %s: %w", d.Dir, err)
	}
	stalled := time.Since(d.frozen)
	d.frozen = time.Time{}
	return stalled, nil
}

// Fill takes space away until so many bytes are left, and returns what is left then: a few blocks less, or else as much
// as whoever uses the disk has written or deleted meanwhile. Filling further is possible.
func (d *Disk) Fill(leave int64) (left int64, err error) {
	free, err := d.FreeBytes()
	if err != nil {
		return 0, err
	}
	f, err := os.OpenFile(d.filler(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if take := free - leave; take > 0 {
		err := unix.Fallocate(int(f.Fd()), 0, info.Size(), take)
		if err != nil && !errors.Is(err, unix.ENOSPC) { // As full as can be, then.
			return 0, fmt.Errorf("fill %s, of %d bytes leave %d: %w", d.Dir, free, leave, err)
		}
	}
	return d.FreeBytes()
}

// Free gives back what Fill took.
func (d *Disk) Free() error {
	if err := os.Remove(d.filler()); err != nil {
		return err
	}
	f, err := os.Open(d.Dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil { // The blocks are free once the journal says so.
		return fmt.Errorf("free %s: %w", d.Dir, err)
	}
	return nil
}

func (d *Disk) filler() string { return filepath.Join(d.Dir, "filler") }

// FreeBytes is how much can be written.
func (d *Disk) FreeBytes() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(d.Dir, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", d.Dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil //nolint:gosec // No such disk.
}
