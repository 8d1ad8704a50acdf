// Package criu runs the program CRIU, which saves the processes of a container
// to files: it finds the program, says whether it can work on this kernel, and
// puts into its errors what its log says.
//
// The program is run by its command line and not over its protocol: the same
// words serve the shim, which restores, and which shall link no protobuf.
//
// A criu that saves is not killed if that can be helped: it executes code of
// its own in the processes that it holds, and one that dies in the middle of
// that takes them with it. It is made to fail instead, by taking away the
// directory that it writes to, whereupon it puts everything right; and one that
// outlives its daemon is found by the next one, in [Settle].
package criu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/longshore/longshore/internal/atomicfile"
	"golang.org/x/sys/unix"
)

// ErrUnusable says that there is no criu on this node that works.
var ErrUnusable = errors.New("criu cannot be used")

// Files that criu writes to its working directory.
const (
	DumpLog    = "dump.log"
	RestoreLog = "restore.log"
	StatsFile  = "stats-dump"
)

// oldest is the first version that leaves control groups alone when told
// (--manage-cgroups=ignore, 3.16).
var oldest = [2]int{3, 16}

// checkLimit bounds the questions asked to the program.
const checkLimit = 20 * time.Second

// Program is a criu program. Its methods may be called from any goroutine.
type Program struct {
	path string
	dir  string // for programs that criu shall find

	mu      sync.Mutex // guards what was learnt of the file
	checked fileID
	version [2]int
}

// fileID tells a file from what replaces it.
type fileID struct {
	path    string
	size    int64
	changed time.Time
}

// New names a program, by its path or by a name that is looked for in PATH. dir
// is a directory of its own for files that criu executes, made when it is needed.
func New(path, dir string) *Program { return &Program{path: path, dir: dir} }

// Usable says whether the program can save and restore on this node: its path,
// or an error that wraps [ErrUnusable] and says why not. A good answer is kept
// until the program's file changes.
func (p *Program) Usable(ctx context.Context) (string, error) {
	path, err := p.find()
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := (fileID{path, st.Size(), st.ModTime()}); p.checked != now {
		ctx, cancel := context.WithTimeout(ctx, checkLimit)
		defer cancel()
		version, err := check(ctx, path)
		if ctx.Err() != nil {
			return "", fmt.Errorf("%w: %s does not answer: %w", ErrUnusable, path, context.Cause(ctx))
		}
		if err != nil { // asked again: what the kernel lacks may come with a module
			return "", fmt.Errorf("%w: %w", ErrUnusable, err)
		}
		p.checked, p.version = now, version
	}
	return path, nil
}

// Version describes the program that [Program.Usable] has found usable.
func (p *Program) Version() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf("criu %d.%d (%s)", p.version[0], p.version[1], p.checked.path)
}

// find looks for the program where administrators' programs are too, which a
// daemon's PATH may leave out.
func (p *Program) find() (string, error) {
	if filepath.IsAbs(p.path) {
		return p.path, nil
	}
	if path, err := exec.LookPath(p.path); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, p.path)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", p.path)
}

var versionLine = regexp.MustCompile(`(?m)^Version: (\d+)\.(\d+)`)

// check asks a program for its version, and whether the kernel suits it.
func check(ctx context.Context, path string) (version [2]int, err error) {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return version, fmt.Errorf("%s --version: %w", path, err)
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return version, fmt.Errorf("%s --version says %.100q", path, out)
	}
	for i := range version {
		if version[i], err = strconv.Atoi(string(m[1+i])); err != nil {
			return version, err
		}
	}
	if version[0] < oldest[0] || version[0] == oldest[0] && version[1] < oldest[1] {
		return version, fmt.Errorf("%s is version %d.%d, and %d.%d is the oldest that serves", path, version[0], version[1], oldest[0], oldest[1])
	}
	out, err = exec.CommandContext(ctx, path, "check").CombinedOutput()
	if err != nil {
		return version, fmt.Errorf("%s check: %w: %s", path, err, quote(string(out)))
	}
	return version, nil
}

// maxQuoted is how many lines of a log an error holds: the first ones name the
// cause, the rest what came of it.
const maxQuoted = 4

// quote gives the errors of a log in one line.
func quote(log string) string {
	var found []string
	lines := bufio.NewScanner(strings.NewReader(log))
	for lines.Scan() {
		if _, message, ok := strings.Cut(lines.Text(), "Error ("); ok && len(found) < maxQuoted {
			found = append(found, "Error ("+strings.TrimSpace(message))
		}
	}
	if len(found) == 0 {
		return strings.TrimSpace(log[max(0, len(log)-200):])
	}
	return strings.Join(found, "; ")
}

// maxLog bounds how much of a log is read for an error.
const maxLog = 1 << 20

// Quote gives what the log file at path says of errors, "" if there is none.
func Quote(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > maxLog {
		_, _ = f.Seek(-maxLog, 2) // what went wrong stands at the end
	}
	data := make([]byte, maxLog)
	n, _ := f.Read(data)
	return quote(string(data[:n]))
}

// Dump says what to save.
type Dump struct {
	Pid      int    // of the first process
	Images   string // directory for the files, which exists
	Work     string // directory for the log and the statistics, which exists
	Freezer  string // directory of the container's group that freezes: version 2's, or version 1's freezer
	External []string
}

// args is the command line.
func (d *Dump) args(version [2]int) []string {
	args := []string{"dump", "--tree", strconv.Itoa(d.Pid), "--images-dir", d.Images, "--work-dir", d.Work,
		"--log-file", DumpLog, "-v4", "--leave-running", "--manage-cgroups=ignore", "--freeze-cgroup", d.Freezer,
		"--tcp-close", "--file-locks", "--link-remap", "--force-irmap", "--display-stats"}
	args = append(args, networkLock(version)...)
	for _, e := range d.External {
		args = append(args, "--external", e)
	}
	return args
}

// skips is the first version that can be told to leave the network alone
// (--network-lock=skip, 3.19).
func skips(version [2]int) bool {
	return version[0] > 3 || version[0] == 3 && version[1] >= 19
}

// networkLock keeps criu from locking the network. It would have the pod's drop
// every packet while it saves, to save connections that can be taken up again;
// ours are not, for the restored pod has another address. And a criu that is
// killed meanwhile leaves the pod without a network for good.
func networkLock(version [2]int) []string {
	if skips(version) {
		return []string{"--network-lock", "skip"}
	}
	return nil
}

// lockers are the programs by which an older criu locks the network.
var lockers = []string{"iptables-restore", "ip6tables-restore", "iptables", "ip6tables"}

// Path is the PATH for criu to run with. An older criu finds programs there
// that do nothing in place of those that lock the network.
func (p *Program) Path() (string, error) {
	p.mu.Lock()
	skip := skips(p.version)
	p.mu.Unlock()
	path := os.Getenv("PATH") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	if skip {
		return path, nil
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return "", err
	}
	for _, name := range lockers {
		if err := atomicfile.Write(filepath.Join(p.dir, name), []byte("#!/bin/sh\nexit 0\n"), 0o700, atomicfile.Volatile); err != nil {
			return "", err
		}
	}
	return p.dir + ":" + path, nil
}

// Restore gives the command line that restores from images; [Program.Usable]
// has been asked before. The restored process is a child of the parent of criu,
// which runs in the control group and the cgroup namespace that the process
// shall have. more has what the container is given.
func (p *Program) Restore(images, work, root, pidFile string, more []string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	args := []string{p.checked.path, "restore", "--images-dir", images, "--work-dir", work, "--log-file", RestoreLog, "-v4",
		"--root", root, "--pidfile", pidFile, "--restore-detached", "--restore-sibling", "--manage-cgroups=ignore",
		"--tcp-close", "--file-locks", "--link-remap", "--force-irmap"}
	args = append(args, networkLock(p.version)...)
	return append(args, more...)
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
	p.mu.Lock()
	version := p.version
	p.mu.Unlock()
	out, err := os.OpenFile(filepath.Join(d.Work, outFile), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := exec.CommandContext(ctx, path, d.args(version)...)
	cmd.Env = append(os.Environ(), "PATH="+search)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // a signal from the daemon's terminal is not for it
	cmd.Cancel = func() error { return os.RemoveAll(d.Images) }
	cmd.WaitDelay = grace
	err = cmd.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("criu dump: %w", context.Cause(ctx))
	}
	if err != nil {
		why := Quote(filepath.Join(d.Work, DumpLog))
		if why == "" {
			why = Quote(out.Name())
		}
		return fmt.Errorf("criu dump: %w: %s", err, why)
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
