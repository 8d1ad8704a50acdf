package main

import (
	"context"
	"fmt"
	"os"

	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/launch"
	"golang.org/x/sys/unix"
)

// addExec prepares a process of the task API; start runs it.
func (c *container) addExec(req *api.ExecProcessRequest) error {
	if req.Spec == nil {
		return api.Errorf(api.CodeInvalidArgument, "process %q: no spec", req.ExecID)
	}
	spec, err := decodeProcess(req.Spec.Value)
	if err != nil {
		return err
	}
	spec.Terminal = req.Terminal
	s, err := openStreams(req.Terminal, req.Stdin, req.Stdout, req.Stderr)
	if err != nil {
		return err
	}
	p := newProcess(req.ExecID, s)
	p.spec = spec
	if err := c.register(p); err != nil {
		s.abandon()
		return err
	}
	return nil
}

// register makes a process known by its id.
func (c *container) register(p *process) error {
	if p.execID == "" {
		return api.Errorf(api.CodeInvalidArgument, "process of container %s: no exec id", c.id)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.execs[p.execID]; ok {
		return api.Errorf(api.CodeAlreadyExists, "process %q of container %s exists", p.execID, c.id)
	}
	c.execs[p.execID] = p
	return nil
}

func (c *container) startExec(p *process) error {
	if !p.move(api.StatusCreated, api.StatusRunning) {
		return api.Errorf(api.CodeFailedPrecondition, "process %q of container %s has been started", p.execID, c.id)
	}
	return c.runExec(p, p.streams.child)
}

// runExec runs a registered process and watches it. A process that cannot be
// run is finished with the code a shell would give.
func (c *container) runExec(p *process, io launch.Stdio) error {
	proc, err := c.launched.ExecIn(p.spec, io, p.group)
	if err != nil {
		p.finish(api.Exit{Code: 126, Message: err.Error()})
		p.streams.abandon()
		c.dropGroup(p)
		c.mu.Lock()
		delete(c.execs, p.execID)
		c.mu.Unlock()
		return classify(err)
	}
	p.begin(proc, api.StatusRunning)
	go c.watchExec(p, proc)
	return nil
}

// watchExec ends with the process and its output.
func (c *container) watchExec(p *process, proc *launch.Process) {
	status, err := proc.Wait()
	exit := exitOf(proc.Pid(), status, err)
	if err := p.drain(); err != nil {
		exit.Message = err.Error()
	}
	p.finish(exit)
	c.dropGroup(p)
}

// run is the method Run: a process whose stdio the daemon holds.
func (s *service) run(ctx context.Context, decode func(any) error, files *api.Files) (any, error) {
	var req api.RunRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	c, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	if c.init.status() != api.StatusRunning {
		return nil, api.Errorf(api.CodeFailedPrecondition, "container %s is not running", req.ID)
	}
	spec, err := decodeProcess(req.Process)
	if err != nil {
		return nil, err
	}
	io := launch.Stdio{Stdin: take(files, req.Stdin), Stdout: take(files, req.Stdout), Stderr: take(files, req.Stderr)}
	defer closeAll(io.Stdin, io.Stdout, io.Stderr)
	p := newProcess(req.ExecID, &streams{})
	p.spec, p.transient, p.tree, p.state = spec, true, req.Tree, api.StatusRunning
	if req.Tree {
		if p.group, err = c.launched.Cgroup().Child("exec-" + req.ExecID); err != nil {
			return nil, err
		}
	}
	if err := c.register(p); err != nil {
		c.dropGroup(p)
		return nil, err
	}
	run := c.runExec
	if spec.Terminal {
		run = func(p *process, _ launch.Stdio) error { return c.runTerminal(p, files) }
	}
	if err := run(p, io); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		c.abandon(p)
		return nil, ctx.Err()
	}
	return &api.RunResponse{Pid: uint32(p.pid())}, nil
}

// runTerminal hands the terminal's master to the daemon and keeps no copy of
// it: when the daemon lets go, the terminal hangs up.
func (c *container) runTerminal(p *process, files *api.Files) error {
	proc, err := c.launched.ExecIn(p.spec, launch.Stdio{}, p.group)
	if err != nil {
		p.finish(api.Exit{Code: 126, Message: err.Error()})
		c.dropGroup(p)
		c.forget(p)
		return classify(err)
	}
	p.mu.Lock()
	p.proc = proc
	p.mu.Unlock()
	master, err := unix.FcntlInt(proc.Console().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	proc.Console().Close()
	go c.watchExec(p, proc)
	if err != nil {
		c.forget(p) // it ends with its terminal
		return fmt.Errorf("share the terminal: %w", err)
	}
	files.Out = []int{master}
	return nil
}

// take gives the next descriptor of a call as a file, if it is wanted.
func take(files *api.Files, wanted bool) *os.File {
	if !wanted {
		return nil
	}
	fd := files.Take()
	if fd < 0 {
		return nil
	}
	return os.NewFile(uintptr(fd), "stdio")
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// attach is the method Attach.
func (s *service) attach(_ context.Context, decode func(any) error, files *api.Files) (any, error) {
	var req api.AttachRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	c, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	if c.init.ended() {
		return nil, api.Errorf(api.CodeFailedPrecondition, "container %s has exited", req.ID)
	}
	if req.Stdin {
		fd, err := c.init.streams.stdinFD()
		if err != nil {
			return nil, err
		}
		files.Out = []int{fd}
	}
	c.init.streams.attach(takePollable(files, req.Stdout), takePollable(files, req.Stderr))
	return &api.Empty{}, nil
}

// takePollable gives a descriptor to which writes take a deadline.
func takePollable(files *api.Files, wanted bool) *os.File {
	if !wanted {
		return nil
	}
	fd := files.Take()
	if fd < 0 || unix.SetNonblock(fd, true) != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "attached")
}

// reopenLog is the method ReopenLog.
func (s *service) reopenLog(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	c, err := s.named(decode)
	if err != nil {
		return nil, err
	}
	log := c.init.streams.log
	if log == nil {
		return nil, api.Errorf(api.CodeFailedPrecondition, "container %s has no log", c.id)
	}
	return &api.Empty{}, log.Reopen()
}
