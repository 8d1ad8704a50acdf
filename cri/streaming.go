package cri

import (
	"context"
	"fmt"
	"time"

	"github.com/longshore/longshore/engine"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ExecSync runs a command and gives its output; timeout is in seconds.
func (s *Server) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	stdout, stderr, code, err := s.engine.ExecSync(ctx, req.ContainerId, req.Cmd, time.Duration(max(req.Timeout, 0))*time.Second)
	if err != nil {
		return nil, err
	}
	stdout, stderr = fit(stdout, stderr, maxMessage-execOverhead)
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(code)}, nil
}

// execOverhead is more than what an ExecSyncResponse takes beside its streams,
// in bytes.
const execOverhead = 64

// fit cuts two streams so that they take room together: a kubelet refuses a
// longer message whole. Each gets half, and what the other leaves of it.
func fit(stdout, stderr []byte, room int) (out, errOut []byte) {
	half := room / 2
	out = stdout[:min(len(stdout), max(half, room-len(stderr)))]
	return out, stderr[:min(len(stderr), room-len(out))]
}

// Exec gives a URL at which a command can be run with streams.
func (s *Server) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	c, err := s.engine.Container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if c.State != engine.ContainerRunning {
		return nil, fmt.Errorf("exec in container %s: %w: it is %s", c.ID, engine.ErrState, c.State)
	}
	req.ContainerId = c.ID
	return s.streams.Exec(req)
}

// Attach gives a URL at which a container's stdio can be joined.
func (s *Server) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	c, err := s.engine.Container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if c.State != engine.ContainerRunning && c.State != engine.ContainerCreated {
		return nil, fmt.Errorf("attach to container %s: %w: it is %s", c.ID, engine.ErrState, c.State)
	}
	req.ContainerId = c.ID
	return s.streams.Attach(req)
}

// PortForward gives a URL at which a pod's ports can be reached.
func (s *Server) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	p, err := s.engine.Pod(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	if p.State != engine.PodReady {
		return nil, fmt.Errorf("forward to pod %s: %w: it is %s", p.ID, engine.ErrState, p.State)
	}
	req.PodSandboxId = p.ID
	return s.streams.PortForward(req)
}
