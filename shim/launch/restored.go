package launch

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
)

// Reserve makes a container for a process that another program will restore
// from a checkpoint: its control group with its limits, and nothing else. Until
// [Container.Adopt] it has no process. Hooks are not for such a container.
func Reserve(cfg Config) (*Container, error) {
	if err := checkConfig(&cfg); err != nil {
		return nil, fmt.Errorf("create container %s: %w", cfg.ID, err)
	}
	if cfg.Spec.Hooks != nil {
		return nil, fmt.Errorf("create container %s: hooks of a container that is restored: %w", cfg.ID, errUnsupported)
	}
	c := &Container{id: cfg.ID, bundle: cfg.Bundle, spec: cfg.Spec, warnTo: cfg.Warn, root: -1, devpts: -1, ns: &namespaces{closed: true}}
	var err error
	if c.filter, err = filterOf(&cfg); err != nil {
		return nil, fmt.Errorf("create container %s: %w", cfg.ID, err)
	}
	if c.host, err = cgroup.Detect(); err != nil {
		return nil, fmt.Errorf("create container %s: find cgroups: %w", cfg.ID, err)
	}
	if c.group, err = c.host.Claim(cgroupPath(&cfg), withDefaultDevices(cfg.Spec.Linux.Resources)); err != nil {
		return nil, fmt.Errorf("create container %s: %w", cfg.ID, err)
	}
	return c, nil
}

// Adopt takes over the first process of a container that was reserved. It is
// a child of this process and not reaped yet. console is the master of its
// terminal, nil without one, and is taken over as well if there is no error.
func (c *Container) Adopt(pid int, console *os.File) error {
	pidfd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("adopt process %d: %w", pid, err)
	}
	ns, err := namespacesOf(pid, c.spec.Linux)
	if err != nil {
		unix.Close(pidfd)
		return fmt.Errorf("adopt process %d: %w", pid, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.init, c.ns = newProcess(pid, pidfd), ns
	c.init.console = console
	c.mayTrace.Store(true) // the restored processes have what their images say
	return nil
}

// MountAt mounts a filesystem at its target on this process's mount namespace.
func MountAt(m Mount) error {
	if err := os.MkdirAll(m.Target, 0o700); err != nil {
		return err
	}
	fd, err := mountRoot(&m, m.Target, false)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, m.Target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "mount", Path: m.Target, Err: err}
	}
	return nil
}
