package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/nri/pkg/api"
)

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
	e.told(ctx, api.Event_REMOVE_CONTAINER, c)
	e.discardContainer(c)
	e.forgetContainer(c)
	e.publish(Event{PodID: c.podID, ContainerID: c.id, Kind: EventDeleted, At: time.Now()})
	return nil
}

// discardContainer gives back a container's directories and layers. The
// writable layer, which may be large, is removed in the background.
func (e *Engine) discardContainer(c *container) {
	if e.clearForeign(c); e.isForeign(c) {
		return
	}
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
	e.dropContainer(c)
}
