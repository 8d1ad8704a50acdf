// Package criu runs the program CRIU, which saves the processes of a container
// to files: it finds the program, says whether it can work on this kernel, and
// puts into its errors what its log says.
//
// The daemon speaks criu's protocol (https://criu.org/RPC) with the messages of
// go-criu. A restore is the shim's, which shall link no protobuf: it is handed
// the options as they go over the wire, by [Program.RestoreOptions].
//
// A criu that saves is not killed if that can be helped: it executes code of
// its own in the processes that it holds, and one that dies in the middle of
// that takes them with it. It is made to fail instead, by taking away the
// directory that it writes to, whereupon it puts everything right; and one that
// outlives its daemon is found by the next one, in [Settle].
package criu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"google.golang.org/protobuf/proto"
)

// ErrUnusable says that there is no criu on this node that works.
var ErrUnusable = errors.New("criu cannot be used")

// Files that criu writes to its working directory.
const (
	DumpLog    = "dump.log"
	RestoreLog = "restore.log"
	StatsFile  = "stats-dump"
	checkLog   = "check.log"
)

// logLevel is the one by which a log says what criu has looked at.
const logLevel = 4

// oldest is the first version that leaves control groups alone when told
// (manage_cgroups_mode IGNORE, 3.16).
var oldest = [2]int{3, 16}

// checkLimit bounds the questions asked to the program.
const checkLimit = 20 * time.Second

// Program is a criu program. Its methods may be called from any goroutine.
type Program struct {
	path string
	dir  string // see New

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
// is a directory of its own, made when it is needed, for files that criu executes
// and for the log of its check.
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
		version, err := check(ctx, path, p.dir)
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

// known is the version of the program that [Program.Usable] has found usable.
func (p *Program) known() [2]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.version
}

// File is the path of the program that [Program.Usable] has found usable.
func (p *Program) File() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.checked.path
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

// check asks a program for its version, and whether the kernel suits it. dir is
// where it writes its log.
func check(ctx context.Context, path, dir string) (version [2]int, err error) {
	resp, said, err := question(ctx, path, &rpc.CriuReq{Type: rpc.CriuReqType_VERSION.Enum()})
	if err != nil {
		return version, fmt.Errorf("version of %s: %w, and says %.100q", path, err, said)
	}
	version = [2]int{int(resp.GetVersion().GetMajorNumber()), int(resp.GetVersion().GetMinorNumber())}
	if version[0] < oldest[0] || version[0] == oldest[0] && version[1] < oldest[1] {
		return version, fmt.Errorf("%s is version %d.%d, and %d.%d is the oldest that serves", path, version[0], version[1], oldest[0], oldest[1])
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return version, err
	}
	place, err := os.Open(dir)
	if err != nil {
		return version, err
	}
	defer place.Close()
	log := filepath.Join(dir, checkLog)
	if err := os.Remove(log); err != nil && !errors.Is(err, os.ErrNotExist) {
		return version, err
	}
	fd := int32(place.Fd())
	_, said, err = question(ctx, path, &rpc.CriuReq{Type: rpc.CriuReqType_CHECK.Enum(), Opts: &rpc.CriuOpts{
		ImagesDirFd: &fd, WorkDirFd: &fd, LogFile: proto.String(checkLog), LogLevel: proto.Int32(logLevel)}})
	if err != nil {
		return version, fmt.Errorf("%s check: %w: %s", path, err, cmp.Or(Quote(log), quote(said)))
	}
	return version, nil
}

// question asks what takes no time. said is what the program prints.
func question(ctx context.Context, path string, req *rpc.CriuReq) (resp *rpc.CriuResp, said string, err error) {
	var out strings.Builder
	cmd := exec.CommandContext(ctx, path, swrk...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, grace
	resp, err = ask(cmd, req)
	return resp, out.String(), err
}
