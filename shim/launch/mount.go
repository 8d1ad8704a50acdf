package launch

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fdPath names an open file for the few calls that take a path only.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// cutOption splits a filesystem's option "key=value".
func cutOption(opt string) (key, value string, isString bool) { return strings.Cut(opt, "=") }

// openTree makes a detached copy of the mount, directory or file at path, which
// is empty for dir itself, with all below it if recursive. The copy of a shared
// mount is its peer: what is mounted on one appears on the other.
func openTree(dir int, path string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.OpenTree(dir, path, flags)
}

// cloneMount makes a detached copy of what is at fd that shares nothing: a
// container that mounts something on its masked files must not thereby mount
// it on the host's null device.
func cloneMount(fd int, recursive bool) (int, error) { return privateTree(fd, "", recursive) }

// cloneHostPath is cloneMount for a path of the host.
func cloneHostPath(path string, recursive bool) (int, error) {
	return privateTree(unix.AT_FDCWD, path, recursive)
}

func privateTree(dir int, path string, recursive bool) (int, error) {
	return changedTree(dir, path, mountChange{propagation: unix.MS_PRIVATE, recursive: recursive})
}

// changedTree is openTree with a change of the copy.
func changedTree(dir int, path string, c mountChange) (int, error) {
	fd, err := openTree(dir, path, c.recursive)
	if err != nil {
		return -1, err
	}
	if err := changeMount(fd, c); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// moveOnto attaches a detached mount at an open place. Before Linux 6.15 the place
// must be in the caller's mount namespace.
func moveOnto(mount, target int) error {
	if kernel.noDetachedTargets && !attached(target) {
		return unix.EINVAL
	}
	return unix.MoveMount(mount, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// newFilesystem mounts a filesystem detached, by fsopen(2) (Linux 5.2).
func newFilesystem(fsType, source string, options []string, attrs uint64) (int, error) {
	fs, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	return mountContext(fs, source, options, attrs)
}

// mountContext mounts what a context of fsopen(2) describes, with options.
func mountContext(fs int, source string, options []string, attrs uint64) (mount int, err error) {
	if source != "" {
		if err := unix.FsconfigSetString(fs, "source", source); err != nil {
			return -1, explain(fs, err)
		}
	}
	for _, opt := range options {
		key, value, isString := cutOption(opt)
		if isString {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, opt)
		}
		if err != nil {
			return -1, fmt.Errorf("option %q: %w", opt, explain(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, explain(fs, err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attrs))
}

// explain adds the message that the filesystem left in its context.
func explain(fs int, err error) error {
	var buf [256]byte
	n, readErr := unix.Read(fs, buf[:])
	if readErr != nil || n < 2 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e ")))
}

// mountRoot makes the container's root, detached. With m nil it is the
// directory dir as it is, with all below it, and with slave also with what the host
// mounts there later. Else m is mounted.
func mountRoot(m *Mount, dir string, slave bool) (int, error) {
	if m == nil {
		propagation := uint64(unix.MS_PRIVATE)
		if slave {
			propagation = unix.MS_SLAVE
		}
		fd, err := changedTree(unix.AT_FDCWD, dir, mountChange{propagation: propagation, recursive: true})
		if err != nil {
			return -1, &os.PathError{Op: "mount root", Path: dir, Err: err}
		}
		return fd, nil
	}
	o := parseOptions(m.Type, m.Options)
	var fd int
	var err error
	switch {
	case o.bind:
		if slave {
			o.propagation = unix.MS_SLAVE
		}
		fd, err = openTree(unix.AT_FDCWD, m.Source, o.recursive)
	case m.Type == "overlay":
		fd, err = mountOverlay(m.Source, o.data)
	default:
		if o.readonlySuperblock {
			o.data = append(o.data, "ro")
		}
		fd, err = newFilesystem(m.Type, m.Source, o.data, 0)
	}
	if err == nil {
		if err = o.applyTo(fd, false); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return -1, fmt.Errorf("mount root: %s from %q: %w", m.Type, m.Source, err)
	}
	return fd, nil
}
