package oci

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// programName is the name of the process in procfs: one started from a
// descriptor has the number's.
const programName = "longshore-shim"

// readOnlySelf makes this process one that runs from a read-only view of its
// binary, by starting it again from there if need be. What a container gets hold
// of through /proc/PID/exe of a process that enters it can then not be written
// (CVE-2019-5736). It does not return if it starts anew. A binary of
// hack/build.sh has seen to it already, at less cost: shim/entry.go.
func readOnlySelf() error {
	const self = "/proc/self/exe"
	var fs unix.Statfs_t
	if err := unix.Statfs(self, &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: self, Err: err}
	}
	if fs.Flags&unix.ST_RDONLY != 0 {
		return os.WriteFile("/proc/self/comm", []byte(programName), 0)
	}
	view, err := unix.OpenTree(unix.AT_FDCWD, self, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: self, Err: err}
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(view, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return &os.PathError{Op: "mount_setattr", Path: self, Err: err}
	}
	err = unix.Exec("/proc/self/fd/"+strconv.Itoa(view), os.Args, os.Environ())
	return fmt.Errorf("start from a read-only view of the binary: %w", err)
}
