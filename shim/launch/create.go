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
	joins    *cgroup.Joins
	template int // descriptor of the template mount namespace, -1 without
	procfs   int // private procfs of the host, for sysctls and labels; -1 without
	fds      fdList
	made     []*source // what the child mounts
	mounts   []int     // the same, once it has
	fifo     *fifoGate // nil for a gate that dies with this process
	// The child's numbers of descriptors it keeps; 0 for none.
	childCPU, childTemplate, childProcfs int
}

// Create sets a container up until its process waits at the gate. Everything
// that can fail without running the container's program fails here.
func Create(cfg Config) (*Container, error) {
	if err := checkConfig(&cfg); err != nil {
		return nil, fmt.Errorf("create container %s: %w", cfg.ID, err)
	}
	c := &Container{id: cfg.ID, bundle: cfg.Bundle, spec: cfg.Spec, gate: cfg.Gate, root: -1, devpts: -1}
	k := &creation{cfg: &cfg, c: c, template: -1, procfs: -1}
	defer k.fds.closeAll()
	var taken undo.Stack
	defer taken.Run()
	if err := k.create(&taken); err != nil {
		return nil, fmt.Errorf("create container %s: %w", cfg.ID, err)
	}
	taken.Keep()
	return c, nil
}

func (k *creation) create(taken *undo.Stack) error {
	if err := k.open(taken); err != nil {
		return err
	}
	defer k.parts.close()
	defer k.c.ns.close()
	defer k.joins.Close()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"clone", func() error { return k.clone(taken) }},
		{"prepare root", k.parts.prepare},
		{"complete program", k.complete},
		{"receive mounts", k.receive},
		{"adopt process", func() error { return k.adopt() }}, // of what clone has made
		{"move devices", func() error { return k.moveDevices(taken) }},
		{"hand root over", k.hand},
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

// receive takes the mounts that the child has made.
func (k *creation) receive() (err error) {
	k.mounts, err = k.await(len(k.made))
	for _, fd := range k.mounts {
		k.fds.add(fd)
	}
	return err
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
	name := fmt.Sprintf("/proc/%d/ns/net", k.proc.pid)
	ns, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	k.fds.add(ns)
	back, err := netdev.Move(devices, ns)
	if err != nil {
		return err
	}
	taken.Add(func() { _ = back() })
	return nil
}

// reachGate waits until the child stands at its gate.
func (k *creation) reachGate() error {
	if k.plan.notify() {
		// The filter is there before the gate: from now on the child only reads.
		if err := k.handListener(k.c, specs.StateCreating); err != nil {
			return err
		}
	} else if _, err := k.await(0); err != nil {
		return err
	}
	return setOOMScore(k.proc.pid, k.cfg.Spec.Process.OOMScoreAdj)
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
	taken.Add(c.ns.close)
	if c.host, err = hostCgroups(); err != nil {
		return fmt.Errorf("find cgroups: %w", err)
	}
	if c.group, err = c.host.New(cgroupPath(k.cfg), spec.Linux.Resources); err != nil {
		return err
	}
	taken.Add(func() { c.group.Remove() })
	if k.joins, err = c.group.Joins(); err != nil {
		return err
	}
	taken.Add(func() { k.joins.Close() })
	k.parts = assembly{
		spec: withMounts(spec, k.cfg.Rootfs), uids: c.ns.uids, gids: c.ns.gids, host: c.host, group: c.group, root: -1, devpts: -1,
		own: c.ns.all(), ordered: k.cfg.Ordered, chrooted: c.ns.chrooted,
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
	inherited = append(inherited, procs)
	childEnd, err := k.newLaunching(append(inherited, files.inherited()...), taken)
	if err != nil {
		return err
	}
	taken.Add(k.abort)
	k.keepFiles(files)
	k.inheritance(std, procs)
	if err = k.namespaces(); err == nil {
		err = k.launching.clone(ns.cloneFlags(), pidOf(ns), into, ns.secondClone())
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
	child := k.proc
	if child == nil {
		child = k.middle
	}
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
	if ns.pid == nil || ns.secondClone() {
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

// inheritance places the descriptors and joins the cgroups: all of them but
// the cpu group, for from then on the child runs at the container's share.
func (k *creation) inheritance(std [3]int, procs int) {
	tasks := k.joins.Tasks
	if n := len(tasks); n > 0 {
		k.childCPU = k.keep(int(tasks[n-1].Fd()))
		tasks = tasks[:n-1]
	}
	if k.template >= 0 {
		k.childTemplate = k.keep(k.template)
	}
	if k.procfs >= 0 {
		k.childProcfs = k.keep(k.procfs)
	}
	k.stdio(std)
	for _, f := range tasks {
		k.join(f.Fd(), f.Name())
	}
	if procs >= 0 {
		k.join(uintptr(procs), k.joins.Into.Name())
	}
}

// namespaces appends the part of the program that enters the namespaces and
// makes in them what only their member can make.
func (k *creation) namespaces() error {
	ns, spec := k.c.ns, k.cfg.Spec
	procfs := uintptr(k.childProcfs)
	if ns.fresh&unix.CLONE_NEWUSER != 0 && !ns.userLate() {
		k.wait(0) // for the id maps
		k.becomeRoot()
	}
	k.enter(ns, spec.Linux.TimeOffsets, procfs)
	if ns.fresh&unix.CLONE_NEWCGROUP != 0 && k.childCPU == 0 {
		k.do("create cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
	if ns.fresh&unix.CLONE_NEWNET != 0 {
		k.loopback()
	}
	if err := k.hostNames(ns.all(), spec.Hostname, spec.Domainname); err != nil {
		return err
	}
	if err := k.sysctls(spec.Linux.Sysctl, ns.all(), procfs); err != nil {
		return err
	}
	mounts := make([]uintptr, 0, len(k.made))
	for _, s := range k.made {
		src := s.spec.Source
		if src == "" {
			src = s.spec.Type
		}
		mounts = append(mounts, k.newMount(s.spec.Type, src, s.spec.Destination, s.opts.data, 0))
	}
	k.send(mounts...)
	if len(mounts) > 0 {
		k.do("close mounts", unix.SYS_CLOSE_RANGE, firstFree, uintptr(k.next-1), 0)
		k.next = firstFree
	}
	if k.template >= 0 {
		k.do("enter template mount namespace", unix.SYS_SETNS, uintptr(k.childTemplate), unix.CLONE_NEWNS)
		k.do("copy template mount namespace", unix.SYS_UNSHARE, unix.CLONE_NEWNS)
		k.do("close", unix.SYS_CLOSE, uintptr(k.childTemplate))
	}
	k.wait(k.handed())
	return nil
}

// hostNames appends host and domain name; the host's own must stay.
func (b *builder) hostNames(own uintptr, host, domain string) error {
	for _, n := range []struct {
		field, value string
		nr           uintptr
	}{{"hostname", host, unix.SYS_SETHOSTNAME}, {"domainname", domain, unix.SYS_SETDOMAINNAME}} {
		if n.value == "" {
			continue
		}
		if own&unix.CLONE_NEWUTS == 0 {
			return fmt.Errorf("%s: the container shares the host's UTS namespace: %w", n.field, unix.EPERM)
		}
		b.do("set "+n.field, n.nr, b.str(n.value), uintptr(len(n.value)))
	}
	return nil
}

// handed is the number of descriptors the child gets: its root, its terminal
// and the mounts it makes read-only.
func (k *creation) handed() int {
	n := 1 + len(k.parts.lateSources())
	if k.cfg.Spec.Process.Terminal {
		n++
	}
	return n
}

// complete mounts the root and writes the rest of the program, while the child
// is busy with its first part.
func (k *creation) complete() (err error) {
	m, _ := rootMounts(k.cfg.Rootfs)
	if k.parts.root, err = mountRoot(m, rootDir(k.cfg)); err != nil {
		return err
	}
	k.c.root = k.parts.root
	spec := k.cfg.Spec
	home := func(uid uint32) string { return homeOf(k.parts.root, uid) }
	k.plan, err = newPlan(spec.Process, planContext{
		userNS: k.c.ns.userNS(), filter: k.c.filter, persona: spec.Linux.Personality, memory: spec.Linux.MemoryPolicy, home: home,
	})
	if err != nil {
		return err
	}
	k.c.noteCaps(k.plan)
	k.attachRoot()
	if err := k.propagate(); err != nil {
		return err
	}
	k.changeLate()
	k.do("become session leader", unix.SYS_SETSID)
	if k.plan.terminal {
		slave := uintptr(firstFree + 1)
		for i := range uintptr(3) {
			k.do("place terminal", unix.SYS_DUP3, slave, i, 0)
		}
		k.do("take controlling terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	k.do("close root", unix.SYS_CLOSE_RANGE, firstFree, uintptr(k.next-1), 0)
	k.next = firstFree
	if k.childCPU != 0 {
		k.join(uintptr(k.childCPU), "cpu")
		k.do("close", unix.SYS_CLOSE, uintptr(k.childCPU))
		if k.c.ns.fresh&unix.CLONE_NEWCGROUP != 0 {
			k.do("create cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
		}
	}
	wait, last := k.gate, step(nil)
	if k.plan.notify() {
		wait, last = nil, k.plainGate
	}
	k.finish(k.plan, uintptr(k.childProcfs), wait, last)
	if k.fifo != nil {
		if err := k.fifo.record(k.builder, k.plan.args[0]); err != nil {
			return err
		}
	}
	return k.extend()
}

// gate appends the gate, at which the child reports.
func (k *creation) gate(b *builder) {
	b.send()
	if k.fifo != nil {
		k.fifo.wait(b)
	} else {
		b.wait(0)
	}
}

// plainGate is the gate behind a filter that an agent has a say in.
func (k *creation) plainGate(b *builder) {
	if k.fifo != nil {
		k.fifo.wait(b)
	} else {
		b.waitPlain()
	}
}

// attachRoot appends the change to the container's root, which the child has
// just got as its lowest free descriptor. In a template namespace nothing lies
// below it, so that a change of root is enough; else the host's tree goes. In a
// namespace that is not the container's nothing is attached or changed.
func (k *creation) attachRoot() {
	const root = firstFree
	if k.c.ns.chrooted {
		if hasRootHooks(k.cfg.Spec.Hooks) {
			k.send()
			k.wait(0)
		}
		k.do("enter root", unix.SYS_FCHDIR, root)
		k.do("change root", unix.SYS_CHROOT, k.str("."))
		return
	}
	place := "/"
	if hasRootHooks(k.cfg.Spec.Hooks) {
		place = rootDir(k.cfg)
	}
	if k.template < 0 {
		k.do("make mounts private", unix.SYS_MOUNT, 0, k.str("/"), 0, unix.MS_REC|unix.MS_PRIVATE, 0)
	}
	k.add(opName{"attach root at", place}, 0, unix.SYS_MOVE_MOUNT, root, k.str(""), atCWD, k.str(place), unix.MOVE_MOUNT_F_EMPTY_PATH)
	if place != "/" {
		k.send()
		k.wait(0) // for the hooks
	}
	k.do("enter root", unix.SYS_FCHDIR, root)
	if k.template >= 0 {
		k.do("change root", unix.SYS_CHROOT, k.str("."))
		return
	}
	k.do("pivot root", unix.SYS_PIVOT_ROOT, k.str("."), k.str("."))
	k.do("detach host's mounts", unix.SYS_UMOUNT2, k.str("."), unix.MNT_DETACH)
	k.do("enter root", unix.SYS_CHDIR, k.str("/"))
}

// changeLate appends what only a member of the mount namespace may do.
func (k *creation) changeLate() {
	late := k.parts.lateSources()
	for i, s := range late {
		fd := uintptr(k.next - len(late) + i)
		change := func(verb string, flags, set, propagation uintptr) {
			k.add(opName{verb, s.spec.Destination}, 0, unix.SYS_MOUNT_SETATTR, fd, k.str(""), unix.AT_EMPTY_PATH|flags,
				k.words(set, 0, propagation, 0), unix.MOUNT_ATTR_SIZE_VER0)
		}
		if s.opts.readOnly() && !s.opts.bind {
			change("make read-only", 0, unix.MOUNT_ATTR_RDONLY, 0)
		}
		if s.opts.unbindable() {
			recursive := uintptr(0)
			if s.opts.recPropagation {
				recursive = unix.AT_RECURSIVE
			}
			change("make unbindable", recursive, 0, unix.MS_UNBINDABLE)
		}
	}
}

// propagate appends the root's propagation, once it is the root: a shared mount
// cannot become that. The tree is private, so that there is nothing to be a
// slave of; mounts that are slaves of the host's were made so one by one.
func (k *creation) propagate() error {
	mode, rec, err := propagationMode(k.cfg.Spec.Linux.RootfsPropagation)
	if err != nil || k.c.ns.chrooted || mode == 0 || mode == unix.MS_SLAVE || mode == unix.MS_PRIVATE {
		return err
	}
	flags := uintptr(mode)
	if rec {
		flags |= unix.MS_REC
	}
	k.do("set propagation of the root", unix.SYS_MOUNT, 0, k.str("/"), 0, flags, 0)
	return nil
}

// hand completes the root with the child's mounts and gives it to the child.
func (k *creation) hand() error {
	a, c := &k.parts, k.c
	c.init = k.proc
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
		k.proc.console = console
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
		if give[1], err = reopenConsole(a.devpts, k.proc.console); err != nil {
			return err
		}
		k.fds.add(give[1])
	}
	if k.cfg.Spec.Root != nil && k.cfg.Spec.Root.Readonly {
		if err := setAttr(c.root, unix.MOUNT_ATTR_RDONLY, 0, 0, false); err != nil {
			return fmt.Errorf("make the root read-only: %w", err)
		}
	}
	for _, s := range a.lateSources() {
		give = append(give, s.fd)
	}
	if a.devpts >= 0 {
		c.devpts = a.fds.forget(a.devpts)
	}
	if err := preRaise(k); err != nil {
		return err
	}
	if err := k.pass(give...); err != nil {
		return err
	}
	return k.rootHooks()
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
		if err := unix.Prlimit(k.proc.pid, l.resource, &unix.Rlimit{Cur: l.soft, Max: l.hard}, nil); err != nil {
			return fmt.Errorf("raise %s: %w", l.name, err)
		}
	}
	return nil
}
