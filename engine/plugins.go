package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"github.com/containerd/nri/pkg/api"
	"github.com/longshore/longshore/engine/nri"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// StartPlugins runs plugins and lets others register. Call it once
// [Engine.Recover] is through: they are told what there is.
func (e *Engine) StartPlugins() error { return e.plugins.Start() }

// tellPod relays an event of a pod; a node without plugins does not pay for it.
func (e *Engine) tellPod(ctx context.Context, event api.Event, p Pod) error {
	if !e.plugins.Active() {
		return nil
	}
	return e.plugins.Tell(ctx, event, e.pluginPod(p), nil)
}

// tell relays an event of a container.
func (e *Engine) tell(ctx context.Context, event api.Event, c *container) error {
	if !e.plugins.Active() {
		return nil
	}
	pod, described := e.describe(c)
	return e.plugins.Tell(ctx, event, pod, described)
}

// told relays an event whose refusal comes too late to matter.
func (e *Engine) told(ctx context.Context, event api.Event, c *container) {
	if err := e.tell(ctx, event, c); err != nil {
		e.log.Warn("plugin could not take an event", "event", event.PrettyName(), "container", c.id, "err", err)
	}
}

func (e *Engine) toldPod(ctx context.Context, event api.Event, p Pod) {
	if err := e.tellPod(ctx, event, p); err != nil {
		e.log.Warn("plugin could not take an event", "event", event.PrettyName(), "pod", p.ID, "err", err)
	}
}

// describe gives a container and its pod as plugins see them.
func (e *Engine) describe(c *container) (*api.PodSandbox, *api.Container) {
	pod, err := e.Pod(c.podID)
	if err != nil {
		pod = Pod{ID: c.podID, State: PodRemoving}
	}
	spec, err := e.readSpec(c.id)
	if err != nil {
		spec = &specs.Spec{}
	}
	return e.pluginPod(pod), pluginContainer(c.snapshot(), spec)
}

// announcePod tells plugins of a pod whose sandbox is there, and makes it
// ready: a plugin that joins hears of it either way, once.
func (e *Engine) announcePod(ctx context.Context, p *pod, ready func(*Pod)) error {
	defer e.plugins.Block()()
	next := p.snapshot()
	ready(&next)
	if err := e.tellPod(ctx, api.Event_RUN_POD_SANDBOX, next); err != nil {
		return err
	}
	return e.updatePod(p, ready)
}

// withdrawPod tells plugins that a pod which they may have been told of is not
// to be.
func (e *Engine) withdrawPod(ctx context.Context, p Pod) {
	e.toldPod(ctx, api.Event_STOP_POD_SANDBOX, p)
	e.toldPod(ctx, api.Event_REMOVE_POD_SANDBOX, p)
}

// announce lets plugins adjust a container's specification, and writes it.
// From then on plugins know the container.
func (e *Engine) announce(ctx context.Context, p Pod, c *container, spec *specs.Spec) error {
	others, err := e.adjust(ctx, p, c, spec)
	e.follow(ctx, others)
	return err
}

// adjust does that, and gives what plugins want of others, which must wait
// until plugins may join again.
func (e *Engine) adjust(ctx context.Context, p Pod, c *container, spec *specs.Spec) (others nri.Others, err error) {
	defer e.plugins.Block()()
	c.announced.Store(true)
	if !e.plugins.Active() {
		return others, e.writeSpec(c.id, spec)
	}
	answer, err := e.plugins.Create(ctx, e.pluginPod(p), pluginContainer(c.snapshot(), spec))
	if err != nil {
		return others, err
	}
	if err := e.applyAdjustment(p, c, spec, answer.Adjust); err != nil {
		return others, fmt.Errorf("adjustment by plugins %q: %w", answer.Plugins, err)
	}
	return answer.Others, e.writeSpec(c.id, spec)
}

// applyAdjustment changes the specification, and the record where it repeats
// what was changed.
func (e *Engine) applyAdjustment(p Pod, c *container, spec *specs.Spec, adjust *api.ContainerAdjustment) error {
	if err := AdjustSpec(spec, adjust, e.cfg.CDIDirs); err != nil {
		return err
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := e.checkAdjusted(p, c, spec, len(data)); err != nil {
		return err
	}
	return e.updateContainer(c, func(r *Container) {
		r.CgroupPath = spec.Linux.CgroupsPath
		merged := mergeResources(r.Resources, resourcesOf(spec.Linux.Resources))
		merged.OOMScoreAdj = int64(value(spec.Process.OOMScoreAdj))
		if r.Resources != nil || !reflect.DeepEqual(merged, Resources{}) {
			r.Resources = &merged
		}
	})
}

// withdraw tells plugins that a container that they were told of is not to be.
func (e *Engine) withdraw(ctx context.Context, c *container) {
	if !c.announced.Load() {
		return
	}
	e.toldStop(ctx, c)
	e.told(ctx, api.Event_REMOVE_CONTAINER, c)
}

// toldStop tells plugins of a container's end. What they want of others then
// is done later: the others' operations may wait for this end.
func (e *Engine) toldStop(ctx context.Context, c *container) {
	if !e.plugins.Active() {
		return
	}
	pod, described := e.describe(c)
	updates, err := e.plugins.Stopped(ctx, pod, described)
	if err != nil {
		e.log.Warn("plugin could not take an event", "event", "StopContainer", "container", c.id, "err", err)
	}
	e.later(nri.Others{Updates: updates})
}

// askUpdate gives the limits to set: those asked for, as plugins change them.
func (e *Engine) askUpdate(ctx context.Context, c *container, want *specs.LinuxResources) (*specs.LinuxResources, nri.Others, error) {
	defer e.plugins.Block()()
	if !e.plugins.Active() {
		return want, nri.Others{}, nil
	}
	pod, described := e.describe(c)
	own, others, err := e.plugins.Update(ctx, pod, described, api.FromOCILinuxResources(want, nil))
	if err != nil || own == nil {
		return want, others, err
	}
	if err := checkClasses(own); err != nil {
		return nil, others, err
	}
	return mergeOCI(want, own.ToOCI()), others, nil
}

// follow does what plugins want of other containers, within the time that a
// plugin has: another operation on them may wait for the same plugin. That it
// cannot be done is no reason to refuse the operation for which plugins were
// asked.
func (e *Engine) follow(ctx context.Context, others nri.Others) {
	if len(others.Evictions)+len(others.Updates) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.NRI.RequestTimeout)
	defer cancel()
	for _, ev := range others.Evictions {
		if err := e.evict(ctx, ev); err != nil {
			e.log.Warn("container is not evicted", "container", ev.GetContainerId(), "reason", ev.GetReason(), "err", err)
		}
	}
	for _, u := range others.Updates {
		err := e.pluginUpdate(ctx, u)
		switch {
		case errors.Is(err, ErrState): // it has ended meanwhile
			e.log.Debug("container is not updated as a plugin wants", "container", u.GetContainerId(), "err", err)
		case err != nil:
			e.log.Warn("container is not updated as a plugin wants", "container", u.GetContainerId(), "err", err)
		}
	}
}

// later does the same in the background.
func (e *Engine) later(others nri.Others) {
	if len(others.Updates)+len(others.Evictions) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.life.Err() == nil { // Close waits for no more
		e.work.Go(func() { e.follow(e.life, others) })
	}
}

// pluginTarget finds a container that a plugin names, by its whole id.
func (e *Engine) pluginTarget(id string) (*container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c, ok := e.containers[id]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("container %q: %w", id, ErrNotFound)
}

// pluginUpdate sets limits as a plugin wants, once it can have the container
// within ctx.
func (e *Engine) pluginUpdate(ctx context.Context, u *api.ContainerUpdate) error {
	c, err := e.pluginTarget(u.GetContainerId())
	if err != nil {
		return err
	}
	want := u.GetLinux().GetResources()
	if want == nil {
		return nil
	}
	if err := checkClasses(want); err != nil {
		return err
	}
	if err := c.op.acquire(ctx); err != nil {
		return fmt.Errorf("container %s is busy: %w", c.id, err)
	}
	defer c.op.release()
	return e.updateResources(context.WithoutCancel(ctx), c, want.ToOCI(), 0)
}

// evict ends a container at once. One that is being made cannot be evicted.
func (e *Engine) evict(ctx context.Context, ev *api.ContainerEviction) error {
	c, err := e.pluginTarget(ev.GetContainerId())
	if err != nil {
		return err
	}
	select {
	case <-c.settled:
	default:
		return fmt.Errorf("container %s: %w: it is being made", c.id, ErrState)
	}
	c.mu.Lock()
	c.evicted = "evicted by a plugin: " + ev.GetReason()
	c.mu.Unlock()
	e.log.Info("container is evicted", "container", c.id, "pod", c.podID, "reason", ev.GetReason())
	return e.stopContainer(ctx, c, 0)
}

// pluginRuntime is what plugins may do with an engine.
type pluginRuntime struct{ *Engine }

// State gives all pods and containers that plugins have been told of and that
// have not ended.
func (r pluginRuntime) State() ([]*api.PodSandbox, []*api.Container) {
	var pods []*api.PodSandbox
	for _, p := range r.Pods() {
		pods = append(pods, r.pluginPod(p))
	}
	var containers []*api.Container
	for _, c := range r.allContainers() {
		switch c.snapshot().State {
		case ContainerExited, ContainerRemoving:
			continue
		}
		if !c.announced.Load() {
			continue
		}
		_, described := r.describe(c)
		if described.State == api.ContainerState_CONTAINER_UNKNOWN {
			described.State = api.ContainerState_CONTAINER_CREATED
		}
		containers = append(containers, described)
	}
	return pods, containers
}

// Update changes containers as a plugin wants by itself.
func (r pluginRuntime) Update(ctx context.Context, updates []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	if r.life.Err() != nil {
		return nil, errors.New("the daemon is ending")
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.NRI.RequestTimeout)
	defer cancel()
	var failed []*api.ContainerUpdate
	for _, u := range updates {
		if err := r.pluginUpdate(ctx, u); err != nil {
			r.log.Warn("container is not updated as a plugin wants", "container", u.GetContainerId(), "err", err)
			if !u.GetIgnoreFailure() {
				failed = append(failed, u)
			}
		}
	}
	return failed, nil
}

// Later does what a plugin wants in the background.
func (r pluginRuntime) Later(updates []*api.ContainerUpdate, evictions []*api.ContainerEviction) {
	r.later(nri.Others{Updates: updates, Evictions: evictions})
}
