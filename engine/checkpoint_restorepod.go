package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"

	"github.com/longshore/longshore/internal/undo"
)

// RestorePod makes a pod and containers that wait to be started, each with the
// process that it had when [Engine.CheckpointPod] saved it to the directory
// from, which is not changed and not needed afterwards. The names of the
// containers must be those of the checkpoint. On an error nothing of them is
// left. ctx needs a deadline and ends the operation.
func (e *Engine) RestorePod(ctx context.Context, from string, cfg PodConfig, containers []ContainerConfig, options map[string]string) (Pod, []Container, error) {
	var p Pod
	var made []Container
	if err := checkPodCall(ctx, options); err != nil {
		return p, nil, err
	}
	if err := e.checkPod(&cfg); err != nil {
		return p, nil, err
	}
	err := e.toItsEnd(func() (err error) {
		p, made, err = e.restorePod(ctx, from, cfg, containers)
		if err != nil {
			return fmt.Errorf("restore pod %s/%s: %w", cfg.Namespace, cfg.Name, err)
		}
		e.log.Info("pod is restored", "pod", p.ID, "path", from)
		return nil
	})
	return p, made, err
}

func (e *Engine) restorePod(ctx context.Context, from string, cfg PodConfig, containers []ContainerConfig) (Pod, []Container, error) {
	if _, err := e.criu.Usable(ctx); err != nil {
		return Pod{}, nil, err
	}
	dump, err := readPodDump(from)
	if err != nil {
		return Pod{}, nil, err
	}
	containers, err = dump.match(from, cfg, containers)
	if err != nil {
		return Pod{}, nil, err
	}
	p, isNew, err := e.claimPod(cfg)
	if err == nil && !isNew {
		err = fmt.Errorf("%w: it is %s", ErrExists, p.id)
	}
	if err != nil {
		return Pod{}, nil, err
	}
	e.makePod(context.WithoutCancel(ctx), p)
	if p.failed != nil {
		return Pod{}, nil, p.failed
	}
	var taken undo.Stack
	defer taken.Run()
	taken.Add(func() {
		if err := e.removePod(context.WithoutCancel(ctx), p); err != nil {
			e.log.Warn("pod whose restore has failed stays", "pod", p.id, "err", err)
		}
	})
	var made []Container
	for _, c := range containers {
		got, err := e.CreateContainer(ctx, p.id, c)
		if err != nil {
			return Pod{}, nil, err
		}
		made = append(made, got)
	}
	if err := context.Cause(ctx); err != nil {
		return Pod{}, nil, err
	}
	taken.Keep()
	return p.snapshot(), made, nil
}

// readPodDump reads the record of a pod's checkpoint.
func readPodDump(from string) (*podDump, error) {
	if !filepath.IsAbs(from) || filepath.Clean(from) != from {
		return nil, fmt.Errorf("%w: checkpoint directory %q is not a clean absolute path", ErrInvalid, from)
	}
	root, err := os.OpenRoot(from)
	if err != nil {
		return nil, fmt.Errorf("%w: checkpoint: %w", ErrInvalid, err)
	}
	defer root.Close()
	data, err := readBounded(root, podCheckpoint)
	if err != nil {
		return nil, fmt.Errorf("%w: checkpoint: %w", ErrInvalid, err)
	}
	var dump podDump
	if err := json.Unmarshal(data, &dump); err != nil {
		return nil, fmt.Errorf("%w: checkpoint: %s: %w", ErrInvalid, podCheckpoint, err)
	}
	if dump.Version != podDumpVersion {
		return nil, fmt.Errorf("%w: checkpoint is of version %d, and %d is known", ErrInvalid, dump.Version, podDumpVersion)
	}
	return &dump, nil
}

// match says of each container where its checkpoint is. Their names must be
// those of the checkpoint, and what they shall run what it has.
func (d *podDump) match(from string, pod PodConfig, containers []ContainerConfig) ([]ContainerConfig, error) {
	saved := map[string]dumpedMember{}
	for _, m := range d.Containers {
		if _, err := strconv.ParseUint(m.Dir, 10, 32); err != nil {
			return nil, fmt.Errorf("%w: checkpoint: directory %.100q", ErrInvalid, m.Dir)
		}
		saved[m.Config.Name] = m
	}
	if pod.Namespaces.Network != d.Pod.Namespaces.Network || pod.Namespaces.IPC != d.Pod.Namespaces.IPC || pod.Namespaces.PID != d.Pod.Namespaces.PID {
		return nil, fmt.Errorf("%w: the pod has other namespaces than its checkpoint", ErrInvalid)
	}
	if len(containers) == 0 {
		return nil, fmt.Errorf("%w: no container is named", ErrInvalid)
	}
	out := make([]ContainerConfig, 0, len(containers))
	for _, c := range containers {
		m, ok := saved[c.Name]
		if !ok || c.Name == "" {
			return nil, fmt.Errorf("%w: the checkpoint has no container %q, or it is named twice", ErrInvalid, c.Name)
		}
		delete(saved, c.Name)
		if err := sameProcess(&m.Config, &c); err != nil {
			return nil, err
		}
		c.Restore = filepath.Join(from, podContainersDir, m.Dir)
		out = append(out, c)
	}
	for name := range saved {
		return nil, fmt.Errorf("%w: the checkpoint has a container %q, which is not asked for", ErrInvalid, name)
	}
	return out, nil
}

// sameProcess refuses a container whose configuration describes another process
// than the one that was saved: nothing of it would come true.
func sameProcess(saved, wanted *ContainerConfig) error {
	for _, f := range []struct {
		name string
		a, b any
	}{
		{"image", saved.Image, wanted.Image}, {"command", saved.Command, wanted.Command}, {"args", saved.Args, wanted.Args},
		{"working directory", saved.WorkingDir, wanted.WorkingDir}, {"environment", saved.Env, wanted.Env},
		{"stdin", saved.Stdin, wanted.Stdin}, {"terminal", saved.TTY, wanted.TTY},
		{"user", saved.Security.RunAsUser, wanted.Security.RunAsUser}, {"group", saved.Security.RunAsGroup, wanted.Security.RunAsGroup},
		{"user name", saved.Security.RunAsUsername, wanted.Security.RunAsUsername}, {"groups", saved.Security.Groups, wanted.Security.Groups},
		{"supplemental groups policy", saved.Security.StrictGroups, wanted.Security.StrictGroups},
	} {
		if !reflect.DeepEqual(normal(f.a), normal(f.b)) {
			return fmt.Errorf("%w: container %s has another %s than its checkpoint", ErrInvalid, wanted.Name, f.name)
		}
	}
	return nil
}

// normal makes an empty list the same as none.
func normal(v any) any {
	if r := reflect.ValueOf(v); r.Kind() == reflect.Slice && r.Len() == 0 {
		return nil
	}
	return v
}
