package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/systemd"
	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/client"
	"golang.org/x/sys/unix"
)

// Recover finds what an earlier daemon left: it adopts what lives, finishes
// what was begun, and removes what nothing names. A record that cannot be read
// is moved aside and never keeps the daemon from starting.
func (e *Engine) Recover(ctx context.Context) error {
	e.work.Go(func() {
		err := e.workers.with(func(s *client.Shim) error { return s.Prepare(e.life, e.shims.Template()) })
		if err != nil && e.life.Err() == nil {
			e.log.Warn("no template mount namespace: containers start a little slower", "err", err)
		}
	})
	e.recallPodCIDR()
	var unmade []*pod
	err := e.eachRecord("pods", podFile, func(dir string) error {
		p, err := e.loadPod(dir)
		if err == nil && p.rec.State == PodCreating {
			unmade = append(unmade, p)
		}
		return err
	})
	if err != nil {
		return err
	}
	err = e.eachRecord("containers", containerFile, func(dir string) error { return e.loadContainer(ctx, dir) })
	if err != nil {
		return err
	}
	for _, p := range unmade {
		e.takeBack(ctx, p)
	}
	for _, p := range e.unfinished() {
		e.work.Go(func() {
			if err := e.stopPod(context.WithoutCancel(ctx), p); err != nil {
				e.log.Warn("pod that was being stopped is not stopped", "pod", p.id, "err", err)
			}
		})
	}
	if err := e.sweep(); err != nil {
		return err
	}
	return e.images.GC()
}

// eachRecord loads all records of a kind; a directory with a damaged one is
// quarantined. One that has none yet, or none any more, is of a making or a
// removal that was not finished and holds nothing: the record is there before
// and until anything else is.
func (e *Engine) eachRecord(kind, file string, load func(dir string) error) error {
	entries, err := os.ReadDir(filepath.Join(e.cfg.RunDir, kind))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		dir := filepath.Join(e.cfg.RunDir, kind, entry.Name())
		if _, err := os.Lstat(filepath.Join(dir, file)); errors.Is(err, os.ErrNotExist) {
			if err := os.RemoveAll(dir); err != nil {
				e.quarantine(dir, err)
			}
			continue
		}
		if err := load(dir); err != nil {
			e.quarantine(dir, err)
		}
	}
	return nil
}

// quarantine moves aside what cannot be understood, for a person to look at.
func (e *Engine) quarantine(dir string, why error) {
	aside := filepath.Join(e.cfg.RunDir, "quarantine")
	err := os.MkdirAll(aside, 0o700)
	if err == nil {
		aside = filepath.Join(aside, fmt.Sprintf("%s-%d", filepath.Base(dir), time.Now().UnixNano()))
		err = os.Rename(dir, aside)
	}
	e.log.Error("record is damaged and was moved aside", "path", dir, "to", aside, "damage", why, "err", err)
}

// closedChan gives a channel that is closed already.
func closedChan() chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return ch
}

// readPod reads a pod's record and refuses one that cannot be this pod's.
func readPod(dir string) (Pod, error) {
	var rec Pod
	if err := atomicfile.ReadJSON(filepath.Join(dir, podFile), &rec); err != nil {
		return rec, err
	}
	if rec.ID != filepath.Base(dir) {
		return rec, fmt.Errorf("%s: the record is of pod %q", dir, rec.ID)
	}
	if !known(podMoves, rec.State) {
		return rec, fmt.Errorf("%s: the record has state %q", dir, rec.State)
	}
	if rec.Slice != "" {
		if _, err := systemd.SlicePath(rec.Slice); err != nil {
			return rec, fmt.Errorf("%s: the record has slice %w", dir, err)
		}
	}
	return rec, nil
}

// readContainer does the same for a container.
func readContainer(dir string) (Container, error) {
	var rec Container
	if err := atomicfile.ReadJSON(filepath.Join(dir, containerFile), &rec); err != nil {
		return rec, err
	}
	if rec.ID != filepath.Base(dir) {
		return rec, fmt.Errorf("%s: the record is of container %q", dir, rec.ID)
	}
	if !known(containerMoves, rec.State) {
		return rec, fmt.Errorf("%s: the record has state %q", dir, rec.State)
	}
	if rec.CgroupPath != path.Clean("/"+rec.CgroupPath) && rec.CgroupPath != "" {
		return rec, fmt.Errorf("%s: the record has cgroup %q", dir, rec.CgroupPath)
	}
	return rec, nil
}

// loadPod takes a pod's record in.
func (e *Engine) loadPod(dir string) (*pod, error) {
	rec, err := readPod(dir)
	if err != nil {
		return nil, err
	}
	p := &pod{id: rec.ID, op: newSemaphore(), settled: closedChan(), rec: rec}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pods[rec.ID], e.podKeys[rec.Config.PodKey] = p, p
	return p, nil
}

// takeBack removes a pod whose making was not confirmed: its client was told
// nothing and will ask again. The shim that may still be at work is asked
// first, since it does one thing at a time for a sandbox.
func (e *Engine) takeBack(ctx context.Context, p *pod) {
	rec := p.snapshot()
	if err := e.endSandboxContainer(ctx, p); err != nil {
		e.log.Warn("pod that was being made is not taken back", "pod", p.id, "err", err)
		return
	}
	data, err := json.Marshal(e.sandboxOf(rec))
	if err != nil {
		e.log.Error("pod that was being made stays", "pod", p.id, "err", err)
		return
	}
	err = client.ErrGone
	if rec.Shim != "" {
		if s, dialErr := client.Dial(rec.Shim); dialErr == nil {
			err = s.RemoveSandbox(ctx, data)
			s.Close()
		}
	}
	if errors.Is(err, client.ErrGone) {
		err = e.workers.again(func(s *client.Shim) error { return s.RemoveSandbox(ctx, data) })
	}
	if err == nil {
		err = os.RemoveAll(e.cfg.podDir(p.id))
	}
	if err != nil {
		e.log.Warn("pod that was being made is not taken back", "pod", p.id, "err", err)
		return
	}
	e.forgetPod(p)
}

// unfinished gives the pods whose stopping or removal was begun, and those whose
// sandbox container has ended.
func (e *Engine) unfinished() []*pod {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []*pod
	for _, p := range e.pods {
		switch s := p.snapshot(); {
		case s.State == PodStopping, s.State == PodRemoving:
			all = append(all, p)
		case s.State == PodReady && s.Sandboxed && (p.sandbox == nil || p.sandbox.snapshot().State == ContainerExited):
			all = append(all, p)
		}
	}
	return all
}

// loadContainer takes a container's record in and adopts its shim.
func (e *Engine) loadContainer(ctx context.Context, dir string) error {
	rec, err := readContainer(dir)
	if err != nil {
		return err
	}
	c := newContainer(rec)
	c.announced.Store(true) // plugins that were told are told again
	close(c.settled)
	adopting := ctx
	if rec.State == ContainerCreating { // others are there, and their shims are waited for
		var cancel context.CancelFunc
		adopting, cancel = context.WithTimeout(ctx, adoptLimit)
		defer cancel()
	}
	shim, state, pid := e.adopt(adopting, c)
	c.shim = shim
	e.thawRecorded(c)
	switch {
	case rec.Sandbox && !e.hasPod(rec.PodID), rec.State == ContainerCreating, rec.State == ContainerRemoving:
		if adopting.Err() != nil || e.isForeign(c) {
			e.abandonLater(c)
			return nil
		}
		e.abandon(ctx, c)
		return nil
	case rec.State == ContainerExited:
		close(c.exited)
		if shim == nil {
			close(c.released)
		} else {
			e.work.Go(func() { e.release(c) })
		}
	default:
		if rec.State == ContainerStarting && state == api.StatusRunning && pid == 0 {
			e.joinRestore(c)
		} else if rec.State == ContainerStarting && state == api.StatusRunning {
			if err := e.updateContainer(c, func(r *Container) { r.State, r.Pid, r.StartedAt = ContainerRunning, pid, time.Now() }); err != nil {
				return err
			}
		}
		if shim == nil {
			e.finish(c, client.ErrGone)
			e.release(c)
		} else {
			e.work.Go(func() { e.watch(c) })
		}
	}
	e.mu.Lock()
	e.addContainer(c)
	e.mu.Unlock()
	e.holdImage(rec)
	return nil
}

func (e *Engine) hasPod(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, ok := e.pods[id]
	return ok
}

// holdImage keeps a container's layers from being removed.
func (e *Engine) holdImage(rec Container) {
	if err := e.images.Hold(rec.ID, rec.Layers...); err != nil {
		e.log.Warn("image of a container is not there", "container", rec.ID, "image", rec.ImageID, "err", err)
	}
}

// adoptLimit bounds the wait for one shim at the daemon's start: a container that
// is being made, whose hooks may take their time, has no state until it is.
const adoptLimit = time.Second

// adopt connects to the shim of a container, if it lives and knows it, and
// gives the state and the id of the process.
func (e *Engine) adopt(ctx context.Context, c *container) (*client.Shim, api.Status, int) {
	if c.rec.Shim == "" {
		return nil, api.StatusUnknown, 0
	}
	s, err := e.dialShim(c)
	if err != nil {
		return nil, api.StatusUnknown, 0
	}
	state, err := s.State(ctx, c.id)
	if err != nil && ctx.Err() != nil {
		e.leaveShim(c, s)
		return nil, api.StatusUnknown, 0
	}
	if err != nil {
		// What the daemon before asked for last, the shim may not have read yet.
		if err := s.Delete(ctx, c.id); ignoreGone(err) != nil {
			e.log.Warn("container that is not adopted may stay", "container", c.id, "err", err)
		}
		e.leaveShim(c, s)
		return nil, api.StatusUnknown, 0
	}
	return s, api.Status(state.Status), int(state.Pid)
}

// abandon ends and removes a container whose making or removal was not
// finished.
func (e *Engine) abandon(ctx context.Context, c *container) {
	if c.shim != nil {
		if err := c.shim.Kill(ctx, c.id, "", unix.SIGKILL, true); ignoreGone(err) != nil {
			e.log.Warn("unfinished container is not ended", "container", c.id, "err", err)
		}
		if _, err := c.shim.Wait(ctx, c.id, ""); ignoreGone(err) != nil {
			e.log.Warn("unfinished container has not ended", "container", c.id, "err", err)
		}
	}
	e.release(c)
	e.discardContainer(c)
}

// abandonLater does so in the background: another runtime, or a hook, may take
// its time, and the daemon's start shall not wait for it. What the daemon's end
// cuts short stays with its record.
func (e *Engine) abandonLater(c *container) {
	c.failed = fmt.Errorf("container %s: %w: its making or removal was not finished", c.id, ErrState)
	e.mu.Lock()
	e.addContainer(c)
	e.mu.Unlock()
	e.work.Go(func() {
		if c.shim == nil {
			shim, _, _ := e.adopt(e.life, c)
			if e.life.Err() != nil {
				return
			}
			c.mu.Lock()
			c.shim = shim
			c.mu.Unlock()
		}
		e.abandon(context.Background(), c)
		e.forgetContainer(c)
	})
}

// sweep removes what no record names: writable layers and their trash.
func (e *Engine) sweep() error {
	entries, err := os.ReadDir(filepath.Join(e.cfg.StateDir, "containers"))
	if err != nil {
		return err
	}
	if err := e.sweepCheckpoints(); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, entry := range entries {
		if _, ok := e.containers[entry.Name()]; ok {
			continue
		}
		if err := os.Rename(e.cfg.layerDir(entry.Name()), filepath.Join(e.cfg.trashDir(), entry.Name())); err != nil {
			return err
		}
	}
	e.work.Go(func() {
		trash, err := os.ReadDir(e.cfg.trashDir())
		for _, entry := range trash {
			if err == nil {
				err = os.RemoveAll(filepath.Join(e.cfg.trashDir(), entry.Name()))
			}
		}
		if err != nil {
			e.log.Warn("trash is not emptied", "err", err)
		}
	})
	return nil
}
