package launch

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/internal/undo"
)

// lateJoins is the number of v1 groups an exec joins at the last moment: the
// cpu group, in which it runs at the container's share, and right before execve
// the memory group: when that runs out, the kernel could choose the child, and
// with it everyone who shares its memory.
const lateJoins = 2

// Exec starts a process in the running container: its namespaces, cgroup and
// root, with what p says of user, capabilities, limits, directory and
// environment. It returns once execve has happened. Errors are as those of
// [Container.Start]; a container that has ended gives one that wraps
// [unix.ESRCH].
func (c *Container) Exec(p *specs.Process, io Stdio) (*Process, error) {
	return c.ExecIn(p, io, nil)
}

// ExecIn is Exec into a child of the container's group, which the caller made
// and removes; nil is the container's own.
func (c *Container) ExecIn(p *specs.Process, io Stdio, group *cgroup.Group) (*Process, error) {
	proc, err := c.exec(p, "", io, group)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	return proc, nil
}

// exec runs file, or p's command if that is empty.
func (c *Container) exec(p *specs.Process, file string, io Stdio, group *cgroup.Group) (*Process, error) {
	root, devpts, err := c.roots()
	if err != nil {
		return nil, err
	}
	var fds fdList
	defer fds.closeAll()
	fds.add(root)
	pl, err := newPlan(p, planContext{
		exec: true, userNS: c.ns.userNS(), filter: c.filter, persona: c.spec.Linux.Personality, memory: c.spec.Linux.MemoryPolicy,
		home: func(uid uint32) string { return homeOf(root, uid) },
	})
	if err != nil {
		fds.add(devpts)
		return nil, err
	}
	pl.file = file
	c.noteCaps(pl)
	c.launches.RLock()
	defer c.launches.RUnlock()
	e := execution{c: c, fds: &fds, group: group, score: c.scoreOf(p)}
	var taken undo.Stack
	defer taken.Run()
	if err := e.streams(pl, io, fds.add(devpts), &taken); err != nil {
		return nil, err
	}
	if err := e.clone(pl, root, &taken); err != nil {
		return nil, err
	}
	if pl.notify() {
		if err := e.handListener(c, specs.StateRunning); err != nil {
			return nil, err
		}
	}
	if err := e.execed(); err != nil {
		return nil, c.endedOr(err)
	}
	if e.scoreErr != nil && scoreWarning(e.scoreErr) == nil {
		return nil, fmt.Errorf("write oom_score_adj: %w", e.scoreErr)
	}
	c.warn(append(pl.warnings, scoreWarning(e.scoreErr))...)
	taken.Keep()
	e.proc.console = e.console
	return e.proc, nil
}

// scoreOf is the oom_score_adj to write for a process run in the container, "" if
// it is that of this process, which a child has anyway, or none is asked for.
func (c *Container) scoreOf(p *specs.Process) string {
	score := p.OOMScoreAdj
	if score == nil {
		score = c.spec.Process.OOMScoreAdj
	}
	if score == nil || strconv.Itoa(*score) == ownScore() {
		return ""
	}
	return strconv.Itoa(*score)
}

// roots gives descriptors of the root and of devpts for one exec, so that
// Close may come in between.
func (c *Container) roots() (root, devpts int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return -1, -1, fmt.Errorf("container is closed: %w", unix.ESRCH)
	}
	if c.root < 0 {
		if err := c.reopen(); err != nil {
			return -1, -1, err
		}
	}
	if root, err = unix.FcntlInt(uintptr(c.root), unix.F_DUPFD_CLOEXEC, 3); err != nil {
		return -1, -1, err
	}
	devpts = -1
	if c.devpts >= 0 {
		if devpts, err = unix.FcntlInt(uintptr(c.devpts), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			unix.Close(root)
			return -1, -1, err
		}
	}
	return root, devpts, nil
}

// mayShareMemory says whether an exec's child may share this process's memory
// (CLONE_VM), which spares the copy of the page tables. Not so where
//   - the memory controller is on cgroup v2: the child is in the group from the
//     start, and an OOM kill of the group (memory.oom.group) would kill everyone
//     with that memory, unless this process is exempt, and so is the child;
//   - a process that sees the child may trace it, and so reach this process. In
//     a pid namespace shared with others nobody knows;
//   - a time namespace is to be joined: the kernel wants memory of its own;
//   - the child waits until an agent has its seccomp listener.
func (c *Container) mayShareMemory(tasks int, score string) bool {
	if kernel.noSharedMemory || c.filter != nil && c.filter.Notify || c.ns.all()&cloneNewTime != 0 {
		return false
	}
	if tasks < lateJoins && (score != "" || ownScore() != exemptScore) {
		return false
	}
	return !c.mayTraceChild() && (c.ns.userNS() || c.ns.fresh&unix.CLONE_NEWPID != 0)
}

// mayTraceChild says whether a process that sees a child born into the
// container's pid namespace may have CAP_SYS_PTRACE in our user namespace. See
// [namespaces.exposed] for what follows.
func (c *Container) mayTraceChild() bool {
	return c.ns.exposed || c.ns.all()&unix.CLONE_NEWPID != 0 && !c.ns.userNS() && c.mayTrace.Load()
}

// exemptScore is the oom_score_adj of a process that the kernel never kills for
// memory.
const exemptScore = "-1000"

// ownScore is this process's oom_score_adj; "" if it cannot be read.
func ownScore() string {
	var buf [16]byte
	score, err := readSmall("/proc/self/oom_score_adj", buf[:])
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(score))
}

// noteCaps remembers that a process of the container may trace others. Children
// for whom that has not been so are first seen off.
func (c *Container) noteCaps(pl *plan) {
	if pl.caps.bounding&(1<<unix.CAP_SYS_PTRACE) != 0 && !c.mayTrace.Load() {
		c.launches.Lock()
		c.mayTrace.Store(true)
		c.launches.Unlock()
	}
}

// execution is an exec under way.
type execution struct {
	*launching
	c       *Container
	group   *cgroup.Group // below the container's, or nil
	fds     *fdList
	score   string // oom_score_adj to write, or ""
	std     [3]int
	files   files
	classes []taskFile
	console *os.File
}

// taskFile takes a process that writes "0" to it into a group.
type taskFile struct {
	fd   int
	name string
}

// openClass opens the ways into the container's class of Intel's RDT, none if
// it names none.
func openClass(c *Container, fds *fdList) (all []taskFile, err error) {
	class, err := rdtClass(c.id, c.spec)
	if class == nil || err != nil {
		return nil, err
	}
	for _, name := range class.Tasks() {
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
		all = append(all, taskFile{fds.add(fd), name})
	}
	return all, nil
}

// streams opens the process's terminal or takes the caller's streams.
func (e *execution) streams(pl *plan, io Stdio, devpts int, taken *undo.Stack) (err error) {
	uid, _ := hostID(e.c.ns.uids, pl.user.UID)
	if e.files, err = moreFiles(io.Files, e.fds); err != nil {
		return err
	}
	if !pl.terminal {
		e.std, err = streams(io, uid, e.fds)
		return err
	}
	if devpts < 0 {
		return fmt.Errorf("process.terminal: the container has no devpts: %w", errMissing)
	}
	master, slave, err := openConsole(devpts, pl.size, uid)
	if err != nil {
		return err
	}
	taken.Add(func() { master.Close() })
	e.console = master
	e.fds.add(slave)
	e.std = [3]int{slave, slave, slave}
	return nil
}

// clone writes the program and starts the child.
func (e *execution) clone(pl *plan, root int, taken *undo.Stack) error {
	c := e.c
	joins, err := c.group.Joins()
	if err != nil {
		return err
	}
	defer joins.Close()
	if e.group != nil {
		if err := joins.Narrow(e.group); err != nil {
			return err
		}
	}
	pidfd, err := c.init.dupPidfd()
	if err != nil {
		return err
	}
	e.fds.add(pidfd)
	inherited := append(e.std[:], pidfd, root)
	inherited = append(inherited, e.files.inherited()...)
	for _, f := range joins.Tasks {
		inherited = append(inherited, int(f.Fd()))
	}
	if e.classes, err = openClass(c, e.fds); err != nil {
		return err
	}
	for _, f := range e.classes {
		inherited = append(inherited, f.fd)
	}
	procfs := -1
	if pl.apparmor != "" || pl.selinux != "" {
		if procfs, err = newFilesystem("proc", "proc", nil, 0); err != nil {
			return fmt.Errorf("mount private procfs: %w", err)
		}
		inherited = append(inherited, e.fds.add(procfs))
	}
	var childEnd int
	e.launching, childEnd, err = newLaunching(c.mayShareMemory(len(joins.Tasks), e.score), inherited)
	if err != nil {
		return err
	}
	e.plan = pl
	e.late = c.mayTraceChild()
	taken.Add(e.abort)
	into := -1
	if joins.Into != nil {
		into = int(joins.Into.Fd())
	}
	aside := e.write(joins, pidfd, root, procfs)
	pidNS := -1
	if c.ns.all()&unix.CLONE_NEWPID != 0 && !e.late && !aside {
		pidNS = pidfd
	}
	err = e.launching.clone(0, pidNS, into, e.late || aside)
	if errors.Is(err, unix.EBUSY) && e.group == nil {
		if err = joins.Follow(c.group, c.init.pid); err == nil {
			err = e.launching.clone(0, pidNS, int(joins.Into.Fd()), e.late || aside)
		}
	}
	unix.Close(childEnd)
	return c.endedOr(err)
}

// write writes the program. It says whether a first process stands aside.
func (e *execution) write(joins *cgroup.Joins, pidfd, root, procfs int) (aside bool) {
	if aside = e.private && e.score != ""; aside {
		e.standAside(pidfd)
	}
	e.writeScore()
	e.runOn(e.plan.affinity.initial)
	e.keepFiles(e.files)
	late := e.inheritance(joins, &procfs)
	e.member(pidfd, root)
	joinLate := func(i int, name string) step {
		if i < 0 || i >= len(late) {
			return nil
		}
		return func(b *builder) { b.join(uintptr(late[i]), name) }
	}
	e.finish(e.plan, uintptr(max(procfs, 0)), joinLate(len(late)-1, "cpu"), joinLate(len(late)-2, "memory"))
	return aside
}

// standAside appends a second clone after which the first process waits until the
// second has called execve (CLONE_VFORK). What is written to the oom_score_adj of
// a process that shares its memory otherwise is written to those of all that
// share it, which means us (Linux 4.8). The first one stays out of the container's
// pid namespace: killed there, it would wait no more.
func (e *execution) standAside(pidfd int) {
	if e.c.ns.all()&unix.CLONE_NEWPID != 0 {
		e.do("join pid namespace of the container", unix.SYS_SETNS, uintptr(pidfd), unix.CLONE_NEWPID)
	}
	e.secondClone(unix.CLONE_VM | unix.CLONE_VFORK)
}

// writeScore appends writing the process's oom_score_adj: before execve, since a
// program that forks at once hands on what it has, and before a user namespace is
// joined, from which it cannot be lowered; without CAP_SYS_RESOURCE it cannot be
// either, and the process runs without. That descriptor 0, which gets its
// stream only then, is closed makes it the one that open(2) gives.
func (e *execution) writeScore() {
	if e.score == "" {
		return
	}
	name := opName{"write oom_score_adj", e.score}
	e.add(name, opIgnore, unix.SYS_CLOSE, 0)
	e.add(name, 0, unix.SYS_OPENAT, atCWD, e.str("/proc/self/oom_score_adj"), unix.O_WRONLY|unix.O_CLOEXEC)
	e.scoring = e.add(name, opIgnore, unix.SYS_WRITE, 0, e.str(e.score), uintptr(len(e.score)))
}

// endedOr says of a failure that it is the container's end, if that has come: a
// pid namespace without its first process takes no other (ENOMEM).
func (c *Container) endedOr(err error) error {
	if err != nil && c.init.exited() && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("the container has ended: %w", unix.ESRCH)
	}
	return err
}

// inheritance places descriptors and joins the cgroups but for the last two,
// whose numbers in the child it gives.
func (e *execution) inheritance(joins *cgroup.Joins, procfs *int) (late []int) {
	if e.c.ns.userNS() {
		e.setRlimits(raised(e.plan.rlimits))
	}
	tasks := joins.Tasks
	for i := max(0, len(tasks)-lateJoins); i < len(tasks); i++ {
		late = append(late, e.keep(int(tasks[i].Fd())))
	}
	if *procfs >= 0 {
		*procfs = e.keep(*procfs)
	}
	e.stdio(e.std)
	for _, f := range tasks[:len(tasks)-len(late)] {
		e.join(f.Fd(), f.Name())
	}
	for _, f := range e.classes {
		e.join(uintptr(f.fd), f.name)
	}
	return late
}

// member appends becoming a member of the container: one setns(2) with the
// pidfd of its first process enters every namespace (Linux 5.8) but the pid
// namespace, in which the child was born, or will be after its last clone. The
// mount namespace brings the root with it, unless it is not the container's own.
func (e *execution) member(pidfd, root int) {
	ns := e.c.ns
	flags := ns.all()
	if !e.late {
		flags &^= unix.CLONE_NEWPID
	}
	if flags != 0 {
		e.do("join namespaces of the container", unix.SYS_SETNS, uintptr(pidfd), flags)
	}
	if ns.chrooted {
		e.do("enter root", unix.SYS_FCHDIR, uintptr(root))
		e.do("change root", unix.SYS_CHROOT, e.str("."))
	}
	e.closeOthers()
	if ns.userNS() {
		e.becomeRoot()
	}
	if !e.late {
		e.session(e.plan.terminal)
	}
}
