package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/longshore/longshore/internal/pb"
	"github.com/longshore/longshore/shim/api"
)

// foreignOptions tell a keeper how the container is made; nil for our own shim.
// In a pod with a sandbox container the shim is that one's.
func (e *Engine) foreignOptions(h *Handler, rec *Container) (*api.Any, error) {
	if !h.foreign() {
		return nil, nil
	}
	binary, err := h.shimPath(e.shimDirs())
	if err != nil {
		return nil, err
	}
	how := &api.Foreign{Binary: binary, Publish: selfBinary(), Options: h.options(e.cfg.runcDir()), Cgroup: rec.CgroupPath}
	if p, err := e.findPod(rec.PodID); err == nil && p.snapshot().Sandboxed && !rec.Sandbox {
		how.Sandbox = e.cfg.containerDir(rec.PodID)
	}
	return &api.Any{TypeURL: api.ForeignType, Value: pb.Marshal(how)}, nil
}

// isForeign reports whether another runtime's shim may hold something of a
// container, by the record of its keeper.
func (e *Engine) isForeign(c *container) bool {
	_, err := os.Stat(filepath.Join(e.cfg.containerDir(c.id), api.ForeignFile))
	return !errors.Is(err, os.ErrNotExist)
}

// clearForeign has a new keeper clear away what another runtime's shim may hold
// of a container whose own keeper is gone, and ends what the runtime has left
// running. What could not be tried stays with its record, for the next start of
// the daemon.
func (e *Engine) clearForeign(c *container) {
	if !e.isForeign(c) {
		return
	}
	bundle := e.cfg.containerDir(c.id)
	s, err := e.shims.Keeper()
	if err == nil {
		err = s.Clean(e.life, c.id, bundle)
		endShim(s)
	}
	if err != nil {
		e.log.Warn("what another runtime holds of a container may stay", "container", c.id, "err", err)
	}
	if e.isForeign(c) {
		return
	}
	if err := e.endGroup(c.snapshot().CgroupPath); err != nil {
		e.log.Warn("cgroup stays", "container", c.id, "err", err)
	}
	// Killed before it has written its state, runc does not find its directory again.
	if err := os.RemoveAll(filepath.Join(e.cfg.runcDir(), api.ForeignNamespace, c.id)); err != nil {
		e.log.Warn("runc's state stays", "container", c.id, "err", err)
	}
}

// groupLimit bounds the wait for processes that were killed.
const groupLimit = 2 * time.Second

// endGroup ends what runs in a cgroup, and removes it; "" is none.
func (e *Engine) endGroup(path string) error {
	if path == "" {
		return nil
	}
	group := e.cgroups.Load(path)
	if err := group.Kill(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(e.life, groupLimit)
	defer cancel()
	return errors.Join(group.WaitEmpty(ctx), group.Remove())
}
