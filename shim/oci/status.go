package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/shim/launch"
)

// statePaused is runc's addition to the states of the specification.
const statePaused specs.ContainerState = "paused"

// process finds the container's first process; one that has ended has id 0.
func (ct *container) process() (*launch.Process, error) {
	return launch.FindProcess(ct.Pid, ct.Started)
}

// openWithStatus is openLocked for a command that depends on what has become of
// the container.
func (c *cli) openWithStatus(id string) (*container, *launch.Process, specs.ContainerState, error) {
	ct, err := c.openLocked(id)
	if err != nil {
		return nil, nil, "", err
	}
	p, err := ct.process()
	if err == nil {
		var status specs.ContainerState
		if status, err = ct.status(p); err == nil {
			return ct, p, status, nil
		}
	}
	ct.unlock()
	return nil, nil, "", err
}

// status asks the kernel what has become of the container.
func (ct *container) status(p *launch.Process) (specs.ContainerState, error) {
	if ct.Pid == 0 {
		return ct.unborn()
	}
	if p.Ended() {
		return specs.StateStopped, nil
	}
	if waits, err := launch.Waiting(ct.dir, p.Pid()); err != nil {
		return "", err
	} else if waits {
		return specs.StateCreated, nil
	}
	if ct.inTheMaking(p) {
		return specs.StateCreating, nil
	}
	frozen, err := ct.frozen()
	if err != nil || !frozen {
		return specs.StateRunning, err
	}
	return statePaused, nil
}

// inTheMaking says whether the process is still the runtime's, which a command is
// just setting up: its program is ours, and another holds the lock. A container
// may run this very program for its own.
func (ct *container) inTheMaking(p *launch.Process) bool {
	if ct.lock != nil {
		return false
	}
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/exe", p.Pid()))
	if err != nil {
		return false
	}
	ours, err := os.Stat("/proc/self/exe")
	if err != nil || !os.SameFile(theirs, ours) {
		return false
	}
	status, err := ct.unborn()
	return err == nil && status == specs.StateCreating
}

// unborn tells a container that is being made from one whose maker has died.
func (ct *container) unborn() (specs.ContainerState, error) {
	if ct.lock != nil {
		return specs.StateStopped, nil // we hold it, so no maker does
	}
	err := ct.acquire(unix.LOCK_SH | unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return specs.StateCreating, nil
	}
	if err != nil {
		return "", err
	}
	ct.unlock()
	return specs.StateStopped, nil
}

// group gives the container's cgroup.
func (ct *container) group() (*cgroup.Host, *cgroup.Group, error) {
	host, err := cgroup.Detect()
	if err != nil {
		return nil, nil, err
	}
	return host, host.Load(ct.Cgroup), nil
}

// frozen says whether the container's processes are stopped by its cgroup.
func (ct *container) frozen() (bool, error) {
	host, group, err := ct.group()
	if err != nil {
		return false, err
	}
	for _, t := range host.Trees {
		file, want := "", ""
		switch {
		case t.Unified: // freezes on a hybrid host too
			file, want = "cgroup.freeze", "1"
		case slices.Contains(t.Controllers, "freezer"):
			file, want = "freezer.state", "FROZEN"
		default:
			continue
		}
		data, err := os.ReadFile(filepath.Join(t.Mount, group.Path(), file))
		if err == nil && strings.TrimSpace(string(data)) == want {
			return true, nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) { // it may go meanwhile
			return false, err
		}
	}
	return false, nil
}
