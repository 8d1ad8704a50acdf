package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/shim/launch"
)

// endTimeout bounds the wait for processes that were sent SIGKILL: one in an
// uninterruptible sleep may stay for ever.
const endTimeout = 10 * time.Second

// errNotRunning has the words that callers look for.
var errNotRunning = errors.New("container not running")

// kill sends a signal to the container's first process, or to all.
func (c *cli) kill(args []string) error {
	f := newFlags("kill")
	var all bool
	f.BoolVar(&all, "all", false, "")
	f.BoolVar(&all, "a", false, "")
	rest, err := parse(f, args, 1, 2)
	if err != nil {
		return err
	}
	sig := unix.SIGTERM
	if len(rest) == 2 {
		if sig, err = parseSignal(rest[1]); err != nil {
			return err
		}
	}
	ct, err := c.open(rest[0])
	if err != nil {
		return err
	}
	if err := ct.signal(sig, all); err != nil {
		return fmt.Errorf("kill container %s: %w", ct.ID, err)
	}
	return nil
}

func (ct *container) signal(sig unix.Signal, all bool) error {
	p, err := ct.process()
	if err != nil {
		return err
	}
	status, err := ct.status(p)
	if err != nil {
		return err
	}
	if !all && sig == unix.SIGKILL {
		// Nobody else ends what the first process leaves in another pid namespace.
		if all, err = ct.sharesPidNamespace(); err != nil {
			return err
		}
	}
	if all {
		return ct.signalAll(sig, status)
	}
	switch status {
	case specs.StateCreated:
		sig = atGate(sig)
	case specs.StateRunning, statePaused:
	default:
		return errNotRunning
	}
	err = p.Signal(sig)
	if errors.Is(err, unix.ESRCH) {
		err = errNotRunning
	}
	if err != nil || sig != unix.SIGKILL || status != statePaused {
		return err
	}
	_, group, err := ct.group()
	if err != nil {
		return err
	}
	return group.Thaw() // version 1 holds even SIGKILL back
}

// sharesPidNamespace says that the kernel does not end the container's other
// processes with its first (pid_namespaces(7)).
func (ct *container) sharesPidNamespace() (bool, error) {
	spec, _, err := ct.config()
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.PIDNamespace && ns.Path == ""
	}), nil
}

// signalAll reaches every process of the cgroup. Without an own pid namespace
// some may be left when the first has ended.
func (ct *container) signalAll(sig unix.Signal, status specs.ContainerState) error {
	_, group, err := ct.group()
	if err != nil {
		return err
	}
	if sig == unix.SIGKILL || status == specs.StateCreated && atGate(sig) == unix.SIGKILL {
		return group.Kill()
	}
	n, err := group.Signal(sig)
	if err == nil && n == 0 {
		err = errNotRunning
	}
	return err
}

// atGate gives the signal for a process that waits at the gate: it holds all
// signals back, and as the first of a pid namespace it would be spared by those
// whose action is the default one, which for most is to end.
func atGate(sig unix.Signal) unix.Signal {
	switch sig {
	case 0, unix.SIGCHLD, unix.SIGCONT, unix.SIGURG, unix.SIGWINCH, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
		return sig
	}
	return unix.SIGKILL
}

// parseSignal reads a number or a name: 9, KILL, SIGKILL, RTMIN+3.
func parseSignal(s string) (unix.Signal, error) {
	const last = 64
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > last {
			return 0, fmt.Errorf("signal %d: %w", n, unix.EINVAL)
		}
		return unix.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return n, nil
	}
	// The C library keeps the first two for itself (signal(7)).
	const rtmin, rtmax = 34, last
	for _, rt := range []struct {
		name string
		base int
	}{{"RTMIN", rtmin}, {"RTMAX", rtmax}} {
		off, ok := strings.CutPrefix(name, rt.name)
		if !ok {
			continue
		}
		n := 0
		if off != "" {
			var err error
			if n, err = strconv.Atoi(off); err != nil || off[0] != '+' && off[0] != '-' {
				break
			}
		}
		if n += rt.base; n >= rtmin && n <= rtmax {
			return unix.Signal(n), nil
		}
	}
	return 0, fmt.Errorf("signal %.32q: %w", s, unix.EINVAL)
}

// delete removes what a stopped container holds.
func (c *cli) delete(args []string) error {
	f := newFlags("delete")
	var force bool
	f.BoolVar(&force, "force", false, "")
	f.BoolVar(&force, "f", false, "")
	ids, err := parse(f, args, 1, 1)
	if err != nil {
		return err
	}
	id := ids[0]
	if force {
		// Before the lock: a command that holds it may wait for this container.
		if err := c.end(id); err != nil {
			return err
		}
	}
	ct, _, status, err := c.openWithStatus(id)
	if errors.Is(err, errNotExist) && force {
		return c.removeRemains(id)
	}
	if err != nil {
		return err
	}
	defer ct.unlock()
	if status != specs.StateStopped {
		return fmt.Errorf("delete container %s: it is %s, not stopped: %w", id, status, unix.EBUSY)
	}
	return c.destroy(ct)
}

// end kills every process of a container and waits until they are gone. One
// that does not exist has none.
func (c *cli) end(id string) error {
	ct, err := c.open(id)
	if errors.Is(err, errNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	p, err := ct.process()
	if err != nil {
		return err
	}
	if err := p.Signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	// It leaves its cgroup before it counts as ended.
	return errors.Join(ct.killGroup(), p.WaitEnd(endTimeout))
}

// killGroup ends what is in the cgroup.
func (ct *container) killGroup() error {
	_, group, err := ct.group()
	if err != nil {
		return err
	}
	if err := group.Kill(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	return group.WaitEmpty(ctx)
}

// destroy removes a container that another process has made.
func (c *cli) destroy(ct *container) error {
	var launched *launch.Container
	spec, _, err := ct.config()
	if err == nil {
		launched, err = ct.launched(spec, nil, c.warn)
	}
	// A damaged specification must not keep the rest. It goes after all that it
	// tells of: without, a removal has not come to its end.
	if !errors.Is(err, os.ErrNotExist) {
		c.warn(err)
	}
	return c.giveBack(ct, launched)
}

// giveBack ends what is left of a container whose first process has ended or
// has been killed, and gives everything back, the directory last. launched may
// be nil.
func (c *cli) giveBack(ct *container, launched *launch.Container) error {
	_, group, err := ct.group()
	if err != nil {
		return err
	}
	err = group.Remove()
	if errors.Is(err, unix.EBUSY) { // a shared pid namespace leaves other processes behind
		if err = ct.killGroup(); err == nil {
			err = group.Remove()
		}
	}
	if err != nil {
		return err
	}
	if launched != nil { // not before: its hooks of poststop run once
		c.warn(launched.Close())
	}
	if err := ct.leaveScope(); err != nil {
		return err
	}
	return ct.remove()
}

// removeRemains removes the directory of a create that died before it could
// write the state.
func (c *cli) removeRemains(id string) error {
	ct := &container{dir: filepath.Join(c.root, id)}
	err := ct.acquire(unix.LOCK_EX)
	if errors.Is(err, errNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ct.unlock()
	if _, err := os.Stat(ct.path(stateFile)); err == nil {
		return fmt.Errorf("delete container %s: it has just been created: %w", id, unix.EBUSY)
	}
	return ct.remove()
}
