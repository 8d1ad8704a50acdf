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
	making     map[string]chan struct{} // containers that are being made; closed once they are, or cannot be
	refused    map[string]bool          // containers that shall not be made any more
	busy       int                      // calls under way that must be finished
	orphan     bool                     // the daemon that started it has gone; another may be connected
	alone      bool                     // nobody will give it work: its daemon has said so
	ended      bool
}

func newService() *service {
	s := &service{ending: make(chan struct{}), containers: map[string]*container{}, making: map[string]chan struct{}{}}
	s.server.Idle = s.disconnected
	task := map[string]api.Method{
		"Create": s.create, "Start": s.start, "State": s.state, "Wait": s.wait, "Delete": s.delete,
		"Kill": s.kill, "Exec": s.exec, "ResizePty": s.resize, "CloseIO": s.closeIO, "Pids": s.pids,
		"Pause": s.pause, "Resume": s.resume, "Update": s.update, "Connect": s.connect, "Shutdown": s.shutdown,
	}
	s.server.Register(api.TaskV2, task)
	s.server.Register(api.TaskV3, task)
	s.server.Register(api.ShimService, map[string]api.Method{
		"Run": s.run, "Attach": s.attach, "ReopenLog": s.reopenLog,
		"CreateSandbox": s.createSandbox, "RemoveSandbox": s.removeSandbox, "Dial": s.dial, "NetDev": s.netDev, "Prepare": s.prepare,
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

// daemonGone ends the shim as soon as it holds nothing and no later daemon is
// connected: nobody will ever give it work.
func (s *service) daemonGone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orphan = true
	s.endIfIdle()
}

func (s *service) disconnected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endIfIdle()
}

// endIfIdle is called with mu held.
func (s *service) endIfIdle() {
	if s.busy == 0 && len(s.containers) == 0 && (s.alone || s.orphan && !s.server.Connected()) {
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

// find waits for a container that is being made.
func (s *service) find(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.findLocked(id)
}

// findLocked is called with mu held, which it lets go while it waits.
func (s *service) findLocked(id string) (*container, error) {
	for made := s.making[id]; made != nil; made = s.making[id] {
		s.mu.Unlock()
		<-made
		s.mu.Lock()
	}
	c, ok := s.containers[id]
	if !ok {
		return nil, api.Errorf(api.CodeNotFound, "container %q is not here", id)
	}
	return c, nil
}

// claim begins to make a container; finish with the function returned.
func (s *service) claim(id string) (func(*container), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[id] != nil || s.making[id] != nil {
		return nil, api.Errorf(api.CodeAlreadyExists, "container %q exists", id)
	}
	if s.refused[id] {
		return nil, api.Errorf(api.CodeFailedPrecondition, "container %q was deleted before it was made", id)
	}
	made := make(chan struct{})
	s.making[id] = made
	return func(c *container) {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.making, id)
		if c != nil {
			s.containers[id] = c
		}
		close(made)
	}, nil
}

// refuse has a container that is not here never be made: a daemon that has died
// may have asked for it, and the one that asks now does not want it. It reports
// whether it is not here.
func (s *service) refuse(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.findLocked(id); err == nil || !s.orphan {
		return false
	}
	if s.refused == nil {
		s.refused = map[string]bool{}
	}
	s.refused[id] = true
	return true
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
	made, err := s.claim(req.ID)
	if err != nil {
		return nil, err
	}
	c, err := newContainer(&req)
	made(c)
	if err != nil {
		return nil, err
	}
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
	var req api.ProcessRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	if req.ExecID == "" && s.refuse(req.ID) {
		return nil, api.Errorf(api.CodeNotFound, "container %q is not here, and will not be", req.ID)
	}
	c, p, err := s.processOf(req.ID, req.ExecID)
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
	sig := unix.Signal(req.Signal)
	switch all := req.All && sig == unix.SIGKILL; {
	case p == c.init:
		err = c.signal(sig, all)
	case all:
		err = p.killTree()
	default:
		err = p.signal(sig)
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
		return nil, classify(fmt.Errorf("update %s: %w", req.ID, err))
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
