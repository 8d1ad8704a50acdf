package cri

import (
	"context"
	"fmt"
	"time"

	"github.com/longshore/longshore/engine"
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

// checkpointStatus tells a person what makes checkpoints, or why nothing does,
// and what is restored.
func (s *Server) checkpointStatus(ctx context.Context) string {
	program, err := s.engine.CheckpointStatus(ctx)
	if err != nil {
		return "not available: " + err.Error()
	}
	restore, images := "available", "off"
	if err := s.engine.RestoreStatus(); err != nil {
		restore = "not available: " + err.Error()
	}
	if s.engine.RestoresImages() {
		images = "on"
	}
	return fmt.Sprintf("available: %s; restore: %s; restore_images: %s", program, restore, images)
}

// CheckpointPod saves containers of a pod as of one moment.
func (s *Server) CheckpointPod(ctx context.Context, req *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return &runtimeapi.CheckpointPodResponse{}, s.engine.CheckpointPod(ctx, req.PodSandboxId, req.OutputPath, req.ContainerIds, req.Options)
}

// RestorePod makes a pod with containers that wait to go on where they were
// saved.
func (s *Server) RestorePod(ctx context.Context, req *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	pod, err := podConfig(req.Config, req.RuntimeHandler)
	if err != nil {
		return nil, err
	}
	var containers []engine.ContainerConfig
	for _, config := range req.ContainerConfigs {
		c, err := containerConfig(config)
		if err != nil {
			return nil, err
		}
		containers = append(containers, c)
	}
	p, made, err := s.engine.RestorePod(ctx, req.CheckpointPath, pod, containers, req.Options)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.RestorePodResponse{PodSandboxId: p.ID}
	for _, c := range made {
		resp.RestoredContainers = append(resp.RestoredContainers, &runtimeapi.RestoredContainer{Name: c.Config.Name, ContainerId: c.ID})
	}
	return resp, nil
}
