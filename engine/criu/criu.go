// Package criu runs the program CRIU, which saves the processes of a container
// to files: it finds the program, says whether it can work on this kernel, and
// puts into its errors what its log says.
//
// The program is run by its command line and not over its protocol: the same
// words serve the shim, which restores, and which shall link no protobuf. A
// criu that saves dies with the daemon that wants it. The processes that it
// holds then go on, for the kernel lets go of what a dead process traces and
// the code that criu has put into them takes itself out.
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
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

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

	mu      sync.Mutex // guards what was learnt of the file
	checked fileID
	version [2]int
	err     error
}

// fileID tells a file from what replaces it.
type fileID struct {
	path    string
	size    int64
	changed time.Time
}

// New names a program, by its path or by a name that is looked for in PATH.
func New(path string) *Program { return &Program{path: path} }

// Usable says whether the program can save and restore on this node: its path,
// or an error that wraps [ErrUnusable] and says why not. The answer is kept
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
		p.checked, p.version, p.err = now, version, err
	}
	if p.err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnusable, p.err)
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
		"--tcp-established", "--file-locks", "--link-remap", "--force-irmap", "--display-stats"}
	args = append(args, networkLock(version)...)
	for _, e := range d.External {
		args = append(args, "--external", e)
	}
	return args
}

// networkLock keeps criu from running the iptables program, which a node need
// not have.
func networkLock(version [2]int) []string {
	if version[0] == 3 && version[1] < 17 {
		return nil
	}
	return []string{"--network-lock", "nftables"}
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

// Save runs the program. It returns when the program has ended: when ctx ends
// before, that is by SIGKILL, and the error wraps the context's cause.
func (p *Program) Save(ctx context.Context, d Dump) error {
	path, err := p.Usable(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	version := p.version
	p.mu.Unlock()
	out, err := os.OpenFile(filepath.Join(d.Work, "dump.out"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := exec.CommandContext(ctx, path, d.args(version)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	// The signal of a parent's death is sent at the end of the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
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
