package disksim

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// FlipByte inverts the byte of a file at an offset. Nobody may have the file open.
func FlipByte(path string, offset int64) error {
	return damage(path, func(f *os.File) error {
		var b [1]byte
		if _, err := f.ReadAt(b[:], offset); err != nil {
			return err
		}
		b[0] = ^b[0]
		_, err := f.WriteAt(b[:], offset)
		return err
	})
}

// ZeroPage overwrites the 4096 bytes of a file from a page number on with zeros. It fails when they were zeros, as then
// nothing is damaged. Nobody may have the file open.
func ZeroPage(path string, page int64) error {
	return damage(path, func(f *os.File) error {
		var old, zero [4096]byte
		n, err := f.ReadAt(old[:], page*int64(len(old)))
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n == 0 || old == zero {
			return fmt.Errorf("page %d: has %d bytes and nothing but zeros", page, n)
		}
		_, err = f.WriteAt(zero[:n], page*int64(len(old)))
		return err
	})
}

// Truncate cuts a file off after a number of bytes. It fails when it has no more. Nobody may have the file open.
func Truncate(path string, size int64) error {
	return damage(path, func(f *os.File) error {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if info.Size() <= size {
			return fmt.Errorf("has only %d bytes", info.Size())
		}
		return f.Truncate(size)
	})
}

// damage changes a file for good.
func damage(path string, change func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(change(f), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("damage %s: %w", path, err)
	}
	return nil
}
