package cri

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/longshore/longshore/engine"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CreateContainer makes a container in a pod.
func (s *Server) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	cfg, err := containerConfig(req.Config)
	if err != nil {
		return nil, err
	}
	c, err := s.engine.CreateContainer(ctx, req.PodSandboxId, cfg)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: c.ID}, nil
}

// StartContainer runs a container's program.
func (s *Server) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return &runtimeapi.StartContainerResponse{}, s.engine.StartContainer(ctx, req.ContainerId)
}

// StopContainer ends a container, after timeout seconds by force.
func (s *Server) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	grace := time.Duration(max(req.Timeout, 0)) * time.Second
	return &runtimeapi.StopContainerResponse{}, s.engine.StopContainer(ctx, req.ContainerId, grace)
}

// RemoveContainer removes a container, by force if it runs.
func (s *Server) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return &runtimeapi.RemoveContainerResponse{}, s.engine.RemoveContainer(ctx, req.ContainerId)
}

// ListContainers lists the containers that a filter lets through.
func (s *Server) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.listContainers(req.Filter)}, nil
}

// StreamContainers lists containers in chunks.
func (s *Server) StreamContainers(req *runtimeapi.StreamContainersRequest, stream runtimeapi.RuntimeService_StreamContainersServer) error {
	return inChunks(s.listContainers(req.Filter), func(chunk []*runtimeapi.Container) error {
		return stream.Send(&runtimeapi.StreamContainersResponse{Containers: chunk})
	})
}

func (s *Server) listContainers(filter *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	var items []*runtimeapi.Container
	for _, c := range s.engine.Containers() {
		if !containerMatches(&c, filter) {
			continue
		}
		items = append(items, &runtimeapi.Container{Id: c.ID, PodSandboxId: c.PodID, Metadata: containerMetadata(&c), Image: imageSpec(&c),
			ImageRef: c.ImageRef, ImageId: c.ImageID, State: containerState(&c), CreatedAt: c.CreatedAt.UnixNano(),
			Labels: c.Config.Labels, Annotations: c.Config.Annotations})
	}
	slices.SortFunc(items, func(a, b *runtimeapi.Container) int { return int(b.CreatedAt - a.CreatedAt) })
	return items
}

func containerMatches(c *engine.Container, f *runtimeapi.ContainerFilter) bool {
	return strings.HasPrefix(c.ID, f.GetId()) && strings.HasPrefix(c.PodID, f.GetPodSandboxId()) &&
		(f.GetState() == nil || f.State.State == containerState(c)) && labelsMatch(c.Config.Labels, f.GetLabelSelector())
}

func containerMetadata(c *engine.Container) *runtimeapi.ContainerMetadata {
	return &runtimeapi.ContainerMetadata{Name: c.Config.Name, Attempt: c.Config.Attempt}
}

func imageSpec(c *engine.Container) *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{Image: c.Config.Image, UserSpecifiedImage: c.Config.UserImage, Annotations: c.Config.ImageNotes,
		RuntimeHandler: c.Config.ImageHandler}
}

func containerState(c *engine.Container) runtimeapi.ContainerState {
	switch c.State {
	case engine.ContainerCreating, engine.ContainerCreated, engine.ContainerStarting:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	case engine.ContainerRunning:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return runtimeapi.ContainerState_CONTAINER_EXITED
}

// ContainerStatus describes a container.
func (s *Server) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.engine.Container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: s.containerStatus(&c)}
	if req.Verbose {
		info := map[string]any{"sandboxID": c.PodID, "pid": c.Pid, "config": c.Config, "cgroupPath": c.CgroupPath, "shim": c.Shim}
		if spec, err := s.engine.Spec(c.ID); err == nil {
			info["runtimeSpec"] = spec
		}
		resp.Info, err = verbose(info)
	}
	return resp, err
}

func (s *Server) containerStatus(c *engine.Container) *runtimeapi.ContainerStatus {
	status := &runtimeapi.ContainerStatus{
		Id: c.ID, Metadata: containerMetadata(c), State: containerState(c), CreatedAt: c.CreatedAt.UnixNano(),
		StartedAt: nanos(c.StartedAt), FinishedAt: nanos(c.FinishedAt), ExitCode: int32(c.ExitCode),
		Image: imageSpec(c), ImageRef: c.ImageRef, ImageId: c.ImageID, Reason: c.Reason, Message: c.Message,
		Labels: c.Config.Labels, Annotations: c.Config.Annotations, LogPath: c.LogPath,
		StopSignal: signalEnum(c.StopSignal),
		User:       &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: int64(c.User.UID), Gid: int64(c.User.GID)}},
	}
	for _, g := range c.User.Groups {
		status.User.Linux.SupplementalGroups = append(status.User.Linux.SupplementalGroups, int64(g))
	}
	if c.Resources != nil {
		status.Resources = &runtimeapi.ContainerResources{Linux: linuxResources(c.Resources)}
	}
	for _, m := range c.Config.Mounts {
		status.Mounts = append(status.Mounts, criMount(m, c.MountNotes))
	}
	return status
}

// nanos is 0 for a time that has not come.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// UpdateContainerResources changes a container's limits.
func (s *Server) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if _, err := s.engine.Container(req.ContainerId); err != nil {
		return nil, err
	}
	if proto.Size(req.GetWindows()) > 0 {
		return nil, invalid("windows", "this node runs Linux")
	}
	if req.Linux == nil {
		return &runtimeapi.UpdateContainerResourcesResponse{}, nil
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, s.engine.UpdateContainer(ctx, req.ContainerId, *resources(req.Linux))
}

// ReopenContainerLog goes on in a new log file.
func (s *Server) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	return &runtimeapi.ReopenContainerLogResponse{}, s.engine.ReopenLog(ctx, req.ContainerId)
}

// GetContainerEvents tells what happens until the client goes.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream runtimeapi.RuntimeService_GetContainerEventsServer) error {
	events, stop := s.engine.Events()
	defer stop()
	// Now, not with the first event: a client knows by it that it misses none.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case ev, ok := <-events:
			if !ok {
				return status.Error(codes.ResourceExhausted, "events were not taken in time, and some are lost: list, and ask again")
			}
			if err := stream.Send(s.containerEvent(ev)); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

var eventTypes = map[engine.EventKind]runtimeapi.ContainerEventType{
	engine.EventCreated: runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT,
	engine.EventStarted: runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
	engine.EventStopped: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT,
	engine.EventDeleted: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
}

func (s *Server) containerEvent(ev engine.Event) *runtimeapi.ContainerEventResponse {
	resp := &runtimeapi.ContainerEventResponse{ContainerId: ev.ContainerID, ContainerEventType: eventTypes[ev.Kind], CreatedAt: ev.At.UnixNano()}
	if ev.Pod != nil {
		resp.PodSandboxStatus = podStatus(ev.Pod)
	}
	for _, c := range ev.Containers {
		resp.ContainersStatuses = append(resp.ContainersStatuses, s.containerStatus(&c))
	}
	return resp
}
