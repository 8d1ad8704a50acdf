package criu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Dump says what to save.
type Dump struct {
	Pid      int    // of the first process
	Images   string // directory for the files, which exists
	Work     string // directory for the log and the statistics, which exists
	Freezer  string // directory of the container's group that freezes: version 2's, or version 1's freezer
	External []string
	Terminal bool // one of the process's terminals has its master outside of the container
}

// common are the options that a dump and its restore share.
func common(version [2]int) *rpc.CriuOpts {
	opts := &rpc.CriuOpts{
		LogLevel: proto.Int32(logLevel), ManageCgroupsMode: rpc.CriuCgMode_IGNORE.Enum(),
		TcpClose: proto.Bool(true), FileLocks: proto.Bool(true), LinkRemap: proto.Bool(true), ForceIrmap: proto.Bool(true),
	}
	leaveNetwork(opts, version)
	return opts
}

// options says it to criu, which finds the directories among this process's
// descriptors.
func (d *Dump) options(version [2]int, images, work *os.File) *rpc.CriuOpts {
	opts := common(version)
	opts.Pid, opts.LeaveRunning, opts.FreezeCgroup, opts.External = proto.Int32(int32(d.Pid)), proto.Bool(true), proto.String(d.Freezer), d.External
	opts.OrphanPtsMaster = proto.Bool(d.Terminal)
	opts.ImagesDirFd, opts.WorkDirFd, opts.LogFile = proto.Int32(int32(images.Fd())), proto.Int32(int32(work.Fd())), proto.String(DumpLog)
	return opts
}

// outFile takes the program's output; it is also by which [Settle] knows it.
const outFile = "dump.out"

// grace is how long a criu that is to give up may take, before it is killed.
const grace = 5 * time.Second

// Save runs the program. It returns when the program has ended. When ctx ends
// before, the program is made to give up, and the error wraps the context's
// cause.
func (p *Program) Save(ctx context.Context, d Dump) error {
	path, err := p.Usable(ctx)
	if err != nil {
		return err
	}
	search, err := p.Path()
	if err != nil {
		return err
	}
	images, err := os.Open(d.Images)
	if err != nil {
		return err
	}
	defer images.Close()
	work, err := os.Open(d.Work)
	if err != nil {
		return err
	}
	defer work.Close()
	out, err := os.OpenFile(filepath.Join(d.Work, outFile), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := exec.CommandContext(ctx, path, swrk...)
	cmd.Env = append(os.Environ(), "PATH="+search)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // a signal from the daemon's terminal is not for it
	cmd.Cancel = func() error { return os.RemoveAll(d.Images) }
	cmd.WaitDelay = grace
	_, err = ask(cmd, &rpc.CriuReq{Type: rpc.CriuReqType_DUMP.Enum(), Opts: d.options(p.known(), images, work)})
	if ctx.Err() != nil {
		return fmt.Errorf("criu dump: %w", context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("criu dump: %w: %s", err, cmp.Or(Quote(filepath.Join(d.Work, DumpLog)), Quote(out.Name())))
	}
	return nil
}

// Settle ends what a daemon that has died has left of a [Program.Save]: images
// and work are those of its [Dump]. It returns when no criu works there.
func Settle(images, work string) error {
	pids, err := writersOf(filepath.Join(work, outFile))
	if err != nil || len(pids) == 0 {
		return err
	}
	errs := []error{os.RemoveAll(images)}
	late := time.Now().Add(grace)
	for _, pid := range pids {
		errs = append(errs, endBy(pid, late))
	}
	return errors.Join(errs...)
}

// writersOf finds the processes whose standard output is the file at path.
func writersOf(path string) ([]int, error) {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/1")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, link := range links {
		other, err := os.Stat(link)
		if err != nil || !os.SameFile(st, other) {
			continue // another's, or gone
		}
		if pid, err := strconv.Atoi(strings.Split(link, "/")[2]); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// endBy waits for the end of a process, and kills it when it is late.
func endBy(pid int, late time.Time) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open criu %d: %w", pid, err)
	}
	defer unix.Close(fd)
	for killed := false; ; {
		left := max(0, time.Until(late).Milliseconds())
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || n > 0:
			return err
		case killed:
			return fmt.Errorf("criu %d does not end: %w", pid, os.ErrDeadlineExceeded)
		default:
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill criu %d: %w", pid, err)
			}
			killed, late = true, time.Now().Add(grace)
		}
	}
}
