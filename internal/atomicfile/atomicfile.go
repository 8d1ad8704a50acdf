// Package atomicfile writes a file so that a reader, or a start after a crash,
// sees the old content or the new one and never a part of either.
//
// It owns no state. The caller chooses whether the content must survive a loss
// of power: what lives on a tmpfs, or dies with a reboot anyway, need not be
// synced.
package atomicfile

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Durability says what a completed write promises.
type Durability int

const (
	// Volatile survives the death of the process, not a loss of power.
	Volatile Durability = iota
	// Durable survives a loss of power: file and directory are synced.
	Durable
)

// tempPrefix marks files that a crash may leave behind; see [IsTemp].
const tempPrefix = ".tmp-"

// Write replaces the file at path by data with the given mode.
func Write(path string, data []byte, mode os.FileMode, d Durability) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, tempPrefix+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	err = fill(f, data, mode, d)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	if d == Durable {
		return SyncDir(dir)
	}
	return nil
}

// Create makes the file at path, which does not exist, else the error is
// [os.ErrExist]. A crash leaves nothing of it: it has no name until it is whole. It
// is not synced. On a filesystem that has no such files it is [Write].
func Create(path string, data []byte, mode os.FileMode) error {
	fd, err := unix.Open(filepath.Dir(path), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, uint32(mode.Perm()))
	if err == unix.EOPNOTSUPP || err == unix.EISDIR {
		return Write(path, data, mode, Volatile)
	}
	if err != nil {
		return &os.PathError{Op: "create", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if _, err = f.Write(data); err == nil {
		err = f.Chmod(mode)
	}
	if err != nil {
		return err
	}
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprint("/proc/self/fd/", fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.PathError{Op: "create", Path: path, Err: err}
	}
	return nil
}

func fill(f *os.File, data []byte, mode os.FileMode, d Durability) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil && d == Durable {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// WriteJSON writes v as indented JSON, readable by a person, with mode 0600.
func WriteJSON(path string, v any, d Durability) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return Write(path, append(data, '\n'), 0o600, d)
}

// ReadJSON reads what [WriteJSON] wrote.
func ReadJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

// SyncDir makes the names in a directory survive a loss of power.
func SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// IsTemp reports whether name is a leftover of a write that a crash ended.
func IsTemp(name string) bool { return strings.HasPrefix(filepath.Base(name), tempPrefix) }
