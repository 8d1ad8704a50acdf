package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/undo"
	"github.com/longshore/longshore/shim/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Another runtime may have something of its own for a pod, a virtual machine or a
// kernel in user space. Those of containerd's convention make it with the first
// container of a pod, the sandbox container, whose program only waits, and put the
// pod's other containers into it. Clients never see this container: it has the
// pod's id, is made and ends with the pod, and with it the pod ends.

// sandboxFiles are what the sandbox container sees: the file systems that such
// runtimes expect, and what those that have a kernel of their own tell it.
var sandboxFiles = []string{"/proc", "/dev", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys", "/etc/resolv.conf"}

// sandboxProgram is what the sandbox container runs, our shim's binary.
var sandboxProgram = []string{"/pause", "pause"}

// sandboxSpec makes the sandbox container's specification.
func sandboxSpec(in *SpecInput) (*specs.Spec, error) {
	in.Config = ContainerConfig{Command: sandboxProgram, Security: Security{
		ReadOnlyRootfs: true, NoNewPrivs: true, DropCapabilities: []string{"ALL"}, Namespaces: Namespaces{PID: ModeContainer}}}
	if in.Pod.Namespaces.PID == ModeHost {
		in.Config.Security.Namespaces.PID = ModeHost
	}
	spec, err := BuildSpec(in)
	if err != nil {
		return nil, err
	}
	spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool { return !slices.Contains(sandboxFiles, m.Destination) })
	return spec, nil
}

// makeSandboxContainer makes and starts the sandbox container of a pod that has one.
func (e *Engine) makeSandboxContainer(ctx context.Context, p *pod) error {
	pod := p.snapshot()
	if !pod.Sandboxed {
		return nil
	}
	h, err := e.handler(pod.Config.Handler)
	if err != nil {
		return err
	}
	c := newContainer(Container{ID: p.id, PodID: p.id, Sandbox: true, State: ContainerCreating, CreatedAt: time.Now(), CgroupPath: e.containerCgroup(pod, p.id)})
	e.mu.Lock()
	e.addContainer(c)
	e.mu.Unlock()
	err = e.createSandboxContainer(ctx, &h, &pod, c)
	close(c.settled)
	if err != nil {
		c.failed = err
		e.forgetContainer(c)
		return fmt.Errorf("sandbox container: %w", err)
	}
	e.work.Go(func() { e.watch(c) })
	if err := e.startSandboxContainer(ctx, c); err != nil {
		return errors.Join(fmt.Errorf("sandbox container: %w", err), e.endSandboxContainer(ctx, p))
	}
	return nil
}

func (e *Engine) createSandboxContainer(ctx context.Context, h *Handler, pod *Pod, c *container) error {
	var taken undo.Stack
	defer taken.Run()
	taken.Add(func() { e.discardContainer(c) })
	if err := os.MkdirAll(e.cfg.containerDir(c.id), 0o700); err != nil {
		return err
	}
	if err := e.updateContainer(c, func(*Container) {}); err != nil {
		return err
	}
	root, err := e.sandboxRoot()
	if err != nil {
		return err
	}
	spec, err := sandboxSpec(e.specInput(pod, c.id, h))
	if err != nil {
		return err
	}
	h.annotateSandbox(spec, pod)
	if err := e.writeSpec(c.id, spec); err != nil {
		return err
	}
	shim, err := e.shims.Keeper()
	if err != nil {
		return err
	}
	taken.Add(func() { e.leaveShim(c, shim) })
	if err := e.updateContainer(c, func(r *Container) { r.Shim = shim.Addr() }); err != nil {
		return err
	}
	rec := c.snapshot()
	req := &api.CreateTaskRequest{ID: c.id, Bundle: e.cfg.containerDir(c.id), Stdout: "-", Stderr: "-",
		Rootfs: []*api.Mount{{Type: "bind", Source: root, Options: []string{"rbind", "ro"}}}}
	if req.Options, err = e.foreignOptions(h, &rec); err != nil {
		return err
	}
	pid, err := shim.Create(ctx, req)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.shim = shim
	c.mu.Unlock()
	if err := e.updateContainer(c, func(r *Container) { r.State, r.Pid = ContainerCreated, pid }); err != nil {
		return errors.Join(err, shim.Delete(ctx, c.id))
	}
	taken.Keep()
	return nil
}

func (e *Engine) startSandboxContainer(ctx context.Context, c *container) error {
	shim, err := c.connection()
	if err != nil {
		return err
	}
	if err := e.updateContainer(c, func(r *Container) { r.State = ContainerStarting }); err != nil {
		return err
	}
	if err := shim.Start(ctx, c.id); err != nil {
		return err
	}
	return e.updateContainer(c, func(r *Container) { r.State, r.StartedAt = ContainerRunning, time.Now() })
}

// sandboxPid is the process of a pod's sandbox container, 0 for a pod that has none.
func (e *Engine) sandboxPid(p *Pod) (int, error) {
	if !p.Sandboxed {
		return 0, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if held, ok := e.pods[p.ID]; ok && held.sandbox != nil {
		if rec := held.sandbox.snapshot(); rec.State == ContainerRunning {
			return rec.Pid, nil
		}
	}
	return 0, fmt.Errorf("pod %s: %w: its sandbox container does not run", p.ID, ErrState)
}

// endSandboxContainer ends and removes the sandbox container of a pod that has
// one. Those that are in it have ended, and their shims hold nothing of them.
func (e *Engine) endSandboxContainer(ctx context.Context, p *pod) error {
	e.mu.Lock()
	c := p.sandbox
	e.mu.Unlock()
	if c == nil {
		return nil
	}
	if <-c.settled; c.failed != nil {
		return nil // what is left of it is cleared away in the background
	}
	for _, in := range e.containersOf(p.id) {
		if <-in.settled; in.failed == nil {
			<-in.released
		}
	}
	if err := e.stopContainer(ctx, c, 0); err != nil {
		return err
	}
	<-c.exited
	<-c.released
	e.discardContainer(c)
	if e.isForeign(c) {
		return fmt.Errorf("sandbox container of pod %s: another runtime may hold something of it: %w", p.id, ErrState)
	}
	e.forgetContainer(c)
	return nil
}

// sandboxEnded stops a pod whose sandbox container has ended by itself: nothing
// can run in it any more.
func (e *Engine) sandboxEnded(c *container) {
	e.mu.Lock()
	p, ok := e.pods[c.podID]
	gone := !ok || p.sandbox != c // or not there yet: see [Engine.unfinished]
	e.mu.Unlock()
	if gone || p.snapshot().State != PodReady {
		return
	}
	e.log.Warn("sandbox container has ended, and so does its pod", "pod", p.id)
	e.work.Go(func() {
		if err := e.stopPod(context.WithoutCancel(e.life), p); err != nil {
			e.log.Warn("pod whose sandbox container has ended is not stopped", "pod", p.id, "err", err)
		}
	})
}

// makeSandboxRoot makes the root file system of sandbox containers, anew for each
// daemon: its binary may be another. What runs keeps its own.
func (e *Engine) makeSandboxRoot() (string, error) {
	root := filepath.Join(e.cfg.StateDir, "sandbox")
	for _, dir := range []string{"proc", "dev", "sys", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc", "resolv.conf"), nil, 0o644); err != nil {
		return "", err
	}
	program, err := os.ReadFile(e.shims.Binary())
	if err != nil {
		return "", err
	}
	if err := atomicfile.Write(filepath.Join(root, sandboxProgram[0]), program, 0o755, atomicfile.Volatile); err != nil || !e.host.seLinux {
		return root, err
	}
	return root, relabel(root, fileLabel(nil)) // of no category: every pod's
}
