// Package binview opens a program so that no process which runs it can write it.
//
// A container gets hold of the program of a process that enters it, through
// /proc/PID/exe, and could write it once the process has ended
// (CVE-2019-5736). The view belongs to whoever opened it and lasts as long as
// its descriptor or a process that runs it.
package binview

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// noMountSetattr makes [Open] do without mount_setattr(2), for tests.
var noMountSetattr bool

// seals are what keeps a copy in memory as it is.
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// Open gives a view of the program at path as a descriptor that closes on
// execve(2): a detached read-only mount of its own, whose page cache is shared
// with the file; before Linux 5.12 a sealed copy in memory.
func Open(path string) (int, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	err = unix.ENOSYS
	if !noMountSetattr {
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	if err == nil {
		return tree, nil
	}
	unix.Close(tree)
	if err != unix.ENOSYS {
		return -1, &os.PathError{Op: "mount_setattr", Path: path, Err: err}
	}
	fd, err := sealedCopy(path)
	if err != nil {
		return -1, fmt.Errorf("copy %s into memory: %w", path, err)
	}
	return fd, nil
}

// Runs says whether the program of this process is such a view.
func Runs() (bool, error) {
	const self = "/proc/self/exe"
	var fs unix.Statfs_t
	if err := unix.Statfs(self, &fs); err != nil {
		return false, &os.PathError{Op: "statfs", Path: self, Err: err}
	}
	if fs.Flags&unix.ST_RDONLY != 0 {
		return true, nil
	}
	if fs.Type != unix.TMPFS_MAGIC {
		return false, nil
	}
	fd, err := unix.Open(self, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: self, Err: err}
	}
	defer unix.Close(fd)
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	return err == nil && have&seals == seals, nil // other files have no seals
}

func sealedCopy(path string) (int, error) {
	from, err := os.Open(path)
	if err != nil {
		return -1, err
	}
	defer from.Close()
	fd, err := unix.MemfdCreate("program", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	to := os.NewFile(uintptr(fd), path)
	defer to.Close()
	if _, err := io.Copy(to, from); err != nil {
		return -1, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return -1, fmt.Errorf("seal: %w", err)
	}
	// To run a file that is open for writing is ETXTBSY.
	readOnly, err := unix.Open(fmt.Sprint("/proc/self/fd/", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open again: %w", err)
	}
	return readOnly, nil
}
