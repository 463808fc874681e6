// Added to regd by test/chaos/internal/build, for chaos runs only. It imports nothing of regd, so that a test can run it
// alone.

package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// chaosApplied returns what appends each applied entry to a file: index, term and size as uvarints, then the data. A
// frame is one write, so that a process which is killed leaves whole frames but for the last.
func chaosApplied(path string) (func(index, term uint64, data []byte), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	// What was killed in a write has left a part of a frame: what follows would be taken for the rest of it.
	whole, err := chaosWhole(bufio.NewReader(f))
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(whole); err != nil {
		return nil, err
	}
	var frame []byte
	return func(index, term uint64, data []byte) {
		frame = binary.AppendUvarint(frame[:0], index)
		frame = binary.AppendUvarint(frame, term)
		frame = binary.AppendUvarint(frame, uint64(len(data)))
		frame = append(frame, data...)
		if _, err := f.Write(frame); err != nil {
			panic(fmt.Sprintf("append entry %d to REGD_CHAOS_APPLIED: %v", index, err))
		}
	}, nil
}

// chaosWhole returns the length of the whole frames.
func chaosWhole(r *bufio.Reader) (whole int64, err error) {
	for at := int64(0); ; whole = at {
		var size uint64
		for range 3 { // Index, term and size.
			if size, err = binary.ReadUvarint(r); err != nil {
				return whole, chaosEnd(err)
			}
			at += int64(len(binary.AppendUvarint(nil, size)))
		}
		n, err := r.Discard(int(size))
		if err != nil {
			return whole, chaosEnd(err)
		}
		at += int64(n)
	}
}

func chaosEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
