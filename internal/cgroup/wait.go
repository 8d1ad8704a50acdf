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
	// One event, or the notice that the file is gone, wakes; what it says is
	// read from the file.
	buf := make([]byte, 4*unix.SizeofInotifyEvent)
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		if err := waitReadable(ctx, events); err != nil {
			return err
		}
		if _, err := unix.Read(fd, buf); err != nil && err != unix.EAGAIN && err != unix.EINTR {
			return os.NewSyscallError("read inotify", err)
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
	return waitReadable(ctx, process)
}

// unwatchedPoll is how often the context is asked while a thread waits.
const unwatchedPoll = 50 * time.Millisecond

// waitReadable returns when there is something to read, or with the context's cause.
func waitReadable(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	ready := func(fd uintptr, timeout time.Duration) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(timeout.Milliseconds()))
		return err == nil && n == 1
	}
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = raw.Read(func(fd uintptr) bool { return ready(fd, 0) })
	if err == nil {
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// Go's poller could not watch it (epoll_ctl(2), ENOSPC): that takes a thread.
	var late error
	err = raw.Control(func(fd uintptr) {
		for late == nil && !ready(fd, unwatchedPoll) {
			late = context.Cause(ctx)
		}
	})
	return errors.Join(err, late)
}
