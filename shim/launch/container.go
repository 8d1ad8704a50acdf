package launch

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/internal/resctrl"
	"github.com/longshore/longshore/shim/netdev"
	"github.com/longshore/longshore/shim/seccomp"
)

// maxWarnings bounds what is told of one container, whose clients choose the
// names.
const maxWarnings = 16

// Mount is a filesystem for a container's root, as containerd's task API gives
// it: an overlay with lowerdir=a:b, upperdir=, workdir= and volatile, say.
// uidmap= and gidmap= ("container:host:size") map the owners in lower layers.
type Mount struct {
	Type, Source string
	Options      []string
	// Target is a place inside the root; empty is the root itself.
	Target string
}

// Stdio holds the process's ends of its standard streams; nil is /dev/null.
// The caller keeps owning them.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
	// Files become descriptors 3 and up, with a terminal too.
	Files []*os.File
}

// Config describes a container to create.
type Config struct {
	// ID names the container in hooks and in the default cgroup path.
	ID string
	// Bundle is the OCI bundle directory.
	Bundle string
	// Spec is the OCI runtime spec; it must not change while the container lives.
	Spec *specs.Spec
	// Rootfs is mounted as the root, detached, and not seen by the host. None:
	// Spec.Root.Path, relative to Bundle, as it is. Of several, as if mounted one
	// after the other, the last without a target is the root, and those with a
	// target behind it are mounted there before the mounts of the spec.
	Rootfs []Mount
	// Stdio is ignored if Spec.Process.Terminal is set.
	Stdio Stdio
	// Template is an empty mount namespace pinned by [PinTemplate]. It spares a
	// copy of the host's mounts. Empty, or unfit for the container: a copy.
	Template string
	// Ordered gives the mounts their ids in the order of the spec, by which
	// mountinfo lists them since Linux 6.8, at the price of one more copy of
	// each. They are mounted in that order anyway.
	Ordered bool
	// Gate is a directory of the caller's. With it the container outlives this
	// process without being ended at its gate: [Load] takes it up in another one.
	Gate string
	// Born, if set, is called as soon as there is a process, while that is set up.
	// Its error ends the process, and Create with that error.
	Born func(*Process) error
	// Eager lets the process go on to its program by itself if nothing is to
	// happen in between: without Gate, seccomp agent, and hooks before the start.
	// The program may run, and have ended, before Create returns; [Container.Start]
	// tells what came of it.
	Eager bool
	// Warn, if set, is told what a process of the container does without; else it
	// is written to standard error. Each is told once.
	Warn func(error)
	// Host has the control groups' hierarchies. Nil: they are looked for.
	Host *cgroup.Host
	// Filter is the compiled seccomp profile. Nil: Spec.Linux.Seccomp is compiled.
	Filter *seccomp.Filter
}

// Container is a container whose first process waits at the gate, runs, or
// has ended.
type Container struct {
	id, bundle string
	spec       *specs.Spec
	gate       string // directory of a gate that outlives its maker; "" for none
	root       int    // kept open until Close, so that the exit is not held up by the overlay's sync
	devpts     int    // -1 without
	host       *cgroup.Host
	group      *cgroup.Group
	init       *Process
	ns         *namespaces
	filter     *seccomp.Filter
	mayTrace   atomic.Bool  // a process of it had CAP_SYS_PTRACE in its bounding set
	launches   sync.RWMutex // held for reading by execs; mayTrace changes between them

	warnTo func(error)

	mu      sync.Mutex
	warned  map[string]bool // what warnTo has been told
	pending *launching      // until Start
	closed  bool
	removed bool // the cgroup is
}

// Init is the container's first process.
func (c *Container) Init() *Process { return c.init }

// Cgroup is the container's control group.
func (c *Container) Cgroup() *cgroup.Group { return c.group }

// warn tells what a process does without, unless it has been told (runtime.md,
// "Warnings"). A nil error is none.
func (c *Container) warn(warnings ...error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range warnings {
		if w == nil || c.warned[w.Error()] || len(c.warned) == maxWarnings {
			continue
		}
		if c.warned == nil {
			c.warned = map[string]bool{}
		}
		c.warned[w.Error()] = true
		w = fmt.Errorf("container %s: %w", c.id, w)
		if c.warnTo != nil {
			c.warnTo(w)
		} else {
			fmt.Fprintln(os.Stderr, "warning:", w)
		}
	}
}

// Start opens the gate. It returns nil once execve has happened, and an error
// that names what failed otherwise: it wraps [unix.ENOENT] if the command was
// not found and [unix.EACCES] if it may not be run, and is a [HookError] if a hook
// has failed. The process has then ended.
func (c *Container) Start() error {
	c.mu.Lock()
	l := c.pending
	c.pending = nil
	c.mu.Unlock()
	if c.gate != "" {
		if l != nil {
			l.link.close()
			l.free()
		}
		if err := c.openGate(); err != nil {
			return fmt.Errorf("start container %s: %w", c.id, err)
		}
		return nil
	}
	if l == nil {
		return fmt.Errorf("start container %s: it was started or closed before: %w", c.id, unix.EALREADY)
	}
	if err := c.startHooks(); err != nil {
		err = l.withEnd(err)
		l.abort()
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	if err := l.start(); err != nil {
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	if err := c.poststart(); err != nil {
		c.init.kill()
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	return nil
}

// Close releases what the container holds: the root, whose overlay may sync
// its disk now, and the cgroup. Call it after the exit was reported; a process
// that was never started is ended. Errors of poststop hooks, which run when all is
// gone and stop nothing, are among its errors. It may be called again, to remove a
// cgroup that still held a process.
func (c *Container) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed {
		return nil
	}
	var released error
	first := !c.closed
	if first {
		c.closed = true
		released = c.release()
	}
	err := c.group.Remove()
	if err != nil {
		err = fmt.Errorf("remove cgroup of container %s: %w", c.id, err)
	}
	c.removed = err == nil
	if first {
		return errors.Join(released, err, c.poststop())
	}
	return err
}

func (c *Container) release() error {
	if c.pending != nil {
		c.pending.abort()
		c.pending = nil
	}
	if c.gate != "" {
		removeGate(c.gate)
	}
	for _, fd := range []int{c.devpts, c.root} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if class, err := rdtClass(c.id, c.spec); err == nil && class != nil {
		return class.Remove()
	}
	return nil
}

// rdtClass is the container's class of Intel's RDT, nil if it names none.
func rdtClass(id string, spec *specs.Spec) (*resctrl.Class, error) {
	rdt := spec.Linux.IntelRdt
	if rdt == nil {
		return nil, nil
	}
	root := resctrl.Mount
	if kernel.resctrl != "" {
		root = kernel.resctrl
	}
	return resctrl.New(root, id, rdt)
}

// rootDir is the directory of the spec's root on the host.
func rootDir(cfg *Config) string {
	dir := "rootfs"
	if cfg.Spec.Root != nil && cfg.Spec.Root.Path != "" {
		dir = cfg.Spec.Root.Path
	}
	if filepath.IsAbs(dir) {
		return dir
	}
	return filepath.Join(cfg.Bundle, dir)
}

// rootMounts gives the mount that is the root, nil for none, and those inside it.
func rootMounts(mounts []Mount) (root *Mount, inside []specs.Mount) {
	for i := range mounts {
		m := &mounts[i]
		if at := path.Clean("/" + m.Target); at != "/" {
			inside = append(inside, specs.Mount{Destination: at, Type: m.Type, Source: m.Source, Options: m.Options})
			continue
		}
		root, inside = m, nil // it covers what came before
	}
	return root, inside
}

// checkConfig refuses what this runtime does not do, by the field's name.
func checkConfig(cfg *Config) error {
	s := cfg.Spec
	switch {
	case s == nil || s.Linux == nil:
		return fmt.Errorf("linux: %w", errMissing)
	case s.Process == nil:
		return fmt.Errorf("process: %w", errMissing)
	case cfg.ID == "":
		return fmt.Errorf("container id: %w", errMissing)
	case len(cfg.Rootfs) == 0 && (s.Root == nil || s.Root.Path == ""):
		return fmt.Errorf("root.path: %w", errMissing)
	}
	return netdev.Check(s.Linux.NetDevices)
}

// filterOf gives the seccomp filter of a container to create; nil without one.
func filterOf(cfg *Config) (*seccomp.Filter, error) {
	if cfg.Filter != nil {
		return cfg.Filter, nil
	}
	return compileFilter(cfg.Spec)
}

// compileFilter compiles the spec's seccomp profile; nil without one.
func compileFilter(s *specs.Spec) (*seccomp.Filter, error) {
	f, err := seccomp.Compile(s.Linux.Seccomp)
	if err != nil {
		return nil, fmt.Errorf("linux.seccomp: %w", err)
	}
	return f, nil
}
