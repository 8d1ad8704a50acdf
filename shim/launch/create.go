package launch

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/internal/undo"
	"github.com/longshore/longshore/shim/netdev"
)

// creation is a container on its way to the gate.
type creation struct {
	*launching
	cfg      *Config
	c        *Container
	parts    assembly
	rest     *cgroup.Host  // hierarchies in which the child is late
	joins    *cgroup.Joins // into the others, and later into these
	template int           // descriptor of the template mount namespace, -1 without
	procfs   int           // private procfs of the host, for sysctls and labels; -1 without
	fds      fdList
	network  fdList    // the child's, which undoing needs until the end
	made     []*source // what the child mounts
	mounts   []int     // the same, once it has
	hooked   bool      // hooks have been run
	lookedUp []int     // indices of the operations that look for the command
	fifo     *fifoGate // nil for a gate that dies with this process
	// The child's numbers of descriptors it keeps; 0 for none.
	childTemplate, childProcfs int
}

// Create sets a container up until its process waits at the gate. Everything
// that can fail without running the container's program fails here.
func Create(cfg Config) (*Container, error) {
	if err := checkConfig(&cfg); err != nil {
		return nil, fmt.Errorf("create container %s: %w", cfg.ID, err)
	}
	c := &Container{id: cfg.ID, bundle: cfg.Bundle, spec: cfg.Spec, gate: cfg.Gate, warnTo: cfg.Warn, root: -1, devpts: -1}
	k := &creation{cfg: &cfg, c: c, template: -1, procfs: -1}
	defer k.network.closeAll()
	defer k.release()
	var taken undo.Stack
	defer taken.Run()
	if err := k.create(&taken); err != nil {
		if k.hooked { // others than we may have something to take back
			taken.Run()
			err = errors.Join(err, c.poststop())
		}
		return nil, fmt.Errorf("create container %s: %w", cfg.ID, err)
	}
	taken.Keep()
	return c, nil
}

func (k *creation) create(taken *undo.Stack) error {
	if err := k.open(taken); err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"clone", func() error { return k.clone(taken) }},
		{"tell", k.tell},
		{"make cgroups", k.makeGroups},
		{"prepare root", k.parts.prepare},
		{"complete program", k.complete},
		{"receive mounts", k.receive},
		{"adopt process", k.adoptAndTell},
		{"enter class", func() error { return k.enterClass(taken) }},
		{"move devices", func() error { return k.moveDevices(taken) }},
		{"hand root over", k.hand},
		{"release", func() error { k.release(); return nil }},
		{"reach gate", k.reachGate},
	} {
		if err := injected(step.name); err != nil {
			return err
		}
		if err := step.do(); err != nil {
			return err
		}
	}
	k.c.pending = k.launching
	return nil
}

// release closes what only the child needs from now on, and it has: while that
// works, rather than when all waits for its last step. It may be repeated.
func (k *creation) release() {
	k.parts.close()
	if k.c.ns != nil {
		k.c.ns.close()
	}
	if k.joins != nil {
		k.joins.Close()
	}
	k.fds.closeAll()
}

// tell calls the caller's function as soon as there is a process to tell of: it
// works at the same time.
func (k *creation) tell() error {
	if k.proc == nil || k.cfg.Born == nil {
		return nil
	}
	born := k.cfg.Born
	k.cfg.Born = nil
	return born(k.proc)
}

// adoptAndTell is for a process that a first one has cloned, unless it is yet to be
// born.
func (k *creation) adoptAndTell() error {
	if k.c.ns.exposed {
		return nil
	}
	if err := k.adopt(); err != nil {
		return err
	}
	return k.tell()
}

// makeGroups makes the rest of the control group, with all limits.
func (k *creation) makeGroups() error {
	k.joins.Close()
	part, err := k.rest.Claim(k.c.group.Path(), nil)
	if err != nil {
		return err
	}
	if res := withDefaultDevices(k.cfg.Spec.Linux.Resources); res != nil {
		if err := k.c.group.Limit(res); err != nil {
			return err
		}
	}
	k.joins, err = part.Joins()
	return err
}

// receive takes the mounts that the child has made.
func (k *creation) receive() (err error) {
	k.mounts, err = k.await(len(k.made))
	for _, fd := range k.mounts {
		k.parts.fds.add(fd)
	}
	return err
}

// enterClass puts the process, and so all of the container, into its class of
// Intel's RDT.
func (k *creation) enterClass(taken *undo.Stack) error {
	class, err := rdtClass(k.cfg.ID, k.cfg.Spec)
	if class == nil || err != nil {
		return err
	}
	if err := class.Add(k.current().pid); err != nil {
		return err
	}
	taken.Add(func() { _ = class.Remove() })
	return nil
}

// moveDevices gives the container devices of the host. A container that fails
// later must not take them with it.
func (k *creation) moveDevices(taken *undo.Stack) error {
	devices := k.cfg.Spec.Linux.NetDevices
	if len(devices) == 0 {
		return nil
	}
	if k.c.ns.all()&unix.CLONE_NEWNET == 0 {
		return fmt.Errorf("linux.netDevices: the container shares the host's network namespace: %w", unix.EINVAL)
	}
	name := fmt.Sprintf("/proc/%d/ns/net", k.current().pid)
	ns, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	k.network.add(ns)
	back, err := netdev.Move(devices, ns)
	if err != nil {
		return err
	}
	taken.Add(func() { _ = back() })
	return nil
}

// reachGate waits until the child stands at its gate.
func (k *creation) reachGate() error {
	if k.cfg.Eager {
		k.eager = true // see launching.start
		return nil
	}
	if k.plan.notify() {
		// The filter is there before the gate: from now on the child only reads.
		if err := k.handListener(k.c, specs.StateCreating); err != nil {
			return err
		}
	} else if _, err := k.await(0); err != nil {
		return err
	}
	if err := k.adopt(); err != nil { // one that is born late
		return err
	}
	k.c.init = k.proc
	if err := k.tell(); err != nil {
		return err
	}
	if err := k.found(); err != nil {
		return err
	}
	return k.writeScore()
}

// writeScore gives the process its oom_score_adj, if it may have that.
func (k *creation) writeScore() error {
	err := setOOMScore(k.current().pid, k.cfg.Spec.Process.OOMScoreAdj)
	if warning := scoreWarning(err); warning != nil {
		k.c.warn(warning)
		return nil
	}
	return err
}

// open collects what the child will inherit: namespaces, cgroup, streams.
func (k *creation) open(taken *undo.Stack) (err error) {
	spec := k.cfg.Spec
	c := k.c
	if c.filter, err = filterOf(k.cfg); err != nil {
		return err
	}
	if c.ns, err = openNamespaces(spec.Linux); err != nil {
		return err
	}
	if c.host = k.cfg.Host; c.host == nil {
		if c.host, err = cgroup.Detect(); err != nil {
			return fmt.Errorf("find cgroups: %w", err)
		}
	}
	var first *cgroup.Host
	first, k.rest = c.host.Halves()
	part, err := first.Claim(cgroupPath(k.cfg), nil)
	if err != nil {
		return err
	}
	c.group = c.host.Load(part.Path())
	taken.Add(func() { c.group.Remove() })
	if k.joins, err = part.Joins(); err != nil {
		return err
	}
	k.parts = assembly{
		spec: withMounts(spec, k.cfg.Rootfs), bundle: k.cfg.Bundle, uids: c.ns.uids, gids: c.ns.gids, host: c.host, group: c.group, root: -1, devpts: -1,
		own: c.ns.all(), idle: c.ns.fresh&unix.CLONE_NEWNET == 0, ordered: k.cfg.Ordered, chrooted: c.ns.chrooted,
	}
	if c.ns.exposed {
		k.parts.pidNS = c.ns.pid
	}
	taken.Add(func() {
		for _, fd := range []int{k.parts.root, c.devpts} {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	})
	if k.made, err = k.parts.classify(); err != nil {
		return err
	}
	if needsProcfs(k.cfg) {
		k.procfs, err = newFilesystem("proc", "proc", nil, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
		if err != nil {
			return fmt.Errorf("mount private procfs: %w", err)
		}
		k.fds.add(k.procfs)
	}
	// A mount namespace owned by a user namespace must be that one's own copy;
	// hooks look for the container's root in a tree with the host's around it.
	if k.cfg.Template != "" && !c.ns.userNS() && !c.ns.chrooted && !hasRootHooks(spec.Hooks) {
		if k.template, err = openTemplate(k.cfg.Template); err != nil {
			return err
		}
		k.fds.add(k.template)
		c.ns.later = unix.CLONE_NEWNS
	}
	return nil
}

// withMounts is the specification with what a root of several mounts adds.
func withMounts(spec *specs.Spec, rootfs []Mount) *specs.Spec {
	_, inside := rootMounts(rootfs)
	if len(inside) == 0 {
		return spec
	}
	more := *spec
	more.Mounts = append(inside, spec.Mounts...)
	return &more
}

// cgroupPath is the container's group.
func cgroupPath(cfg *Config) string {
	if path := cfg.Spec.Linux.CgroupsPath; path != "" {
		return path
	}
	return "/longshore/" + cfg.ID
}

// needsProcfs says whether the child writes to procfs.
func needsProcfs(cfg *Config) bool {
	s := cfg.Spec
	return len(s.Linux.Sysctl) > 0 || len(s.Linux.TimeOffsets) > 0 || s.Process.ApparmorProfile != "" || s.Process.SelinuxLabel != ""
}

// clone lays out the first part of the program, which needs nothing of the
// root, and starts the child with it.
func (k *creation) clone(taken *undo.Stack) error {
	ns := k.c.ns
	uid, _ := hostID(ns.uids, k.cfg.Spec.Process.User.UID)
	io := k.cfg.Stdio
	if k.cfg.Spec.Process.Terminal {
		io = Stdio{Files: io.Files}
	}
	std, err := streams(io, uid, &k.fds)
	if err != nil {
		return err
	}
	files, err := moreFiles(io.Files, &k.fds)
	if err != nil {
		return err
	}
	inherited := append(std[:], k.template, k.procfs)
	for _, f := range k.joins.Tasks {
		inherited = append(inherited, int(f.Fd()))
	}
	for _, j := range ns.join {
		inherited = append(inherited, j.fd)
	}
	for _, j := range []*joined{ns.user, ns.pid} {
		if j != nil {
			inherited = append(inherited, j.fd)
		}
	}
	into, procs, err := k.unified()
	if err != nil {
		return err
	}
	// What the child opens and is handed lies below what it keeps.
	inherited = append(inherited, procs, firstFree+max(len(k.made)+1, k.handed()))
	childEnd, err := k.newLaunching(append(inherited, files.inherited()...), taken)
	if err != nil {
		return err
	}
	taken.Add(k.abort)
	k.keepFiles(files)
	k.inheritance(std, procs)
	if err = k.namespaces(); err == nil {
		err = k.launching.clone(ns.cloneFlags(), pidOf(ns), into, ns.secondClone() || ns.exposed)
	}
	unix.Close(childEnd)
	if err != nil {
		return err
	}
	return k.writeFor(ns)
}

// writeFor writes what the child waits for: id maps and clock offsets.
func (k *creation) writeFor(ns *namespaces) error {
	if ns.writtenByParent() {
		if _, err := k.await(0); err != nil { // until the namespaces are there
			return err
		}
	} else if ns.fresh&unix.CLONE_NEWUSER == 0 {
		return nil
	}
	child := k.current()
	if ns.fresh&unix.CLONE_NEWUSER != 0 {
		if err := writeIDMaps(child.pid, ns.uids, ns.gids); err != nil {
			return err
		}
	}
	if ns.writtenByParent() {
		for clock, o := range k.cfg.Spec.Linux.TimeOffsets {
			if err := writeProc(child.pid, "timens_offsets", timeOffset(clock, o)); err != nil {
				return err
			}
		}
	}
	return k.pass()
}

// newLaunching begins the program, with the gate that was asked for.
func (k *creation) newLaunching(inherited []int, taken *undo.Stack) (childEnd int, err error) {
	if k.cfg.Gate == "" {
		k.launching, childEnd, err = newLaunching(false, inherited)
		return childEnd, err
	}
	if k.fifo, err = newFIFOGate(k.cfg.Gate, &k.fds); err != nil {
		return -1, err
	}
	taken.Add(k.fifo.remove)
	prog, err := newProgramIn(k.fifo.arena)
	if err != nil {
		return -1, err
	}
	if k.launching, childEnd, err = launchingOf(prog, append(inherited, k.fifo.fifo, k.fifo.arena)); err != nil {
		return -1, err
	}
	k.fifo.keepIn(k.builder)
	return childEnd, nil
}

// pidOf is the pid namespace that the first clone is born into, or -1.
func pidOf(ns *namespaces) int {
	if ns.pid == nil || ns.secondClone() || ns.exposed {
		return -1
	}
	return ns.pid.fd
}

// unified gives the cgroup v2 directory to clone into, or, for a kernel
// without CLONE_INTO_CGROUP, its process list to write to; -1 for none.
func (k *creation) unified() (into, procs int, err error) {
	if k.joins.Into == nil {
		return -1, -1, nil
	}
	into = int(k.joins.Into.Fd())
	if !kernel.noIntoCgroup {
		return into, -1, nil
	}
	procs, err = unix.Openat(into, "cgroup.procs", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("open cgroup.procs: %w", err)
	}
	return -1, k.fds.add(procs), nil
}

// inheritance places the descriptors and joins the cgroups that are there.
func (k *creation) inheritance(std [3]int, procs int) {
	if k.template >= 0 {
		k.childTemplate = k.keep(k.template)
	}
	if k.procfs >= 0 {
		k.childProcfs = k.keep(k.procfs)
	}
	k.stdio(std)
	for _, f := range k.joins.Tasks {
		k.join(f.Fd(), f.Name())
	}
	if procs >= 0 {
		k.join(uintptr(procs), k.joins.Into.Name())
	}
}

// hand completes the root with the child's mounts and gives it to the child.
func (k *creation) hand() error {
	a, c := &k.parts, k.c
	c.init = k.current()
	if err := a.assemble(k.mounts); err != nil {
		return err
	}
	give := []int{a.root}
	if k.plan.terminal {
		if a.devpts < 0 {
			return fmt.Errorf("process.terminal without a devpts in mounts: %w", errMissing)
		}
		uid, _ := hostID(a.uids, k.plan.user.UID)
		console, slave, err := openConsole(a.devpts, k.plan.size, uid)
		if err != nil {
			return err
		}
		k.fds.add(slave)
		c.init.console = console
		if err := a.bindConsole(slave); err != nil {
			return err
		}
		give = append(give, slave)
	}
	var err error
	if c.root, err = a.finished(); err != nil {
		return err
	}
	give[0] = c.root
	if k.plan.terminal {
		if give[1], err = reopenConsole(a.devpts, c.init.console); err != nil {
			return err
		}
		k.fds.add(give[1])
	}
	for _, s := range a.lateSources() {
		give = append(give, s.fd)
	}
	for _, f := range k.joins.Tasks {
		give = append(give, int(f.Fd()))
	}
	if a.devpts >= 0 {
		c.devpts = a.fds.forget(a.devpts)
	}
	if err := preRaise(k); err != nil {
		return err
	}
	if k.cfg.Eager = k.mayBeEager(); k.cfg.Eager {
		if err := k.writeScore(); err != nil {
			return err
		}
	}
	if err := k.pass(give...); err != nil {
		return err
	}
	if k.cfg.Eager {
		return k.pass() // the last gate
	}
	return k.rootHooks()
}

// mayBeEager says whether the gate may be opened ahead: nobody is to do something
// while the child waits there, or to pass it from elsewhere.
func (k *creation) mayBeEager() bool {
	h := k.cfg.Spec.Hooks
	return k.cfg.Eager && !k.late && k.fifo == nil && !k.plan.notify() && !hasRootHooks(h) && (h == nil || len(h.StartContainer) == 0)
}

// pass opens the gate, with the reason if the child is gone.
func (k *creation) pass(fds ...int) error {
	err := k.link.open(fds...)
	if errors.Is(err, errLeft) {
		err = k.left()
	}
	return err
}

// preRaise raises hard limits that a member of a user namespace could not.
func preRaise(k *creation) error {
	if !k.c.ns.userNS() {
		return nil
	}
	for _, l := range raised(k.plan.rlimits) {
		if err := unix.Prlimit(k.current().pid, l.resource, &unix.Rlimit{Cur: l.soft, Max: l.hard}, nil); err != nil {
			return fmt.Errorf("raise %s: %w", l.name, err)
		}
	}
	return nil
}
