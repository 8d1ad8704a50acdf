package cgroup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// waitEvent returns when a key of cgroup.events has the wanted value or the
// group is gone. The kernel notifies inotify of each change; the descriptor is
// in Go's poller, so no thread waits.
func waitEvent(ctx context.Context, dir, key string, want uint64) error {
	done := func() (bool, error) {
		value, err := readEvent(dir, key)
		if gone(err) {
			return true, nil
		}
		return value == want, err
	}
	// Most often there is nothing to wait for.
	if ok, err := done(); ok || err != nil {
		return err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	events := os.NewFile(uintptr(fd), "cgroup.events")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(dir, "cgroup.events"), unix.IN_MODIFY); err != nil {
		if err == unix.ENOENT {
			return nil
		}
		return os.NewSyscallError("inotify_add_watch", err)
	}
	defer context.AfterFunc(ctx, func() { events.SetReadDeadline(time.Unix(1, 0)) })()
	// One event, or the notice that the file is gone, wakes; what it says is
	// read from the file.
	buf := make([]byte, 4*unix.SizeofInotifyEvent)
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		if _, err := events.Read(buf); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
	}
}

// waitExit returns when the process has exited.
func waitExit(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err == unix.ESRCH {
		return nil
	}
	if err == unix.EINVAL { // before Linux 5.10 there is no PIDFD_NONBLOCK
		fd, err = unix.PidfdOpen(pid, 0)
		if err == nil {
			err = unix.SetNonblock(fd, true)
		}
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	process := os.NewFile(uintptr(fd), "pidfd")
	defer process.Close()
	defer context.AfterFunc(ctx, func() { process.SetReadDeadline(time.Unix(1, 0)) })()
	raw, err := process.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Read(func(fd uintptr) bool {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, 0)
		return err == nil && n == 1
	})
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
