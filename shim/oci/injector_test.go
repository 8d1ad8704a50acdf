package oci

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A call is a system call that a command may fail at, and how.
type call struct {
	nr    uint32
	name  string
	errno unix.Errno
}

// removes says that what is left when it fails may be there until it is deleted by
// force: a failure of another step has others take back what was made.
func (c *call) removes() bool {
	return slices.Contains([]string{"unlinkat", "umount2", "pidfd_send_signal", "waitid"}, c.name)
}

// calls are those that make or change something, or that tell what there is. Left
// out are those without which Go's runtime gives up (mmap, futex, epoll_create1,
// eventfd2, the clone of a thread), and close, which does close when it fails.
var calls = []call{
	{unix.SYS_OPENAT, "openat", unix.EMFILE}, {unix.SYS_OPENAT2, "openat2", unix.ENFILE},
	{unix.SYS_MKDIRAT, "mkdirat", unix.ENOSPC}, {unix.SYS_MKNODAT, "mknodat", unix.ENOSPC},
	{unix.SYS_SYMLINKAT, "symlinkat", unix.ENOSPC}, {unix.SYS_LINKAT, "linkat", unix.ENOSPC},
	{unix.SYS_RENAMEAT, "renameat", unix.ENOSPC}, {unix.SYS_RENAMEAT2, "renameat2", unix.ENOSPC},
	{unix.SYS_FCHMOD, "fchmod", unix.EIO}, {unix.SYS_FCHMODAT, "fchmodat", unix.EIO},
	{unix.SYS_FCHOWN, "fchown", unix.EIO}, {unix.SYS_FCHOWNAT, "fchownat", unix.EIO},
	{unix.SYS_FTRUNCATE, "ftruncate", unix.ENOSPC}, {unix.SYS_WRITE, "write", unix.ENOSPC},
	{unix.SYS_READ, "read", unix.EIO}, {unix.SYS_GETDENTS64, "getdents64", unix.EIO},
	{unix.SYS_NEWFSTATAT, "newfstatat", unix.ENOMEM}, {unix.SYS_STATFS, "statfs", unix.EIO},
	{unix.SYS_READLINKAT, "readlinkat", unix.ENOMEM},
	{unix.SYS_FSOPEN, "fsopen", unix.ENOMEM}, {unix.SYS_FSCONFIG, "fsconfig", unix.ENOMEM},
	{unix.SYS_FSMOUNT, "fsmount", unix.EMFILE}, {unix.SYS_OPEN_TREE, "open_tree", unix.EMFILE},
	{unix.SYS_MOVE_MOUNT, "move_mount", unix.ENOSPC}, {unix.SYS_MOUNT_SETATTR, "mount_setattr", unix.EPERM},
	{unix.SYS_MOUNT, "mount", unix.ENOMEM}, {unix.SYS_PIVOT_ROOT, "pivot_root", unix.EPERM},
	{unix.SYS_CLONE, "clone", unix.EAGAIN}, {unix.SYS_CLONE3, "clone3", unix.EAGAIN},
	{unix.SYS_EXECVEAT, "execveat", unix.ENOMEM},
	{unix.SYS_SETNS, "setns", unix.ENOMEM}, {unix.SYS_UNSHARE, "unshare", unix.ENOSPC},
	{unix.SYS_SOCKETPAIR, "socketpair", unix.EMFILE}, {unix.SYS_SOCKET, "socket", unix.EMFILE},
	{unix.SYS_CONNECT, "connect", unix.ECONNREFUSED}, {unix.SYS_SETSOCKOPT, "setsockopt", unix.ENOMEM},
	{unix.SYS_SENDMSG, "sendmsg", unix.ENOBUFS}, {unix.SYS_RECVMSG, "recvmsg", unix.ENOMEM},
	{unix.SYS_PIPE2, "pipe2", unix.EMFILE}, {unix.SYS_MEMFD_CREATE, "memfd_create", unix.ENFILE},
	{unix.SYS_INOTIFY_INIT1, "inotify_init1", unix.EMFILE}, {unix.SYS_INOTIFY_ADD_WATCH, "inotify_add_watch", unix.ENOSPC},
	{unix.SYS_EPOLL_CTL, "epoll_ctl", unix.ENOSPC}, {unix.SYS_PIDFD_OPEN, "pidfd_open", unix.EMFILE},
	{unix.SYS_FLOCK, "flock", unix.ENOLCK}, {unix.SYS_DUP3, "dup3", unix.EMFILE},
	{unix.SYS_PRLIMIT64, "prlimit64", unix.EPERM}, {unix.SYS_BPF, "bpf", unix.EPERM},
	{unix.SYS_UNLINKAT, "unlinkat", unix.EIO}, {unix.SYS_UMOUNT2, "umount2", unix.EBUSY},
	{unix.SYS_PIDFD_SEND_SIGNAL, "pidfd_send_signal", unix.EPERM}, {unix.SYS_WAITID, "waitid", unix.ENOMEM},
}

// A way is who counts the calls and what happens at the chosen one.
type way struct {
	name   string
	child  bool   // count what the command's child does until it is the container's program
	fails  bool   // the call fails
	lasts  bool   // and all others of its kind that follow; else
	victim string // "command" or "child" is killed before it is carried out
}

var ways = []way{
	{name: "fail", fails: true},
	{name: "fail from there on", fails: true, lasts: true},
	{name: "fail in the child", child: true, fails: true},
	{name: "kill", victim: "command"},
	{name: "kill while the child works", child: true, victim: "command"},
	{name: "kill the child", child: true, victim: "child"},
}

// injector answers the kernel for a command.
//
// strace(1) can inject failures too, but it counts each thread's calls for
// itself, and those of a Go program move between threads.
type injector struct {
	way
	at       int    // the call, from 1; 0 for none
	about    string // or else the first whose description has this, if it is not empty
	self     os.FileInfo
	minder   *exec.Cmd
	ended    chan struct{} // closed once no process is left of those the command has started
	socket   *os.File
	listener int
	command  int // pid
	pidfd    int // of it
	status   unix.WaitStatus
	hangs    bool

	mu   sync.Mutex
	over bool         // the command has ended: what follows changes no more
	seen map[bool]int // calls, by whether they are the child's
	hit  *call
	what string
}

// commandTimeout is for a command, and for what it leaves to end: what takes longer hangs.
var commandTimeout = 30 * time.Second * time.Duration(max(1, patience))

// patience is for slow machines.
var patience, _ = strconv.Atoi(os.Getenv("LONGSHORE_PATIENCE"))

// injectEnv makes the test binary mind an injected command, or become it.
const injectEnv = "OCI_TEST_INJECT"

// injectFD is the end of a socket to the injector that both inherit.
const injectFD = 3

// mindInjected starts the command of the arguments, tells how it has ended, and
// is an init to what it leaves: it ends when nothing is left.
func mindInjected() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	socket := os.NewFile(injectFD, "socket")
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env, cmd.Stderr, cmd.ExtraFiles = []string{injectEnv + "=become"}, os.Stderr, []*os.File{socket}
	if err := cmd.Start(); err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WALL, nil)
		switch {
		case err == unix.ECHILD:
			return nil
		case err == nil && pid == cmd.Process.Pid:
			_, _ = fmt.Fprint(socket, uint32(status))
		}
	}
}

// becomeInjected has the kernel ask before the calls of this process, hands over
// who is to answer, and becomes the command.
func becomeInjected() error {
	runtime.LockOSThread()
	listener, err := filterThread(calls)
	if err != nil {
		return err // EINVAL: before Linux 5.19
	}
	// Neither is among the calls, for which nobody is there yet.
	hello := fmt.Sprint(os.Getpid(), " ", listener)
	if _, err := unix.Writev(injectFD, [][]byte{[]byte(hello)}); err != nil {
		return err
	}
	if _, _, err := unix.Recvfrom(injectFD, make([]byte, 1), 0); err != nil {
		return err
	}
	unix.CloseOnExec(injectFD)
	return unix.Exec(os.Args[1], os.Args[1:], nil)
}

// start starts a command and listens to it.
func (in *injector) start(errs *os.File, name string, args ...string) (err error) {
	if in.self, err = os.Stat(name); err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	in.socket = os.NewFile(uintptr(pair[0]), "ours")
	theirs := os.NewFile(uintptr(pair[1]), "theirs")
	in.minder = exec.Command("/proc/self/exe", append([]string{name}, args...)...)
	in.minder.Env = []string{injectEnv + "=mind", "GORACE=atexit_sleep_ms=0"}
	in.minder.Stderr, in.minder.ExtraFiles = errs, []*os.File{theirs}
	err = in.minder.Start()
	theirs.Close()
	if err != nil {
		return err
	}
	in.ended, in.seen = make(chan struct{}), map[bool]int{}
	go func() {
		defer close(in.ended)
		_ = in.minder.Wait()
	}()
	var listener int
	if _, err := fmt.Sscan(in.hear(), &in.command, &listener); err != nil {
		return err
	}
	if in.pidfd, err = unix.PidfdOpen(in.command, 0); err != nil {
		return err
	}
	if in.listener, err = unix.PidfdGetfd(in.pidfd, listener, 0); err != nil {
		return err
	}
	go in.serve()
	_, err = in.socket.Write([]byte{0})
	return err
}

// hear gives what comes over the socket.
func (in *injector) hear() string {
	text := make([]byte, 64)
	n, _ := in.socket.Read(text) // nothing, if there is nobody any more
	return string(text[:n])
}

// wait waits for the command, which it ends if it hangs.
func (in *injector) wait() {
	defer in.socket.Close()
	defer unix.Close(in.pidfd)
	kill := time.AfterFunc(commandTimeout, func() { _ = unix.PidfdSendSignal(in.pidfd, unix.SIGKILL, nil, 0) })
	_, _ = fmt.Sscan(in.hear(), (*uint32)(&in.status))
	in.hangs = !kill.Stop()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.over = true
}

// serve ends with the last process that the command has started.
func (in *injector) serve() {
	defer unix.Close(in.listener)
	for {
		poll := []unix.PollFd{{Fd: int32(in.listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err == unix.EINTR {
			continue
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			return
		}
		if n, err := receive(in.listener); err == nil { // else its process has gone
			respond(in.listener, in.decide(n))
		}
	}
}

func (in *injector) decide(n notification) answer {
	goOn := answer{id: n.id, flags: notifyContinue}
	tgid := threadGroup(n.pid)
	c := &calls[slices.IndexFunc(calls, func(c call) bool { return c.nr == uint32(n.nr) })]
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.over || !in.isOurs(n.pid) || spared(c, n) {
		return goOn
	}
	child := tgid != in.command
	in.seen[child]++
	switch {
	case child != in.child:
		return goOn
	case in.lasts && in.hit == c:
	case in.seen[child] == in.at, in.about != "" && in.hit == nil && strings.Contains(describe(c, n), in.about):
		in.hit, in.what = c, describe(c, n)
	default:
		return goOn
	}
	if in.fails {
		return answer{id: n.id, errno: -int32(c.errno)}
	}
	victim := in.command
	if in.victim == "child" {
		victim = tgid
	}
	fd, err := unix.PidfdOpen(victim, 0)
	if err != nil {
		return goOn
	}
	defer unix.Close(fd)
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(commandTimeout.Milliseconds()))
	return goOn
}

func threadGroup(tid uint32) (tgid int) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	_, after, _ := strings.Cut(string(status), "\nTgid:")
	_, _ = fmt.Sscan(after, &tgid)
	return tgid
}

// isOurs says whether a process still is the runtime.
func (in *injector) isOurs(tid uint32) bool {
	exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", tid))
	return err == nil && os.SameFile(exe, in.self)
}

// spared says that a call is one that a process does not survive: of Go's runtime,
// or the return of a thread into our own pid namespace, without which it may start
// nothing any more (launch.program.clone).
func spared(c *call, n notification) bool {
	fd := n.args[0]
	switch c.name {
	case "clone":
		return n.args[0]&unix.CLONE_THREAD != 0
	case "clone3": // of a C library, for the race detector
		flags := make([]byte, 8)
		mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", n.pid))
		if err != nil {
			return true
		}
		defer mem.Close()
		_, err = mem.ReadAt(flags, int64(n.args[0]))
		return err != nil || flags[2]&(unix.CLONE_THREAD>>16) != 0
	case "setns":
		own, _ := os.Readlink("/proc/self/ns/pid")
		to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.pid, fd))
		return to == own
	case "epoll_ctl":
		fd = n.args[2]
	case "write":
		if fd == 2 { // nothing could be said then
			return true
		}
	case "read":
	default:
		return false
	}
	to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.pid, fd))
	return to == "anon_inode:[eventfd]"
}

// describe gives a call with the file that it is about.
func describe(c *call, n notification) string {
	fd, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.pid, int32(n.args[0])))
	if !strings.HasSuffix(strings.TrimSuffix(c.name, "2"), "at") {
		return fmt.Sprintf("%s(%s)", c.name, fd)
	}
	path := make([]byte, 256)
	if mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", n.pid)); err == nil {
		at := n.args[1]
		if c.name == "symlinkat" {
			at = n.args[2]
		}
		_, _ = mem.ReadAt(path, int64(at))
		mem.Close()
	}
	path, _, _ = bytes.Cut(path, []byte{0})
	return fmt.Sprintf("%s(%s, %s)", c.name, fd, path)
}

// shim is the program as it is released, once it is built.
var shim string

// released gives the program to walk: a test binary may be a dynamic one, whose
// loader would fail as well.
func released(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("LONGSHORE_BIN"); dir != "" {
		return filepath.Join(dir, "longshore-shim")
	}
	if shim == "" {
		name := filepath.Join(os.TempDir(), fmt.Sprintf("oci-shim-%d.test", os.Getpid()))
		cmd := exec.Command("go", "build", "-ldflags", "-s -w -E main.entry", "-o", name, "..")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build the shim: %v\n%s", err, out)
		}
		shim = name
	}
	return shim
}
