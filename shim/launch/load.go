package launch

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/internal/safepath"
)

// Load takes up a container that another process created with [Config.Gate].
// pid is its first process, which started at the given time (see
// [Process.StartTime]); if that has ended, or pid is somebody else's by now, the
// container counts as ended. Its processes are no children of this one, so
// that [Process.Wait] is not for them. Of cfg only ID, Bundle, Spec, Gate,
// Filter and Warn count.
func Load(cfg Config, pid int, started uint64) (*Container, error) {
	if cfg.Spec == nil || cfg.Spec.Linux == nil {
		return nil, fmt.Errorf("load container %s: linux: %w", cfg.ID, errMissing)
	}
	c := &Container{id: cfg.ID, bundle: cfg.Bundle, spec: cfg.Spec, gate: cfg.Gate, warnTo: cfg.Warn, filter: cfg.Filter, root: -1, devpts: -1}
	var err error
	if c.host, err = cgroup.Detect(); err != nil {
		return nil, fmt.Errorf("load container %s: find cgroups: %w", cfg.ID, err)
	}
	c.group = c.host.Load(cgroupPath(&cfg))
	if c.init, err = FindProcess(pid, started); err != nil {
		return nil, fmt.Errorf("load container %s: %w", cfg.ID, err)
	}
	if c.ns, err = namespacesOf(c.init.Pid(), cfg.Spec.Linux); err != nil {
		return nil, fmt.Errorf("load container %s: %w", cfg.ID, err)
	}
	// What other processes were given is not known here.
	c.mayTrace.Store(true)
	return c, nil
}

// FindProcess opens the process pid if it started at the given time. If there
// is none any more, the process it gives has id 0 and counts as ended.
func FindProcess(pid int, started uint64) (*Process, error) {
	gone := &Process{}
	if pid <= 0 {
		return gone, nil
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return gone, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := newProcess(pid, fd)
	// The order matters: what the time is read of is what the pidfd holds, or
	// that one is gone.
	now, err := p.StartTime()
	if err == nil && now == started && !p.exited() {
		return p, nil
	}
	p.pidfd.Close()
	if err != nil && !processGone(err) {
		return nil, err // that we cannot look does not mean that it has ended
	}
	return gone, nil
}

// processGone says of an error in procfs that there is no such process any more.
func processGone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) }

// Ended says whether the process has ended, reaped or not.
func (p *Process) Ended() bool { return p.exited() }

// WaitEnd returns when the process, which need not be a child, has ended, or
// after timeout with an error that wraps [os.ErrDeadlineExceeded]. It does not
// reap.
func (p *Process) WaitEnd(timeout time.Duration) error {
	return p.waitOnThread(time.Now().Add(timeout))
}

// waitOnThread waits until a time, the zero one being none.
func (p *Process) waitOnThread(late time.Time) error {
	fd, err := p.dupPidfd()
	if errors.Is(err, unix.ESRCH) {
		return nil // ended before
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		left := -1
		if !late.IsZero() {
			left = int(max(0, time.Until(late).Milliseconds()))
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, left)
		switch {
		case err == unix.EINTR:
		case err != nil || n > 0:
			return err
		default:
			return fmt.Errorf("wait for the end of process %d: %w", p.pid, os.ErrDeadlineExceeded)
		}
	}
}

// StartTime is when the process started, in clock ticks since the host's boot:
// with the pid it names a process for as long as the host is up (proc(5), stat,
// field 22).
func (p *Process) StartTime() (uint64, error) {
	name := "/proc/" + strconv.Itoa(p.pid) + "/stat"
	data, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	return parseStartTime(data)
}

// parseStartTime reads field 22. The second field is a name in parentheses
// that may hold anything, parentheses too: count from the last one.
func parseStartTime(stat []byte) (uint64, error) {
	const after = 22 - 3 // fields behind the name begin with the third
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, fmt.Errorf("parse stat: %w", unix.EBADMSG)
	}
	fields := bytes.Fields(stat[end+1:])
	if len(fields) <= after {
		return 0, fmt.Errorf("parse stat: %w", unix.EBADMSG)
	}
	return strconv.ParseUint(string(fields[after]), 10, 64)
}

// namespacesOf describes the namespaces a process is in: which are not ours.
func namespacesOf(pid int, linux *specs.Linux) (*namespaces, error) {
	n := &namespaces{closed: true}
	if pid == 0 {
		return n, nil
	}
	dir := "/proc/" + strconv.Itoa(pid) + "/ns/"
	for _, kind := range []struct {
		file string
		flag uintptr
	}{
		{"cgroup", unix.CLONE_NEWCGROUP}, {"ipc", unix.CLONE_NEWIPC}, {"mnt", unix.CLONE_NEWNS}, {"net", unix.CLONE_NEWNET},
		{"pid", unix.CLONE_NEWPID}, {"time", cloneNewTime}, {"user", unix.CLONE_NEWUSER}, {"uts", unix.CLONE_NEWUTS},
	} {
		var theirs, ours unix.Stat_t
		if err := unix.Stat("/proc/self/ns/"+kind.file, &ours); err == unix.ENOENT {
			continue // a kernel without that kind
		} else if err != nil {
			return nil, &os.PathError{Op: "stat", Path: "/proc/self/ns/" + kind.file, Err: err}
		}
		switch err := unix.Stat(dir+kind.file, &theirs); {
		case processGone(err):
			return n, nil // it has ended; whoever uses the pidfd will see
		case err != nil:
			return nil, &os.PathError{Op: "stat", Path: dir + kind.file, Err: err}
		}
		if theirs.Ino != ours.Ino || theirs.Dev != ours.Dev {
			n.fresh |= kind.flag
		}
	}
	n.chrooted = !slices.ContainsFunc(linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.MountNamespace && ns.Path == ""
	})
	if n.userNS() {
		n.uids, n.gids = linux.UIDMappings, linux.GIDMappings
		if fd, err := unix.Open(dir+"pid", unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			n.exposed = n.fresh&unix.CLONE_NEWPID != 0 && ownedByUs(fd)
			unix.Close(fd)
		}
	}
	return n, nil
}

// reopen gets what an exec needs of a loaded container: its root, its devpts
// and its filter.
func (c *Container) reopen() (err error) {
	if c.filter == nil {
		if c.filter, err = compileFilter(c.spec); err != nil {
			return err
		}
	}
	name := "/proc/" + strconv.Itoa(c.init.Pid()) + "/root"
	root, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil && c.init.exited() {
		unix.Close(root)
		err = unix.ESRCH
	}
	if processGone(err) {
		return fmt.Errorf("container has ended: %w", unix.ESRCH)
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	c.root = root
	c.devpts, err = openDevpts(root, c.spec.Mounts)
	return err
}

// openDevpts finds the container's devpts where the spec mounted it; -1 if
// there is none. The container may have changed its tree since: what is there
// must be a devpts, and its errors are none of ours but for want of means.
func openDevpts(root int, mounts []specs.Mount) (int, error) {
	for _, m := range mounts {
		if m.Type != "devpts" {
			continue
		}
		fd, err := safepath.Open(root, path.Clean(m.Destination), unix.O_DIRECTORY|unix.O_RDONLY, 0)
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) {
			return -1, fmt.Errorf("open devpts: %w", err)
		}
		if err != nil {
			continue
		}
		var fs unix.Statfs_t
		if err := unix.Fstatfs(fd, &fs); err == nil && fs.Type == unix.DEVPTS_SUPER_MAGIC {
			return fd, nil
		}
		unix.Close(fd)
	}
	return -1, nil
}

// MountOptions lists the options of mounts that are not handed to the
// filesystem.
func MountOptions() []string {
	names := []string{"bind", "defaults", "idmap", "rbind", "remount", "ridmap", "tmpcopyup"}
	for _, o := range attrOptions {
		names = append(names, o.name, "r"+o.name)
	}
	for _, p := range []string{"private", "shared", "slave", "unbindable"} {
		names = append(names, p, "r"+p)
	}
	names = append(names, superOptions[:]...)
	slices.Sort(names)
	return names
}

// MemoryPolicies lists the modes and flags of memory policies.
func MemoryPolicies() (modes, flags []string) {
	for _, m := range memoryPolicies {
		modes = append(modes, string(m))
	}
	for _, f := range memoryFlags {
		flags = append(flags, string(f.name))
	}
	return modes, flags
}

// Capabilities lists the names of capabilities in the kernel's order.
func Capabilities() []string {
	names := make([]string, 0, len(capNames))
	for _, name := range capNames {
		names = append(names, "CAP_"+name)
	}
	return names
}
