// Added to package time by test/chaos/internal/build, for chaos runs only.

package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

// chaosOffset is how far the wall clock is ahead, in nanoseconds: 8 bytes of a file, which may change at any time. Nil:
// nobody asked for it.
var chaosOffset *int64

func init() {
	const variable = "REGD_CHAOS_CLOCK"
	path, ok := syscall.Getenv(variable)
	if !ok || path == "" {
		return
	}
	data, err := chaosMap(path)
	if err != nil {
		panic(variable + "=" + path + ": " + err.Error())
	}
	chaosOffset = (*int64)(unsafe.Pointer(&data[0]))
}

// chaosMap maps the first 8 bytes of a file. Without so many, reading them would end the process later.
func chaosMap(path string) ([]byte, error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Size < 8 {
		return nil, syscall.EINVAL
	}
	return syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
}

// chaosWall is what the wall clock shows instead.
func chaosWall(sec int64, nsec int32) (int64, int32) {
	if chaosOffset == nil {
		return sec, nsec
	}
	wall := sec*1e9 + int64(nsec) + atomic.LoadInt64(chaosOffset)
	return wall / 1e9, int32(wall % 1e9)
}
