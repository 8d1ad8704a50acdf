package launch

import (
	"fmt"

	"golang.org/x/sys/unix"
)

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
	if ns.fresh&unix.CLONE_NEWCGROUP != 0 && len(k.rest.Trees) == 0 {
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

// handed is the number of descriptors the child gets: its root, its terminal,
// the mounts it makes read-only, and ways into the rest of its cgroup.
func (k *creation) handed() int {
	n := 1 + len(k.parts.lateSources()) + len(k.rest.Trees)
	if k.cfg.Spec.Process.Terminal {
		n++
	}
	return n
}

// complete mounts the root and writes the rest of the program, while the child
// is busy with its first part.
func (k *creation) complete() (err error) {
	m, _ := rootMounts(k.cfg.Rootfs)
	mode, _, err := propagationMode(k.cfg.Spec.Linux.RootfsPropagation)
	if err != nil {
		return err
	}
	if k.parts.root, err = mountRoot(m, rootDir(k.cfg), mode == unix.MS_SLAVE); err != nil {
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
	k.c.warn(k.plan.warnings...)
	k.c.noteCaps(k.plan)
	if err := k.afterRoot(); err != nil {
		return err
	}
	if k.fifo != nil {
		if err := k.fifo.record(k.builder, k.plan.args[0]); err != nil {
			return err
		}
	}
	return k.extend()
}

// afterRoot appends what the child does when it has its root.
func (k *creation) afterRoot() error {
	k.attachRoot()
	if err := k.propagate(); err != nil {
		return err
	}
	if err := k.changeLate(); err != nil {
		return err
	}
	if k.plan.terminal {
		slave := uintptr(firstFree + 1)
		for i := range uintptr(3) {
			k.do("place terminal", unix.SYS_DUP3, slave, i, 0)
		}
	}
	if k.late = k.c.ns.exposed; !k.late {
		k.session(k.plan.terminal)
	}
	k.joinRest()
	k.do("close root", unix.SYS_CLOSE_RANGE, firstFree, uintptr(k.next-1), 0)
	k.next = firstFree
	wait, last := k.gate, step(nil)
	switch {
	case k.plan.notify():
		wait, last = nil, k.plainGate
	case k.late && k.plan.filterBeforeBirth():
		wait = func(b *builder) {
			b.report()
			k.plainGate(b)
		}
	}
	k.finish(k.plan, uintptr(k.childProcfs), wait, last)
	return nil
}

// joinRest appends joining the groups that were made meanwhile, by the last of
// the descriptors that were handed over; the cpu group is the last, for from then
// on the child runs at the container's share.
func (k *creation) joinRest() {
	tasks := k.joins.Tasks
	for i, f := range tasks {
		k.join(uintptr(k.next-len(tasks)+i), f.Name())
	}
	if len(tasks) > 0 && k.c.ns.fresh&unix.CLONE_NEWCGROUP != 0 {
		k.do("create cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
}

// gate appends the gate, at which the child reports.
func (k *creation) gate(b *builder) {
	if k.fifo == nil {
		b.send()
		b.wait(0)
		return
	}
	k.lookUp(b)
	b.send()
	k.fifo.wait(b)
}

// lookUp appends looking for the command as the container's user. Callers of
// an OCI runtime expect create to say that there is none, and Podman has no
// other chance to see why.
func (k *creation) lookUp(b *builder) {
	for _, file := range k.plan.candidates() {
		// faccessat2 is of Linux 5.8.
		op := b.add(opName{"look up", file}, opIgnore, unix.SYS_FACCESSAT2, atCWD, b.str(file), unix.X_OK, unix.AT_EACCESS)
		k.lookedUp = append(k.lookedUp, op)
	}
}

// found says, once the child is at its gate, that it has found the command. Only
// what the lookups agree upon is an error: execve decides.
func (k *creation) found() error {
	best := unix.ENOENT
	for _, op := range k.lookedUp {
		switch _, errno := k.result(op); errno {
		case unix.ENOENT, unix.ENOTDIR:
		case unix.EACCES:
			best = errno
		default:
			return nil
		}
	}
	if len(k.lookedUp) == 0 {
		return nil
	}
	return commandError(k.plan.args[0], best)
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
func (k *creation) changeLate() error {
	late := k.parts.lateSources()
	change := k.setAttr
	if len(late) > 0 && !hasMountSetattr() {
		change = k.remount
	}
	for i, s := range late {
		fd := uintptr(k.next - len(k.joins.Tasks) - len(late) + i)
		if s.opts.readOnly() && !s.opts.bind {
			if err := change(fd, s, &mountChange{set: unix.MOUNT_ATTR_RDONLY}); err != nil {
				return err
			}
		}
		if s.opts.unbindable() {
			if err := change(fd, s, &mountChange{propagation: unix.MS_UNBINDABLE, recursive: s.opts.recPropagation}); err != nil {
				return err
			}
		}
	}
	return nil
}

func lateName(s *source, c *mountChange) opName {
	if c.propagation != 0 {
		return opName{"make unbindable", s.spec.Destination}
	}
	return opName{"make read-only", s.spec.Destination}
}

func (k *creation) setAttr(fd uintptr, s *source, c *mountChange) error {
	flags := uintptr(unix.AT_EMPTY_PATH)
	if c.recursive {
		flags |= unix.AT_RECURSIVE
	}
	k.add(lateName(s, c), 0, unix.SYS_MOUNT_SETATTR, fd, k.str(""), flags,
		k.words(uintptr(c.set), 0, uintptr(c.propagation), 0), unix.MOUNT_ATTR_SIZE_VER0)
	return nil
}

// remount is setAttr for kernels before 5.12. It goes by the working directory,
// which the end of the program sets anyway: there is no procfs to name fd by.
func (k *creation) remount(fd uintptr, s *source, c *mountChange) error {
	if s.file {
		return fmt.Errorf("%s at %s, a file, needs mount_setattr of Linux 5.12: %w", lateName(s, c).verb, s.spec.Destination, unix.ENOSYS)
	}
	flags := uintptr(c.propagation)
	if c.recursive {
		flags |= unix.MS_REC
	}
	if c.set != 0 {
		flags = unix.MS_REMOUNT | unix.MS_BIND | remountFlags(unix.ST_RELATIME, s.opts.set|s.opts.recSet|c.set, s.opts.clear|s.opts.recClear)
	}
	k.add(opName{"enter", s.spec.Destination}, 0, unix.SYS_FCHDIR, fd)
	k.add(lateName(s, c), 0, unix.SYS_MOUNT, 0, k.str("."), 0, flags, 0)
	return nil
}

// propagate appends the root's propagation, once it is the root: a shared mount
// cannot become that. What is a slave of the host's was made so one by one, the
// root by mountRoot: a tree that is mounted for the container has no master.
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
