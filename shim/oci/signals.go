package oci

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/shim/launch"
)

// A command that waits for a process passes signals on to it: all but what is about
// this process itself (its children, its pipes, its faults). For Go to catch them
// takes two threads, and a change of thread for each signal: 0.4 ms, as long as to start
// the process. So the kernel calls a few instructions of ours, on the stack that Go
// has for signals, which write the number to a pipe (signals_*.s).

// kept are the signals that a process does not pass on.
const kept uint64 = 1<<unix.SIGILL | 1<<unix.SIGTRAP | 1<<unix.SIGBUS | 1<<unix.SIGFPE | 1<<unix.SIGSEGV | 1<<unix.SIGSTKFLT | 1<<unix.SIGSYS |
	1<<unix.SIGKILL | 1<<unix.SIGSTOP | 1<<unix.SIGPIPE | 1<<unix.SIGCHLD | 1<<unix.SIGURG | 1<<unix.SIGPROF |
	0b111<<32 // C libraries' own

// lastSignal is the kernel's _NSIG.
const lastSignal = 64

// signals are those that came since catch.
type signals struct{ pipe int }

// catch begins to take signals, before there is somebody to pass them on to: a
// program may have told its caller that it runs before its start has returned. It is
// called once, and holds for the rest of the process.
func catch() (*signals, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make a pipe for signals: %w", err)
	}
	caught = int32(ends[1])
	for sig := unix.Signal(1); sig <= lastSignal; sig++ {
		if kept>>sig&1 != 0 {
			continue
		}
		if err := setHandler(sig); err != nil {
			return nil, fmt.Errorf("catch %s: %w", sig, err)
		}
	}
	return &signals{ends[0]}, nil
}

// passUntil calls do with each signal until the process has ended.
func (s *signals) passUntil(p *launch.Process, do func(unix.Signal)) error {
	for {
		ended, err := p.EndOr(s.pipe)
		if ended || err != nil {
			return err
		}
		var numbers [64]byte
		n, err := unix.Read(s.pipe, numbers[:])
		if err != nil && err != unix.EAGAIN && err != unix.EINTR {
			return fmt.Errorf("read signals: %w", err)
		}
		for _, number := range numbers[:max(n, 0)] {
			do(unix.Signal(number))
		}
	}
}
