package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/internal/systemd"
	"github.com/longshore/longshore/internal/undo"
)

// SandboxConfig describes a pod's namespaces.
type SandboxConfig struct {
	// Dir exists, on a tmpfs of the host's mount namespace. The namespaces are
	// pinned below it as files net, ipc, uts, pid and user; shm is a tmpfs.
	Dir string
	// Which namespaces to make. NewPID makes the pod's first process as well.
	NewNet, NewIPC, NewUTS, NewPID bool
	// Not empty: a user namespace that owns the others.
	UIDMappings, GIDMappings []specs.LinuxIDMapping
	// Hostname and Domainname need NewUTS; empty leaves the host's.
	Hostname, Domainname string
	// Sysctls are of the new namespaces only.
	Sysctls map[string]string
	// CgroupPath is the group of the first process; without one it is unused.
	CgroupPath string
	// Scope has systemd make CgroupPath, which then is the scope's: nobody else
	// may make cgroups below its slices. A scope lasts as long as it has a
	// process, so the pod has a first process, whether or not with NewPID; the
	// PID is that of this one.
	Scope *systemd.Scope
	// ShmSize is the size of shm in bytes; 0 makes none.
	ShmSize int64
	// MountLabel is SELinux's label of shm, "" for the kernel's choice.
	MountLabel string
}

// pinned are the namespaces of a sandbox by the names of their files.
var pinned = [...]struct {
	name string
	flag uintptr
}{
	{"user", unix.CLONE_NEWUSER}, {"net", unix.CLONE_NEWNET}, {"ipc", unix.CLONE_NEWIPC},
	{"uts", unix.CLONE_NEWUTS}, {"pid", unix.CLONE_NEWPID},
}

// CreateSandbox makes the namespaces of a pod, with the loopback device up,
// and pins them. With NewPID or Scope it gives the id of the pod's first process: a
// launch program that never calls execve, ignores SIGCHLD, so that the kernel
// reaps its orphans, and waits for ever. It outlives this process, has no
// capabilities, no file but its streams and an empty root. A caller that
// outlives it reaps it. On an error nothing is left behind.
func CreateSandbox(cfg SandboxConfig) (initPid int, err error) {
	for _, p := range pinned {
		if path := filepath.Join(cfg.Dir, p.name); unix.Access(path, unix.F_OK) == nil {
			return 0, fmt.Errorf("create sandbox in %s: %s: %w", cfg.Dir, p.name, unix.EEXIST)
		}
	}
	var taken undo.Stack
	defer taken.Run()
	taken.Add(func() { RemoveSandbox(cfg.Dir) })
	if initPid, err = createSandbox(&cfg); err != nil {
		return 0, fmt.Errorf("create sandbox in %s: %w", cfg.Dir, err)
	}
	taken.Keep()
	return initPid, nil
}

func createSandbox(cfg *SandboxConfig) (int, error) {
	s := sandbox{cfg: cfg}
	for _, ns := range []struct {
		want bool
		flag uintptr
	}{
		{cfg.NewNet, unix.CLONE_NEWNET}, {cfg.NewIPC, unix.CLONE_NEWIPC}, {cfg.NewUTS, unix.CLONE_NEWUTS},
		{cfg.NewPID, unix.CLONE_NEWPID}, {len(cfg.UIDMappings)+len(cfg.GIDMappings) > 0, unix.CLONE_NEWUSER},
	} {
		if ns.want {
			s.flags |= ns.flag
		}
	}
	defer s.fds.closeAll()
	if cfg.ShmSize > 0 {
		if err := s.shm(); err != nil {
			return 0, fmt.Errorf("mount shm: %w", err)
		}
	}
	if s.flags == 0 && !s.keeper() {
		if len(cfg.Sysctls) > 0 || cfg.Hostname != "" || cfg.Domainname != "" {
			return 0, fmt.Errorf("settings of a sandbox without namespaces: %w", unix.EINVAL)
		}
		return 0, nil
	}
	var taken undo.Stack
	defer taken.Run()
	if err := s.launch(&taken); err != nil {
		return 0, err
	}
	if cfg.Scope != nil {
		if err := s.enterScope(&taken); err != nil {
			return 0, err
		}
	}
	if err := s.pin(); err != nil {
		return 0, err
	}
	if !s.keeper() {
		return 0, nil // the process was there to make the namespaces
	}
	if err := s.link.open(); err != nil {
		return 0, s.left()
	}
	if _, err := s.link.await(0); !errors.Is(err, errLeft) || s.failureError() != nil {
		return 0, errors.Join(s.failureError(), err)
	}
	taken.Keep()
	pid := s.proc.pid
	s.proc.pidfd.Close()
	s.link.close()
	s.free()
	return pid, nil
}

// sandbox is one being made.
type sandbox struct {
	*launching
	cfg   *SandboxConfig
	flags uintptr
	fds   fdList
}

// keeper says whether the process stays.
func (s *sandbox) keeper() bool { return s.cfg.NewPID || s.cfg.Scope != nil }

// enterScope has systemd put the process into a scope, and puts it into a
// group of its own there: the containers' are beside it.
func (s *sandbox) enterScope(taken *undo.Stack) error {
	scope := *s.cfg.Scope
	scope.PID = s.proc.pid
	if err := systemd.StartScope(context.Background(), scope); err != nil {
		return err
	}
	taken.Add(func() { _ = systemd.StopScope(context.Background(), scope.Name) }) // the first error is told
	host, err := cgroup.Detect()
	if err != nil {
		return err
	}
	if host.Mode != cgroup.V2 {
		return nil
	}
	group, err := host.New(s.cfg.CgroupPath+keeperGroup, nil)
	if err != nil {
		return err
	}
	return group.Add(s.proc.pid)
}

// keeperGroup is the group of the first process: containers may have groups
// beside it, and cgroup2 hands no controller down from a group that has
// processes.
const keeperGroup = "/init"

// shm mounts the pod's shared memory.
func (s *sandbox) shm() error {
	dir := filepath.Join(s.cfg.Dir, "shm")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	options := []string{"mode=1777", "size=" + strconv.FormatInt(s.cfg.ShmSize, 10)}
	if uid, ok := hostID(s.cfg.UIDMappings, 0); ok && uid != 0 {
		options = append(options, "uid="+strconv.FormatUint(uint64(uid), 10))
	}
	if gid, ok := hostID(s.cfg.GIDMappings, 0); ok && gid != 0 {
		options = append(options, "gid="+strconv.FormatUint(uint64(gid), 10))
	}
	mount, err := newFilesystem("tmpfs", "shm", options, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	if s.cfg.MountLabel != "" {
		// Not as an option: containers of the pod may have other labels.
		if err := setLabel(mount, s.cfg.MountLabel); err != nil {
			return err
		}
	}
	return unix.MoveMount(mount, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// launch starts the process that is born into the namespaces and sets them up.
func (s *sandbox) launch(taken *undo.Stack) error {
	cfg := s.cfg
	std, err := streams(Stdio{}, 0, &s.fds)
	if err != nil {
		return err
	}
	procfs, err := newFilesystem("proc", "proc", nil, 0)
	if err != nil {
		return fmt.Errorf("mount private procfs: %w", err)
	}
	inherited := append(std[:], s.fds.add(procfs))
	empty := -1
	joins := &cgroup.Joins{}
	if s.keeper() {
		empty, err = newFilesystem("tmpfs", "none", emptyOptions, emptyAttrs)
		if err != nil {
			return fmt.Errorf("mount empty root: %w", err)
		}
		inherited = append(inherited, s.fds.add(empty))
	}
	if cfg.NewPID && cfg.Scope == nil {
		if joins, err = sandboxJoins(cfg.CgroupPath); err != nil {
			return err
		}
		defer joins.Close()
	}
	into := -1
	for _, f := range joins.Tasks {
		inherited = append(inherited, int(f.Fd()))
	}
	if joins.Into != nil {
		into = int(joins.Into.Fd())
	}
	var childEnd int
	if s.launching, childEnd, err = newLaunching(false, inherited); err != nil {
		return err
	}
	taken.Add(s.abort)
	if err = s.program(std, procfs, empty, joins); err == nil {
		flags := s.flags
		if s.keeper() {
			flags |= unix.CLONE_NEWNS
		}
		err = s.launching.clone(flags, -1, into, false)
	}
	unix.Close(childEnd)
	if err != nil {
		return err
	}
	if s.flags&unix.CLONE_NEWUSER != 0 {
		if err := writeIDMaps(s.proc.pid, cfg.UIDMappings, cfg.GIDMappings); err != nil {
			return err
		}
		if err := s.link.open(); err != nil {
			return s.left()
		}
	}
	_, err = s.await(0)
	return err
}

func sandboxJoins(path string) (*cgroup.Joins, error) {
	if path == "" {
		return &cgroup.Joins{}, nil
	}
	host, err := cgroup.Detect()
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	if host.Mode == cgroup.V2 {
		path += keeperGroup
	}
	group, err := host.New(path, nil)
	if err != nil {
		return nil, err
	}
	return group.Joins()
}

// program writes what the process does.
func (s *sandbox) program(std [3]int, procfs, empty int, joins *cgroup.Joins) error {
	cfg := s.cfg
	proc := s.keep(procfs)
	root := 0
	if empty >= 0 {
		root = s.keep(empty)
	}
	s.stdio(std)
	for _, f := range joins.Tasks {
		s.join(f.Fd(), f.Name())
	}
	s.closeOthers()
	if s.flags&unix.CLONE_NEWUSER != 0 {
		s.wait(0)
		s.becomeRoot()
	}
	if err := s.hostNames(s.flags, cfg.Hostname, cfg.Domainname); err != nil {
		return err
	}
	if err := s.sysctls(cfg.Sysctls, s.flags, uintptr(proc)); err != nil {
		return err
	}
	s.do("close procfs", unix.SYS_CLOSE, uintptr(proc))
	if cfg.NewNet {
		s.loopback()
	}
	if s.keeper() {
		s.confine(uintptr(root))
	}
	s.send()
	s.wait(0)
	if s.keeper() {
		s.do("close", unix.SYS_CLOSE, uintptr(s.sock))
		s.add(opName{"pause", ""}, opRetry, unix.SYS_PPOLL, 0, 0, 0, 0, 0)
	}
	return s.err
}

// confine appends the loss of all that containers in the same pid namespace
// could gain from the process: its root becomes an empty filesystem, and its
// capabilities go.
func (s *sandbox) confine(root uintptr) {
	s.emptyRoot(root)
	s.do("become session leader", unix.SYS_SETSID)
	s.do("set name", unix.SYS_PRCTL, unix.PR_SET_NAME, s.str("pause"), 0, 0, 0)
	const ignore = 1 // SIG_IGN
	s.do("ignore SIGCHLD", unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), s.words(ignore, 0, 0, 0), 0, 8)
	s.raiseAmbient(0)
	s.capset(0, 0, 0)
	s.do("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// emptyOptions and emptyAttrs are of an empty filesystem that serves as a root.
var emptyOptions = []string{"size=4k", "nr_inodes=2", "mode=555"}

const emptyAttrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// emptyRoot appends making a detached mount all that there is in the mount
// namespace, and closes it.
func (b *builder) emptyRoot(root uintptr) {
	b.do("make mounts private", unix.SYS_MOUNT, 0, b.str("/"), 0, unix.MS_REC|unix.MS_PRIVATE, 0)
	b.do("attach root", unix.SYS_MOVE_MOUNT, root, b.str(""), atCWD, b.str("/"), unix.MOVE_MOUNT_F_EMPTY_PATH)
	b.do("enter root", unix.SYS_FCHDIR, root)
	b.do("pivot root", unix.SYS_PIVOT_ROOT, b.str("."), b.str("."))
	b.do("detach host's mounts", unix.SYS_UMOUNT2, b.str("."), unix.MNT_DETACH)
	b.do("enter root", unix.SYS_CHDIR, b.str("/"))
	b.do("close root", unix.SYS_CLOSE, root)
}

// pin shows each namespace as a file of Dir.
func (s *sandbox) pin() error {
	for _, p := range pinned {
		if s.flags&p.flag == 0 {
			continue
		}
		if err := s.pinOne(p.name); err != nil {
			return fmt.Errorf("pin %s namespace: %w", p.name, err)
		}
	}
	return nil
}

func (s *sandbox) pinOne(name string) error {
	ns, err := unix.Open("/proc/"+strconv.Itoa(s.proc.pid)+"/ns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	path := filepath.Join(s.cfg.Dir, name)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	file.Close()
	return pin(ns, path)
}

// RemoveSandbox unpins the namespaces of a pod and unmounts its shm. The
// directory stays. What is gone already is no error.
func RemoveSandbox(dir string) error {
	var errs []error
	for _, p := range pinned {
		errs = append(errs, unpin(filepath.Join(dir, p.name)))
	}
	shm := filepath.Join(dir, "shm")
	if err := unix.Unmount(shm, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		errs = append(errs, &os.PathError{Op: "unmount", Path: shm, Err: err})
	}
	if err := unix.Rmdir(shm); err != nil && err != unix.ENOENT {
		errs = append(errs, &os.PathError{Op: "remove", Path: shm, Err: err})
	}
	return errors.Join(errs...)
}
