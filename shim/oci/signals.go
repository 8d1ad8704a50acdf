package oci

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// A command that waits for a process passes signals on to it: all but what is about
// this process itself (its children, its pipes, its faults). To catch each in Go
// takes 0.013 ms, and as long again to let go of it: for all, more than to start the process.
// So all that Go's runtime leaves blocked are held from the start of the process,
// and read from one descriptor.

// HeldSignals is the set, as the kernel's mask, that a command which makes processes
// starts with: see shim/entry.go. In a command that waits for nobody none of them would end
// a Go program anyway.
const HeldSignals = ^uint64(0) &^ (1<<(unix.SIGHUP-1) | 1<<(unix.SIGINT-1) | 1<<(unix.SIGQUIT-1) | 1<<(unix.SIGABRT-1) | 1<<(unix.SIGTERM-1) | // ending
	1<<(unix.SIGILL-1) | 1<<(unix.SIGTRAP-1) | 1<<(unix.SIGBUS-1) | 1<<(unix.SIGFPE-1) | 1<<(unix.SIGSEGV-1) | 1<<(unix.SIGSTKFLT-1) | 1<<(unix.SIGSYS-1) |
	1<<(unix.SIGKILL-1) | 1<<(unix.SIGSTOP-1) | 1<<(unix.SIGPIPE-1) | 1<<(unix.SIGCHLD-1) | 1<<(unix.SIGURG-1) | 1<<(unix.SIGPROF-1) |
	0b111<<(32-1)) // C libraries' own

var heldSet = unix.Sigset_t{Val: [16]uint64{HeldSignals}}

// ending are those that Go's runtime never leaves blocked.
var ending = []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGTERM}

// holding says whether this process has started with the signals held.
func holding() (bool, error) {
	var now unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, nil, &now); err != nil {
		return false, fmt.Errorf("read signal mask: %w", err)
	}
	return now.Val[0]&HeldSignals == HeldSignals, nil
}

// hold blocks the signals on this thread, for the program that it starts next.
func hold() error {
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &heldSet, nil); err != nil {
		return fmt.Errorf("hold signals: %w", err)
	}
	return nil
}

// signals are those that came since catch.
type signals struct {
	held   *os.File
	came   chan os.Signal
	passed chan struct{} // closed once none is passed on any more
}

// infoSize is the size of what describes one signal (signalfd(2)).
const infoSize = 128

// catch begins to take signals, before there is somebody to pass them on to: a
// program may have told its caller that it runs before its start has returned.
func catch() (*signals, error) {
	fd, err := unix.Signalfd(-1, &heldSet, unix.SFD_CLOEXEC|unix.SFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("signalfd: %w", err)
	}
	s := &signals{held: os.NewFile(uintptr(fd), "signals"), came: make(chan os.Signal, 64), passed: make(chan struct{})}
	signal.Notify(s.came, ending...)
	return s, nil
}

// passTo calls do with each signal until stop.
func (s *signals) passTo(do func(unix.Signal)) {
	go func() {
		defer close(s.passed)
		for sig := range s.came {
			do(sig.(unix.Signal))
		}
	}()
	go func() { // ends when the file is closed
		defer close(s.came)
		var info [infoSize]byte
		for {
			if _, err := io.ReadFull(s.held, info[:]); err != nil {
				return
			}
			s.came <- unix.Signal(binary.NativeEndian.Uint32(info[:4]))
		}
	}()
}

// stop returns when no more are passed on. What comes later is still held.
func (s *signals) stop() {
	signal.Stop(s.came)
	s.held.Close()
	<-s.passed
}
