package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/longshore/longshore/shim/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// treeLimit bounds the search for what a process has left behind.
const treeLimit = 2 * time.Second

// markOf gives the mark of a process, 0 if it has none.
func markOf(spec *specs.Process) uint64 {
	for _, r := range spec.Rlimits {
		if r.Type == api.MarkLimit && api.IsMark(r.Soft) {
			return r.Soft
		}
	}
	return 0
}

// killTree ends a process and what it has left behind, which has its mark.
func (c *container) killTree(ctx context.Context, p *process) error {
	err := c.kill(ctx, p, unix.SIGKILL, false)
	if p.mark == 0 || c.group == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, treeLimit)
	defer cancel()
	return errors.Join(err, killMarked(ctx, p.mark, c.group.Procs))
}

// killMarked kills the processes of a list that have a mark, until the list
// holds none. No process gets a mark but by inheritance, so one that was seen
// without needs no second look; one that was gone when it was looked at may have
// forked before, so the list is read again.
func killMarked(ctx context.Context, mark uint64, list func() ([]int, error)) error {
	seen := map[int]bool{}
	for again := true; again; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("end what a process has left running: %w", err)
		}
		pids, err := list()
		if err != nil {
			return err
		}
		again = false
		for _, pid := range pids {
			if seen[pid] {
				continue
			}
			seen[pid] = true
			found, err := killIfMarked(pid, mark)
			if err != nil {
				return err
			}
			again = again || found
		}
	}
	return nil
}

// killIfMarked kills a process if it has the mark. It reports whether it had, or
// is gone.
func killIfMarked(pid int, mark uint64) (bool, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // gone, or a thread
		return true, nil
	}
	if err != nil {
		return false, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	limits, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/limits")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if limitOf(string(limits)) != mark {
		return false, nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return false, os.NewSyscallError("pidfd_send_signal", err)
	}
	return true, nil
}

// limitOf reads the soft value of [api.MarkLimit] from a process's limits
// (proc_pid_limits(5)), 0 if it is none.
func limitOf(limits string) uint64 {
	_, line, _ := strings.Cut(limits, "\nMax realtime timeout ")
	fields := strings.Fields(line)
	if len(fields) == 0 {
		return 0
	}
	n, err := strconv.ParseUint(fields[0], 10, 64)
	if err != nil {
		return 0
	}
	return n
}
