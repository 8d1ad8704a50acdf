package oci

import (
	"errors"

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
	if err := ready(); err != nil {
		return err
	}
	var caught *signals
	if !o.detach {
		o.running = func() (err error) {
			caught, err = catch()
			return err
		}
	}
	ct, launched, err := c.make(id, o, false)
	if err != nil {
		return err
	}
	defer ct.unlock()
	if ct.NoProcess {
		return errors.Join(errNoProcess, c.discard(ct, launched))
	}
	s, err := c.supervise(launched.Init(), o.handOver, o.detach, caught)
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
	signals *signals
	console *proxy // nil without a terminal of ours
}

// supervise begins, with the signals of catch, if that was called already. With
// alone it does nothing but in appearance.
func (c *cli) supervise(p *launch.Process, h handOver, alone bool, caught *signals) (_ *supervisor, err error) {
	s := &supervisor{process: p}
	if alone {
		return s, nil
	}
	if p.Console() != nil && h.consoleSocket == "" {
		if s.console, err = newProxy(p.Console(), c.in, c.out); err != nil {
			return nil, err
		}
	}
	if s.signals = caught; caught == nil {
		if s.signals, err = catch(); err != nil {
			s.stop()
			return nil, err
		}
	}
	return s, nil
}

// pass is for each signal to this process.
func (s *supervisor) pass(sig unix.Signal) {
	if sig != unix.SIGWINCH {
		_ = s.process.Signal(sig) // it may have ended
	} else if s.console != nil {
		s.console.resize()
	}
}

func (s *supervisor) stop() {
	if s.console != nil {
		s.console.close()
	}
}

// wait gives the status of the process as a shell would.
func (s *supervisor) wait() (int, error) {
	passed := s.signals.passUntil(s.process, s.pass)
	status, err := s.process.Wait()
	s.stop()
	if passed != nil {
		return 0, passed
	}
	switch {
	case err != nil:
		return 0, err
	case status.Signaled():
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}
