package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/client"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Size is a terminal's size in characters.
type Size struct{ Width, Height uint16 }

// Streams is the client's side of a process's stdio; what is nil is not
// wanted.
type Streams struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	TTY    bool
	Resize <-chan Size
}

// maxExecOutput caps each stream of ExecSync, in bytes (CVE-2022-1708,
// CVE-2022-31030): the rest is read and dropped.
const maxExecOutput = 16 << 20

// drainLimit bounds the wait for the output of a process that has ended: what
// it left behind may hold its stdout open.
const drainLimit = time.Second

// ExecSync runs a command in a container and gives its output and exit code.
// After timeout, if it is not zero, or when ctx ends, the command is killed
// with everything that it has left running, and the error is [ErrTimeout] or
// the cause of ctx.
func (e *Engine) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, code int, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: command ran for longer than %v", ErrTimeout, timeout))
		defer cancel()
	}
	out, errOut := &capped{max: maxExecOutput}, &capped{max: maxExecOutput}
	run, err := e.execution(id, cmd, false, true)
	if err != nil {
		return nil, nil, 0, err
	}
	code, err = run.run(ctx, Streams{Stdout: out, Stderr: errOut})
	return out.kept.Bytes(), errOut.kept.Bytes(), code, err
}

// capped keeps the first bytes written and drops the rest. The buffer is no
// embedded one: that would bring a ReadFrom that knows no bound.
type capped struct {
	kept bytes.Buffer
	max  int
}

func (c *capped) Write(p []byte) (int, error) {
	c.kept.Write(p[:min(len(p), c.max-c.kept.Len())])
	return len(p), nil
}

// Exec runs a command in a container with the client's streams, and gives its
// exit code. If ctx ends first the client is gone: the command's terminal hangs
// up, or its streams are closed at our end, and it is left alone.
func (e *Engine) Exec(ctx context.Context, id string, cmd []string, s Streams) (int, error) {
	run, err := e.execution(id, cmd, s.TTY, false)
	if err != nil {
		return 0, err
	}
	return run.run(ctx, s)
}

// execution prepares a command; with tree it can be ended with what it leaves
// running.
func (e *Engine) execution(id string, cmd []string, tty, tree bool) (*execution, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return nil, err
	}
	if len(cmd) == 0 {
		return nil, fmt.Errorf("exec in container %s: %w: no command", c.id, ErrInvalid)
	}
	if state := c.snapshot().State; state != ContainerRunning {
		return nil, fmt.Errorf("exec in container %s: %w: it is %s", c.id, ErrState, state)
	}
	shim, err := c.connection()
	if err != nil {
		return nil, err
	}
	process, err := e.execProcess(c, cmd, tty, tree && e.isForeign(c))
	if err != nil {
		return nil, err
	}
	return &execution{shim: shim, id: c.id, execID: newID()[:16], process: process, tree: tree}, nil
}

// execProcess gives the container's process with another command.
func (e *Engine) execProcess(c *container, cmd []string, tty, marked bool) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil { // adopted by this daemon
		spec, err := e.readSpec(c.id)
		if err != nil {
			return nil, err
		}
		c.process = spec.Process
	}
	p := *c.process
	p.Args, p.Terminal, p.ConsoleSize = cmd, tty, nil
	if tty && !c.rec.Config.TTY {
		p.Env = append(slices.Clip(p.Env), "TERM=xterm")
	}
	if marked {
		mark(&p)
	}
	return json.Marshal(encodable(&p))
}

// mark gives a process a mark ([api.MarkLimit]), unless it has such a limit or
// this machine does.
func mark(p *specs.Process) {
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_RTTIME, &now); err != nil || now.Max != unix.RLIM_INFINITY ||
		slices.ContainsFunc(p.Rlimits, func(r specs.POSIXRlimit) bool { return r.Type == api.MarkLimit }) {
		return
	}
	var random [8]byte
	rand.Read(random[:])
	own := specs.POSIXRlimit{Type: api.MarkLimit, Hard: now.Max, Soft: api.Mark(binary.NativeEndian.Uint64(random[:]))}
	p.Rlimits = append(slices.Clip(p.Rlimits), own)
}

// execution is one command in a container.
type execution struct {
	shim       *client.Shim
	id, execID string
	process    []byte         // of the OCI, as JSON
	tree       bool           // ends with what it has left behind, if it does not end in time
	copies     sync.WaitGroup // of output
	open       []*os.File     // the daemon's ends, closed at the end
}

func (x *execution) run(ctx context.Context, s Streams) (int, error) {
	defer x.close()
	child, err := x.pipes(s)
	if err != nil {
		return 0, err
	}
	master, err := x.shim.Run(ctx, x.id, x.execID, x.process, child, x.tree)
	closeFiles(child.In, child.Out, child.Err)
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(context.Cause(ctx), x.leave(ctx))
		}
		return 0, fmt.Errorf("exec: %w", err)
	}
	if master != nil {
		x.terminal(master, s)
	}
	exit, err := x.wait(ctx)
	if err != nil {
		return 0, err
	}
	x.drain()
	return exit.Code, nil
}

// wait gives the command's exit, or leaves the command when ctx ends. The call
// is not cancelled: the shim answers it when the command is left.
func (x *execution) wait(ctx context.Context) (client.Exit, error) {
	waiting, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var exit client.Exit
	var err error
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		exit, err = x.shim.Wait(waiting, x.id, x.execID)
	}()
	select {
	case <-exited:
		return exit, err
	case <-ctx.Done():
	}
	defer time.AfterFunc(endLimit, stop).Stop()
	leaveErr := x.leave(ctx)
	if leaveErr != nil {
		stop()
	}
	<-exited
	return client.Exit{}, errors.Join(context.Cause(ctx), leaveErr)
}

// endLimit bounds the wait for a command that was killed.
const endLimit = 10 * time.Second

// leave ends a command that nobody waits for any more: who is told that it ran
// out of time shall not find it, nor anything of it, still running. A command
// with a client's streams notices by them that the client is gone.
func (x *execution) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	if !x.tree {
		return ignoreGone(x.shim.Forget(ctx, x.id, x.execID))
	}
	if err := ignoreGone(x.shim.Kill(ctx, x.id, x.execID, unix.SIGKILL, true)); err != nil {
		return fmt.Errorf("kill the command: %w", err)
	}
	return nil
}

// pipes makes the process's stdio and begins to copy.
func (x *execution) pipes(s Streams) (child client.Stdio, err error) {
	if s.TTY {
		return child, nil
	}
	defer func() {
		if err != nil {
			closeFiles(child.In, child.Out, child.Err)
		}
	}()
	if s.Stdin != nil {
		var w *os.File
		if child.In, w, err = x.pipe(1); err != nil {
			return child, err
		}
		go func() {
			// Ends when the client's stream does, or the process reads no more.
			_, _ = io.Copy(w, s.Stdin)
			w.Close()
		}()
	}
	if s.Stdout != nil {
		if child.Out, err = x.output(s.Stdout); err != nil {
			return child, err
		}
	}
	if s.Stderr != nil {
		child.Err, err = x.output(s.Stderr)
	}
	return child, err
}

// output makes a pipe whose content goes to w.
func (x *execution) output(w io.Writer) (*os.File, error) {
	child, r, err := x.pipe(0)
	if err != nil {
		return nil, err
	}
	x.copies.Go(func() { copyAll(w, r) })
	return child, nil
}

// pipeSize is what a pipe holds, in bytes, unless it is told otherwise (pipe(7)).
const pipeSize = 64 << 10

// copyBuffers are those of copies under way.
var copyBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// copyAll copies until r ends, or until its deadline and what r holds then. A
// client that takes no more does not stop the process.
func copyAll(w io.Writer, r *os.File) {
	buf := copyBuffers.Get().(*[32 << 10]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := r.Read(buf[:])
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				w = io.Discard
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			copyRest(w, r, buf[:])
		}
		if err != nil {
			return
		}
	}
}

// copyRest copies what a pipe holds, which a slow client may not have got by the
// deadline. It is bounded, for whoever holds the other end may go on writing.
func copyRest(w io.Writer, r *os.File, buf []byte) {
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	for left := pipeSize; left > 0; {
		n := 0
		if err := raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf[:min(left, len(buf))]) }); err != nil || n <= 0 {
			return
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return
		}
		left -= n
	}
}

// pipe makes a pipe of which the daemon keeps end ours (0: reading, 1:
// writing), pollable, and the process gets the other, in blocking mode.
func (x *execution) pipe(ours int) (child, own *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	if err := unix.SetNonblock(fds[ours], true); err != nil {
		return nil, nil, err
	}
	own = os.NewFile(uintptr(fds[ours]), "exec")
	x.open = append(x.open, own)
	return os.NewFile(uintptr(fds[1-ours]), "exec"), own, nil
}

// terminal copies both ways between the client and the terminal's master. All
// of it ends when the master is closed, or the client's streams.
func (x *execution) terminal(master *os.File, s Streams) {
	x.open = append(x.open, master)
	if s.Stdout != nil {
		x.copies.Go(func() { copyAll(s.Stdout, master) })
	}
	if s.Stdin != nil {
		go func() { _, _ = io.Copy(master, s.Stdin) }()
	}
	if s.Resize != nil {
		go func() {
			for size := range s.Resize {
				if resizeTerminal(master, size) != nil { // it has hung up, or another runtime's shim has the terminal
					_ = x.shim.Resize(context.Background(), x.id, x.execID, size.Width, size.Height)
				}
			}
		}()
	}
}

func resizeTerminal(master *os.File, size Size) error {
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: size.Width, Row: size.Height})
	})
	return errors.Join(controlErr, err)
}

// resize follows the client's terminal with that of a container, until the
// client has gone.
func (x *execution) resize(ctx context.Context, sizes <-chan Size) {
	for size := range sizes {
		_ = x.shim.Resize(ctx, x.id, x.execID, size.Width, size.Height) // the process may have ended
	}
}

// drain waits for the rest of the output, within a bound.
func (x *execution) drain() {
	limit := time.Now().Add(drainLimit)
	for _, f := range x.open {
		_ = f.SetReadDeadline(limit)
	}
	x.copies.Wait()
}

func (x *execution) close() {
	closeFiles(x.open...)
	x.copies.Wait()
}

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// PortForward joins a client's stream to a port in a pod.
func (e *Engine) PortForward(ctx context.Context, podID string, port int, stream io.ReadWriteCloser) error {
	p, err := e.findPod(podID)
	if err != nil {
		return err
	}
	rec := p.snapshot()
	if rec.State != PodReady {
		return fmt.Errorf("forward to pod %s: %w: it is %s", p.id, ErrState, rec.State)
	}
	if port < 1 || port > 65535 {
		return fmt.Errorf("forward to pod %s: %w: port %d", p.id, ErrInvalid, port)
	}
	netns := ""
	if rec.Config.Namespaces.Network != ModeHost {
		netns = filepath.Join(e.cfg.podDir(p.id), "net")
	}
	var conn net.Conn
	err = e.workers.with(func(s *client.Shim) (err error) {
		conn, err = s.Connect(ctx, netns, port)
		return err
	})
	if err != nil {
		return err
	}
	return join(ctx, conn, stream)
}

// closeWriter is a stream that can say that no more will come.
type closeWriter interface{ CloseWrite() error }

// join copies both ways until both have ended or ctx has.
func join(ctx context.Context, conn net.Conn, stream io.ReadWriteCloser) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close(); stream.Close() })
	defer stop()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.Copy(conn, stream)
		if half, ok := conn.(closeWriter); ok {
			_ = half.CloseWrite()
		}
	}()
	_, err := io.Copy(stream, conn)
	stream.Close() // says that the pod has closed its side
	<-sent
	if ctx.Err() != nil || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}
