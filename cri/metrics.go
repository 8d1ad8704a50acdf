package cri

import (
	"context"
	"errors"

	"github.com/longshore/longshore/engine"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A metric is one of the names that kubelet's /metrics/cadvisor has shown since
// cAdvisor, with how its value is read.
type metric struct {
	name, help string
	counter    bool
	labels     []string // beside those of every metric of its kind
	read       func(*engine.Usage) []sample
}

// sample is a value and what its extra labels are.
type sample struct {
	labels []string
	value  uint64
}

func one(read func(*engine.Usage) uint64) func(*engine.Usage) []sample {
	return func(u *engine.Usage) []sample { return []sample{{value: read(u)}} }
}

// containerLabels and podLabels are those that every metric has, in this
// order; kubelet joins keys and values by position.
var (
	containerLabels = []string{"id", "name", "image"}
	podLabels       = []string{"id"}
)

// perSecond turns nanoseconds into the seconds of cAdvisor's CPU counters,
// which are whole numbers in this protocol.
const perSecond = 1e9

var containerMetrics = []metric{
	{"container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", true, []string{"cpu"},
		func(u *engine.Usage) []sample { return []sample{{[]string{"total"}, uint64(u.CPU.Usage) / perSecond}} }},
	{"container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", true, nil,
		one(func(u *engine.Usage) uint64 { return uint64(u.CPU.User) / perSecond })},
	{"container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", true, nil,
		one(func(u *engine.Usage) uint64 { return uint64(u.CPU.System) / perSecond })},
	{"container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", true, nil,
		one(func(u *engine.Usage) uint64 { return u.CPU.Periods })},
	{"container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", true, nil,
		one(func(u *engine.Usage) uint64 { return u.CPU.ThrottledPeriods })},
	{"container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", true, nil,
		one(func(u *engine.Usage) uint64 { return uint64(u.CPU.Throttled) / perSecond })},
	{"container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.", false, nil,
		one(func(u *engine.Usage) uint64 { return u.Memory.Usage })},
	{"container_memory_working_set_bytes", "Current working set in bytes.", false, nil,
		one(func(u *engine.Usage) uint64 { return u.Memory.WorkingSet })},
	{"container_memory_rss", "Size of RSS in bytes.", false, nil,
		one(func(u *engine.Usage) uint64 { return u.Memory.RSS })},
	{"container_memory_cache", "Number of bytes of page cache memory.", false, nil,
		one(func(u *engine.Usage) uint64 { return u.Memory.Cache })},
	{"container_memory_swap", "Container swap usage in bytes.", false, nil,
		one(func(u *engine.Usage) uint64 { return u.Memory.Swap })},
	{"container_memory_failures_total", "Cumulative count of memory allocation failures.", true, []string{"failure_type", "scope"},
		func(u *engine.Usage) []sample {
			return []sample{{[]string{"pgfault", "container"}, u.Memory.PageFaults}, {[]string{"pgmajfault", "container"}, u.Memory.MajorPageFaults}}
		}},
	{"container_processes", "Number of processes running inside the container.", false, nil,
		one(func(u *engine.Usage) uint64 { return u.Processes })},
	{"container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", false, nil,
		func(u *engine.Usage) []sample {
			return layerSample(u, func(d *engine.DiskUsage) uint64 { return d.Bytes })
		}},
	{"container_fs_inodes_total", "Number of inodes that the container uses.", false, nil,
		func(u *engine.Usage) []sample {
			return layerSample(u, func(d *engine.DiskUsage) uint64 { return d.Inodes })
		}},
	{"container_fs_reads_bytes_total", "Cumulative count of bytes read.", true, nil,
		one(func(u *engine.Usage) uint64 { return ioSum(u, true) })},
	{"container_fs_writes_bytes_total", "Cumulative count of bytes written.", true, nil,
		one(func(u *engine.Usage) uint64 { return ioSum(u, false) })},
}

var podMetrics = []metric{
	{"container_network_receive_bytes_total", "Cumulative count of bytes received.", true, []string{"interface"},
		perInterface(func(i *engine.InterfaceUsage) uint64 { return i.RxBytes })},
	{"container_network_receive_errors_total", "Cumulative count of errors encountered while receiving.", true, []string{"interface"},
		perInterface(func(i *engine.InterfaceUsage) uint64 { return i.RxErrors })},
	{"container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", true, []string{"interface"},
		perInterface(func(i *engine.InterfaceUsage) uint64 { return i.TxBytes })},
	{"container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting.", true, []string{"interface"},
		perInterface(func(i *engine.InterfaceUsage) uint64 { return i.TxErrors })},
}

func layerSample(u *engine.Usage, read func(*engine.DiskUsage) uint64) []sample {
	if u.Layer == nil {
		return nil
	}
	return []sample{{value: read(u.Layer)}}
}

func ioSum(u *engine.Usage, reads bool) uint64 {
	var sum uint64
	for _, d := range u.IO {
		if reads {
			sum += d.ReadBytes
		} else {
			sum += d.WriteBytes
		}
	}
	return sum
}

func perInterface(read func(*engine.InterfaceUsage) uint64) func(*engine.Usage) []sample {
	return func(u *engine.Usage) []sample {
		var all []sample
		for i := range u.Network {
			all = append(all, sample{[]string{u.Network[i].Name}, read(&u.Network[i])})
		}
		return all
	}
}

// ListMetricDescriptors names the metrics and their labels. They never change.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	resp := &runtimeapi.ListMetricDescriptorsResponse{}
	for _, kind := range []struct {
		labels  []string
		metrics []metric
	}{{containerLabels, containerMetrics}, {podLabels, podMetrics}} {
		for _, m := range kind.metrics {
			resp.Descriptors = append(resp.Descriptors, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help,
				LabelKeys: append(append([]string{}, kind.labels...), m.labels...)})
		}
	}
	return resp, nil
}

// ListPodSandboxMetrics reads the metrics of every ready pod.
func (s *Server) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	resp := &runtimeapi.ListPodSandboxMetricsResponse{}
	for _, p := range s.engine.Pods() {
		if p.State != engine.PodReady {
			continue
		}
		metrics, err := s.metricsOf(&p)
		if errors.Is(err, engine.ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		resp.PodMetrics = append(resp.PodMetrics, metrics)
	}
	return resp, nil
}

// StreamPodSandboxMetrics does the same in chunks.
func (s *Server) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, stream runtimeapi.RuntimeService_StreamPodSandboxMetricsServer) error {
	list, err := s.ListPodSandboxMetrics(stream.Context(), nil)
	if err != nil {
		return err
	}
	return inChunks(list.PodMetrics, func(chunk []*runtimeapi.PodSandboxMetrics) error {
		return stream.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: chunk})
	})
}

func (s *Server) metricsOf(p *engine.Pod) (*runtimeapi.PodSandboxMetrics, error) {
	usage, err := s.engine.PodUsage(p.ID)
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.ID, Metrics: readMetrics(podMetrics, &usage, []string{p.ID})}
	for _, c := range s.engine.Containers() {
		if c.PodID != p.ID || c.State != engine.ContainerRunning {
			continue
		}
		usage, err := s.engine.ContainerUsage(c.ID)
		if errors.Is(err, engine.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out.ContainerMetrics = append(out.ContainerMetrics, &runtimeapi.ContainerMetrics{ContainerId: c.ID,
			Metrics: readMetrics(containerMetrics, &usage, []string{c.ID, c.Config.Name, c.Config.Image})})
	}
	return out, nil
}

func readMetrics(metrics []metric, u *engine.Usage, labels []string) []*runtimeapi.Metric {
	var out []*runtimeapi.Metric
	for _, m := range metrics {
		kind := runtimeapi.MetricType_GAUGE
		if m.counter {
			kind = runtimeapi.MetricType_COUNTER
		}
		for _, v := range m.read(u) {
			out = append(out, &runtimeapi.Metric{Name: m.name, Timestamp: u.Time.UnixNano(), MetricType: kind,
				LabelValues: append(append([]string{}, labels...), v.labels...), Value: count(v.value)})
		}
	}
	return out
}
