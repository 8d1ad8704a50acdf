// Package client drives a shim from the daemon: ours over our own socket, and
// any that speaks containerd's task API over ttrpc.
//
// A [Shim] is safe for use by several goroutines. It owns its connection; the
// shim process belongs to nobody and outlives it.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/longshore/longshore/internal/pb"
	"github.com/longshore/longshore/shim/api"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// ErrGone says that the shim does not answer any more.
var ErrGone = errors.New("the shim is gone")

// Shim is a connection to one shim.
type Shim struct {
	addr *net.UnixAddr
	rpc  *ttrpc.Client
	gone atomic.Bool // the connection has ended
}

// Dial connects to the shim that listens at path.
func Dial(path string) (*Shim, error) {
	addr := &net.UnixAddr{Name: path, Net: "unix"}
	c, err := net.DialUnix("unix", nil, addr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	s := &Shim{addr: addr}
	s.rpc = ttrpc.NewClient(c, ttrpc.WithOnClose(func() { s.gone.Store(true) }))
	return s, nil
}

// Gone says that the shim has ended, or was closed here. One that lives may end
// at any time: a call then gives [ErrGone].
func (s *Shim) Gone() bool { return s.gone.Load() }

// Close drops the connection; the shim goes on.
func (s *Shim) Close() error { return s.rpc.Close() }

// Addr is the path of the shim's socket.
func (s *Shim) Addr() string { return s.addr.Name }

// call makes a call of the task API. The message travels as the unknown
// fields of an empty one: ttrpc's codec wants a generated type, the wire does
// not.
func (s *Shim) call(ctx context.Context, service, method string, req, resp any) error {
	in, out := &emptypb.Empty{}, &emptypb.Empty{}
	in.ProtoReflect().SetUnknown(pb.Marshal(req))
	if err := s.rpc.Call(ctx, service, method, in, out); err != nil {
		return fromRPC(err)
	}
	return pb.Unmarshal(out.ProtoReflect().GetUnknown(), resp)
}

// fromRPC turns what ttrpc gives into the errors of package api.
func fromRPC(err error) error {
	if errors.Is(err, ttrpc.ErrClosed) || errors.Is(err, ttrpc.ErrStreamClosed) || errors.Is(err, io.EOF) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if st, ok := status.FromError(err); ok {
		return &api.Error{Code: int32(st.Code()), Message: st.Message()}
	}
	return err
}

// Create makes a container, stopped before its program, and gives its pid.
func (s *Shim) Create(ctx context.Context, req *api.CreateTaskRequest) (int, error) {
	var resp api.CreateTaskResponse
	err := s.call(ctx, api.TaskV3, "Create", req, &resp)
	return int(resp.Pid), err
}

// Start runs a container's program.
func (s *Shim) Start(ctx context.Context, id string) error {
	return s.call(ctx, api.TaskV3, "Start", &api.ProcessRequest{ID: id}, &api.StartResponse{})
}

// Exit is how a process ended.
type Exit struct {
	Code int // exit code, or 128 and the signal's number
	At   time.Time
}

// Wait waits for a container (execID "") or a process of it to end.
func (s *Shim) Wait(ctx context.Context, id, execID string) (Exit, error) {
	var resp api.WaitResponse
	err := s.call(ctx, api.TaskV3, "Wait", &api.ProcessRequest{ID: id, ExecID: execID}, &resp)
	return Exit{Code: int(resp.ExitStatus), At: resp.ExitedAt.Time()}, err
}

// State gives the state of a container.
func (s *Shim) State(ctx context.Context, id string) (*api.StateResponse, error) {
	var resp api.StateResponse
	err := s.call(ctx, api.TaskV3, "State", &api.ProcessRequest{ID: id}, &resp)
	return &resp, err
}

// Kill signals a container (execID "") or a process of it. With all and
// SIGKILL every process of the container ends, or of the process's tree.
func (s *Shim) Kill(ctx context.Context, id, execID string, signal syscall.Signal, all bool) error {
	return s.call(ctx, api.TaskV3, "Kill", &api.KillRequest{ID: id, ExecID: execID, Signal: uint32(signal), All: all}, &api.Empty{})
}

// Delete releases what a container that has ended held.
func (s *Shim) Delete(ctx context.Context, id string) error {
	return s.call(ctx, api.TaskV3, "Delete", &api.ProcessRequest{ID: id}, &api.DeleteResponse{})
}

// Forget says that nobody will ask for a process of Run any more; it goes on.
func (s *Shim) Forget(ctx context.Context, id, execID string) error {
	return s.call(ctx, api.TaskV3, "Delete", &api.ProcessRequest{ID: id, ExecID: execID}, &api.DeleteResponse{})
}

// Pause freezes a container.
func (s *Shim) Pause(ctx context.Context, id string) error {
	return s.call(ctx, api.TaskV3, "Pause", &api.TaskRequest{ID: id}, &api.Empty{})
}

// Resume thaws a container.
func (s *Shim) Resume(ctx context.Context, id string) error {
	return s.call(ctx, api.TaskV3, "Resume", &api.TaskRequest{ID: id}, &api.Empty{})
}

// Update changes a container's limits; resources is the JSON of an OCI
// LinuxResources.
func (s *Shim) Update(ctx context.Context, id string, resources []byte) error {
	return s.call(ctx, api.TaskV3, "Update", &api.UpdateTaskRequest{ID: id, Resources: &api.Any{Value: resources}}, &api.Empty{})
}

// Resize sets the size of a terminal in characters.
func (s *Shim) Resize(ctx context.Context, id, execID string, width, height uint16) error {
	return s.call(ctx, api.TaskV3, "ResizePty", &api.ResizePtyRequest{ID: id, ExecID: execID, Width: uint32(width), Height: uint32(height)}, &api.Empty{})
}

// CloseStdin closes a container's stdin.
func (s *Shim) CloseStdin(ctx context.Context, id string) error {
	return s.call(ctx, api.TaskV3, "CloseIO", &api.CloseIORequest{ID: id, Stdin: true}, &api.Empty{})
}

// Shutdown ends the shim if it holds nothing any more.
func (s *Shim) Shutdown(ctx context.Context) error {
	err := s.call(ctx, api.TaskV3, "Shutdown", &api.ShutdownRequest{}, &api.Empty{})
	if errors.Is(err, ErrGone) {
		return nil
	}
	return err
}

// own makes a call of our own service over a connection of its own, which the
// end of ctx closes.
func (s *Shim) own(ctx context.Context, method string, req any, fds []int, resp any) ([]int, error) {
	c, err := net.DialUnix("unix", nil, s.addr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	out, err := api.Call(c, api.ShimService, method, req, fds, resp)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	return out, err
}

// Stdio is a process's stdio, made by the daemon; nil is /dev/null.
type Stdio struct{ In, Out, Err *os.File }

func (s Stdio) fds() []int {
	var fds []int
	for _, f := range []*os.File{s.In, s.Out, s.Err} {
		if f != nil {
			fds = append(fds, int(f.Fd()))
		}
	}
	return fds
}

// Run runs a process (the JSON of an OCI one) in a container, and returns once
// execve(2) has happened. With a terminal it gives the terminal's master, the
// only one there is. With tree, [Shim.Kill] of all ends also what the process
// has left behind.
func (s *Shim) Run(ctx context.Context, id, execID string, process []byte, stdio Stdio, tree bool) (*os.File, error) {
	req := &api.RunRequest{ID: id, ExecID: execID, Process: process, Tree: tree, Stdin: stdio.In != nil, Stdout: stdio.Out != nil, Stderr: stdio.Err != nil}
	fds, err := s.own(ctx, "Run", req, stdio.fds(), &api.RunResponse{})
	if err != nil {
		return nil, err
	}
	return pollable(fds)
}

// Attach sends a container's output to stdout and stderr (nil: not), and with
// stdin gives a file that feeds the container's stdin.
func (s *Shim) Attach(ctx context.Context, id string, stdin bool, stdout, stderr *os.File) (*os.File, error) {
	req := &api.AttachRequest{ID: id, Stdin: stdin, Stdout: stdout != nil, Stderr: stderr != nil}
	fds, err := s.own(ctx, "Attach", req, Stdio{Out: stdout, Err: stderr}.fds(), &api.Empty{})
	if err != nil {
		return nil, err
	}
	return pollable(fds)
}

// pollable makes a file of the first descriptor, if there is one.
func pollable(fds []int) (*os.File, error) {
	if len(fds) == 0 {
		return nil, nil
	}
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		syscall.Close(fds[0])
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "stdio"), nil
}

// ReopenLog goes on in a new log file.
func (s *Shim) ReopenLog(ctx context.Context, id string) error {
	_, err := s.own(ctx, "ReopenLog", &api.TaskRequest{ID: id}, nil, &api.Empty{})
	return err
}

// CreateSandbox makes a pod's sandbox; config is the JSON of an
// [api.Sandbox], the result that of an [api.SandboxResult].
func (s *Shim) CreateSandbox(ctx context.Context, config []byte) ([]byte, error) {
	var resp api.SandboxResponse
	_, err := s.own(ctx, "CreateSandbox", &api.SandboxRequest{Config: config}, nil, &resp)
	return resp.Result, err
}

// RemoveSandbox takes a pod's sandbox down; it is idempotent.
func (s *Shim) RemoveSandbox(ctx context.Context, config []byte) error {
	_, err := s.own(ctx, "RemoveSandbox", &api.SandboxRequest{Config: config}, nil, &api.Empty{})
	return err
}

// Prepare pins the template mount namespace, from which containers start
// faster than from a copy of the host's mounts. It is idempotent.
func (s *Shim) Prepare(ctx context.Context, template string) error {
	_, err := s.own(ctx, "Prepare", &api.PrepareRequest{Template: template}, nil, &api.Empty{})
	return err
}

// Clean has a keeper clear away what another runtime's shim has left of the
// container in a bundle, whose own keeper is gone. It is idempotent.
func (s *Shim) Clean(ctx context.Context, id, bundle string) error {
	_, err := s.own(ctx, "Clean", &api.CleanRequest{ID: id, Bundle: bundle}, nil, &api.Empty{})
	return err
}

// NetDev reads /proc/net/dev of a network namespace.
func (s *Shim) NetDev(ctx context.Context, netns string) ([]byte, error) {
	var resp api.NetDevResponse
	_, err := s.own(ctx, "NetDev", &api.NetDevRequest{NetNS: netns}, nil, &resp)
	return resp.Text, err
}

// Connect gives a connection to a port inside a network namespace; "" is the
// shim's own.
func (s *Shim) Connect(ctx context.Context, netns string, port int) (net.Conn, error) {
	fds, err := s.own(ctx, "Dial", &api.DialRequest{NetNS: netns, Port: uint32(port)}, nil, &api.Empty{})
	if err != nil {
		return nil, err
	}
	f, err := pollable(fds)
	if err != nil || f == nil {
		return nil, fmt.Errorf("no connection came with the answer: %w", err)
	}
	defer f.Close()
	return net.FileConn(f)
}
