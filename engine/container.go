package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	nriapi "github.com/containerd/nri/pkg/api"
	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/undo"
	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/client"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// container is a container that the engine holds.
type container struct {
	id, podID string
	isSandbox bool          // see [Container.Sandbox]
	op        semaphore     // one operation at a time
	settled   chan struct{} // closed once the container is made, or cannot be
	failed    error         // why it could not be made; valid after settled
	exited    chan struct{} // closed once the end is recorded
	released  chan struct{} // closed once its shim holds nothing of it
	announced atomic.Bool   // plugins know of it
	shared    *podShim      // whose connection shim is; nil: its own. Set before shim is
	cpu       rate
	layer     diskMeter

	mu       sync.Mutex // guards all below
	rec      Container
	shim     *client.Shim
	starting chan struct{} // closed once StartContainer has its result
	startErr error
	process  *specs.Process // of the container, as a pattern for exec
	evicted  string         // why a plugin had it ended
}

func newContainer(rec Container) *container {
	return &container{id: rec.ID, podID: rec.PodID, isSandbox: rec.Sandbox, op: newSemaphore(), rec: rec,
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

// disown takes the shim from a container, for [Engine.leaveShim].
func (c *container) disown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shim = nil
}

// disconnect lets go of a shim that is the container's own; it goes on.
func (c *container) disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shim != nil && c.shared == nil {
		c.shim.Close()
	}
	c.shim = nil
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
	// With mu held: whoever ends the pod finds what is claimed before; see [Engine.endContainers].
	if state := p.snapshot().State; state != PodReady {
		return nil, false, fmt.Errorf("pod %s: %w: it is %s", p.id, ErrState, state)
	}
	for _, c := range e.ofPod[p.id] {
		s := c.snapshot()
		if s.Config.Name != cfg.Name || s.Config.Attempt != cfg.Attempt {
			continue
		}
		if s.State != ContainerCreating && s.State != ContainerCreated || !reflect.DeepEqual(s.Config, cfg) {
			return nil, false, fmt.Errorf("container %s attempt %d of pod %s: %w: %s is %s", cfg.Name, cfg.Attempt, p.id, ErrExists, c.id, s.State)
		}
		return c, false, nil
	}
	c := newContainer(Container{ID: newID(), PodID: p.id, Config: cfg, State: ContainerCreating, CreatedAt: time.Now(), Resources: cfg.Resources})
	e.addContainer(c)
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
	e.told(ctx, nriapi.Event_POST_CREATE_CONTAINER, c)
	e.publish(Event{PodID: c.podID, ContainerID: c.id, Kind: EventCreated, At: time.Now()})
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
	h, err := e.handler(p.snapshot().Config.Handler)
	if err != nil {
		return err
	}
	if err := e.resolveCheckpoint(ctx, c); err != nil {
		return err
	}
	spec, rootfs, err := e.prepare(p.snapshot(), c, &h)
	if err != nil {
		return err
	}
	taken.Add(func() { e.withdraw(ctx, c) })
	if err := e.announce(ctx, p.snapshot(), c, spec); err != nil {
		return err
	}
	if spec.Hooks != nil { // they expect the root at its place, which the container sees alone
		if err := os.Mkdir(filepath.Join(e.cfg.containerDir(c.id), spec.Root.Path), 0o700); err != nil {
			return err
		}
	}
	if err := e.prepareRestore(ctx, p, c, spec, rootfs); err != nil {
		return err
	}
	shim, err := e.shimFor(&h, p, c)
	if err != nil {
		return err
	}
	taken.Add(func() { e.leaveShim(c, shim) })
	if err := e.updateContainer(c, func(r *Container) { r.Shim = shim.Addr() }); err != nil {
		return err
	}
	req := e.createRequest(c.snapshot(), rootfs)
	rec := c.snapshot()
	if req.Options, err = e.foreignOptions(&h, &rec); err != nil {
		return err
	}
	pid, err := shim.Create(ctx, req)
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
	if rec.Restore != "" {
		req.Checkpoint = api.RestoreFile
	}
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
	if err := e.announceStart(ctx, c); err != nil {
		return err
	}
	begun := time.Now() // after the answer a short program may have ended
	if err := shim.Start(ctx, c.id); err != nil {
		err = e.explainRestore(c.snapshot(), err)
		c.mu.Lock()
		c.startErr = err
		c.mu.Unlock()
		return fmt.Errorf("start container %s: %w", c.snapshot().Config.Name, err)
	}
	pid := c.snapshot().Pid
	if pid == 0 { // a restored one has its process just now
		if state, err := shim.State(ctx, c.id); err == nil {
			pid = int(state.Pid)
		}
	}
	if err := e.updateContainer(c, func(r *Container) { r.State, r.Pid, r.StartedAt = ContainerRunning, pid, begun }); err != nil {
		return err
	}
	e.told(ctx, nriapi.Event_POST_START_CONTAINER, c)
	e.publish(Event{PodID: c.podID, ContainerID: c.id, Kind: EventStarted, At: time.Now()})
	return nil
}

// announceStart tells plugins, which may refuse, and records the start.
func (e *Engine) announceStart(ctx context.Context, c *container) error {
	defer e.plugins.Block()()
	if err := e.tell(ctx, nriapi.Event_START_CONTAINER, c); err != nil {
		return fmt.Errorf("start container %s: %w", c.snapshot().Config.Name, err)
	}
	return e.updateContainer(c, func(r *Container) { r.State = ContainerStarting })
}

func (e *Engine) podState(id string) PodState {
	p, err := e.findPod(id)
	if err != nil {
		return PodRemoving
	}
	return p.snapshot().State
}
