package launch

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/undo"
)

// PinTemplate makes an empty mount namespace and pins it as a file at path,
// for [Config.Template]; one that is there already is kept. A container then
// starts from a namespace with a single mount instead of a copy of the host's,
// which costs 0.4 ms on a small host and 10 ms with thousands of mounts. path
// must be on a mount that is private or is not shared with other namespaces;
// the pin lasts until [RemoveTemplate] or a reboot.
func PinTemplate(path string) error {
	if fd, err := openTemplate(path); err == nil {
		return unix.Close(fd)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	file.Close()
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return fmt.Errorf("read CPU affinity: %w", err)
	}
	// The kernel lets a mount namespace be bound in an older one only, to have
	// no loops, and tells their age by an id. Linux 6.18 gives ids out by CPU,
	// so that a new namespace may look older than ours: try each CPU then.
	for cpu := range len(cpus) * 64 {
		if !cpus.IsSet(cpu) {
			continue
		}
		if err = pinEmptyNamespace(path, cpu); !errors.Is(err, unix.ELOOP) {
			break
		}
	}
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("pin template mount namespace: %w", err)
	}
	return nil
}

func pinEmptyNamespace(path string, cpu int) error {
	ns, err := -1, error(nil)
	onOwnThread(func() {
		var one unix.CPUSet
		one.Set(cpu)
		if err = unix.SchedSetaffinity(0, &one); err == nil {
			ns, err = emptyNamespace()
		}
	})
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	return pin(ns, path)
}

// RemoveTemplate takes away what [PinTemplate] made; running containers keep
// their namespaces. It is idempotent.
func RemoveTemplate(path string) error { return unpin(path) }

// emptyNamespace turns this thread's mount namespace into one that holds an
// empty read-only tmpfs and nothing else, and opens it.
func emptyNamespace() (int, error) {
	if err := privateMounts(); err != nil {
		return -1, err
	}
	root, err := newFilesystem("tmpfs", "none", emptyOptions, emptyAttrs)
	if err != nil {
		return -1, err
	}
	defer unix.Close(root)
	ns, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var taken undo.Stack
	defer taken.Run()
	taken.Add(func() { unix.Close(ns) })
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, err
	}
	if err := unix.Fchdir(root); err != nil {
		return -1, err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return -1, fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return -1, err
	}
	taken.Keep()
	return ns, nil
}

// openTemplate opens a pinned mount namespace.
func openTemplate(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open template", Path: path, Err: err}
	}
	if kind, err := ioctlValue(fd, unix.NS_GET_NSTYPE, 0); err != nil || kind != unix.CLONE_NEWNS {
		unix.Close(fd)
		return -1, fmt.Errorf("template %s is no mount namespace: %w", path, errors.Join(err, unix.EINVAL))
	}
	return fd, nil
}

// pin shows the namespace ns as the file path of the host.
func pin(ns int, path string) error {
	mount, err := openTree(ns, "", false)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	return unix.MoveMount(mount, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// unpin unmounts and removes a pinned file; one that is gone is no error.
func unpin(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return &os.PathError{Op: "unmount", Path: path, Err: err}
	}
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}
