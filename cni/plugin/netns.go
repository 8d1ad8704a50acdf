package plugin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNamespace runs f in the network namespace at path, on a thread that ends
// afterwards: a thread that could not return would poison the process.
func inNamespace(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if unix.Gettid() == unix.Getpid() {
			// The main thread does not end, and /proc/self speaks for it: keep it
			// here, and let another thread do it.
			err := inNamespace(path, f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- enter(path, f)
	}()
	return <-done
}

// errGone says that a namespace's path leads to none any more: it is missing,
// or a file from which the namespace was unmounted.
var errGone = errors.New("network namespace is gone")

func enter(path string, f func() error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return fmt.Errorf("%s: %w", path, errGone)
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	err = unix.Setns(fd, unix.CLONE_NEWNET)
	unix.Close(fd)
	if err == unix.EINVAL {
		return fmt.Errorf("%s: %w", path, errGone)
	}
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return f()
}

// setSysctl writes a network setting of the calling thread's namespace, unless
// it has the value: in a read-only /proc that is good enough.
func setSysctl(name, value string) error {
	path := "/proc/sys/net/" + name
	now, err := os.ReadFile(path)
	if err == nil && len(now) == len(value)+1 && string(now[:len(value)]) == value {
		return nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(value), 0)
}

// setSysctlIfThere passes over settings a kernel lacks.
func setSysctlIfThere(name, value string) error {
	err := setSysctl(name, value)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
