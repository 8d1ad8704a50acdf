package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// agentTimeout bounds, in seconds, the wait for a seccomp agent to take what it
// is sent.
const agentTimeout = 10

// notify says that an agent decides about some of the process's calls.
func (pl *plan) notify() bool { return pl.filter != nil && pl.filter.Notify }

// showListener appends waiting until the parent has taken the seccomp listener
// out of the child. The filter holds already, so the child uses only write,
// which no agent may have a say in, and read, by when there is one.
func (b *builder) showListener() {
	b.report()
	b.waitPlain()
}

// report is [builder.send] by write(2).
func (b *builder) report() {
	b.add(opName{"report to the shim", ""}, opRetry, unix.SYS_WRITE, uintptr(b.sock), b.str("."), 1)
}

// waitPlain is [builder.wait] by read(2).
func (b *builder) waitPlain() {
	b.add(opName{"wait for the shim", ""}, opRetry|opNotZero, unix.SYS_READ, uintptr(b.sock), b.addr(b.space(1)), 1)
}

// handListener takes the seccomp listener that the child has got, sends it to
// the agent (runtime-spec, "The Container Process State") and lets the child
// go on. Needs pidfd_getfd (Linux 5.6).
func (l *launching) handListener(c *Container, status specs.ContainerState) error {
	if _, err := l.await(0); err != nil {
		return err
	}
	if err := l.adopt(); err != nil {
		return err
	}
	number, errno := l.result(l.listener)
	if errno != 0 {
		return fmt.Errorf("load seccomp filter: %w", errno)
	}
	pidfd, err := l.proc.dupPidfd()
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	listener, err := unix.PidfdGetfd(pidfd, int(number), 0)
	if err != nil {
		return fmt.Errorf("take seccomp listener of process %d: %w", l.proc.pid, err)
	}
	defer unix.Close(listener)
	init := c.init
	if init == nil || status == specs.StateCreating {
		init = l.proc
	}
	state := specs.ContainerProcessState{
		Version: specs.Version, Fds: []string{specs.SeccompFdName}, Pid: l.proc.pid, Metadata: l.plan.filter.ListenerMetadata,
		State: specs.State{
			Version: specs.Version, ID: c.id, Status: status, Pid: init.Pid(), Bundle: c.bundle, Annotations: c.spec.Annotations,
		},
	}
	if err := sendListener(l.plan.filter.ListenerPath, listener, &state); err != nil {
		return err
	}
	if err := l.link.open(); errors.Is(err, errLeft) {
		return l.left()
	} else if err != nil {
		return err
	}
	return nil
}

// sendListener connects to the agent and hands it the listener, with the state
// as JSON in the same message.
func sendListener(path string, listener int, state *specs.ContainerProcessState) error {
	data, err := json.Marshal(state)
	if err != nil {
		return err
	}
	fail := func(op string, err error) error {
		return fmt.Errorf("linux.seccomp.listenerPath: %w", &os.PathError{Op: op, Path: path, Err: err})
	}
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail("socket", err)
	}
	defer unix.Close(sock)
	if err := unix.SetsockoptTimeval(sock, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: agentTimeout}); err != nil {
		return fail("setsockopt", err)
	}
	if err := unix.Connect(sock, &unix.SockaddrUnix{Name: path}); err != nil {
		return fail("connect", err)
	}
	control := unix.UnixRights(listener)
	for len(data) > 0 {
		n, err := unix.SendmsgN(sock, data, control, nil, unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fail("send to", err)
		}
		data, control = data[n:], nil
	}
	return nil
}
