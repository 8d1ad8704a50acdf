package oci

import (
	"errors"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/shim/launch"
)

// runContainer creates and starts a container, and unless it is left alone waits
// for its end and removes it.
func (c *cli) runContainer(args []string) error {
	id, o, err := createFlags("run", args)
	if err != nil {
		return err
	}
	if err := readOnlySelf(); err != nil {
		return err
	}
	var signals chan os.Signal
	if !o.detach {
		o.running = func() { signals = catch() }
	}
	ct, launched, err := c.make(id, o, false)
	if err != nil {
		return err
	}
	defer ct.unlock()
	if ct.NoProcess {
		return errors.Join(errNoProcess, c.discard(ct, launched))
	}
	s, err := c.supervise(launched.Init(), o.handOver, o.detach, signals)
	if err != nil {
		return errors.Join(err, c.discard(ct, launched))
	}
	if err := launched.Start(); err != nil {
		s.stop()
		return errors.Join(err, c.discard(ct, launched))
	}
	if o.detach {
		return nil
	}
	ct.unlock() // others may look, signal and exec meanwhile
	status, err := s.wait()
	if err != nil {
		return err
	}
	if !o.keep {
		err := ct.acquire(unix.LOCK_EX)
		if err == nil {
			err = c.discard(ct, launched)
		}
		if err != nil && !errors.Is(err, errNotExist) { // others may have removed it
			return err
		}
	}
	if status != 0 {
		return exitStatus(status)
	}
	return nil
}

// discard removes a container that this process has made.
func (c *cli) discard(ct *container, launched *launch.Container) error {
	if err := launched.Init().Signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return c.giveBack(ct, launched)
}

// supervisor is what a command does for a process it waits for: it passes
// signals on and, with a terminal of ours, what is typed and shown.
type supervisor struct {
	process *launch.Process
	signals chan os.Signal
	passing chan struct{} // closed once signals are passed on no more
	console *proxy        // nil without a terminal of ours
}

// catch begins to take signals, before there is somebody to pass them on to: a
// program may have told its caller that it runs before its start has returned.
func catch() chan os.Signal {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	return signals
}

// supervise begins, with the signals of catch, if that was called already. With
// alone it does nothing but in appearance.
func (c *cli) supervise(p *launch.Process, h handOver, alone bool, signals chan os.Signal) (*supervisor, error) {
	s := &supervisor{process: p}
	if alone {
		return s, nil
	}
	if p.Console() != nil && h.consoleSocket == "" {
		var err error
		if s.console, err = newProxy(p.Console(), c.in, c.out); err != nil {
			return nil, err
		}
	}
	if signals == nil {
		signals = catch()
	}
	s.signals, s.passing = signals, make(chan struct{})
	go s.pass()
	return s, nil
}

// pass ends with [supervisor.stop].
func (s *supervisor) pass() {
	defer close(s.passing)
	for sig := range s.signals {
		switch sig {
		case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE:
			// About this process: its children, the Go scheduler, its pipes.
		case unix.SIGWINCH:
			if s.console != nil {
				s.console.resize()
			}
		default:
			_ = s.process.Signal(sig.(unix.Signal)) // it may have ended
		}
	}
}

func (s *supervisor) stop() {
	if s.signals != nil {
		signal.Stop(s.signals)
		close(s.signals)
		<-s.passing
	}
	if s.console != nil {
		s.console.close()
	}
}

// wait gives the status of the process as a shell would.
func (s *supervisor) wait() (int, error) {
	status, err := s.process.Wait()
	s.stop()
	switch {
	case err != nil:
		return 0, err
	case status.Signaled():
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}
