package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/client"
	"golang.org/x/sys/unix"
)

// watch waits for a container's end and records it. It ends with the
// container or with the daemon.
func (e *Engine) watch(c *container) {
	shim, err := c.connection()
	if err != nil {
		return
	}
	_, err = shim.Wait(e.life, c.id, "")
	if e.life.Err() != nil {
		return
	}
	c.mu.Lock()
	starting := c.starting
	c.mu.Unlock()
	if starting != nil {
		<-starting
	}
	e.finish(c, err)
	e.release(c)
}

// finish records a container's end, from the shim's exit record if there is
// one. waitErr says how the shim itself failed, if it did.
func (e *Engine) finish(c *container, waitErr error) {
	exit, err := e.exitOf(c, waitErr)
	c.mu.Lock()
	startErr, evicted := c.startErr, c.evicted
	c.mu.Unlock()
	if err == nil {
		if evicted != "" {
			exit.Message = evicted
		}
		err = e.updateContainer(c, func(r *Container) { setExit(r, exit, startErr) })
	}
	if err != nil {
		e.log.Error("end of a container is not recorded", "container", c.id, "err", err)
	}
	if !c.isSandbox {
		e.toldStop(context.Background(), c) // bounded by the plugins' time
	}
	close(c.exited)
	if c.isSandbox {
		e.sandboxEnded(c)
		return
	}
	rec := c.snapshot()
	e.log.Info("container has exited", "container", c.id, "pod", c.podID, "code", rec.ExitCode, "reason", rec.Reason)
	e.publish(Event{PodID: c.podID, ContainerID: c.id, Kind: EventStopped, At: rec.FinishedAt})
}

// exitOf reads the exit record; a container whose shim died without one is
// ended, since nobody reads its output any more.
func (e *Engine) exitOf(c *container, waitErr error) (api.Exit, error) {
	var exit api.Exit
	err := atomicfile.ReadJSON(filepath.Join(e.cfg.containerDir(c.id), api.ExitFile), &exit)
	if err == nil || waitErr == nil {
		return exit, err
	}
	group := e.cgroups.Load(c.snapshot().CgroupPath)
	if err := group.Kill(); err != nil && !errors.Is(err, unix.ENOENT) {
		e.log.Warn("container without a shim is not ended", "container", c.id, "err", err)
	}
	return api.Exit{Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL), ExitedAtNS: time.Now().UnixNano(),
		Message: fmt.Sprintf("its shim ended before it: %v", waitErr)}, nil
}

// Reasons of an end, as clients know them.
const (
	ReasonCompleted = "Completed"
	ReasonError     = "Error"
	ReasonOOMKilled = "OOMKilled"
	ReasonCannotRun = "ContainerCannotRun"
)

// startErrorCode is the exit code of a container whose program could not be
// run.
const startErrorCode = 128

func setExit(r *Container, exit api.Exit, startErr error) {
	r.State, r.FinishedAt, r.ExitCode, r.Message = ContainerExited, time.Unix(0, exit.ExitedAtNS), exit.Code, exit.Message
	if r.StartedAt.After(r.FinishedAt) { // a daemon that was restarted knows only when it saw it run
		r.StartedAt = r.FinishedAt
	}
	switch {
	case startErr != nil:
		r.ExitCode, r.Reason, r.Message = startErrorCode, ReasonCannotRun, startErr.Error()
	case exit.OOMKilled:
		r.Reason = ReasonOOMKilled
	case exit.Code == 0:
		r.Reason = ReasonCompleted
	default:
		r.Reason = ReasonError
	}
}

// release lets the shim give back what the container held, and end.
func (e *Engine) release(c *container) {
	defer close(c.released)
	shim, err := c.connection()
	if err == nil {
		if err := shim.Delete(context.Background(), c.id); err != nil && !errors.Is(err, client.ErrGone) && api.CodeOf(err) != api.CodeNotFound {
			e.log.Warn("shim did not release all", "container", c.id, "err", err)
		}
		c.disown()
		e.leaveShim(c, shim)
	}
	e.clearForeign(c)
	if err != nil {
		return
	}
	if err := e.cgroups.Load(c.snapshot().CgroupPath).Remove(); err != nil {
		e.log.Warn("cgroup stays", "container", c.id, "err", err)
	}
}
