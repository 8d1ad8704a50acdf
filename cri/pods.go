package cri

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/longshore/longshore/engine"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RunPodSandbox makes a pod's sandbox.
func (s *Server) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	cfg, err := podConfig(req.Config, req.RuntimeHandler)
	if err != nil {
		return nil, err
	}
	pod, err := s.engine.RunPod(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: pod.ID}, nil
}

// StopPodSandbox ends a pod's containers and gives back its network.
func (s *Server) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, s.engine.StopPod(ctx, req.PodSandboxId)
}

// RemovePodSandbox removes a pod and its containers.
func (s *Server) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return &runtimeapi.RemovePodSandboxResponse{}, s.engine.RemovePod(ctx, req.PodSandboxId)
}

// PodSandboxStatus describes a pod.
func (s *Server) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	// Before the look: a client takes an event that is older for one that the
	// answer tells of already.
	asked := time.Now()
	pod, err := s.engine.Pod(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{Status: podStatus(&pod), Timestamp: asked.UnixNano()}
	for _, c := range s.engine.ContainersOf(pod.ID) {
		resp.ContainersStatuses = append(resp.ContainersStatuses, s.containerStatus(&c))
	}
	if req.Verbose {
		resp.Info, err = verbose(map[string]any{"pid": pod.InitPid, "config": pod.Config, "cniResult": json.RawMessage(orNull(pod.CNIResult))})
	}
	return resp, err
}

// verbose puts what a person may want to know into one JSON text, as crictl
// shows it.
func verbose(info map[string]any) (map[string]string, error) {
	data, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(data)}, nil
}

func orNull(data []byte) []byte {
	if len(data) == 0 {
		return []byte("null")
	}
	return data
}

func podStatus(p *engine.Pod) *runtimeapi.PodSandboxStatus {
	status := &runtimeapi.PodSandboxStatus{
		Id: p.ID, Metadata: podMetadata(p), State: podState(p), CreatedAt: p.CreatedAt.UnixNano(),
		Labels: p.Config.Labels, Annotations: p.Config.Annotations, RuntimeHandler: p.Config.Handler,
		Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux:   &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: namespaceOption(p.Config.Namespaces)}},
	}
	if len(p.IPs) > 0 {
		status.Network.Ip = p.IPs[0]
		for _, ip := range p.IPs[1:] {
			status.Network.AdditionalIps = append(status.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
		}
	}
	return status
}

func podMetadata(p *engine.Pod) *runtimeapi.PodSandboxMetadata {
	return &runtimeapi.PodSandboxMetadata{Name: p.Config.Name, Uid: p.Config.UID, Namespace: p.Config.Namespace, Attempt: p.Config.Attempt}
}

func podState(p *engine.Pod) runtimeapi.PodSandboxState {
	if p.State == engine.PodReady {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// ListPodSandbox lists the pods that a filter lets through.
func (s *Server) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.listPods(req.Filter)}, nil
}

// StreamPodSandboxes lists pods in chunks.
func (s *Server) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, stream runtimeapi.RuntimeService_StreamPodSandboxesServer) error {
	return inChunks(s.listPods(req.Filter), func(chunk []*runtimeapi.PodSandbox) error {
		return stream.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: chunk})
	})
}

func (s *Server) listPods(filter *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	var items []*runtimeapi.PodSandbox
	for _, p := range s.engine.Pods() {
		if !podMatches(&p, filter) {
			continue
		}
		items = append(items, &runtimeapi.PodSandbox{Id: p.ID, Metadata: podMetadata(&p), State: podState(&p), CreatedAt: p.CreatedAt.UnixNano(),
			Labels: p.Config.Labels, Annotations: p.Config.Annotations, RuntimeHandler: p.Config.Handler})
	}
	slices.SortFunc(items, func(a, b *runtimeapi.PodSandbox) int { return int(b.CreatedAt - a.CreatedAt) })
	return items
}

func podMatches(p *engine.Pod, f *runtimeapi.PodSandboxFilter) bool {
	return strings.HasPrefix(p.ID, f.GetId()) && (f.GetState() == nil || f.State.State == podState(p)) && labelsMatch(p.Config.Labels, f.GetLabelSelector())
}

func labelsMatch(labels, selector map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// UpdatePodSandboxResources takes note that kubelet has changed the pod's
// cgroup, which is its own.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, s.engine.UpdatePodResources(ctx, req.PodSandboxId, resources(req.Overhead), resources(req.Resources))
}
