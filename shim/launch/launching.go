package launch

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// launching is a child between clone and execve, with what it is made of.
type launching struct {
	*builder
	link   link
	plan   *plan
	proc   *Process
	middle *Process // the first of two clones, until it is reaped
	eager  bool     // the last gate is open

	scoring  int   // index of the operation that writes oom_score_adj, 0 for none
	scoreErr error // what came of it
}

// newLaunching prepares a program for a child; the child's end of the link is
// returned too, and must be closed once the child has it.
func newLaunching(shareMemory bool, inherited []int) (*launching, int, error) {
	prog, err := newProgram(shareMemory)
	if err != nil {
		return nil, -1, err
	}
	return launchingOf(prog, inherited)
}

// launchingOf is newLaunching for an empty program, which it owns then.
func launchingOf(prog *program, inherited []int) (*launching, int, error) {
	parent, childEnd, err := newLink()
	if err != nil {
		prog.free()
		return nil, -1, err
	}
	l := &launching{link: parent, builder: newBuilder(prog, childEnd, inherited)}
	// A process of the container must not trace the child; and with shared
	// memory the flag protects this process, for good (CVE-2016-9962).
	l.do("forbid tracing", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	// With our end open in the child, it would never see us die.
	l.do("close the shim's end", unix.SYS_CLOSE, uintptr(parent.fd))
	if !prog.private {
		l.keepOnly()
	}
	return l, childEnd, nil
}

// clone starts the child: into pidNS if that is not -1, and into the cgroup
// v2 directory if that is not -1.
func (l *launching) clone(flags uintptr, pidNS, cgroup int, twice bool) error {
	if l.private {
		flags |= unix.CLONE_VM
	}
	pid, pidfd, err := l.program.clone(flags, cgroup, pidNS)
	if err != nil {
		return err
	}
	l.proc = newProcess(pid, pidfd)
	if twice {
		l.middle, l.proc = l.proc, nil
	}
	return nil
}

// adopt finds the process of the second clone, once it has left a message or its
// program.
func (l *launching) adopt() (err error) {
	if l.middle == nil {
		return nil
	}
	if l.proc, err = l.second(); err != nil {
		return err
	}
	l.proc.console = l.middle.console
	_, err = l.middle.reap(0)
	l.middle.pidfd.Close()
	l.middle = nil
	return err
}

// second opens the process of the second clone. It is our child, since it was
// cloned with CLONE_PARENT, so that its id is its own until we reap it.
func (l *launching) second() (*Process, error) {
	pid := l.tid()
	if pid <= 0 {
		return nil, fmt.Errorf("open process: %w", unix.ESRCH)
	}
	pidfd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err == nil {
		if err = unix.Waitid(unix.P_PIDFD, pidfd, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil); err != nil {
			unix.Close(pidfd)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return newProcess(pid, pidfd), nil
}

// endSecond ends the process of the second clone, if it came to that, without a
// descriptor for it: there may be none to be had.
func (l *launching) endSecond() {
	pid := l.tid()
	if pid <= 0 || unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil) != nil {
		return
	}
	_ = unix.Kill(pid, unix.SIGKILL) // our child, so that the id is its own
	_, _ = wait4(pid, nil, 0)
}

// current is the process that the child is now: the first of two clones, until
// the second is adopted.
func (l *launching) current() *Process {
	if l.proc == nil {
		return l.middle
	}
	return l.proc
}

// await waits for the child's next message. A child that has ended instead
// gives an error with the name of the operation, or the way it died.
func (l *launching) await(n int) ([]int, error) {
	fds, err := l.link.await(n)
	if errors.Is(err, errLeft) {
		err = l.left()
	}
	return fds, err
}

// left explains the end of a child that should be at a gate.
func (l *launching) left() error {
	if err := l.execError(l.plan); err != nil {
		return err
	}
	proc := l.current()
	proc.collect()
	if proc.status.Signaled() {
		return fmt.Errorf("process died while it was set up: %s", unix.SignalName(proc.status.Signal()))
	}
	return fmt.Errorf("process ended while it was set up: status %d", proc.status.ExitStatus())
}

// withEnd adds to a failure of another process that the child has ended at its gate,
// if it has, which may be why.
func (l *launching) withEnd(err error) error {
	if !l.current().exited() {
		return err
	}
	return errors.Join(l.left(), err)
}

// start opens the last gate and waits for execve. The program is then done
// with, in success and failure.
func (l *launching) start() error {
	if l.eager {
		if _, err := l.await(0); err != nil { // it has passed the gate
			l.abort()
			return err
		}
		return l.execed()
	}
	if err := l.link.open(); err != nil {
		if errors.Is(err, errLeft) {
			err = l.left()
		}
		l.abort()
		return err
	}
	return l.execed()
}

// execed waits for the child to leave its program.
func (l *launching) execed() error {
	_, err := l.link.await(0)
	if !errors.Is(err, errLeft) {
		l.abort()
		if err == nil {
			err = unix.EPROTO // a message that no program sends there
		}
		return err
	}
	if err = l.execError(l.plan); err == nil {
		err = l.adopt()
	}
	if err != nil {
		l.abort()
		return err
	}
	if l.scoring > 0 {
		if _, errno := l.result(l.scoring); errno != 0 {
			l.scoreErr = errno
		}
	}
	l.link.close()
	l.free()
	return nil
}

// abort ends the child, reaps it, and frees the program.
func (l *launching) abort() {
	l.link.close()
	if l.middle != nil {
		l.middle.kill()
		var err error
		if l.proc, err = l.second(); err != nil {
			l.endSecond()
		}
		l.middle = nil
	}
	if l.proc != nil {
		l.proc.kill()
	}
	l.free()
}

// setOOMScore writes a child's oom_score_adj. One that is gone already needs none.
func setOOMScore(pid int, score *int) error {
	if score == nil {
		return nil
	}
	err := writeProc(pid, "oom_score_adj", strconv.Itoa(*score))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// scoreWarning says of a failure to lower oom_score_adj, which needs
// CAP_SYS_RESOURCE, that the process runs without; nil of another one.
func scoreWarning(err error) error {
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("process.oomScoreAdj: %w", err)
	}
	return nil
}
