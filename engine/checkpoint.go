package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/longshore/longshore/engine/criu"
	"github.com/longshore/longshore/internal/undo"
)

// checkpointLimit bounds a checkpoint for which the caller names no time.
const checkpointLimit = 10 * time.Minute

// Capture is in a container's record from before it is frozen for a checkpoint
// until that is complete, or gone: a daemon that finds one thaws the container
// and removes what was being written.
type Capture struct {
	Dirs    []string `json:"dirs"`              // that criu works in, one after the other; none once it is thawed
	Discard []string `json:"discard,omitempty"` // absolute paths
}

// CheckpointStatus says what makes checkpoints on this node, or why none can
// be made: an error that wraps [criu.ErrUnusable].
func (e *Engine) CheckpointStatus(ctx context.Context) (string, error) {
	if _, err := e.criu.Usable(ctx); err != nil {
		return "", err
	}
	return e.criu.Version(), nil
}

// RestoreStatus says why this node restores nothing, if it does not.
func (e *Engine) RestoreStatus() error {
	if !e.UsesCgroupV2() {
		return fmt.Errorf("%w: a checkpoint is restored on nodes with cgroup v2 alone", ErrState)
	}
	return nil
}

// RestoresImages says whether a checkpoint may take the place of an image.
func (e *Engine) RestoresImages() bool { return e.cfg.RestoreImages }

// CheckpointContainer saves a running container to an archive at location, an
// absolute path, in the form that CRI-O and Podman read. The container stands
// still meanwhile and goes on afterwards, whatever came of it. timeout 0 is
// [checkpointLimit]. Unlike other operations it is given up when ctx ends: half
// an archive is of no use to anyone.
func (e *Engine) CheckpointContainer(ctx context.Context, id, location string, timeout time.Duration) error {
	if !filepath.IsAbs(location) || filepath.Clean(location) != location {
		return fmt.Errorf("%w: checkpoint location %q is not a clean absolute path", ErrInvalid, location)
	}
	if timeout < 0 {
		return fmt.Errorf("%w: checkpoint timeout of %v", ErrInvalid, timeout)
	}
	if timeout == 0 {
		timeout = checkpointLimit
	}
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: checkpoint of container %s took longer than %v", ErrTimeout, c.id, timeout))
	defer cancel()
	return e.toItsEnd(func() error {
		if err := e.checkpointContainer(ctx, c, location); err != nil {
			return fmt.Errorf("checkpoint container %s: %w", c.id, err)
		}
		e.log.Info("container is checkpointed", "container", c.id, "path", location)
		return nil
	})
}

// toItsEnd runs an operation that heeds its caller's context and is waited for
// in any case, since it has things to put right before the caller may go on.
func (e *Engine) toItsEnd(op func() error) error {
	done := make(chan error, 1)
	e.work.Go(func() { done <- op() })
	return <-done
}

func (e *Engine) checkpointContainer(ctx context.Context, c *container, location string) error {
	if _, err := e.criu.Usable(ctx); err != nil {
		return err
	}
	if st, err := os.Stat(filepath.Dir(location)); err != nil || !st.IsDir() {
		return fmt.Errorf("%w: directory of checkpoint location: %w", ErrInvalid, errors.Join(err, os.ErrNotExist))
	}
	if err := c.op.acquire(ctx); err != nil {
		return err
	}
	defer c.op.release()
	var taken undo.Stack
	defer taken.Run()
	work := filepath.Join(e.cfg.checkpointDir(), c.id)
	partial := filepath.Join(filepath.Dir(location), ".tmp-"+filepath.Base(location)+"-"+c.id[:12])
	discard := []string{work, partial}
	targets := []capture{{c: c, dir: work}}
	taken.Add(func() { e.discardCapture(targets, discard) })
	if err := e.capture(ctx, targets, discard); err != nil {
		return err
	}
	if err := archive(ctx, work, partial); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	if err := os.Rename(partial, location); err != nil {
		return err
	}
	return syncDir(filepath.Dir(location))
}

// capture is one container that is being saved, and where to.
type capture struct {
	c   *container
	dir string // is made; on an error the caller removes it
}

// capture saves containers as they are at one moment: it freezes them all,
// saves each, and thaws them all, whatever happened. The caller holds their
// operations. discard is what has to be removed if the daemon dies meanwhile.
func (e *Engine) capture(ctx context.Context, targets []capture, discard []string) (err error) {
	for _, t := range targets {
		if err := e.mayCapture(t.c); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, e.thaw(targets)) }()
	announced := &Capture{Discard: discard}
	for _, t := range targets {
		announced.Dirs = append(announced.Dirs, t.dir)
	}
	for _, t := range targets {
		if err := e.updateContainer(t.c, func(r *Container) { r.Capture = announced }); err != nil {
			return err
		}
	}
	for _, t := range targets {
		if err := e.cgroups.Load(t.c.snapshot().CgroupPath).Freeze(); err != nil {
			return err
		}
	}
	for _, t := range targets {
		if err := e.save(ctx, t); err != nil {
			return fmt.Errorf("save %s: %w", t.c.snapshot().Config.Name, err)
		}
	}
	return context.Cause(ctx)
}

// thaw lets captured containers go on. What is written of them stays in their
// records, until [Engine.forgetCapture].
func (e *Engine) thaw(targets []capture) error {
	var errs []error
	for _, t := range targets {
		if t.c.snapshot().Capture == nil {
			continue // its turn to be frozen did not come
		}
		if err := e.cgroups.Load(t.c.snapshot().CgroupPath).Thaw(); err != nil {
			e.log.Error("container stays frozen", "container", t.c.id, "err", err)
			errs = append(errs, err)
			continue // the next daemon tries again
		}
		errs = append(errs, e.updateContainer(t.c, func(r *Container) { r.Capture = &Capture{Discard: r.Capture.Discard} }))
	}
	return errors.Join(errs...)
}

// forgetCapture takes a checkpoint that is complete, or gone, from the records of
// containers that go on.
func (e *Engine) forgetCapture(targets []capture) error {
	var errs []error
	for _, t := range targets {
		if now := t.c.snapshot().Capture; now != nil && len(now.Dirs) == 0 {
			errs = append(errs, e.updateContainer(t.c, func(r *Container) { r.Capture = nil }))
		}
	}
	return errors.Join(errs...)
}

// discardCapture removes what is written of a checkpoint.
func (e *Engine) discardCapture(targets []capture, paths []string) {
	e.discardPaths(targets[0].c, paths)
	if err := e.forgetCapture(targets); err != nil {
		e.log.Warn("record of a checkpoint that is gone stays", "container", targets[0].c.id, "err", err)
	}
}

// thawRecorded is thaw for a container whose daemon has died. A criu that is
// still at work would freeze it again when it ends.
func (e *Engine) thawRecorded(c *container) {
	rec := c.snapshot()
	if rec.Capture == nil {
		return
	}
	e.log.Info("container was being checkpointed and goes on", "container", c.id)
	for _, dir := range rec.Capture.Dirs {
		if err := criu.Settle(filepath.Join(dir, imagesDir), dir); err != nil {
			e.log.Warn("criu of an earlier daemon does not give up", "container", c.id, "err", err)
		}
	}
	targets := []capture{{c: c}}
	_ = e.thaw(targets) // it has logged
	e.discardCapture(targets, rec.Capture.Discard)
}

// sweepCheckpoints removes what was being written when an earlier daemon died,
// and no record names.
func (e *Engine) sweepCheckpoints() error {
	if err := os.RemoveAll(e.cfg.checkpointDir()); err != nil {
		return err
	}
	return os.Mkdir(e.cfg.checkpointDir(), 0o700)
}

func (e *Engine) discardPaths(c *container, paths []string) {
	for _, path := range paths {
		if err := os.RemoveAll(path); err != nil {
			e.log.Warn("what was written of a checkpoint stays", "container", c.id, "path", path, "err", err)
		}
	}
}

// mayCapture refuses what criu could save but not give back here.
func (e *Engine) mayCapture(c *container) error {
	rec := c.snapshot()
	if rec.State != ContainerRunning {
		return fmt.Errorf("container %s: %w: it is %s", c.id, ErrState, rec.State)
	}
	p, err := e.findPod(c.podID)
	if err != nil {
		return err
	}
	pod := p.snapshot().Config
	h, err := e.handler(pod.Handler)
	if err != nil {
		return err
	}
	return canRestore(&h, &pod, &rec.Config)
}

// canRestore refuses containers that criu would not give back as they were.
func canRestore(h *Handler, pod *PodConfig, cfg *ContainerConfig) error {
	switch ns := cfg.Security.Namespaces; {
	case h.foreign():
		return fmt.Errorf("%w: container %s is another runtime's, of handler %q", ErrState, cfg.Name, pod.Handler)
	case pod.Namespaces.User != nil:
		// criu 3.17 saves it, and restores it in a user namespace of its own, whose
		// root may not enter the network namespace that the pod's owns.
		return fmt.Errorf("%w: container %s is in its pod's user namespace, in which criu cannot restore it", ErrState, cfg.Name)
	case ns.PID != ModeContainer && (ns.PID != ModePod || pod.Namespaces.PID == ModeHost):
		return fmt.Errorf("%w: container %s has process ids of the node or of another container, which may be taken when it is restored", ErrState, cfg.Name)
	}
	return nil
}

// Files of a checkpoint, named as CRI-O and Podman name them.
const (
	imagesDir       = "checkpoint"
	descriptorsFile = "descriptors.json" // in imagesDir, as runc and crun have it
	configDump      = "config.dump"
	specDump        = "spec.dump"
	statusDump      = "status"
	rootfsDiff      = "rootfs-diff.tar"
	deletedFiles    = "deleted.files"
	mountsDump      = "longshore.json" // our own
)

// save writes all of one frozen container to its directory.
func (e *Engine) save(ctx context.Context, t capture) error {
	images := filepath.Join(t.dir, imagesDir)
	if err := os.MkdirAll(images, 0o700); err != nil {
		return err
	}
	rec := t.c.snapshot()
	spec, err := e.Spec(t.c.id)
	if err != nil {
		return err
	}
	seen, err := look(rec.Pid, spec)
	if err != nil {
		return err
	}
	if err := e.writeDescription(t.dir, &rec, spec, seen); err != nil {
		return err
	}
	freezer, err := e.cgroups.Load(rec.CgroupPath).FreezerDir()
	if err != nil {
		return err
	}
	if freezer == "" {
		return fmt.Errorf("%w: it has no process, or the node no freezer", ErrState)
	}
	external, err := seen.external()
	if err != nil {
		return err
	}
	if err := labelLog(filepath.Join(t.dir, criu.DumpLog), spec); err != nil {
		return err
	}
	if err := e.criu.Save(ctx, criu.Dump{Pid: rec.Pid, Images: images, Work: t.dir, Freezer: freezer, External: external, Terminal: rec.Config.TTY}); err != nil {
		return err
	}
	lower, err := e.lowerDirs(rec)
	if err != nil {
		return err
	}
	return writeDiff(ctx, filepath.Join(e.cfg.layerDir(t.c.id), "upper"), lower, filepath.Join(t.dir, rootfsDiff), filepath.Join(t.dir, deletedFiles))
}

// lowerDirs gives the directories below a container's writable layer, topmost
// first. Those of image volumes are held for it too, and do not count.
func (e *Engine) lowerDirs(rec Container) ([]string, error) {
	img, err := e.images.Get(rec.ImageID)
	if err != nil {
		return nil, err
	}
	return e.images.Rootfs(img)
}

func (c *Config) checkpointDir() string { return filepath.Join(c.StateDir, "checkpoints") }

// sortedByID orders containers so that two operations that hold several never
// wait for each other.
func sortedByID(all []*container) []*container {
	out := slices.Clone(all)
	slices.SortFunc(out, func(a, b *container) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	return out
}
