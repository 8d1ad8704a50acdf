package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// neverRelabelled are the system's own directories: with a container's label on
// them the host does not work any more.
var neverRelabelled = []string{"/", "/bin", "/boot", "/dev", "/etc", "/etc/passwd", "/etc/pki", "/etc/shadow", "/home", "/lib", "/lib64", "/media", "/opt",
	"/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log"}

// relabel gives what is at a path of the host, and all below it, an SELinux
// label. Containers may write there meanwhile, so no link is followed but the
// path itself.
func relabel(path, label string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	if slices.Contains(neverRelabelled, real) {
		return fmt.Errorf("%w: %s is the system's own and is not relabelled", ErrInvalid, real)
	}
	dir, err := unix.Open(filepath.Dir(real), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(real), Err: err}
	}
	defer unix.Close(dir)
	return relabelAt(dir, filepath.Base(real), label, 0)
}

// maxRelabelDepth bounds the open directories.
const maxRelabelDepth = 255

func relabelAt(dir int, name, label string, depth int) error {
	// The directory is a descriptor, and the last part is not followed.
	err := setLabel(filepath.Join("/proc/self/fd", strconv.Itoa(dir), name), label)
	gone := errors.Is(err, unix.ENOENT) && depth > 0
	if err != nil && !gone {
		return &os.PathError{Op: "label", Path: name, Err: err}
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if depth > maxRelabelDepth {
		return fmt.Errorf("label %s: %w: directories are nested too deep", name, ErrInvalid)
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, below := range names {
		if err := relabelAt(fd, below, label, depth+1); err != nil {
			return err
		}
	}
	return nil
}
