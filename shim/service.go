package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/internal/leanjson"
	"github.com/longshore/longshore/shim/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// version is what Connect answers.
const version = "1"

// service is what a shim knows: its containers, most often one.
type service struct {
	server    api.Server
	ending    chan struct{} // closed when the shim shall end
	sandboxes keyedMutex    // one operation at a time on a sandbox

	mu         sync.Mutex // guards all below
	containers map[string]*container
	busy       int  // calls under way that must be finished
	alone      bool // nobody will give it work: its daemon has gone, or said so
	ended      bool
}

func newService() *service {
	s := &service{ending: make(chan struct{}), containers: map[string]*container{}}
	task := map[string]api.Method{
		"Create": s.create, "Start": s.start, "State": s.state, "Wait": s.wait, "Delete": s.delete,
		"Kill": s.kill, "Exec": s.exec, "ResizePty": s.resize, "CloseIO": s.closeIO, "Pids": s.pids,
		"Pause": s.pause, "Resume": s.resume, "Update": s.update, "Connect": s.connect, "Shutdown": s.shutdown,
	}
	s.server.Register(api.TaskV2, task)
	s.server.Register(api.TaskV3, task)
	s.server.Register(api.ShimService, map[string]api.Method{
		"Run": s.run, "Attach": s.attach, "ReopenLog": s.reopenLog,
		"CreateSandbox": s.createSandbox, "RemoveSandbox": s.removeSandbox, "Dial": s.dial, "Prepare": s.prepare,
	})
	return s
}

// begin holds the shim while something is being made or removed; finish with
// the function returned.
func (s *service) begin() func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.busy--
		s.endIfIdle()
	}
}

// daemonGone ends the shim as soon as it holds nothing: nobody will ever give
// it work.
func (s *service) daemonGone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alone = true
	s.endIfIdle()
}

// endIfIdle is called with mu held.
func (s *service) endIfIdle() {
	if s.alone && s.busy == 0 && len(s.containers) == 0 {
		s.end()
	}
}

// end is called with mu held.
func (s *service) end() {
	if !s.ended {
		s.ended = true
		close(s.ending)
	}
}

func (s *service) find(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.containers[id]
	if !ok {
		return nil, api.Errorf(api.CodeNotFound, "container %q is not here", id)
	}
	return c, nil
}

// process finds what a [api.ProcessRequest] names.
func (s *service) process(decode func(any) error) (*container, *process, error) {
	var req api.ProcessRequest
	if err := decode(&req); err != nil {
		return nil, nil, err
	}
	return s.processOf(req.ID, req.ExecID)
}

func (s *service) processOf(id, execID string) (*container, *process, error) {
	c, err := s.find(id)
	if err != nil {
		return nil, nil, err
	}
	p, err := c.process(execID)
	return c, p, err
}

func (s *service) create(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.CreateTaskRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	if req.Checkpoint != "" && req.Checkpoint != api.RestoreFile {
		return nil, api.Errorf(api.CodeInvalidArgument, "checkpoint %q is not %s of the bundle", req.Checkpoint, api.RestoreFile)
	}
	defer s.begin()()
	if _, err := s.find(req.ID); err == nil {
		return nil, api.Errorf(api.CodeAlreadyExists, "container %q exists", req.ID)
	}
	c, err := newContainer(&req)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.containers[req.ID] = c
	s.mu.Unlock()
	return &api.CreateTaskResponse{Pid: uint32(c.init.pid())}, nil
}

func (s *service) start(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	c, p, err := s.process(decode)
	if err != nil {
		return nil, err
	}
	if err := c.start(p); err != nil {
		return nil, err
	}
	return &api.StartResponse{Pid: uint32(p.pid())}, nil
}

func (s *service) state(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	c, p, err := s.process(decode)
	if err != nil {
		return nil, err
	}
	return c.state(p), nil
}

func (s *service) wait(ctx context.Context, decode func(any) error, _ *api.Files) (any, error) {
	c, p, err := s.process(decode)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
		c.forget(p)
		return &api.WaitResponse{ExitStatus: uint32(p.exit.Code), ExitedAt: p.exitedAt()}, nil
	case <-p.left:
		return nil, api.Errorf(api.CodeNotFound, "process %q of container %s was given up", p.execID, c.id)
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.Canceled) {
			c.abandon(p)
		}
		return nil, api.Errorf(api.CodeDeadlineExceeded, "wait for %s: %v", c.id, ctx.Err())
	}
}

func (s *service) delete(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	c, p, err := s.process(decode)
	if err != nil {
		return nil, err
	}
	err = c.delete(p)
	if p == c.init && p.ended() { // also if something of it stays: the daemon clears that away, and does not ask again
		s.mu.Lock()
		delete(s.containers, c.id)
		s.endIfIdle()
		s.mu.Unlock()
	}
	if err != nil {
		return nil, err
	}
	return &api.DeleteResponse{Pid: uint32(p.pid()), ExitStatus: uint32(p.exit.Code), ExitedAt: p.exitedAt()}, nil
}

func (s *service) kill(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.KillRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	c, p, err := s.processOf(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	switch all := req.All && unix.Signal(req.Signal) == unix.SIGKILL; {
	case all && p == c.init:
		err = c.killAll()
	case all:
		err = p.killTree()
	default:
		err = p.signal(unix.Signal(req.Signal))
	}
	return &api.Empty{}, err
}

func (s *service) exec(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.ExecProcessRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	c, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	return &api.Empty{}, c.addExec(&req)
}

func (s *service) resize(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.ResizePtyRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	_, p, err := s.processOf(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	return &api.Empty{}, p.resize(uint16(req.Width), uint16(req.Height))
}

func (s *service) closeIO(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.CloseIORequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	_, p, err := s.processOf(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	if req.Stdin {
		p.closeStdin()
	}
	return &api.Empty{}, nil
}

func (s *service) pids(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	c, err := s.named(decode)
	if err != nil {
		return nil, err
	}
	pids, err := c.launched.Cgroup().Procs()
	if err != nil {
		return nil, err
	}
	var resp api.PidsResponse
	for _, pid := range pids {
		resp.Processes = append(resp.Processes, &api.ProcessInfo{Pid: uint32(pid)})
	}
	return &resp, nil
}

// named finds what a [api.TaskRequest] names.
func (s *service) named(decode func(any) error) (*container, error) {
	var req api.TaskRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	return s.find(req.ID)
}

func (s *service) pause(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	return s.freezer(decode, (*cgroup.Group).Freeze, true)
}

func (s *service) resume(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	return s.freezer(decode, (*cgroup.Group).Thaw, false)
}

func (s *service) freezer(decode func(any) error, act func(*cgroup.Group) error, paused bool) (any, error) {
	c, err := s.named(decode)
	if err != nil {
		return nil, err
	}
	if err := act(c.launched.Cgroup()); err != nil {
		return nil, err
	}
	c.setPaused(paused)
	return &api.Empty{}, nil
}

func (s *service) update(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.UpdateTaskRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	c, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	if req.Resources == nil {
		return &api.Empty{}, nil
	}
	var resources specs.LinuxResources
	if err := leanjson.Unmarshal(req.Resources.Value, &resources); err != nil {
		return nil, api.Errorf(api.CodeInvalidArgument, "resources of %s: %v", req.ID, err)
	}
	if err := c.launched.Cgroup().Update(&resources); err != nil {
		return nil, fmt.Errorf("update %s: %w", req.ID, err)
	}
	return &api.Empty{}, nil
}

func (s *service) connect(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	c, err := s.named(decode)
	if err != nil {
		return nil, err
	}
	return &api.ConnectResponse{ShimPid: uint32(os.Getpid()), TaskPid: uint32(c.init.pid()), Version: version}, nil
}

// shutdown ends the shim once the answer is on its way, unless it still holds
// a container.
func (s *service) shutdown(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.ShutdownRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if req.Now {
		s.end()
	} else if len(s.containers) == 0 {
		s.alone = true
		s.endIfIdle()
	}
	return &api.Empty{}, nil
}
