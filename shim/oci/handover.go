package oci

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/shim/launch"
)

// firstFD is the number of the first descriptor behind the standard streams.
const firstFD = 3

// maxFDs bounds --preserve-fds.
const maxFDs = 1024

// handOver is where a process's id and terminal go, and what it inherits.
type handOver struct {
	consoleSocket, pidFile, pidfdSocket string
	preserveFDs                         int
}

func (h *handOver) flags(f *flag.FlagSet) {
	f.StringVar(&h.consoleSocket, "console-socket", "", "")
	f.StringVar(&h.pidFile, "pid-file", "", "")
	f.StringVar(&h.pidfdSocket, "pidfd-socket", "", "")
	f.IntVar(&h.preserveFDs, "preserve-fds", 0, "")
}

// nothing says that nobody is waiting for the process's id or terminal.
func (h *handOver) nothing() bool {
	return h.consoleSocket == "" && h.pidFile == "" && h.pidfdSocket == ""
}

// give hands over what is the caller's of a new process: its terminal and its id.
func (h *handOver) give(p *launch.Process) error {
	if h.consoleSocket != "" && p.Console() != nil {
		if err := sendFile(h.consoleSocket, p.Console()); err != nil {
			return fmt.Errorf("send terminal: %w", err)
		}
	}
	if h.pidfdSocket != "" {
		if err := sendPidfd(h.pidfdSocket, p.Pid()); err != nil {
			return fmt.Errorf("send pidfd: %w", err)
		}
	}
	if h.pidFile != "" {
		// Without a newline: there are readers that take the file for a number.
		pid := []byte(strconv.Itoa(p.Pid()))
		err := atomicfile.Create(h.pidFile, pid, 0o644)
		if errors.Is(err, os.ErrExist) {
			err = atomicfile.Write(h.pidFile, pid, 0o644, atomicfile.Volatile)
		}
		return err
	}
	return nil
}

// files gives the descriptors that the process inherits: those of socket
// activation, which it is told of (sd_listen_fds(3)), and --preserve-fds more.
func (h *handOver) files(p *specs.Process) ([]*os.File, error) {
	n := h.preserveFDs
	if listen := os.Getenv("LISTEN_FDS"); listen != "" {
		sockets, err := strconv.Atoi(listen)
		if err != nil || sockets < 0 || sockets > maxFDs {
			return nil, fmt.Errorf("LISTEN_FDS=%.16s: %w", listen, unix.EINVAL)
		}
		n += sockets
		// It finds itself as the first process of its pid namespace.
		p.Env = append(p.Env[:len(p.Env):len(p.Env)], "LISTEN_FDS="+listen, "LISTEN_PID=1")
	}
	if n < 0 || n > maxFDs {
		return nil, fmt.Errorf("--preserve-fds %d: %w", h.preserveFDs, unix.EINVAL)
	}
	var files []*os.File
	for fd := firstFD; fd < firstFD+n; fd++ {
		// One that closes at execve is not the caller's but our own.
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			return nil, fmt.Errorf("preserve descriptors: %d is not open: %w", fd, unix.EBADF)
		}
		files = append(files, os.NewFile(uintptr(fd), "preserved"))
	}
	return files, nil
}
