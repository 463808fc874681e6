// Package oracle says what really happened: it merges the log entries that the nodes of a cluster applied, and replays
// them with the state machine of this build, whatever the nodes themselves were built from. Start at Log, which collects,
// and Timeline, which answers.
package oracle

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
)

// Entry is a log entry that a node applied.
type Entry struct {
	// Index and Term are Raft's.
	Index, Term uint64
	// Data is the encoded entry.
	Data []byte
}

// Log collects what the nodes applied. It is safe for concurrent use.
type Log struct {
	mu      sync.Mutex
	entries map[uint64]Entry
	from    map[uint64]string // the first node that showed the entry
	clashes []string
	applied map[string]uint64 // entries seen of each node, repeats included
}

// NewLog returns an empty log.
func NewLog() *Log {
	return &Log{entries: map[uint64]Entry{}, from: map[uint64]string{}, applied: map[string]uint64{}}
}

// Add takes down that a node applied an entry. A node may show an entry again, as it does after a restart. The data is
// copied.
func (l *Log) Add(node string, index, term uint64, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.applied[node]++
	have, ok := l.entries[index]
	if !ok {
		l.entries[index] = Entry{Index: index, Term: term, Data: slices.Clone(data)}
		l.from[index] = node
		return
	}
	if have.Term != term || !bytes.Equal(have.Data, data) {
		l.clashes = append(l.clashes, fmt.Sprintf("entry %d: %s applied %d bytes of term %d, %s %d bytes of term %d",
			index, l.from[index], len(have.Data), have.Term, node, len(data), term))
	}
}

// Clashes tells where two nodes, or one node at two times, applied different entries at one index: something committed
// was lost.
func (l *Log) Clashes() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.clashes)
}

// Entries returns what was collected, by index.
func (l *Log) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	entries := make([]Entry, 0, len(l.entries))
	for _, e := range l.entries {
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		if a.Index < b.Index {
			return -1
		}
		return 1
	})
	return entries
}

// maxEntry bounds the entry that ReadFile believes in.
const maxEntry = 64 << 20

// AppendEntry appends an entry to dst in the form that ReadFile reads: index, term and size as uvarints, then the data.
func AppendEntry(dst []byte, index, term uint64, data []byte) []byte {
	dst = binary.AppendUvarint(dst, index)
	dst = binary.AppendUvarint(dst, term)
	dst = binary.AppendUvarint(dst, uint64(len(data)))
	return append(dst, data...)
}

// ReadFile adds the entries that a node wrote to a file one after the other. What is cut off at the end is no error:
// the node was killed while it wrote.
func (l *Log) ReadFile(node, path string) error {
	f, err := os.Open(path) //nolint:gosec // The run's own file.
	if errors.Is(err, os.ErrNotExist) {
		return nil // It has applied nothing.
	}
	if err != nil {
		return fmt.Errorf("read what %s applied: %w", node, err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	for {
		var numbers [3]uint64
		for i := range numbers {
			if numbers[i], err = binary.ReadUvarint(r); err != nil {
				return endOfFile(node, err)
			}
		}
		if numbers[2] > maxEntry {
			return fmt.Errorf("read what %s applied: entry %d claims %d bytes", node, numbers[0], numbers[2])
		}
		data := make([]byte, numbers[2])
		if _, err = io.ReadFull(r, data); err != nil {
			return endOfFile(node, err)
		}
		l.Add(node, numbers[0], numbers[1], data)
	}
}

func endOfFile(node string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return fmt.Errorf("read what %s applied: %w", node, err)
}
