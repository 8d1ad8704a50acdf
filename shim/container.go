package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/internal/leanjson"
	"github.com/longshore/longshore/internal/undo"
	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/bundle"
	"github.com/longshore/longshore/shim/launch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// container is one container of this shim.
type container struct {
	id, bundle string
	launched   *launch.Container
	init       *process
	restored   bool       // criu makes its first process
	restoring  chan error // holds what came of it; of one that is restored

	mu     sync.Mutex // guards all below
	execs  map[string]*process
	stale  []*cgroup.Group // of processes that have ended and left others running
	paused bool
	doomed bool // was to be ended before it was restored
	sent   sentSignals
}

// seccompEnv names the directory of compiled seccomp profiles.
const seccompEnv = "LONGSHORE_SECCOMP"

// newContainer makes a container, stopped before its program.
func newContainer(req *api.CreateTaskRequest) (*container, error) {
	spec, filter, err := bundle.Read(req.Bundle, os.Getenv(seccompEnv))
	if err != nil {
		return nil, api.Errorf(api.CodeInvalidArgument, "%v", err)
	}
	if spec.Process == nil {
		return nil, api.Errorf(api.CodeInvalidArgument, "%s: no process", req.Bundle)
	}
	var taken undo.Stack
	defer taken.Run()
	streams, err := openStreams(spec.Process.Terminal, req.Stdin, req.Stdout, req.Stderr)
	if err != nil {
		return nil, err
	}
	taken.Add(streams.abandon)
	cfg := launch.Config{
		ID: req.ID, Bundle: req.Bundle, Spec: spec, Filter: filter, Rootfs: launchMounts(req.Rootfs), Stdio: streams.child, Template: template(),
	}
	if req.Checkpoint != "" {
		c, err := reserveContainer(req, cfg, streams)
		if err == nil {
			taken.Keep()
		}
		return c, err
	}
	launched, err := launch.Create(cfg)
	if err != nil {
		return nil, classify(err)
	}
	taken.Keep()
	c := &container{id: req.ID, bundle: req.Bundle, launched: launched, execs: map[string]*process{}}
	c.init = newProcess("", streams)
	c.init.begin(launched.Init(), api.StatusCreated)
	go c.watchInit()
	return c, nil
}

func launchMounts(mounts []*api.Mount) []launch.Mount {
	out := make([]launch.Mount, 0, len(mounts))
	for _, m := range mounts {
		out = append(out, launch.Mount{Type: m.Type, Source: m.Source, Options: m.Options, Target: m.Target})
	}
	return out
}

// classify gives an error of a launch or an update its gRPC code.
func classify(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return &api.Error{Code: api.CodeNotFound, Message: err.Error()}
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EBUSY):
		return &api.Error{Code: api.CodeFailedPrecondition, Message: err.Error()}
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC):
		return &api.Error{Code: api.CodeInvalidArgument, Message: err.Error()}
	}
	return err
}

// process finds the container's first process (""), or one of exec.
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

// start opens the gate of the container, or runs a process of exec.
func (c *container) start(p *process) error {
	if p != c.init {
		return c.startExec(p)
	}
	if c.restored && p.status() == api.StatusRunning {
		return c.joinRestore()
	}
	if !p.move(api.StatusCreated, api.StatusRunning) {
		return api.Errorf(api.CodeFailedPrecondition, "container %s has been started", c.id)
	}
	if c.restored {
		return c.restore()
	}
	if err := c.launched.Start(); err != nil {
		return classify(err)
	}
	return nil
}

// watchInit waits for the container's first process and records its end. It
// ends with the container.
func (c *container) watchInit() {
	p := c.init
	status, err := p.running().Wait()
	exit := exitOf(p.pid(), status, err)
	// Before anything else touches the cgroup: its count goes with it.
	if kills, err := c.launched.Cgroup().OOMKills(); err == nil {
		c.mu.Lock()
		exit.OOMKilled = c.sent.explain(exit, kills)
		c.mu.Unlock()
	}
	// A pid namespace of its own ends with its first process; a shared one
	// leaves the others running, with the container's output open.
	if err := c.launched.Cgroup().Kill(); err != nil && !errors.Is(err, unix.ENOENT) {
		exit.Message = fmt.Sprintf("kill what is left: %v", err)
	}
	if err := p.drain(); err != nil {
		exit.Message = err.Error()
	}
	if err := atomicfile.WriteJSON(filepath.Join(c.bundle, api.ExitFile), exit, atomicfile.Volatile); err != nil {
		fmt.Fprintln(os.Stderr, "longshore-shim: exit record:", err)
	}
	p.finish(exit)
}

// sentSignals is what the daemon has done to end a container, by which its end
// is told from one for memory.
type sentSignals struct {
	kill     bool   // SIGKILL
	oomKills uint64 // counted when the last signal was sent
}

// note is called before a signal is sent.
func (s *sentSignals) note(sig unix.Signal, kills uint64) {
	s.kill, s.oomKills = s.kill || sig == unix.SIGKILL, kills
}

// explain says whether a container ended because the kernel killed a process of
// it for memory: its first one, or another for which the first then gave up. It
// may have outlived such a kill, and have ended when we wanted it to.
func (s *sentSignals) explain(exit api.Exit, kills uint64) (outOfMemory bool) {
	switch sig := unix.Signal(exit.Signal); {
	case exit.Code == 0:
		return false
	case sig == unix.SIGKILL && !s.kill:
		return kills > 0
	case sig == unix.SIGKILL, sig == 0:
		return kills > s.oomKills
	}
	return false
}

// signal sends one to the first process, or, with all, SIGKILL to every one.
func (c *container) signal(sig unix.Signal, all bool) error {
	if kills, err := c.launched.Cgroup().OOMKills(); err == nil {
		c.mu.Lock()
		c.sent.note(sig, kills)
		c.mu.Unlock()
	}
	if all {
		return c.killAll()
	}
	return c.init.signal(sig)
}

// exitOf makes the exit record of a process that has just ended.
func exitOf(pid int, status unix.WaitStatus, err error) api.Exit {
	exit := api.Exit{Pid: pid, ExitedAtNS: time.Now().UnixNano()}
	switch {
	case err != nil:
		exit.Code, exit.Message = 255, err.Error()
	case status.Signaled():
		exit.Signal = int(status.Signal())
		exit.Code = 128 + exit.Signal
	default:
		exit.Code = status.ExitStatus()
	}
	return exit
}

// killAll ends every process of the container.
func (c *container) killAll() error {
	if c.init.ended() {
		return nil
	}
	if c.restored && c.init.move(api.StatusCreated, api.StatusStopped) {
		c.neverRan(api.Exit{Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL)})
		return nil
	}
	unborn := c.doom()
	err := c.launched.Cgroup().Kill()
	if unborn {
		return err
	}
	// What never joined the cgroup dies with the first process.
	if sigErr := c.init.signal(unix.SIGKILL); err == nil {
		err = sigErr
	}
	return err
}

// delete releases a process that has ended, and with the first one all that
// the container holds. A container that was never started is ended.
func (c *container) delete(p *process) error {
	switch {
	case p == c.init && p.status() == api.StatusCreated:
		if err := c.killAll(); err != nil {
			return fmt.Errorf("end %s: %w", c.id, err)
		}
		<-p.done
	case p != c.init && p.status() == api.StatusCreated:
		p.finish(api.Exit{})
	case p.transient && !p.ended():
		c.forget(p)
		return nil
	case !p.ended():
		return api.Errorf(api.CodeFailedPrecondition, "process of container %s is running", c.id)
	}
	if p != c.init {
		c.mu.Lock()
		delete(c.execs, p.execID)
		c.mu.Unlock()
		return nil
	}
	if err := c.launched.Close(); err != nil {
		return fmt.Errorf("release %s: %w", c.id, err)
	}
	return nil
}

// forget drops a process of Run once its end is told, or when nobody wants to
// know it any more. It goes on.
func (c *container) forget(p *process) {
	if !p.transient {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[p.execID] == p {
		delete(c.execs, p.execID)
		close(p.left)
	}
}

// abandon is for a process of Run whose daemon has hung up: nobody will wait for
// it. One with a tree is ended, for nobody will end it when its time is over.
func (c *container) abandon(p *process) {
	c.forget(p)
	if !p.tree {
		return
	}
	if err := p.killTree(); err != nil {
		fmt.Fprintf(os.Stderr, "longshore-shim: end process %s of container %s: %v\n", p.execID, c.id, err)
	}
}

// dropGroup removes the group of a process that has ended. One in which others
// live on is tried again when the next process ends, and goes with the container
// at the latest.
func (c *container) dropGroup(p *process) {
	if p.group == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	groups := append(c.stale, p.group)
	c.stale = nil
	for _, g := range groups {
		if err := g.Remove(); errors.Is(err, unix.EBUSY) {
			c.stale = append(c.stale, g)
		}
	}
}

func (c *container) setPaused(paused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = paused
}

func (c *container) state(p *process) *api.StateResponse {
	status := p.status()
	c.mu.Lock()
	if c.paused && status == api.StatusRunning {
		status = api.StatusPaused
	}
	c.mu.Unlock()
	resp := &api.StateResponse{ID: c.id, Bundle: c.bundle, Pid: uint32(p.pid()), Status: int32(status),
		Terminal: p.streams.console != nil, ExecID: p.execID}
	if p.ended() {
		resp.ExitStatus, resp.ExitedAt = uint32(p.exit.Code), p.exitedAt()
	}
	return resp
}

// decodeProcess reads the JSON of an OCI process.
func decodeProcess(data []byte) (*specs.Process, error) {
	var p specs.Process
	if err := leanjson.Unmarshal(data, &p); err != nil {
		return nil, api.Errorf(api.CodeInvalidArgument, "process: %v", err)
	}
	return &p, nil
}
