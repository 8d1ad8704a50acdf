package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// roomEnv marks the process that is the first one of a room, with its directory.
const roomEnv = "OCI_CONFORMANCE_ROOM"

// enterRoom runs the program of a room within new mount and pid namespaces: no
// mount of it is seen outside, and every process of it ends with it. A program
// that overstays gives the status -1.
func enterRoom(ctx context.Context, room string, limit time.Duration) (text []byte, status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{"room"}
	cmd.Env = append(os.Environ(), roomEnv+"="+room)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = nil
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		fmt.Fprintf(&out, "\n# ended after %v\n", limit)
		return out.Bytes(), -1, nil
	}
	if ctx.Err() != nil {
		return nil, 0, context.Cause(ctx)
	}
	if err != nil {
		return nil, 0, err
	}
	return out.Bytes(), cmd.ProcessState.ExitCode(), nil
}

// inRoom is the first process of a room's pid namespace: it prepares the
// mounts, starts the program and reaps what it leaves until it ends.
func inRoom(room string, _ []string) int {
	status, err := reapUntilEnd(room)
	if err != nil {
		fmt.Fprintln(os.Stderr, "oci: room:", err)
		return 1
	}
	return status
}

func reapUntilEnd(room string) (int, error) {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return 0, fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return 0, fmt.Errorf("mount /proc: %w", err)
	}
	tmp := filepath.Join(room, "tmp")
	if err := os.Mkdir(tmp, 0o1777); err != nil {
		return 0, err
	}
	cmd := exec.Command(filepath.Join(room, "program"))
	cmd.Dir = room
	cmd.Env = append(os.Environ(), "RUNTIME="+filepath.Join(room, "runtime"), "TMPDIR="+tmp)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case pid != cmd.Process.Pid:
		case status.Signaled():
			return 128 + int(status.Signal()), clean(room)
		default:
			return status.ExitStatus(), clean(room)
		}
	}
}

// clean removes what outlives the room: cgroups, the suite's own among them.
func clean(room string) error {
	if err := removeContainers(room); err != nil {
		return err
	}
	for _, name := range []string{"testdir/cgrouptest", "testdir", "cgrouptest"} { // the names its tests of cgroups use
		dirs, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
		if err != nil {
			return err
		}
		for _, dir := range append(dirs, "/sys/fs/cgroup/"+name) {
			if err := syscall.Rmdir(dir); err != nil && err != syscall.ENOENT {
				return fmt.Errorf("remove cgroup %s: %w", dir, err)
			}
		}
	}
	return nil
}

// removeContainers removes what the program has left.
func removeContainers(room string) error {
	runtime := filepath.Join(room, "runtime")
	left, err := exec.Command(runtime, "list", "--quiet").Output()
	if err != nil {
		return fmt.Errorf("%s list: %w", runtime, err)
	}
	for _, id := range strings.Fields(string(left)) {
		cmd := exec.Command(runtime, "delete", "--force", id)
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", cmd, err, text)
		}
	}
	return nil
}
