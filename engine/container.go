package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/undo"
	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/client"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// container is a container that the engine holds.
type container struct {
	id, podID string
	op        semaphore     // one operation at a time
	settled   chan struct{} // closed once the container is made, or cannot be
	failed    error         // why it could not be made; valid after settled
	exited    chan struct{} // closed once the end is recorded
	released  chan struct{} // closed once its shim holds nothing of it

	mu       sync.Mutex // guards all below
	rec      Container
	shim     *client.Shim
	starting chan struct{} // closed once StartContainer has its result
	startErr error
	process  *specs.Process // of the container, as a pattern for exec
}

func newContainer(rec Container) *container {
	return &container{id: rec.ID, podID: rec.PodID, op: newSemaphore(), rec: rec,
		settled: make(chan struct{}), exited: make(chan struct{}), released: make(chan struct{})}
}

func (c *container) snapshot() Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

// connection gives the shim of a container that has one.
func (c *container) connection() (*client.Shim, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shim == nil {
		return nil, fmt.Errorf("container %s: %w: it is %s", c.id, ErrState, c.rec.State)
	}
	return c.shim, nil
}

func (c *container) disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shim != nil {
		c.shim.Close()
		c.shim = nil
	}
}

// Files in a container's directory, beside those of the shim.
const (
	containerFile = "container.json"
	configFile    = "config.json"
)

// updateContainer changes a container's record on disk and then in memory.
func (e *Engine) updateContainer(c *container, change func(*Container)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.rec
	change(&next)
	if next.State != c.rec.State && !may(containerMoves, c.rec.State, next.State) {
		return fmt.Errorf("container %s: %w: %s to %s", c.id, ErrState, c.rec.State, next.State)
	}
	if err := atomicfile.WriteJSON(filepath.Join(e.cfg.containerDir(c.id), containerFile), &next, atomicfile.Volatile); err != nil {
		return err
	}
	c.rec = next
	return nil
}

// CreateContainer makes a container in a pod, its process waiting to be
// started. A call for one that is being made, or waits, gives that one.
func (e *Engine) CreateContainer(ctx context.Context, podID string, cfg ContainerConfig) (Container, error) {
	p, err := e.findPod(podID)
	if err != nil {
		return Container{}, err
	}
	if state := p.snapshot().State; state != PodReady {
		return Container{}, fmt.Errorf("pod %s: %w: it is %s", p.id, ErrState, state)
	}
	if cfg.Name == "" {
		return Container{}, fmt.Errorf("%w: a container needs a name", ErrInvalid)
	}
	c, isNew, err := e.claimContainer(p, cfg)
	if err != nil {
		return Container{}, err
	}
	if isNew {
		e.work.Go(func() { e.makeContainer(context.WithoutCancel(ctx), p, c) })
	}
	select {
	case <-c.settled:
	case <-ctx.Done():
		return Container{}, context.Cause(ctx)
	}
	if c.failed != nil {
		return Container{}, c.failed
	}
	return c.snapshot(), nil
}

// claimContainer finds the container of an identity or makes a new one for it.
func (e *Engine) claimContainer(p *pod, cfg ContainerConfig) (*container, bool, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		s := c.snapshot()
		if c.podID != p.id || s.Config.Name != cfg.Name || s.Config.Attempt != cfg.Attempt {
			continue
		}
		if s.State != ContainerCreating && s.State != ContainerCreated || !reflect.DeepEqual(s.Config, cfg) {
			return nil, false, fmt.Errorf("container %s attempt %d of pod %s: %w: %s is %s", cfg.Name, cfg.Attempt, p.id, ErrExists, c.id, s.State)
		}
		return c, false, nil
	}
	c := newContainer(Container{ID: newID(), PodID: p.id, Config: cfg, State: ContainerCreating, CreatedAt: time.Now(), Resources: cfg.Resources})
	e.containers[c.id] = c
	return c, true, nil
}

// makeContainer settles a new container.
func (e *Engine) makeContainer(ctx context.Context, p *pod, c *container) {
	defer close(c.settled)
	if err := e.create(ctx, p, c); err != nil {
		c.failed = fmt.Errorf("create container %s: %w", c.rec.Config.Name, err)
		e.forgetContainer(c)
		return
	}
	e.events.publish(Event{PodID: c.podID, ContainerID: c.id, Kind: EventCreated, At: time.Now()})
	e.work.Go(func() { e.watch(c) })
}

// create prepares the root file system and the specification, and lets a shim
// make the container. What it took is given back if a step fails.
func (e *Engine) create(ctx context.Context, p *pod, c *container) error {
	var taken undo.Stack
	defer taken.Run()
	taken.Add(func() { e.discardContainer(c) })
	if err := os.MkdirAll(e.cfg.containerDir(c.id), 0o700); err != nil {
		return err
	}
	spec, rootfs, err := e.prepare(p.snapshot(), c)
	if err != nil {
		return err
	}
	if err := atomicfile.WriteJSON(filepath.Join(e.cfg.containerDir(c.id), configFile), spec, atomicfile.Volatile); err != nil {
		return err
	}
	shim, err := e.shims.Get()
	if err != nil {
		return err
	}
	taken.Add(func() { endShim(shim) })
	if err := e.updateContainer(c, func(r *Container) { r.Shim = shim.Addr() }); err != nil {
		return err
	}
	pid, err := shim.Create(ctx, e.createRequest(c.snapshot(), rootfs))
	if err != nil {
		return err
	}
	taken.Add(func() {
		if err := shim.Delete(ctx, c.id); err != nil {
			e.log.Warn("container that could not be recorded stays", "container", c.id, "err", err)
		}
	})
	c.mu.Lock()
	c.shim, c.process = shim, spec.Process
	c.mu.Unlock()
	if err := e.updateContainer(c, func(r *Container) { r.State, r.Pid = ContainerCreated, pid }); err != nil {
		return err
	}
	taken.Keep()
	return nil
}

func (e *Engine) createRequest(rec Container, rootfs *api.Mount) *api.CreateTaskRequest {
	req := &api.CreateTaskRequest{ID: rec.ID, Bundle: e.cfg.containerDir(rec.ID), Rootfs: []*api.Mount{rootfs}, Terminal: rec.Config.TTY,
		Stdout: "-", Stderr: "-"}
	if rec.LogPath != "" {
		req.Stdout = api.LogScheme + rec.LogPath
	}
	if rec.Config.Stdin {
		req.Stdin = "-"
	}
	return req
}

// StartContainer runs a container's program. A container that runs already is
// started.
func (e *Engine) StartContainer(ctx context.Context, id string) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	return e.do(ctx, func(ctx context.Context) error {
		if err := c.op.acquire(ctx); err != nil {
			return err
		}
		defer c.op.release()
		err := e.startContainer(ctx, c)
		if c.startFailed() {
			<-c.exited // who asks after this answer shall see why
		}
		return err
	})
}

// startFailed says whether the container's program could not be run.
func (c *container) startFailed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.startErr != nil
}

func (e *Engine) startContainer(ctx context.Context, c *container) error {
	switch state := c.snapshot().State; state {
	case ContainerRunning:
		return nil
	case ContainerCreated:
	default:
		return fmt.Errorf("start container %s: %w: it is %s", c.id, ErrState, state)
	}
	if state := e.podState(c.podID); state != PodReady {
		return fmt.Errorf("start container %s: %w: its pod is %s", c.id, ErrState, state)
	}
	shim, err := c.connection()
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.starting = make(chan struct{})
	c.mu.Unlock()
	defer close(c.starting)
	if err := e.updateContainer(c, func(r *Container) { r.State = ContainerStarting }); err != nil {
		return err
	}
	if err := shim.Start(ctx, c.id); err != nil {
		c.mu.Lock()
		c.startErr = err
		c.mu.Unlock()
		return fmt.Errorf("start container %s: %w", c.snapshot().Config.Name, err)
	}
	if err := e.updateContainer(c, func(r *Container) { r.State, r.StartedAt = ContainerRunning, time.Now() }); err != nil {
		return err
	}
	e.events.publish(Event{PodID: c.podID, ContainerID: c.id, Kind: EventStarted, At: time.Now()})
	return nil
}

func (e *Engine) podState(id string) PodState {
	p, err := e.findPod(id)
	if err != nil {
		return PodRemoving
	}
	return p.snapshot().State
}

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
	startErr := c.startErr
	c.mu.Unlock()
	if err == nil {
		err = e.updateContainer(c, func(r *Container) { setExit(r, exit, startErr) })
	}
	if err != nil {
		e.log.Error("end of a container is not recorded", "container", c.id, "err", err)
	}
	close(c.exited)
	rec := c.snapshot()
	e.log.Info("container has exited", "container", c.id, "pod", c.podID, "code", rec.ExitCode, "reason", rec.Reason)
	e.events.publish(Event{PodID: c.podID, ContainerID: c.id, Kind: EventStopped, At: rec.FinishedAt})
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
	ReasonCompleted  = "Completed"
	ReasonError      = "Error"
	ReasonOOMKilled  = "OOMKilled"
	ReasonStartError = "StartError"
)

// startErrorCode is the exit code of a container whose program could not be
// run.
const startErrorCode = 128

func setExit(r *Container, exit api.Exit, startErr error) {
	r.State, r.FinishedAt, r.ExitCode, r.Message = ContainerExited, time.Unix(0, exit.ExitedAtNS), exit.Code, exit.Message
	switch {
	case startErr != nil:
		r.ExitCode, r.Reason, r.Message = startErrorCode, ReasonStartError, startErr.Error()
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
	if err != nil {
		return
	}
	if err := shim.Delete(context.Background(), c.id); err != nil && !errors.Is(err, client.ErrGone) && api.CodeOf(err) != api.CodeNotFound {
		e.log.Warn("shim did not release all", "container", c.id, "err", err)
	}
	_ = shim.Shutdown(context.Background()) // it ends by itself if it cannot be told
	c.disconnect()
	if err := e.cgroups.Load(c.snapshot().CgroupPath).Remove(); err != nil {
		e.log.Warn("cgroup stays", "container", c.id, "err", err)
	}
}

// StopContainer ends a container: its stop signal, and after grace SIGKILL. It
// is idempotent; a container that is not there is stopped.
func (e *Engine) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := e.findContainer(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.do(ctx, func(context.Context) error { return e.stopContainer(ctx, c, grace) })
}

// stopContainer takes no semaphore: a second call with less patience shall cut
// the first one short.
func (e *Engine) stopContainer(ctx context.Context, c *container, grace time.Duration) error {
	<-c.settled
	if c.failed != nil {
		return nil
	}
	rec := c.snapshot()
	if rec.State == ContainerExited || rec.State == ContainerRemoving {
		return nil
	}
	shim, err := c.connection()
	if err != nil {
		return nil // it has just ended
	}
	if grace > 0 && rec.State == ContainerRunning {
		sig, err := ParseSignal(rec.StopSignal)
		if err != nil {
			return err
		}
		if err := ignoreGone(shim.Kill(ctx, c.id, "", sig, false)); err != nil {
			return fmt.Errorf("stop container %s: %w", c.id, err)
		}
		select {
		case <-c.exited:
			return nil
		case <-time.After(grace):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := ignoreGone(shim.Kill(context.WithoutCancel(ctx), c.id, "", unix.SIGKILL, true)); err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ignoreGone takes "it is not there any more" as success.
func ignoreGone(err error) error {
	if errors.Is(err, client.ErrGone) || api.CodeOf(err) == api.CodeNotFound {
		return nil
	}
	return err
}

// ParseSignal reads a signal's name, with or without "SIG", or its number; ""
// is SIGTERM.
func ParseSignal(name string) (syscall.Signal, error) {
	if name == "" {
		return unix.SIGTERM, nil
	}
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= 64 {
		return syscall.Signal(n), nil
	}
	upper := "SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if sig := unix.SignalNum(upper); sig != 0 {
		return sig, nil
	}
	const rtMin, rtMax = 34, 64
	for prefix, base := range map[string]int{"SIGRTMIN": rtMin, "SIGRTMAX": rtMax} {
		rest, ok := strings.CutPrefix(upper, prefix)
		if !ok {
			continue
		}
		offset := 0
		if rest != "" {
			var err error
			if offset, err = strconv.Atoi(rest); err != nil {
				break
			}
		}
		if n := base + offset; n >= rtMin && n <= rtMax {
			return syscall.Signal(n), nil
		}
	}
	return 0, fmt.Errorf("%w: signal %q", ErrInvalid, name)
}

// RemoveContainer ends a container if it runs, and removes it. Its log stays.
// It is idempotent.
func (e *Engine) RemoveContainer(ctx context.Context, id string) error {
	c, err := e.findContainer(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.do(ctx, func(ctx context.Context) error { return e.removeContainer(ctx, c) })
}

func (e *Engine) removeContainer(ctx context.Context, c *container) error {
	if err := e.stopContainer(ctx, c, 0); err != nil {
		return err
	}
	if c.failed != nil {
		return nil
	}
	if err := c.op.acquire(ctx); err != nil {
		return err
	}
	defer c.op.release()
	if c.snapshot().State == ContainerRemoving {
		return nil
	}
	<-c.exited
	<-c.released
	if err := e.updateContainer(c, func(r *Container) { r.State = ContainerRemoving }); err != nil {
		return err
	}
	e.discardContainer(c)
	e.forgetContainer(c)
	e.events.publish(Event{PodID: c.podID, ContainerID: c.id, Kind: EventDeleted, At: time.Now()})
	return nil
}

// discardContainer gives back a container's directories and layers. The
// writable layer, which may be large, is removed in the background.
func (e *Engine) discardContainer(c *container) {
	e.images.Release(c.id)
	if err := os.RemoveAll(e.cfg.containerDir(c.id)); err != nil {
		e.log.Warn("container's directory stays", "container", c.id, "err", err)
	}
	trash := filepath.Join(e.cfg.trashDir(), c.id)
	if err := os.Rename(e.cfg.layerDir(c.id), trash); err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			e.log.Warn("writable layer stays", "container", c.id, "err", err)
		}
		return
	}
	e.work.Go(func() {
		if err := os.RemoveAll(trash); err != nil {
			e.log.Warn("writable layer stays", "container", c.id, "err", err)
		}
	})
}

func (e *Engine) forgetContainer(c *container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.containers, c.id)
	e.rates.forget(c.id)
}

// UpdateContainer changes a container's limits: those that are set.
func (e *Engine) UpdateContainer(ctx context.Context, id string, change Resources) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	return e.do(ctx, func(ctx context.Context) error {
		if err := c.op.acquire(ctx); err != nil {
			return err
		}
		defer c.op.release()
		return e.updateResources(ctx, c, change)
	})
}

func (e *Engine) updateResources(ctx context.Context, c *container, change Resources) error {
	rec := c.snapshot()
	switch rec.State {
	case ContainerCreated, ContainerRunning:
	default:
		return fmt.Errorf("update container %s: %w: it is %s", c.id, ErrState, rec.State)
	}
	shim, err := c.connection()
	if err != nil {
		return err
	}
	data, err := json.Marshal(linuxResources(&change))
	if err != nil {
		return err
	}
	if err := shim.Update(ctx, c.id, data); err != nil {
		// All or nothing: put back what was in force.
		if before, marshalErr := json.Marshal(linuxResources(rec.Resources)); marshalErr == nil {
			_ = shim.Update(ctx, c.id, before) // the first error is the one that matters
		}
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	return e.updateContainer(c, func(r *Container) {
		merged := mergeResources(r.Resources, change)
		r.Resources = &merged
	})
}

// ReopenLog goes on in a new log file, after a rotation.
func (e *Engine) ReopenLog(ctx context.Context, id string) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	if state := c.snapshot().State; state != ContainerRunning {
		return fmt.Errorf("reopen log of container %s: %w: it is %s", c.id, ErrState, state)
	}
	shim, err := c.connection()
	if err != nil {
		return err
	}
	return shim.ReopenLog(ctx, c.id)
}
