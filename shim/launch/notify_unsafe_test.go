package launch

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// agent is a seccomp agent that answers each call with a number.
type agent struct {
	path   string
	states chan specs.ContainerProcessState
}

// notification is struct seccomp_notif, answer struct seccomp_notif_resp.
type notification struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type answer struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

func newAgent(t *testing.T, val int64) *agent {
	a := &agent{path: filepath.Join(t.TempDir(), "agent"), states: make(chan specs.ContainerProcessState, 4)}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.path})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			listener, state := receiveListener(t, c)
			c.Close()
			a.states <- state
			if listener >= 0 {
				go decide(listener, val) // ends with the listener's processes
			}
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return a
}

func receiveListener(t *testing.T, c *net.UnixConn) (listener int, state specs.ContainerProcessState) {
	data, oob := make([]byte, 1<<16), make([]byte, 256)
	n, oobn, _, _, err := c.ReadMsgUnix(data, oob)
	if err != nil {
		t.Error(err)
		return -1, state
	}
	if err := json.Unmarshal(data[:n], &state); err != nil {
		t.Errorf("%v in %s", err, data[:n])
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Errorf("control messages: %v, %v", messages, err)
		return -1, state
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Errorf("descriptors: %v, %v", fds, err)
		return -1, state
	}
	return fds[0], state
}

func decide(listener int, val int64) {
	defer unix.Close(listener)
	const receive, send = 0xc0502100, 0xc0182101 // SECCOMP_IOCTL_NOTIF_RECV and _SEND
	for {
		poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err == unix.EINTR {
			continue
		} else if err != nil || poll[0].Revents&unix.POLLIN == 0 {
			return
		}
		var n notification
		if _, err := ioctlPointer(listener, receive, unsafe.Pointer(&n)); err != nil {
			continue
		}
		_, _ = ioctlPointer(listener, send, unsafe.Pointer(&answer{id: n.id, val: val}))
	}
}

func (f *fixture) notify(a *agent) {
	f.spec.Annotations = map[string]string{"k": "v"}
	f.spec.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchAARCH64},
		ListenerPath: a.path, ListenerMetadata: "for the agent",
		// What the launch itself does behind the filter is the agent's too.
		Syscalls: []specs.LinuxSyscall{{Names: []string{"umask", "sendmsg", "recvmsg"}, Action: specs.ActNotify}},
	}
}

// TestSeccompAgentDecides: the first process, one that comes by exec, and both
// with a gate that outlives its maker.
func TestSeccompAgentDecides(t *testing.T) {
	const answered = 0o123
	for _, way := range []struct {
		name string
		set  func(f *fixture)
	}{
		{"plain", func(*fixture) {}},
		{"without no_new_privs", func(f *fixture) { f.spec.Process.NoNewPrivileges = false }},
		{"gate that stays", func(f *fixture) { f.cfg.Gate = t.TempDir() }},
		{"user namespace", func(f *fixture) { f.userNS("") }},
	} {
		t.Run(way.name, func(t *testing.T) {
			a := newAgent(t, answered)
			f := newFixture(t, "report")
			f.notify(a)
			way.set(f)
			c := f.create()
			state := <-a.states
			if state.Pid != c.Init().Pid() || state.State.Pid != state.Pid || state.Metadata != "for the agent" || len(state.Fds) != 1 ||
				state.Fds[0] != "seccompFd" || state.State.ID != f.cfg.ID || state.State.Status != specs.StateCreating ||
				state.State.Bundle != f.bundle || state.State.Annotations["k"] != "v" || state.Version == "" {
				t.Errorf("the agent got %+v", state)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			f.in.Close()
			out, err := io.ReadAll(f.out)
			if err != nil {
				t.Fatal(err)
			}
			r := decode(t, string(out))
			if r.Umask != answered {
				t.Errorf("umask %o, the agent says %o", r.Umask, answered)
			}
			checkNoLeaks(t, r)
		})
	}
	t.Run("exec", func(t *testing.T) {
		a := newAgent(t, answered)
		f := newFixture(t, "wait")
		f.notify(a)
		c := f.create()
		<-a.states
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		r := decode(t, f.exec(c, "report"))
		state := <-a.states
		if state.Pid == state.State.Pid || state.State.Pid != c.Init().Pid() || state.State.Status != specs.StateRunning {
			t.Errorf("the agent got %+v", state)
		}
		if r.Umask != answered {
			t.Errorf("umask %o, the agent says %o", r.Umask, answered)
		}
		checkNoLeaks(t, r)
	})
}

func TestSeccompAgentIsMissing(t *testing.T) {
	f := newFixture(t, "report")
	f.notify(&agent{path: "/no/such/agent"})
	if c, err := Create(f.cfg); err == nil {
		c.Close()
		t.Error("created without the agent")
	} else if want := "linux.seccomp.listenerPath: connect /no/such/agent: no such file"; !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
	if _, err := os.Stat("/sys/fs/cgroup/pids" + f.spec.Linux.CgroupsPath); err == nil {
		t.Error("its cgroup is left")
	}
}

// ioctlPointer calls ioctl with a pointer to a structure in memory of Go.
func ioctlPointer(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	res, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	if errno != 0 {
		return 0, errno
	}
	return int(res), nil
}
