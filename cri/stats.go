package cri

import (
	"context"
	"slices"
	"strings"

	"github.com/longshore/longshore/engine"
	"github.com/longshore/longshore/internal/cgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerStats says what a container uses.
func (s *Server) ContainerStats(_ context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.engine.Container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	stats, err := s.containerStats(&c)
	return &runtimeapi.ContainerStatsResponse{Stats: stats}, err
}

// ListContainerStats says what running containers use.
func (s *Server) ListContainerStats(_ context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f := req.GetFilter()
	list, err := s.listContainerStats(func(c *engine.Container) bool {
		return strings.HasPrefix(c.ID, f.GetId()) && strings.HasPrefix(c.PodID, f.GetPodSandboxId()) && labelsMatch(c.Config.Labels, f.GetLabelSelector())
	})
	return &runtimeapi.ListContainerStatsResponse{Stats: list}, err
}

// StreamContainerStats says the same in chunks.
func (s *Server) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, stream runtimeapi.RuntimeService_StreamContainerStatsServer) error {
	list, err := s.ListContainerStats(stream.Context(), &runtimeapi.ListContainerStatsRequest{Filter: req.Filter})
	if err != nil {
		return err
	}
	return inChunks(list.Stats, func(chunk []*runtimeapi.ContainerStats) error {
		return stream.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: chunk})
	})
}

// listContainerStats reads the running containers that are wanted; one that
// is removed meanwhile is left out.
func (s *Server) listContainerStats(wanted func(*engine.Container) bool) ([]*runtimeapi.ContainerStats, error) {
	var running []engine.Container
	for _, c := range s.engine.Containers() {
		if c.State == engine.ContainerRunning && wanted(&c) {
			running = append(running, c)
		}
	}
	return gather(running, s.containerStats)
}

func (s *Server) containerStats(c *engine.Container) (*runtimeapi.ContainerStats, error) {
	u, err := s.engine.ContainerUsage(c.ID)
	if err != nil {
		return nil, err
	}
	at := u.Time.UnixNano()
	stats := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: c.ID, Metadata: containerMetadata(c), Labels: c.Config.Labels, Annotations: c.Config.Annotations},
		Cpu:        cpuUsage(&u), Memory: memoryUsage(&u),
		Swap: &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: count(u.Memory.Swap), SwapAvailableBytes: countLimited(swapAvailable(&u))},
		Io:   &runtimeapi.IoUsage{Timestamp: at, Psi: psi(u.IOPressure)},
	}
	if u.Layer != nil {
		stats.WritableLayer = filesystemUsage(*u.Layer)
	}
	return stats, nil
}

func swapAvailable(u *engine.Usage) uint64 {
	if u.Memory.SwapLimit == cgroup.Unlimited {
		return cgroup.Unlimited
	}
	return u.Memory.SwapLimit - min(u.Memory.Swap, u.Memory.SwapLimit)
}

// countLimited leaves out what remains of a limit that is not set: 0 would say
// that nothing does.
func countLimited(n uint64) *runtimeapi.UInt64Value {
	if n == cgroup.Unlimited {
		return nil
	}
	return count(n)
}

func cpuUsage(u *engine.Usage) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{Timestamp: u.Time.UnixNano(), UsageCoreNanoSeconds: count(uint64(u.CPU.Usage)),
		UsageNanoCores: countIf(u.NanoCores), Psi: psi(u.CPU.Pressure)}
}

func memoryUsage(u *engine.Usage) *runtimeapi.MemoryUsage {
	m := &u.Memory
	return &runtimeapi.MemoryUsage{Timestamp: u.Time.UnixNano(), WorkingSetBytes: count(m.WorkingSet), AvailableBytes: countLimited(m.Available),
		UsageBytes: count(m.Usage), RssBytes: count(m.RSS), PageFaults: count(m.PageFaults), MajorPageFaults: count(m.MajorPageFaults), Psi: psi(m.Pressure)}
}

func psi(p *cgroup.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	data := func(s cgroup.Stall) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: uint64(s.Total), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &runtimeapi.PsiStats{Full: data(p.Full), Some: data(p.Some)}
}

// PodSandboxStats says what a pod uses.
func (s *Server) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	p, err := s.engine.Pod(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	stats, err := s.podStats(ctx, &p)
	return &runtimeapi.PodSandboxStatsResponse{Stats: stats}, err
}

// ListPodSandboxStats says what the ready pods use.
func (s *Server) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f := req.GetFilter()
	var pods []engine.Pod
	for _, p := range s.engine.Pods() {
		if p.State == engine.PodReady && strings.HasPrefix(p.ID, f.GetId()) && labelsMatch(p.Config.Labels, f.GetLabelSelector()) {
			pods = append(pods, p)
		}
	}
	list, err := gather(pods, func(p *engine.Pod) (*runtimeapi.PodSandboxStats, error) { return s.podStats(ctx, p) })
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: list}, err
}

// StreamPodSandboxStats says the same in chunks.
func (s *Server) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, stream runtimeapi.RuntimeService_StreamPodSandboxStatsServer) error {
	list, err := s.ListPodSandboxStats(stream.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: req.Filter})
	if err != nil {
		return err
	}
	return inChunks(list.Stats, func(chunk []*runtimeapi.PodSandboxStats) error {
		return stream.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: chunk})
	})
}

// runningIn gives the running containers of a pod.
func (s *Server) runningIn(podID string) []engine.Container {
	return slices.DeleteFunc(s.engine.ContainersOf(podID), func(c engine.Container) bool { return c.State != engine.ContainerRunning })
}

func (s *Server) podStats(ctx context.Context, p *engine.Pod) (*runtimeapi.PodSandboxStats, error) {
	u, err := s.engine.PodUsage(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	containers, err := inTurn(s.runningIn(p.ID), s.containerStats)
	if err != nil {
		return nil, err
	}
	at := u.Time.UnixNano()
	linux := &runtimeapi.LinuxPodSandboxStats{Cpu: cpuUsage(&u), Memory: memoryUsage(&u), Containers: containers, Network: networkUsage(&u),
		Process: &runtimeapi.ProcessUsage{Timestamp: at, ProcessCount: count(u.Processes)},
		Io:      &runtimeapi.IoUsage{Timestamp: at, Psi: psi(u.IOPressure)},
	}
	return &runtimeapi.PodSandboxStats{Linux: linux, Attributes: &runtimeapi.PodSandboxAttributes{Id: p.ID, Metadata: podMetadata(p),
		Labels: p.Config.Labels, Annotations: p.Config.Annotations}}, nil
}

// networkUsage is nil for a pod without an interface of its own, and there is a
// default one in any other, whatever a container has made of their names:
// kubelet reads it without a look.
func networkUsage(u *engine.Usage) *runtimeapi.NetworkUsage {
	if len(u.Network) == 0 {
		return nil
	}
	byDefault := max(0, slices.IndexFunc(u.Network, func(i engine.InterfaceUsage) bool { return i.Name == engine.DefaultInterface }))
	network := &runtimeapi.NetworkUsage{Timestamp: u.Time.UnixNano()}
	for n, i := range u.Network {
		usage := &runtimeapi.NetworkInterfaceUsage{Name: i.Name, RxBytes: count(i.RxBytes), RxErrors: count(i.RxErrors), TxBytes: count(i.TxBytes), TxErrors: count(i.TxErrors)}
		if n == byDefault {
			network.DefaultInterface = usage
		} else {
			network.Interfaces = append(network.Interfaces, usage)
		}
	}
	return network
}
