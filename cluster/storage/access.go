package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// What others than a folder's user may do with a file.
const (
	othersWrite fs.FileMode = 0o002
	othersAny   fs.FileMode = 0o007
	groupWrite  fs.FileMode = 0o020
)

// The folder holds the whole registry, and hashes of secrets: it is to be its user's alone. It may itself be listed by others, as
// mount points often can. What is looked at is what stands in it, for who can't get into a folder can't get at its files.
// Files that are not the store's are left alone.
func eachOwn(dir string, fn func(path string, info fs.FileInfo) error) error {
	for _, name := range []string{identityFile, lockFile, databaseFile, snapshotsDir, walDir} {
		path := filepath.Join(dir, name)
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err == nil && (info.Mode().IsRegular() || info.IsDir()):
			err = fn(path, info)
		}
		if err != nil {
			return accessError(err)
		}
	}
	return nil
}

// refuseExposed refuses a folder in which everybody may write: nothing in it can be believed. It is ErrExposed. Of one that its
// group may write it warns, unless this process is of that group, as it is on volumes of Kubernetes.
func refuseExposed(dir string, log *slog.Logger) error {
	info, err := os.Stat(dir)
	if err != nil {
		return accessError(err)
	}
	if err := notWritable(dir, info); err != nil {
		return err
	}
	if info.Mode().Perm()&groupWrite != 0 && !ofOwnGroup(info) {
		log.Warn("a group that this process is not of may write in the data folder: chmod g-w it", "dir", dir, "mode", info.Mode().String())
	}
	return eachOwn(dir, notWritable)
}

// makePrivate takes from others what they may do with what is in the folder, with a warning.
func makePrivate(dir string, log *slog.Logger) error {
	return eachOwn(dir, func(path string, info fs.FileInfo) error {
		perm := info.Mode().Perm()
		if perm&othersAny == 0 {
			return nil
		}
		log.Warn("others could read this, which holds what is registered: it is made private", "path", path, "mode", info.Mode().String())
		return os.Chmod(path, perm&^othersAny)
	})
}

func notWritable(path string, info fs.FileInfo) error {
	if info.Mode().Perm()&othersWrite == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s has mode %#o, so everybody may change it", ErrExposed, path, info.Mode().Perm())
}

// ofOwnGroup tells whether this process is of the group of a file.
func ofOwnGroup(info fs.FileInfo) bool {
	stat, known := info.Sys().(*syscall.Stat_t)
	groups, err := os.Getgroups()
	return known && (int(stat.Gid) == os.Getegid() || (err == nil && slices.Contains(groups, int(stat.Gid))))
}
