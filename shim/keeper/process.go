package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/shim/api"
	"golang.org/x/sys/unix"
)

// process is the first process of the container or one of Run.
type process struct {
	execID string
	io     *fifos
	tty    bool
	tree   bool          // ends with what it has left behind, and with its daemon
	mark   uint64        // of the tree's processes; see [api.MarkLimit]
	done   chan struct{} // closed once exit is set
	left   chan struct{} // closed when nobody waits for it any more
	exit   api.Exit      // valid after done

	mu    sync.Mutex // guards all below
	pid   int
	state api.Status
	given bool // left is closed
}

func newProcess(execID string, io *fifos, tty bool) *process {
	return &process{execID: execID, io: io, tty: tty, done: make(chan struct{}), left: make(chan struct{}), state: api.StatusCreated}
}

func (p *process) set(pid int, state api.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pid != 0 {
		p.pid = pid
	}
	if p.state != api.StatusStopped {
		p.state = state
	}
}

func (p *process) snapshot() (pid int, state api.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid, p.state
}

func (p *process) finish(exit api.Exit) {
	p.set(0, api.StatusStopped)
	p.exit = exit
	close(p.done)
}

// giveUp wakes those who wait for a process that goes on without them.
func (p *process) giveUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.given {
		p.given = true
		close(p.left)
	}
}

// container is the one container of a keeper.
type container struct {
	id, bundle string
	shim       *remote
	group      *cgroup.Group // nil: none is known
	init       *process

	mu     sync.Mutex // guards all below
	execs  map[string]*process
	oom    bool // the shim has said that memory ran out
	lost   bool // the shim is gone
	paused bool
}

// complain says what went wrong where nobody waits for an answer.
func complain(what string, err error) {
	fmt.Fprintf(os.Stderr, "longshore-shim keep: %s: %v\n", what, err)
}

// create makes a container by another runtime's shim.
func create(ctx context.Context, req *api.CreateTaskRequest, how *api.Foreign, events string) (*container, error) {
	host, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	io, err := openInit(req)
	if err != nil {
		return nil, err
	}
	c := &container{id: req.ID, bundle: req.Bundle, execs: map[string]*process{}, init: newProcess("", io, req.Terminal),
		shim: &remote{id: req.ID, bundle: req.Bundle, events: events, rec: api.ForeignRecord{Binary: how.Binary, Publish: how.Publish}}}
	if how.Cgroup != "" {
		c.group = host.Load(how.Cgroup)
	}
	if err := c.make(ctx, req, how); err != nil {
		io.abandon()
		if cleanErr := c.shim.clean(context.WithoutCancel(ctx)); cleanErr != nil {
			complain("clear away container "+c.id, cleanErr)
		}
		return nil, err
	}
	go c.watch()
	return c, nil
}

func (c *container) make(ctx context.Context, req *api.CreateTaskRequest, how *api.Foreign) error {
	if err := os.Mkdir(filepath.Join(c.bundle, rootDir), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := c.openShim(ctx, how.Sandbox); err != nil {
		return err
	}
	order := *req
	order.Options = how.Options
	order.Stdin, order.Stdout, order.Stderr = c.init.io.paths[0], c.init.io.paths[1], c.init.io.paths[2]
	var resp api.CreateTaskResponse
	if err := c.shim.call(ctx, slowLimit, "Create", &order, &resp); err != nil {
		return err
	}
	c.init.set(int(resp.Pid), api.StatusCreated)
	return nil
}

// openShim starts a shim for the container, or takes that of the sandbox container
// whose bundle is named.
func (c *container) openShim(ctx context.Context, sandbox string) error {
	if sandbox != "" {
		return c.shim.share(sandbox)
	}
	if err := c.shim.note(); err != nil {
		return err
	}
	if err := c.openShimLog(); err != nil {
		return err
	}
	return c.shim.start(ctx)
}

// openShimLog makes the FIFO "log" in the bundle, which such shims write their
// own messages to, and passes them on.
func (c *container) openShimLog() error {
	path := filepath.Join(c.bundle, "log")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	// Both ways: it has no end, and no shim waits for a reader.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	c.init.io.other = append(c.init.io.other, f)
	go passOn(f) // ends when it is closed, with the container
	return nil
}

// maxMessage bounds one read of a shim's messages, in bytes.
const maxMessage = 4 << 10

func passOn(f *os.File) {
	buf := make([]byte, maxMessage)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return
		}
		os.Stderr.Write(buf[:n])
	}
}

// watch waits for the container's end and records it.
func (c *container) watch() {
	var resp api.WaitResponse
	err := c.shim.call(context.Background(), 0, "Wait", &api.ProcessRequest{ID: c.id}, &resp)
	pid, _ := c.init.snapshot()
	exit := api.Exit{Pid: pid, Code: int(resp.ExitStatus), ExitedAtNS: time.Now().UnixNano()}
	if resp.ExitedAt != nil {
		exit.ExitedAtNS = resp.ExitedAt.Time().UnixNano()
	}
	if err != nil {
		exit.Code, exit.Signal = 128+int(unix.SIGKILL), int(unix.SIGKILL)
		exit.Message = fmt.Sprintf("the runtime's shim ended before it: %v", err)
	}
	if c.group != nil {
		// Before the shim removes the cgroup, and the count with it.
		if kills, err := c.group.OOMKills(); err == nil && kills > 0 && exit.Code != 0 {
			exit.OOMKilled = true
		}
		if err := c.group.Kill(); err != nil && !errors.Is(err, unix.ENOENT) {
			complain("kill what is left of "+c.id, err)
		}
	}
	c.mu.Lock()
	c.lost = err != nil
	exit.OOMKilled = exit.OOMKilled || c.oom && exit.Code != 0
	c.mu.Unlock()
	if err := c.init.io.finish(); err != nil && exit.Message == "" {
		exit.Message = err.Error()
	}
	if err := atomicfile.WriteJSON(filepath.Join(c.bundle, api.ExitFile), exit, atomicfile.Volatile); err != nil {
		complain("exit record", err)
	}
	c.init.finish(exit)
}

// process finds the first process (""), or one of Run.
func (c *container) process(execID string) (*process, error) {
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.execs[execID]
	if !ok {
		return nil, api.Errorf(api.CodeNotFound, "process %q of container %s is not here", execID, c.id)
	}
	return p, nil
}

// start runs the container's program.
func (c *container) start(ctx context.Context) error {
	var resp api.StartResponse
	err := c.shim.call(ctx, slowLimit, "Start", &api.ProcessRequest{ID: c.id}, &resp)
	if err != nil {
		// It will never run, and its end is the answer to those who wait.
		_ = c.kill(context.WithoutCancel(ctx), c.init, unix.SIGKILL, true)
		return err
	}
	c.init.set(int(resp.Pid), api.StatusRunning)
	c.init.io.opened()
	return nil
}

// kill signals a process; one that has ended needs none.
func (c *container) kill(ctx context.Context, p *process, sig unix.Signal, all bool) error {
	if _, state := p.snapshot(); state == api.StatusStopped {
		return nil
	}
	all = all && p == c.init
	limit := quickLimit
	if sig == unix.SIGKILL {
		limit = endLimit
	}
	err := c.shim.call(ctx, limit, "Kill", &api.KillRequest{ID: c.id, ExecID: p.execID, Signal: uint32(sig), All: all}, &api.Empty{})
	if api.CodeOf(err) == api.CodeNotFound || errors.Is(err, errGone) {
		return nil // it has just ended
	}
	if err != nil && all && sig == unix.SIGKILL && !c.shim.rec.Shared {
		// It shall end even if its shim does nothing: watch ends what the shim leaves.
		complain("kill "+c.id+" with its shim", err)
		return c.shim.kill()
	}
	return err
}

// delete releases what the container holds; one that was never started is
// ended.
func (c *container) delete(ctx context.Context) error {
	switch _, state := c.init.snapshot(); state {
	case api.StatusCreated:
		if err := c.kill(ctx, c.init, unix.SIGKILL, true); err != nil {
			return fmt.Errorf("end %s: %w", c.id, err)
		}
		<-c.init.done
	case api.StatusStopped:
	default:
		return api.Errorf(api.CodeFailedPrecondition, "process of container %s is running", c.id)
	}
	c.mu.Lock()
	lost := c.lost
	c.mu.Unlock()
	if !lost {
		err := c.shim.call(ctx, slowLimit, "Delete", &api.ProcessRequest{ID: c.id}, &api.DeleteResponse{})
		if err == nil {
			err = c.shim.end(ctx)
		}
		if err == nil {
			return c.shim.forget()
		}
		complain("delete "+c.id, err)
	}
	return c.shim.clean(ctx)
}
