package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/longshore/longshore/internal/binview"
	"golang.org/x/sys/unix"
)

// shimFiles is how many files a shim is started with: stdio, its socket and the
// lifeline. A child has them at the numbers from 0 on before it runs the binary,
// and what Go's runtime needs meanwhile above the highest number that one of them
// has in the parent. So the binary's must be between these.
const shimFiles = 5

// Pool starts shims and keeps a few idle ones ahead, since starting a process
// is the longest part of starting a container. Idle shims end with the daemon.
type Pool struct {
	binary *os.File // a read-only view of the shim's binary
	dir    string   // of the sockets
	idle   chan *Shim
	log    *slog.Logger

	lifeline [2]*os.File // a pipe of which idle shims hold the reading end
	stderr   *os.File
	filling  sync.WaitGroup
	reaping  sync.WaitGroup
	signals  chan os.Signal

	mu     sync.Mutex // guards all below
	pids   map[int]struct{}
	next   int
	closed bool
	failed error // why the last shim could not be started; nil: it could
}

// NewPool keeps size idle shims of the binary at path; their sockets lie in
// dir, and what they have to say goes to the file shim.log there.
func NewPool(path, dir string, size int, log *slog.Logger) (*Pool, error) {
	binary, err := readOnlyView(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	stderr, err := os.OpenFile(filepath.Join(dir, "shim.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	lifeline, err := newLifeline(int(binary.Fd()) + 1)
	if err != nil {
		return nil, err
	}
	p := &Pool{binary: binary, dir: dir, idle: make(chan *Shim, size), log: log, lifeline: lifeline, stderr: stderr,
		signals: make(chan os.Signal, 1), pids: map[int]struct{}{}}
	signal.Notify(p.signals, unix.SIGCHLD)
	p.reaping.Go(p.reap)
	for range size {
		p.refill()
	}
	return p, nil
}

// Binary is the path of the shim's binary.
func (p *Pool) Binary() string { return p.binary.Name() }

// readOnlyView opens the binary so that nothing which gets hold of a shim's
// /proc/self/exe can write to it (CVE-2019-5736).
func readOnlyView(path string) (*os.File, error) {
	view, err := binview.Open(path)
	if err != nil {
		return nil, err
	}
	return above(os.NewFile(uintptr(view), path), shimFiles)
}

// newLifeline makes the pipe; its reading end has a number that is at least least.
// It does not block, in any process that has it: a pipe of os.Pipe would be made
// to block whenever it is handed to a shim, and those that have it already would
// wait for its end in a read that nothing interrupts.
func newLifeline(least int) (ends [2]*os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return ends, os.NewSyscallError("pipe2", err)
	}
	w := os.NewFile(uintptr(fds[1]), "lifeline")
	r, err := above(os.NewFile(uintptr(fds[0]), "lifeline"), least)
	if err != nil {
		w.Close()
		return ends, err
	}
	return [2]*os.File{r, w}, nil
}

// above gives f a number that is at least least.
func above(f *os.File, least int) (*os.File, error) {
	defer f.Close()
	high, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, least)
	if err != nil {
		return nil, &os.PathError{Op: "dup", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(high), f.Name()), nil
}

// Template is where the node's template mount namespace is pinned; see
// [Shim.Prepare].
func (p *Pool) Template() string { return filepath.Join(p.dir, "template", "mnt") }

// Get gives a shim that nobody else has: an idle one, or a new one.
func (p *Pool) Get() (*Shim, error) {
	for {
		select {
		case s := <-p.idle:
			p.refill()
			if s.Gone() { // killed while it waited
				s.Close()
				os.Remove(s.Addr())
				continue
			}
			return s, nil
		default:
			p.refill()
			return p.start("serve")
		}
	}
}

// Keeper starts a shim that stands between the daemon and another runtime's
// shim (package keeper); it takes the same calls.
func (p *Pool) Keeper() (*Shim, error) { return p.start("keep") }

// refill starts one shim in the background, unless the pool is full.
func (p *Pool) refill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || cap(p.idle) == 0 {
		return
	}
	p.filling.Go(func() {
		s, err := p.start("serve")
		if err != nil {
			p.log.Warn("no shim could be started ahead", "err", err)
			return
		}
		p.keep(s)
	})
}

// Err says why no shim can be started, nil if one can. After a failure it tries.
func (p *Pool) Err() error {
	p.mu.Lock()
	failed := p.failed
	p.mu.Unlock()
	if failed == nil {
		return nil
	}
	s, err := p.start("serve")
	if err == nil {
		p.keep(s)
	}
	return err
}

// keep makes a shim an idle one, unless there are enough.
func (p *Pool) keep(s *Shim) {
	select {
	case p.idle <- s:
	default:
		p.discard(s)
	}
}

// start runs a shim, and remembers whether that is possible.
func (p *Pool) start(verb string) (*Shim, error) {
	s, err := p.run(verb)
	p.mu.Lock()
	p.failed = err
	p.mu.Unlock()
	return s, err
}

// run runs a shim on a new socket and connects to it. The socket listens
// before the process exists, so nobody waits for it to be ready.
func (p *Pool) run(verb string) (*Shim, error) {
	l, path, err := p.listen()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   p.environment(),
		Files: append(make([]*os.File, 0, shimFiles), nil, nil, p.stderr, l, p.lifeline[0]),
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	self := "/proc/self/fd/" + strconv.Itoa(int(p.binary.Fd()))
	p.mu.Lock()
	proc, err := os.StartProcess(self, []string{"longshore-shim", verb}, attr)
	if err == nil {
		p.pids[proc.Pid] = struct{}{}
	}
	p.mu.Unlock()
	if err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("start %s: %w", p.binary.Name(), err)
	}
	proc.Release()
	return Dial(path)
}

// environment is that of a shim. With GOGC=25 garbage is collected from 1 MiB
// on, not from 4: a shim that runs a probe every few seconds stays 2 MiB smaller.
// Where transparent huge pages are "always" on (Debian's default), a heap of
// less than 1 MiB would take whole ones of 2.
func (p *Pool) environment() []string {
	return []string{
		"GOMAXPROCS=1", "GOGC=25", "GODEBUG=disablethp=1", "PATH=" + os.Getenv("PATH"),
		"LONGSHORE_TEMPLATE=" + p.Template(), "LONGSHORE_SECCOMP=" + filepath.Join(p.dir, "seccomp"),
	}
}

// listen makes the socket of a new shim.
func (p *Pool) listen() (*os.File, string, error) {
	p.mu.Lock()
	p.next++
	path := filepath.Join(p.dir, fmt.Sprintf("%d-%d.sock", os.Getpid(), p.next))
	p.mu.Unlock()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, "", err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, "", fmt.Errorf("shim socket: %w", err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		os.Remove(path)
		return nil, "", err
	}
	return f, path, nil
}

// reap collects shims that have ended, by pid, so that no child of others is
// taken and no thread waits.
func (p *Pool) reap() {
	for range p.signals {
		p.mu.Lock()
		for pid := range p.pids {
			if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); got == pid || err == unix.ECHILD {
				delete(p.pids, pid)
			}
		}
		p.mu.Unlock()
	}
}

// discard ends a shim that was given nothing to do.
func (p *Pool) discard(s *Shim) {
	if err := s.Shutdown(context.Background()); err != nil {
		p.log.Warn("idle shim does not end", "socket", s.Addr(), "err", err)
	}
	s.Close()
}

// Close lets the idle shims end. Those that were given out go on.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.filling.Wait()
	p.lifeline[1].Close()
	close(p.idle)
	for s := range p.idle {
		p.discard(s)
	}
	signal.Stop(p.signals)
	close(p.signals)
	p.reaping.Wait()
	p.lifeline[0].Close()
	p.binary.Close()
	p.stderr.Close()
}
