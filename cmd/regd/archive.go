package main

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxBundleFile bounds one file of a bundle, in bytes.
	maxBundleFile = 32 << 20
	// maxBundle bounds all of them, before they are compressed.
	maxBundle = 512 << 20
)

// archive is a bundle that is being written: each file goes out as soon as it is there. Its methods are safe for concurrent use.
type archive struct {
	folder string
	made   time.Time

	mu       sync.Mutex
	gzip     *gzip.Writer
	tar      *tar.Writer
	written  int64
	err      error // of the file that it is written to
	manifest bundleManifest
}

// bundleManifest tells what a bundle holds, and what it lacks.
type bundleManifest struct {
	File    string          `json:"file,omitempty"`
	Made    time.Time       `json:"made"`
	By      buildInfo       `json:"by"`
	Nodes   int             `json:"nodes"` // that have told something
	Entries []bundleEntry   `json:"entries"`
	Missing []bundleMissing `json:"missing"`
}

type bundleEntry struct {
	File  string `json:"file"`
	Bytes int    `json:"bytes"`
}

type bundleMissing struct {
	File string `json:"file"`
	Why  string `json:"why"`
}

func newArchive(w io.Writer, folder string, made time.Time) *archive {
	z := gzip.NewWriter(w)
	return &archive{
		folder: folder, made: made, gzip: z, tar: tar.NewWriter(z),
		manifest: bundleManifest{Made: made, Entries: []bundleEntry{}, Missing: []bundleMissing{}},
	}
}

// add writes a file, or notes why it is missing.
func (a *archive) add(name string, content []byte, err error) {
	switch {
	case err != nil:
	case len(content) > maxBundleFile:
		err = fmt.Errorf("it has more than %d MiB", maxBundleFile>>20)
	default:
		err = a.write(name, content)
	}
	if err != nil {
		a.miss(name, err)
	}
}

// addJSON is add for a document.
func (a *archive) addJSON(name string, doc any, err error) {
	var text []byte
	if err == nil {
		text, err = toJSON(doc)
	}
	a.add(name, text, err)
}

// miss notes why a file, or a folder, is missing.
func (a *archive) miss(name string, why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.manifest.Missing = append(a.manifest.Missing, bundleMissing{name, why.Error()})
}

func (a *archive) write(name string, content []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return a.err
	}
	if a.written += int64(len(content)); a.written > maxBundle {
		return fmt.Errorf("the bundle has %d MiB already", maxBundle>>20)
	}
	a.err = a.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: a.folder + "/" + name, Size: int64(len(content)), Mode: 0o600, ModTime: a.made,
	})
	if a.err == nil {
		_, a.err = a.tar.Write(content)
	}
	a.manifest.Entries = append(a.manifest.Entries, bundleEntry{name, len(content)})
	return a.err
}

// finish writes the manifest and ends the archive. It returns what went wrong with the file.
func (a *archive) finish(by buildInfo) (bundleManifest, error) {
	m := &a.manifest
	m.By = by
	slices.SortFunc(m.Entries, func(x, y bundleEntry) int { return cmp.Compare(x.File, y.File) })
	slices.SortFunc(m.Missing, func(x, y bundleMissing) int { return cmp.Compare(x.File, y.File) })
	told := map[string]bool{}
	for _, e := range m.Entries {
		if node, _, of := strings.Cut(strings.TrimPrefix(e.File, "nodes/"), "/"); of {
			told[node] = true
		}
	}
	m.Nodes = len(told)
	text, err := toJSON(m)
	if err == nil {
		err = a.write("manifest.json", text)
	}
	return *m, errors.Join(err, a.tar.Close(), a.gzip.Close())
}
