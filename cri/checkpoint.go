package cri

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxTimeout is the longest time a checkpoint may be given, in seconds: more
// than any takes.
const maxTimeout = 1 << 31

// CheckpointContainer saves a running container to an archive.
func (s *Server) CheckpointContainer(ctx context.Context, req *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	timeout := time.Duration(min(req.Timeout, maxTimeout)) * time.Second
	return &runtimeapi.CheckpointContainerResponse{}, s.engine.CheckpointContainer(ctx, req.ContainerId, req.Location, timeout)
}

// checkpointStatus tells a person what makes checkpoints, or why nothing does.
func (s *Server) checkpointStatus(ctx context.Context) string {
	program, err := s.engine.CheckpointStatus(ctx)
	if err != nil {
		return "not available: " + err.Error()
	}
	return "available: " + program
}

// CheckpointPod saves containers of a pod as of one moment.
func (s *Server) CheckpointPod(ctx context.Context, req *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return &runtimeapi.CheckpointPodResponse{}, s.engine.CheckpointPod(ctx, req.PodSandboxId, req.OutputPath, req.ContainerIds, req.Options)
}
