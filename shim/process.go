package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/shim/api"
	"github.com/longshore/longshore/shim/launch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// process is the first process of a container or one of exec.
type process struct {
	execID    string
	streams   *streams
	transient bool           // made by Run: dropped once its end is told
	spec      *specs.Process // of an exec that waits for Start
	tree      bool           // ends with what it has left behind, and with its daemon
	group     *cgroup.Group  // of the tree, below the container's; nil: none
	left      chan struct{}  // closed when nobody waits for it any more
	done      chan struct{}  // closed once exit is set
	exit      api.Exit       // valid after done

	mu    sync.Mutex // guards all below
	state api.Status
	proc  *launch.Process
}

func newProcess(execID string, s *streams) *process {
	return &process{execID: execID, streams: s, done: make(chan struct{}), left: make(chan struct{}), state: api.StatusCreated}
}

// begin says that the process exists; its output is copied from now on.
func (p *process) begin(proc *launch.Process, state api.Status) {
	p.mu.Lock()
	p.proc, p.state = proc, state
	p.mu.Unlock()
	p.streams.begin(proc.Console())
}

func (p *process) running() *launch.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proc
}

func (p *process) pid() int {
	if proc := p.running(); proc != nil {
		return proc.Pid()
	}
	return 0
}

func (p *process) status() api.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// move changes the state if it is the one expected.
func (p *process) move(from, to api.Status) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != from {
		return false
	}
	p.state = to
	return true
}

// finish sets the exit record and wakes those who wait.
func (p *process) finish(exit api.Exit) {
	p.mu.Lock()
	p.state = api.StatusStopped
	p.mu.Unlock()
	p.exit = exit
	close(p.done)
}

func (p *process) exitedAt() *api.Timestamp {
	return api.TimestampOf(time.Unix(0, p.exit.ExitedAtNS))
}

// signal is sent through the pidfd; a process that has gone needs none.
func (p *process) signal(sig unix.Signal) error {
	proc := p.running()
	if proc == nil {
		return api.Errorf(api.CodeFailedPrecondition, "process %q has not been started", p.execID)
	}
	if err := proc.Signal(sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// treeLimit bounds the wait for the end of processes that were killed: one in
// uninterruptible sleep does not end.
const treeLimit = 2 * time.Second

// killTree ends the process and what it has left behind, and waits for that.
func (p *process) killTree() error {
	if p.group == nil {
		return p.signal(unix.SIGKILL)
	}
	ctx, cancel := context.WithTimeout(context.Background(), treeLimit)
	defer cancel()
	return errors.Join(p.group.Kill(), p.group.WaitEmpty(ctx))
}

func (p *process) resize(width, height uint16) error { return p.streams.resize(width, height) }

func (p *process) closeStdin() { p.streams.closeStdin() }

// drain waits until all output is in the log.
func (p *process) drain() error { return p.streams.drain() }
