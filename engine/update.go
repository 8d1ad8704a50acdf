package engine

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// UpdateContainer changes a container's limits: those that are set.
func (e *Engine) UpdateContainer(ctx context.Context, id string, change Resources) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	return e.do(ctx, func(ctx context.Context) error {
		set, others, err := e.askUpdate(ctx, c, linuxResources(&change))
		e.follow(ctx, others) // before c is held: its own update may be what another waits for
		if err != nil {
			return fmt.Errorf("update container %s: %w", c.id, err)
		}
		if err := e.setResources(ctx, c, set, change.OOMScoreAdj); err != nil {
			return err
		}
		e.told(ctx, api.Event_POST_UPDATE_CONTAINER, c)
		return nil
	})
}

func (e *Engine) setResources(ctx context.Context, c *container, set *specs.LinuxResources, oomScoreAdj int64) error {
	if err := c.op.acquire(ctx); err != nil {
		return err
	}
	defer c.op.release()
	return e.updateResources(ctx, c, set, oomScoreAdj)
}

// updateResources sets limits of a container whose semaphore is held.
func (e *Engine) updateResources(ctx context.Context, c *container, set *specs.LinuxResources, oomScoreAdj int64) error {
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
	data, err := json.Marshal(set)
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
		change := resourcesOf(set)
		change.OOMScoreAdj = oomScoreAdj
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
