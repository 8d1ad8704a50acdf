package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/nri/pkg/api"
	"github.com/longshore/longshore/shim/client"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// UpdateContainer changes a container's limits: those that are set.
func (e *Engine) UpdateContainer(ctx context.Context, id string, change Resources) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	if adj := change.OOMScoreAdj; adj < -1000 || adj > 1000 {
		return fmt.Errorf("update container %s: %w: OOM score adjustment %d is not in -1000..1000", c.id, ErrInvalid, adj)
	}
	if err := checkHugePages(e.cgroups, &change); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
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
	if err := e.setLimits(ctx, c, shim, set); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	if oomScoreAdj != 0 {
		if err := e.setOOMScore(rec.CgroupPath, oomScoreAdj); err != nil {
			// As at the start: not every daemon may lower it. What is told stays what is in force.
			e.log.Warn("OOM score is not changed", "container", c.id, "err", err)
			oomScoreAdj = 0
		}
	}
	return e.updateContainer(c, func(r *Container) {
		change := resourcesOf(set)
		change.OOMScoreAdj = oomScoreAdj
		merged := mergeResources(r.Resources, change)
		r.Resources = &merged
	})
}

// setLimits has a shim set all limits or none.
func (e *Engine) setLimits(ctx context.Context, c *container, shim *client.Shim, set *specs.LinuxResources) error {
	data, err := json.Marshal(sparing(set))
	if err != nil {
		return err
	}
	err = shim.Update(ctx, c.id, data)
	if err != nil && e.isForeign(c) { // our own puts back what was in force by itself
		if before, marshalErr := json.Marshal(linuxResources(c.snapshot().Resources)); marshalErr == nil {
			_ = shim.Update(ctx, c.id, before) // the first error is the one that matters
		}
	}
	return err
}

// sparing refuses a memory limit below what the container uses, for which
// cgroup2 would kill it.
func sparing(set *specs.LinuxResources) *specs.LinuxResources {
	if set.Memory == nil {
		return set
	}
	out, memory, check := *set, *set.Memory, true
	memory.CheckBeforeUpdate, out.Memory = &check, &memory
	return &out
}

// setOOMScore sets how likely the kernel is to end the processes of a control
// group for memory (proc_pid_oom_score_adj(5)).
func (e *Engine) setOOMScore(cgroup string, adj int64) error {
	group := e.cgroups.Load(cgroup)
	pids, err := group.Procs()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		dir, err := os.OpenRoot(filepath.Join("/proc", strconv.Itoa(pid)))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		// The number may have become another's; the open directory is one process's.
		if still, err := group.Procs(); err != nil || !slices.Contains(still, pid) {
			dir.Close()
			continue
		}
		err = dir.WriteFile("oom_score_adj", strconv.AppendInt(nil, adj, 10), 0)
		dir.Close()
		if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
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
