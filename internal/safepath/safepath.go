// Package safepath opens paths that an image or a container can shape.
//
// Every path is resolved by openat2(2) (Linux 5.6) below an open directory, so
// that neither "..", an absolute name nor a symbolic link leads out of it, and
// the result is a file descriptor: the same name is never resolved twice, which
// leaves nothing to race with (CVE-2021-30465, CVE-2024-45310). Magic links of
// procfs are always refused.
package safepath

import (
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// resolve keeps a look-up inside its root and off procfs' magic links.
const resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// Open opens name below the directory root, as if root were "/". Symbolic
// links are followed inside the root. flags are open(2)'s; O_CLOEXEC is added.
func Open(root int, name string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: resolve}
	if flags&(unix.O_CREAT|unix.O_TMPFILE) == 0 {
		how.Mode = 0
	}
	if name == "" {
		name = "."
	}
	for {
		fd, err := unix.Openat2(root, name, &how)
		// EAGAIN: something was renamed while ".." was resolved; openat2(2) says try again.
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "openat2", Path: name, Err: err}
		}
		return fd, nil
	}
}

// OpenPath opens name for use as a mount source, mount target or directory
// only (O_PATH). The last component is followed if it is a symbolic link.
func OpenPath(root int, name string) (int, error) { return Open(root, name, unix.O_PATH, 0) }

// MkdirAll makes the directory name and its missing parents below root, each
// with mode, and returns it opened with O_PATH. Links on the way are followed
// inside the root; a dangling link is an error, not a place to create.
func MkdirAll(root int, name string, mode uint32) (int, error) {
	clean := path.Clean("/" + name)
	fd, err := Open(root, clean, unix.O_PATH|unix.O_DIRECTORY, 0)
	if !isNotExist(err) || clean == "/" {
		return fd, err
	}
	parent, err := MkdirAll(root, path.Dir(clean), mode)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if err := unix.Mkdirat(parent, path.Base(clean), mode); err != nil && err != unix.EEXIST {
		return -1, &os.PathError{Op: "make directory", Path: clean, Err: err}
	}
	return Open(root, clean, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// CreateFile makes the empty file name below root if it is not there, with its
// parents, and returns it opened with O_PATH. It serves as a mount target.
func CreateFile(root int, name string, mode uint32) (int, error) {
	clean := path.Clean("/" + name)
	fd, err := OpenPath(root, clean)
	if err == nil || !isNotExist(err) {
		return fd, err
	}
	dir, err := MkdirAll(root, path.Dir(clean), 0o755)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	file, err := unix.Openat(dir, path.Base(clean), unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDONLY, mode)
	if err != nil && err != unix.EEXIST {
		return -1, &os.PathError{Op: "create", Path: clean, Err: err}
	}
	if err == nil {
		unix.Close(file)
	}
	return OpenPath(root, clean)
}

func isNotExist(err error) bool {
	pathErr, ok := err.(*os.PathError)
	return ok && pathErr.Err == unix.ENOENT
}
