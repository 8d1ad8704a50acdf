package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/undo"
	"golang.org/x/sys/unix"
)

// Below a pod's checkpoint: a directory for each container, as
// [Engine.CheckpointContainer] would pack it, and the record that names them,
// written last: without it there is no checkpoint.
const (
	podContainersDir = "containers"
	podCheckpoint    = "pod.json"
)

// podDump is the record of a pod's checkpoint.
type podDump struct {
	Version    int            `json:"version"`
	Taken      time.Time      `json:"taken"`
	Pod        PodConfig      `json:"pod"`
	Containers []dumpedMember `json:"containers"`
}

// dumpedMember is a container of it.
type dumpedMember struct {
	Dir    string          `json:"dir"` // name below podContainersDir
	Config ContainerConfig `json:"config"`
}

// podDumpVersion is that of podDump and of the directories beside it.
const podDumpVersion = 1

// CheckpointPod saves running containers of a pod, all as they are at one
// moment, to an existing, empty directory. They stand still until all are saved
// and go on before this returns. There are no options yet. ctx needs a deadline
// and ends the operation.
func (e *Engine) CheckpointPod(ctx context.Context, id, output string, containers []string, options map[string]string) error {
	if err := checkPodCall(ctx, options); err != nil {
		return err
	}
	p, err := e.findPod(id)
	if err != nil {
		return err
	}
	return e.toItsEnd(func() error {
		if err := e.checkpointPod(ctx, p, output, containers); err != nil {
			return fmt.Errorf("checkpoint pod %s: %w", p.id, err)
		}
		e.log.Info("pod is checkpointed", "pod", p.id, "path", output)
		return nil
	})
}

// checkPodCall refuses what neither a pod's checkpoint nor its restore may be
// called with.
func checkPodCall(ctx context.Context, options map[string]string) error {
	if _, ok := ctx.Deadline(); !ok {
		return fmt.Errorf("%w: the call needs a deadline", ErrInvalid)
	}
	if len(options) > 0 {
		return fmt.Errorf("%w: options %q are not known; there are none", ErrInvalid, slices.Sorted(maps.Keys(options)))
	}
	return nil
}

func (e *Engine) checkpointPod(ctx context.Context, p *pod, output string, ids []string) error {
	if _, err := e.criu.Usable(ctx); err != nil {
		return err
	}
	if state := p.snapshot().State; state != PodReady {
		return fmt.Errorf("%w: it is %s", ErrState, state)
	}
	members, err := e.members(p, ids)
	if err != nil {
		return err
	}
	if err := checkEmptyDir(output); err != nil {
		return err
	}
	for _, c := range members {
		if err := c.op.acquire(ctx); err != nil {
			return err
		}
		defer c.op.release()
	}
	discard := []string{filepath.Join(output, podContainersDir), filepath.Join(output, podCheckpoint)}
	var taken undo.Stack
	defer taken.Run()
	dump := podDump{Version: podDumpVersion, Taken: time.Now(), Pod: p.snapshot().Config}
	var targets []capture
	for i, c := range members {
		m := dumpedMember{Dir: strconv.Itoa(i), Config: c.snapshot().Config}
		dump.Containers = append(dump.Containers, m)
		targets = append(targets, capture{c: c, dir: filepath.Join(output, podContainersDir, m.Dir)})
	}
	taken.Add(func() { e.discardCapture(targets, discard) })
	if err := e.capture(ctx, targets, discard); err != nil {
		return err
	}
	if err := syncFilesystem(output); err != nil {
		return err
	}
	if err := atomicfile.WriteJSON(filepath.Join(output, podCheckpoint), dump, atomicfile.Durable); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// Before the answer: the next daemon would remove what a record names.
	if err := e.forgetCapture(targets); err != nil {
		return err
	}
	taken.Keep()
	return nil
}

// members finds the containers of a pod that are named, and sorts them.
func (e *Engine) members(p *pod, ids []string) ([]*container, error) {
	if len(ids) == 0 {
		return nil, fmt.Errorf("%w: no container is named", ErrInvalid)
	}
	byID, names := map[string]*container{}, map[string]bool{}
	for _, id := range ids {
		c, err := e.findContainer(id)
		if err != nil {
			return nil, err
		}
		if c.podID != p.id {
			return nil, fmt.Errorf("%w: container %s is of pod %s", ErrInvalid, c.id, c.podID)
		}
		name := c.snapshot().Config.Name
		if byID[c.id] != nil || names[name] {
			return nil, fmt.Errorf("%w: container %s (%s) is named twice", ErrInvalid, c.id, name)
		}
		byID[c.id], names[name] = c, true
		if err := e.mayCapture(c); err != nil {
			return nil, err
		}
	}
	return sortedByID(slices.Collect(maps.Values(byID))), nil
}

// checkEmptyDir refuses a directory that is not the caller's empty one.
func checkEmptyDir(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return fmt.Errorf("%w: checkpoint directory %q is not a clean absolute path", ErrInvalid, path)
	}
	st, err := os.Lstat(path)
	if err == nil && !st.IsDir() {
		err = unix.ENOTDIR
	}
	if err != nil {
		return fmt.Errorf("%w: checkpoint directory %q: %w", ErrInvalid, path, err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%w: checkpoint directory %q is not empty", ErrInvalid, path)
	}
	return nil
}

// syncFilesystem writes out what criu, which syncs nothing, has written.
func syncFilesystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = unix.Syncfs(int(f.Fd()))
	if err != nil {
		err = &os.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return errors.Join(err, f.Close())
}
