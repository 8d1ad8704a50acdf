package keeper

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/pb"
	"github.com/longshore/longshore/shim/api"
	"golang.org/x/sys/unix"
)

// Service is what a keeper answers on its socket.
type Service struct {
	Server api.Server
	ending chan struct{} // closed when the keeper shall end
	socket string        // on which it is served, and others' shims may publish

	mu      sync.Mutex // guards all below
	made    *container
	began   bool // a container is made, or was
	busy    int  // calls under way that must be finished
	alone   bool // nobody will give it work: its daemon has gone, or said so
	stopped bool

	unwanted bool // a container that is being made shall not stay: a daemon that does not know it has said to end
}

// New makes the service of a keeper that is served at a socket's path.
func New(socket string) *Service {
	s := &Service{ending: make(chan struct{}), socket: socket}
	s.Server.Register(api.TaskV3, map[string]api.Method{
		"Create": s.create, "Start": s.start, "State": s.state, "Wait": s.wait, "Delete": s.delete, "Kill": s.kill, "ResizePty": s.resize,
		"CloseIO": s.closeIO, "Pids": s.pids, "Pause": s.pause, "Resume": s.resume, "Update": s.update, "Shutdown": s.shutdown,
	})
	s.Server.Register(api.ShimService, map[string]api.Method{"Run": s.run, "Attach": s.attach, "ReopenLog": s.reopenLog, "Clean": s.clean})
	s.Server.Register(api.EventService, map[string]api.Method{"Forward": s.forward})
	return s
}

// Ending is closed when the keeper shall end: it was told to, or it holds
// nothing and its daemon has gone.
func (s *Service) Ending() <-chan struct{} { return s.ending }

// DaemonGone ends the keeper as soon as it holds nothing.
func (s *Service) DaemonGone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alone = true
	s.endIfIdle()
}

// begin holds the keeper; finish with the function returned.
func (s *Service) begin() func() {
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

// endIfIdle is called with mu held.
func (s *Service) endIfIdle() {
	if s.alone && s.busy == 0 && s.made == nil && !s.stopped {
		s.stopped = true
		close(s.ending)
	}
}

// find gives the container, once it is made. It waits for nothing: a daemon
// that starts asks for all containers, and one that is still being made has no
// use for it.
func (s *Service) find(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made == nil || s.made.id != id {
		return nil, api.Errorf(api.CodeNotFound, "container %q is not here", id)
	}
	return s.made, nil
}

func (s *Service) processOf(id, execID string) (*container, *process, error) {
	c, err := s.find(id)
	if err != nil {
		return nil, nil, err
	}
	p, err := c.process(execID)
	return c, p, err
}

// named decodes a [api.ProcessRequest], or a [api.TaskRequest], its beginning.
func (s *Service) named(decode func(any) error) (*container, *process, error) {
	var req api.ProcessRequest
	if err := decode(&req); err != nil {
		return nil, nil, err
	}
	return s.processOf(req.ID, req.ExecID)
}

func (s *Service) create(ctx context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.CreateTaskRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	if req.Options == nil || req.Options.TypeURL != api.ForeignType {
		return nil, api.Errorf(api.CodeInvalidArgument, "the request names no runtime's shim")
	}
	var how api.Foreign
	if err := pb.Unmarshal(req.Options.Value, &how); err != nil {
		return nil, api.Errorf(api.CodeInvalidArgument, "options: %v", err)
	}
	defer s.begin()()
	s.mu.Lock()
	began := s.began
	s.began = true
	s.mu.Unlock()
	if began {
		return nil, api.Errorf(api.CodeFailedPrecondition, "a keeper has one container")
	}
	// What was begun is finished, whoever waits for it.
	c, err := create(context.WithoutCancel(ctx), &req, &how, s.socket)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	unwanted := s.unwanted
	if !unwanted {
		s.made = c
	}
	s.mu.Unlock()
	if unwanted {
		return nil, errors.Join(api.Errorf(api.CodeFailedPrecondition, "nobody wants container %s any more", c.id), c.delete(context.WithoutCancel(ctx)))
	}
	pid, _ := c.init.snapshot()
	return &api.CreateTaskResponse{Pid: uint32(pid)}, nil
}

func (s *Service) start(ctx context.Context, decode func(any) error, _ *api.Files) (any, error) {
	c, _, err := s.named(decode)
	if err != nil {
		return nil, err
	}
	if err := c.start(context.WithoutCancel(ctx)); err != nil {
		return nil, err
	}
	pid, _ := c.init.snapshot()
	return &api.StartResponse{Pid: uint32(pid)}, nil
}

func (s *Service) state(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	c, p, err := s.named(decode)
	if err != nil {
		return nil, err
	}
	pid, status := p.snapshot()
	resp := &api.StateResponse{ID: c.id, Bundle: c.bundle, ExecID: p.execID, Pid: uint32(pid), Status: int32(status), Terminal: p.tty}
	if status == api.StatusStopped {
		<-p.done
		resp.ExitStatus, resp.ExitedAt = uint32(p.exit.Code), exitedAt(p)
		return resp, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused && status == api.StatusRunning {
		resp.Status = int32(api.StatusPaused)
	}
	return resp, nil
}

func exitedAt(p *process) *api.Timestamp { return api.TimestampOf(time.Unix(0, p.exit.ExitedAtNS)) }

func (s *Service) wait(ctx context.Context, decode func(any) error, _ *api.Files) (any, error) {
	c, p, err := s.named(decode)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
		c.forget(p)
		return &api.WaitResponse{ExitStatus: uint32(p.exit.Code), ExitedAt: exitedAt(p)}, nil
	case <-p.left:
		return nil, api.Errorf(api.CodeNotFound, "process %q of container %s was given up", p.execID, c.id)
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.Canceled) {
			c.abandon(p)
		}
		return nil, api.Errorf(api.CodeDeadlineExceeded, "wait for %s: %v", c.id, ctx.Err())
	}
}

func (s *Service) delete(ctx context.Context, decode func(any) error, _ *api.Files) (any, error) {
	c, p, err := s.named(decode)
	if err != nil {
		return nil, err
	}
	if p != c.init { // it goes on, if it has not ended
		c.forget(p)
		return &api.DeleteResponse{}, nil
	}
	defer s.begin()()
	err = c.delete(context.WithoutCancel(ctx))
	pid, state := p.snapshot()
	if state == api.StatusStopped { // also if something of it stays: the daemon has the next keeper clear that away
		s.mu.Lock()
		s.made = nil
		s.mu.Unlock()
	}
	if err != nil {
		return nil, err
	}
	return &api.DeleteResponse{Pid: uint32(pid), ExitStatus: uint32(p.exit.Code), ExitedAt: exitedAt(p)}, nil
}

func (s *Service) kill(ctx context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.KillRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	c, p, err := s.processOf(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	if req.All && unix.Signal(req.Signal) == unix.SIGKILL && p.tree {
		return &api.Empty{}, c.killTree(ctx, p)
	}
	return &api.Empty{}, c.kill(ctx, p, unix.Signal(req.Signal), req.All)
}

func (s *Service) resize(ctx context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.ResizePtyRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	c, _, err := s.processOf(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	return &api.Empty{}, c.shim.call(ctx, quickLimit, "ResizePty", &req, &api.Empty{})
}

func (s *Service) closeIO(ctx context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.CloseIORequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	c, p, err := s.processOf(req.ID, req.ExecID)
	if err != nil {
		return nil, err
	}
	if req.Stdin {
		p.io.closeStdin()
	}
	return &api.Empty{}, c.shim.call(ctx, quickLimit, "CloseIO", &req, &api.Empty{})
}

func (s *Service) pids(ctx context.Context, decode func(any) error, _ *api.Files) (any, error) {
	c, _, err := s.named(decode)
	if err != nil {
		return nil, err
	}
	var resp api.PidsResponse
	return &resp, c.shim.call(ctx, quickLimit, "Pids", &api.TaskRequest{ID: c.id}, &resp)
}

func (s *Service) pause(ctx context.Context, decode func(any) error, _ *api.Files) (any, error) {
	return s.freeze(ctx, "Pause", true, decode)
}

func (s *Service) resume(ctx context.Context, decode func(any) error, _ *api.Files) (any, error) {
	return s.freeze(ctx, "Resume", false, decode)
}

func (s *Service) freeze(ctx context.Context, method string, paused bool, decode func(any) error) (any, error) {
	c, _, err := s.named(decode)
	if err != nil {
		return nil, err
	}
	if err := c.shim.call(ctx, quickLimit, method, &api.TaskRequest{ID: c.id}, &api.Empty{}); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = paused
	return &api.Empty{}, nil
}

// resourcesType is the type of the limits in an update (typeurl).
const resourcesType = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"

func (s *Service) update(ctx context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.UpdateTaskRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	c, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	if req.Resources != nil {
		req.Resources.TypeURL = resourcesType
	}
	return &api.Empty{}, c.shim.call(ctx, quickLimit, "Update", &req, &api.Empty{})
}

// shutdown ends the keeper once the answer is on its way, unless it still
// holds the container.
func (s *Service) shutdown(_ context.Context, _ func(any) error, _ *api.Files) (any, error) {
	s.mu.Lock()
	s.unwanted = true
	s.mu.Unlock()
	s.DaemonGone()
	return &api.Empty{}, nil
}

// run is the method Run: a process whose stdio the daemon holds.
func (s *Service) run(ctx context.Context, decode func(any) error, files *api.Files) (any, error) {
	var req api.RunRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	c, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	if req.ExecID == "" || filepath.Base(req.ExecID) != req.ExecID {
		return nil, api.Errorf(api.CodeInvalidArgument, "exec id %q", req.ExecID)
	}
	p, client, err := c.run(context.WithoutCancel(ctx), &req, files)
	if err != nil {
		return nil, err
	}
	if client >= 0 {
		files.Out = []int{client}
	}
	pid, _ := p.snapshot()
	return &api.RunResponse{Pid: uint32(pid)}, nil
}

// attach is the method Attach.
func (s *Service) attach(_ context.Context, decode func(any) error, files *api.Files) (any, error) {
	var req api.AttachRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	c, err := s.find(req.ID)
	if err != nil {
		return nil, err
	}
	if _, state := c.init.snapshot(); state == api.StatusStopped {
		return nil, api.Errorf(api.CodeFailedPrecondition, "container %s has exited", req.ID)
	}
	if req.Stdin {
		fd, err := c.init.io.stdinFD()
		if err != nil {
			return nil, err
		}
		files.Out = []int{fd}
	}
	c.init.io.attach(take(files, req.Stdout), take(files, req.Stderr))
	return &api.Empty{}, nil
}

// reopenLog is the method ReopenLog.
func (s *Service) reopenLog(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	c, _, err := s.named(decode)
	if err != nil {
		return nil, err
	}
	if c.init.io.log == nil {
		return nil, api.Errorf(api.CodeFailedPrecondition, "container %s has no log", c.id)
	}
	return &api.Empty{}, c.init.io.log.Reopen()
}

// clean is the method Clean: the keeper of the container has died.
func (s *Service) clean(ctx context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.CleanRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	defer s.begin()()
	r := &remote{id: req.ID, bundle: req.Bundle, events: s.socket}
	err := atomicfile.ReadJSON(filepath.Join(req.Bundle, api.ForeignFile), &r.rec)
	if errors.Is(err, unix.ENOENT) {
		return &api.Empty{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := r.clean(context.WithoutCancel(ctx)); err != nil {
		return nil, fmt.Errorf("clear away container %s: %w", req.ID, err)
	}
	return &api.Empty{}, nil
}

// forward takes an event of the shim. Only one is news: that memory ran out.
// Ends are told by Wait.
func (s *Service) forward(_ context.Context, decode func(any) error, _ *api.Files) (any, error) {
	var req api.ForwardRequest
	if err := decode(&req); err != nil {
		return nil, err
	}
	if e := req.Envelope; e != nil && e.Topic == api.TopicOOM && e.Event != nil {
		var oom api.TaskOOM
		if err := pb.Unmarshal(e.Event.Value, &oom); err != nil {
			return nil, err
		}
		s.mu.Lock()
		c := s.made
		s.mu.Unlock()
		if c != nil && c.id == oom.ContainerID {
			c.mu.Lock()
			c.oom = true
			c.mu.Unlock()
		}
	}
	return &api.Empty{}, nil
}
