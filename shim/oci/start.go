package oci

import (
	"errors"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/shim/launch"
)

// errNoProcess is the specification's: process is required when start is called.
var errNoProcess = errors.New("the specification has no process to start")

// start runs the program of a created container.
func (c *cli) start(args []string) error {
	ids, err := parse(newFlags("start"), args, 1, 1)
	if err != nil {
		return err
	}
	if err := ready(); err != nil {
		return err
	}
	ct, p, status, err := c.openWithStatus(ids[0])
	if err != nil {
		return err
	}
	defer ct.unlock()
	if status != specs.StateCreated {
		return fmt.Errorf("start container %s: it is %s, not created: %w", ct.ID, status, unix.EINVAL)
	}
	if ct.NoProcess {
		if err := p.Signal(unix.SIGKILL); err != nil {
			return err
		}
		return fmt.Errorf("start container %s: %w", ct.ID, errors.Join(errNoProcess, p.WaitEnd(endTimeout)))
	}
	spec, _, err := ct.config()
	if err != nil {
		return err
	}
	launched, err := ct.launched(spec, nil, c.warn)
	if err != nil {
		return err
	}
	err = launched.Start()
	if _, failed := errors.AsType[*launch.HookError](err); failed {
		return errors.Join(err, c.destroy(ct))
	}
	return err
}
