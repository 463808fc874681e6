package cluster_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/cluster/clustertest"
	"github.com/regd-io/regd/cluster/storage"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the data folders of this version in testdata")

// A data folder of each format that was ever written is opened for ever, with all that it holds. Those in testdata are only
// added to: a release that writes another format adds its own.
func TestDataFoldersOfEarlierVersionsAreOpened(t *testing.T) {
	for _, store := range storage.LogStores() {
		t.Run(string(store), func(t *testing.T) {
			file := filepath.Join("testdata", "folder-1-"+string(store)+".tar.gz")
			if *rewrite {
				pack(t, writtenFolder(t, store), file)
			}
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				unpack(t, file, dir)
				c := clustertest.New(t, 1, func(cfg *cluster.Config) { cfg.DataDir, cfg.LogStore = dir, store })
				c.Ready()
				n := c.Leader()
				if !has(n, "web", "in the snapshot") || !has(n, "web", "in the log") {
					t.Errorf("%s holds %+v, and not both instances", file, n.Feed().State().Counts())
				}
				c.Put(n, "web", "new")
			})
		})
	}
}

// writtenFolder is the data folder of a node that was stopped, with a snapshot and a log after it.
func writtenFolder(t *testing.T, store storage.LogStore) string {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := clustertest.New(t, 1, func(cfg *cluster.Config) { cfg.DataDir, cfg.LogStore = dir, store })
		c.Ready()
		c.Put(c.Leader(), "web", "in the snapshot")
		if err := c.Leader().Raft().Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		c.Put(c.Leader(), "web", "in the log")
		c.Stop("n1")
	})
	return dir
}

func pack(t *testing.T, dir, file string) {
	t.Helper()
	var buf bytes.Buffer
	zipped := gzip.NewWriter(&buf)
	packed := tar.NewWriter(zipped)
	err := errors.Join(packed.AddFS(os.DirFS(dir)), packed.Close(), zipped.Close(), os.MkdirAll(filepath.Dir(file), 0o750),
		os.WriteFile(file, buf.Bytes(), 0o600))
	if err != nil {
		t.Fatal(err)
	}
}

func unpack(t *testing.T, file, dir string) {
	t.Helper()
	content, err := os.ReadFile(file) //nolint:gosec // Ours.
	if err != nil {
		t.Fatal(err)
	}
	zipped, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	for packed := tar.NewReader(zipped); ; {
		head, err := packed.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.FromSlash(head.Name)) //nolint:gosec // Ours.
		if head.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o700)
		} else {
			var text []byte
			text, err = io.ReadAll(packed)
			err = errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, text, 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
