package launch

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a child of this process, held by its pidfd.
type Process struct {
	pid     int
	pidfd   *os.File
	console *os.File

	mu     sync.Mutex
	reaped bool
	status unix.WaitStatus
}

// newProcess takes over a nonblocking pidfd (PIDFD_NONBLOCK, Linux 5.10).
func newProcess(pid, pidfd int) *Process {
	return &Process{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd")}
}

// Pid is the process's id in the pid namespace of this process.
func (p *Process) Pid() int { return p.pid }

// Console is the master of the process's terminal; nil without one.
func (p *Process) Console() *os.File { return p.console }

// Signal sends a signal through the pidfd (Linux 5.1), so that it never
// reaches a stranger. A process that is gone gives an error that wraps
// [unix.ESRCH].
func (p *Process) Signal(sig unix.Signal) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.pid, unix.ESRCH)
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		sent = unix.ESRCH
	}
	if sent != nil {
		return fmt.Errorf("signal process %d: %w", p.pid, sent)
	}
	return nil
}

// Wait returns the status with which the process ended and reaps it. It parks
// the goroutine on the pidfd and takes no thread, unless there is no watch to be
// had for it. Any number of callers may wait.
func (p *Process) Wait() (unix.WaitStatus, error) { return p.waitUntil(time.Time{}) }

// EndOr waits until the process has ended, or fd can be read. It takes the thread.
func (p *Process) EndOr(fd int) (ended bool, err error) {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return true, nil
	}
	watched := []unix.PollFd{{Events: unix.POLLIN}, {Fd: int32(fd), Events: unix.POLLIN}}
	closed := raw.Control(func(pidfd uintptr) {
		watched[0].Fd = int32(pidfd)
		for {
			if _, err = unix.Poll(watched, -1); err != unix.EINTR {
				return
			}
		}
	})
	if err != nil {
		return false, fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	return closed != nil || watched[0].Revents != 0, nil
}

// waitUntil is Wait up to a time, after which the error wraps
// [os.ErrDeadlineExceeded]; the zero time is none.
func (p *Process) waitUntil(late time.Time) (unix.WaitStatus, error) {
	if !late.IsZero() {
		_ = p.pidfd.SetReadDeadline(late) // what has been reaped, or has no watch, takes none
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return p.ended(err)
	}
	var waited error
	err = raw.Read(func(uintptr) bool {
		var done bool
		done, waited = p.reap(unix.WNOHANG)
		return done || waited != nil
	})
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		// Go's poller could not watch it (epoll_ctl(2), ENOSPC), or it has been reaped.
		if err = p.waitOnThread(late); err == nil {
			_, waited = p.reap(0)
		}
	}
	if err != nil || waited != nil {
		return p.ended(errors.Join(err, waited))
	}
	p.pidfd.Close()
	return p.ended(nil)
}

// ended gives the status if the process has been reaped, else the error.
func (p *Process) ended(err error) (unix.WaitStatus, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return p.status, nil
	}
	return 0, fmt.Errorf("wait for process %d: %w", p.pid, err)
}

// reap collects the status once. __WALL is for a process that has not called
// execve yet and was cloned with another exit signal.
func (p *Process) reap(flags int) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return true, nil
	}
	pid, err := wait4(p.pid, &p.status, flags)
	p.reaped = pid == p.pid
	return p.reaped, err
}

func wait4(pid int, status *unix.WaitStatus, flags int) (int, error) {
	for {
		got, err := unix.Wait4(pid, status, flags|unix.WALL, nil)
		if err != unix.EINTR {
			return got, err
		}
	}
}

// waitFor is Wait with a deadline: a process that overstays, or cannot be waited
// for, is killed, and for the former the error wraps [os.ErrDeadlineExceeded].
func (p *Process) waitFor(timeout time.Duration) (unix.WaitStatus, error) {
	var late time.Time
	if timeout > 0 {
		late = time.Now().Add(timeout)
	}
	status, err := p.waitUntil(late)
	if err != nil {
		p.kill()
	}
	return status, err
}

// kill ends the process and reaps it: what every failed launch does.
func (p *Process) kill() {
	_ = p.Signal(unix.SIGKILL)
	p.collect()
	if p.console != nil {
		p.console.Close()
	}
}

// collect reaps a process that has been ended. One that another process of its
// container traces is not there to be reaped until that has taken note (ptrace(2)),
// which is waited for in the background: it ends with the pid namespace at the latest.
func (p *Process) collect() {
	if _, err := p.waitUntil(time.Now().Add(endTimeout)); errors.Is(err, os.ErrDeadlineExceeded) {
		_ = p.pidfd.SetReadDeadline(time.Time{})
		go p.Wait()
		return
	}
	p.pidfd.Close()
}

// exited says whether the process has ended, reaped or not: its pidfd is
// readable then (Linux 5.3).
func (p *Process) exited() bool {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return true
	}
	ready := 0
	err = raw.Control(func(fd uintptr) {
		ready, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	})
	return err != nil || ready > 0
}

// dupPidfd gives a pidfd of its own to the caller.
func (p *Process) dupPidfd() (int, error) {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("process %d has ended: %w", p.pid, unix.ESRCH)
	}
	dup, dupErr := -1, error(nil)
	err = raw.Control(func(fd uintptr) { dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3) })
	if err != nil {
		return -1, fmt.Errorf("process %d has ended: %w", p.pid, unix.ESRCH)
	}
	return dup, dupErr
}
