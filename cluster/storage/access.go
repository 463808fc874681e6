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

// protect sees to it that the folder is this user's alone: it holds the whole registry, and hashes of secrets. Where others
// may write, nothing can be believed: ErrExposed. What they may read is taken from them, with a warning. A folder that its
// group may write is warned of unless this process is of that group, as it is on volumes of Kubernetes.
//
// The folder itself may be listed by others, as mount points often can. Files that are not the store's are left alone.
func protect(dir string, log *slog.Logger) error {
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
	for _, name := range []string{identityFile, lockFile, databaseFile, snapshotsDir, walDir} {
		err := filepath.WalkDir(filepath.Join(dir, name), func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return protectOne(path, entry, log)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return accessError(err)
		}
	}
	return nil
}

func protectOne(path string, entry fs.DirEntry, log *slog.Logger) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	perm := info.Mode().Perm()
	if !(info.Mode().IsRegular() || info.IsDir()) || perm&othersAny == 0 {
		return nil
	}
	if err := notWritable(path, info); err != nil {
		return err
	}
	log.Warn("others could read this, which holds what is registered: it is made private", "path", path, "mode", info.Mode().String())
	return os.Chmod(path, perm&^othersAny)
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
