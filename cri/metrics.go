package cri

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/longshore/longshore/engine"
	"github.com/longshore/longshore/internal/cgroup"
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
	at     time.Time // when it was read, if that was before the call
}

func one(read func(*engine.Usage) uint64) func(*engine.Usage) []sample {
	return func(u *engine.Usage) []sample { return []sample{{value: read(u)}} }
}

// containerLabels and podLabels are those that every metric has, in this
// order: kubelet joins keys and values by position, and adds none. They are
// cAdvisor's as kubelet has them, where the name is the runtime's, which is the
// id.
var (
	containerLabels = []string{"id", "name", "image", "namespace", "pod", "container"}
	podLabels       = []string{"id", "name", "namespace", "pod"}
)

// perSecond turns nanoseconds into the seconds of cAdvisor's CPU counters,
// which are whole numbers in this protocol.
const perSecond = 1e9

// counter and gauge make metrics of one value without labels of their own.
func counter(name, help string, read func(*engine.Usage) uint64) metric {
	return metric{name, help, true, nil, one(read)}
}

func gauge(name, help string, read func(*engine.Usage) uint64) metric {
	return metric{name, help, false, nil, one(read)}
}

var containerMetrics = slices.Concat(cpuMetrics, memoryMetrics, diskMetrics, processMetrics, specMetrics, pressureMetrics)

var cpuMetrics = []metric{
	{"container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", true, []string{"cpu"},
		func(u *engine.Usage) []sample {
			return []sample{{labels: []string{"total"}, value: uint64(u.CPU.Usage) / perSecond}}
		}},
	counter("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.",
		func(u *engine.Usage) uint64 { return uint64(u.CPU.User) / perSecond }),
	counter("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.",
		func(u *engine.Usage) uint64 { return uint64(u.CPU.System) / perSecond }),
	counter("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.",
		func(u *engine.Usage) uint64 { return u.CPU.Periods }),
	counter("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.",
		func(u *engine.Usage) uint64 { return u.CPU.ThrottledPeriods }),
	counter("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.",
		func(u *engine.Usage) uint64 { return uint64(u.CPU.Throttled) / perSecond }),
}

var memoryMetrics = []metric{
	gauge("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.",
		func(u *engine.Usage) uint64 { return u.Memory.Usage }),
	gauge("container_memory_working_set_bytes", "Current working set in bytes.",
		func(u *engine.Usage) uint64 { return u.Memory.WorkingSet }),
	gauge("container_memory_rss", "Size of RSS in bytes.",
		func(u *engine.Usage) uint64 { return u.Memory.RSS }),
	gauge("container_memory_cache", "Number of bytes of page cache memory.",
		func(u *engine.Usage) uint64 { return u.Memory.Cache }),
	gauge("container_memory_mapped_file", "Size of memory mapped files in bytes.",
		func(u *engine.Usage) uint64 { return u.Memory.Mapped }),
	gauge("container_memory_swap", "Container swap usage in bytes.",
		func(u *engine.Usage) uint64 { return u.Memory.Swap }),
	gauge("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.",
		func(u *engine.Usage) uint64 { return u.Memory.Kernel }),
	gauge("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes.",
		func(u *engine.Usage) uint64 { return u.Memory.Max }),
	counter("container_memory_failcnt", "Number of memory usage hits limits.",
		func(u *engine.Usage) uint64 { return u.Memory.LimitHits }),
	counter("container_oom_events_total", "Count of out of memory events observed for the container.",
		func(u *engine.Usage) uint64 { return u.Memory.OOMKills }),
	{"container_memory_failures_total", "Cumulative count of memory allocation failures.", true, []string{"failure_type", "scope"},
		func(u *engine.Usage) []sample {
			return []sample{{labels: []string{"pgfault", "container"}, value: u.Memory.PageFaults},
				{labels: []string{"pgmajfault", "container"}, value: u.Memory.MajorPageFaults}}
		}},
	perPageSize("container_hugetlb_usage_bytes", "Current hugepage usage in bytes.",
		func(h *cgroup.HugepageStats) *uint64 { return &h.Usage }),
	perPageSize("container_hugetlb_max_usage_bytes", "Maximum hugepage usage recorded in bytes.",
		func(h *cgroup.HugepageStats) *uint64 { return h.Max }),
}

var diskMetrics = []metric{
	{"container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", false, nil,
		func(u *engine.Usage) []sample {
			return layerSample(u, func(d *engine.DiskUsage) uint64 { return d.Bytes })
		}},
	detail("container_fs_limit_bytes", "Number of bytes of the filesystem that the container writes to.", false,
		func(d *engine.Details) uint64 { return d.Disk.Bytes }),
	detail("container_fs_inodes_total", "Number of inodes of the filesystem that the container writes to.", false,
		func(d *engine.Details) uint64 { return d.Disk.Inodes }),
	detail("container_fs_inodes_free", "Number of available inodes of that filesystem.", false,
		func(d *engine.Details) uint64 { return d.Disk.FreeInodes }),
	perDevice("container_fs_reads_bytes_total", "Cumulative count of bytes read.", func(d *cgroup.DeviceIO) uint64 { return d.ReadBytes }),
	perDevice("container_fs_writes_bytes_total", "Cumulative count of bytes written.", func(d *cgroup.DeviceIO) uint64 { return d.WriteBytes }),
	perDevice("container_fs_reads_total", "Cumulative count of reads completed.", func(d *cgroup.DeviceIO) uint64 { return d.ReadOps }),
	perDevice("container_fs_writes_total", "Cumulative count of writes completed.", func(d *cgroup.DeviceIO) uint64 { return d.WriteOps }),
	{"container_blkio_device_usage_total", "Blkio Device bytes usage.", true, []string{"device", "major", "minor", "operation"},
		func(u *engine.Usage) []sample {
			var all []sample
			for _, d := range u.IO {
				major, minor := strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10)
				all = append(all, sample{labels: []string{device(&d), major, minor, "Read"}, value: d.ReadBytes},
					sample{labels: []string{device(&d), major, minor, "Write"}, value: d.WriteBytes})
			}
			return all
		}},
}

var processMetrics = []metric{
	detail("container_processes", "Number of processes running inside the container.", false, func(d *engine.Details) uint64 { return d.Processes }),
	gauge("container_threads", "Number of threads running inside the container.", func(u *engine.Usage) uint64 { return u.Pids.Current }),
	{"container_threads_max", "Maximum number of threads allowed inside the container.", false, nil, limitSample(func(u *engine.Usage) uint64 { return u.Pids.Limit })},
	detail("container_file_descriptors", "Number of open file descriptors for the container.", false, func(d *engine.Details) uint64 { return d.FileDescriptors }),
	detail("container_sockets", "Number of open sockets for the container.", false, func(d *engine.Details) uint64 { return d.Sockets }),
	{"container_ulimits_soft", "Soft ulimit values for the container root process.", false, []string{"ulimit"},
		func(u *engine.Usage) []sample {
			if u.Details == nil {
				return nil
			}
			return []sample{{labels: []string{"max_open_files"}, value: u.Details.MaxOpenFiles}}
		}},
}

var specMetrics = []metric{
	detail("container_spec_cpu_period", "CPU period of the container.", false, func(d *engine.Details) uint64 { return uint64(max(d.Resources.CPUPeriod, 0)) }),
	detail("container_spec_cpu_quota", "CPU quota of the container.", false, func(d *engine.Details) uint64 { return uint64(max(d.Resources.CPUQuota, 0)) }),
	detail("container_spec_cpu_shares", "CPU share of the container.", false, func(d *engine.Details) uint64 { return uint64(max(d.Resources.CPUShares, 0)) }),
	{"container_spec_memory_limit_bytes", "Memory limit for the container.", false, nil, limitSample(func(u *engine.Usage) uint64 { return u.Memory.Limit })},
	{"container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", false, nil, limitSample(func(u *engine.Usage) uint64 { return u.Memory.SwapLimit })},
	gauge("container_spec_memory_reservation_limit_bytes", "Memory reservation limit for the container.",
		func(u *engine.Usage) uint64 { return u.Memory.Reservation }),
	detail("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", false, func(d *engine.Details) uint64 { return uint64(d.StartedAt.Unix()) }),
	gauge("container_last_seen", "Last time a container was seen by the exporter.", func(u *engine.Usage) uint64 { return uint64(u.Time.Unix()) }),
}

var pressureMetrics = []metric{
	pressure("container_pressure_cpu_waiting_seconds_total", "Total time duration tasks in the container have waited due to CPU congestion.",
		func(u *engine.Usage) *cgroup.Pressure { return u.CPU.Pressure }, waiting),
	pressure("container_pressure_cpu_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to CPU congestion.",
		func(u *engine.Usage) *cgroup.Pressure { return u.CPU.Pressure }, stalled),
	pressure("container_pressure_memory_waiting_seconds_total", "Total time duration tasks in the container have waited due to memory congestion.",
		func(u *engine.Usage) *cgroup.Pressure { return u.Memory.Pressure }, waiting),
	pressure("container_pressure_memory_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to memory congestion.",
		func(u *engine.Usage) *cgroup.Pressure { return u.Memory.Pressure }, stalled),
	pressure("container_pressure_io_waiting_seconds_total", "Total time duration tasks in the container have waited due to IO congestion.",
		func(u *engine.Usage) *cgroup.Pressure { return u.IOPressure }, waiting),
	pressure("container_pressure_io_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to IO congestion.",
		func(u *engine.Usage) *cgroup.Pressure { return u.IOPressure }, stalled),
}

var podMetrics = []metric{
	perInterface("container_network_receive_bytes_total", "Cumulative count of bytes received.",
		func(i *engine.InterfaceUsage) uint64 { return i.RxBytes }),
	perInterface("container_network_receive_packets_total", "Cumulative count of packets received.",
		func(i *engine.InterfaceUsage) uint64 { return i.RxPackets }),
	perInterface("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving.",
		func(i *engine.InterfaceUsage) uint64 { return i.RxDropped }),
	perInterface("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving.",
		func(i *engine.InterfaceUsage) uint64 { return i.RxErrors }),
	perInterface("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.",
		func(i *engine.InterfaceUsage) uint64 { return i.TxBytes }),
	perInterface("container_network_transmit_packets_total", "Cumulative count of packets transmitted.",
		func(i *engine.InterfaceUsage) uint64 { return i.TxPackets }),
	perInterface("container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting.",
		func(i *engine.InterfaceUsage) uint64 { return i.TxDropped }),
	perInterface("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting.",
		func(i *engine.InterfaceUsage) uint64 { return i.TxErrors }),
}

func layerSample(u *engine.Usage, read func(*engine.DiskUsage) uint64) []sample {
	if u.Layer == nil {
		return nil
	}
	s := sample{value: read(u.Layer)}
	if u.Layer.Time.Before(u.Time) {
		s.at = u.Layer.Time
	}
	return []sample{s}
}

// limitSample gives 0 for a limit that is not set, as cAdvisor does.
func limitSample(read func(*engine.Usage) uint64) func(*engine.Usage) []sample {
	return one(func(u *engine.Usage) uint64 {
		if v := read(u); v != cgroup.Unlimited {
			return v
		}
		return 0
	})
}

func detail(name, help string, isCounter bool, read func(*engine.Details) uint64) metric {
	return metric{name, help, isCounter, nil, func(u *engine.Usage) []sample {
		if u.Details == nil {
			return nil
		}
		return []sample{{value: read(u.Details)}}
	}}
}

func waiting(p *cgroup.Pressure) cgroup.Stall { return p.Some }

func stalled(p *cgroup.Pressure) cgroup.Stall { return p.Full }

func pressure(name, help string, of func(*engine.Usage) *cgroup.Pressure, stall func(*cgroup.Pressure) cgroup.Stall) metric {
	return metric{name, help, true, nil, func(u *engine.Usage) []sample {
		p := of(u)
		if p == nil {
			return nil
		}
		return []sample{{value: uint64(stall(p).Total) / perSecond}}
	}}
}

// device names a block device as its numbers do: what it is called on the host
// is nothing a container is asked about.
func device(d *cgroup.DeviceIO) string {
	return strconv.FormatUint(d.Major, 10) + ":" + strconv.FormatUint(d.Minor, 10)
}

func perDevice(name, help string, read func(*cgroup.DeviceIO) uint64) metric {
	return metric{name, help, true, []string{"device"}, func(u *engine.Usage) []sample {
		var all []sample
		for i := range u.IO {
			all = append(all, sample{labels: []string{device(&u.IO[i])}, value: read(&u.IO[i])})
		}
		return all
	}}
}

// perPageSize leaves out what the kernel does not tell.
func perPageSize(name, help string, read func(*cgroup.HugepageStats) *uint64) metric {
	return metric{name, help, false, []string{"pagesize"}, func(u *engine.Usage) []sample {
		var all []sample
		for i := range u.Hugepages {
			if v := read(&u.Hugepages[i]); v != nil {
				all = append(all, sample{labels: []string{u.Hugepages[i].PageSize}, value: *v})
			}
		}
		return all
	}}
}

func perInterface(name, help string, read func(*engine.InterfaceUsage) uint64) metric {
	return metric{name, help, true, []string{"interface"}, func(u *engine.Usage) []sample {
		var all []sample
		for i := range u.Network {
			all = append(all, sample{labels: []string{u.Network[i].Name}, value: read(&u.Network[i])})
		}
		return all
	}}
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
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	var pods []engine.Pod
	for _, p := range s.engine.Pods() {
		if p.State == engine.PodReady {
			pods = append(pods, p)
		}
	}
	list, err := gather(pods, func(p *engine.Pod) (*runtimeapi.PodSandboxMetrics, error) { return s.metricsOf(ctx, p) })
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: list}, err
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

func (s *Server) metricsOf(ctx context.Context, p *engine.Pod) (*runtimeapi.PodSandboxMetrics, error) {
	usage, err := s.engine.PodNetworkUsage(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.ID, Metrics: readMetrics(podMetrics, &usage, podLabelValues(p))}
	out.ContainerMetrics, err = inTurn(s.runningIn(p.ID), func(c *engine.Container) (*runtimeapi.ContainerMetrics, error) {
		usage, err := s.engine.ContainerDetails(c.ID)
		return &runtimeapi.ContainerMetrics{ContainerId: c.ID, Metrics: readMetrics(containerMetrics, &usage, containerLabelValues(p, c, s.imageName(c)))}, err
	})
	return out, err
}

func podLabelValues(p *engine.Pod) []string {
	return []string{p.ID, p.ID, p.Config.Namespace, p.Config.Name}
}

func containerLabelValues(p *engine.Pod, c *engine.Container, image string) []string {
	return []string{c.ID, c.ID, image, p.Config.Namespace, p.Config.Name, c.Config.Name}
}

// imageName is a container's image as people know it: as the user wrote it, or
// by a tag. Kubelet asks for images by their ids.
func (s *Server) imageName(c *engine.Container) string {
	if c.Config.UserImage != "" {
		return c.Config.UserImage
	}
	if strings.HasSuffix(c.ImageID, c.Config.Image) { // with sha256: or without
		if img, err := s.images.Get(c.ImageID); err == nil && len(img.Tags) > 0 {
			return img.Tags[0]
		}
	}
	return c.Config.Image
}

// readMetrics gives only what was read before a time stamp, as the interface has
// it.
func readMetrics(metrics []metric, u *engine.Usage, labels []string) []*runtimeapi.Metric {
	var out []*runtimeapi.Metric
	for _, m := range metrics {
		kind := runtimeapi.MetricType_GAUGE
		if m.counter {
			kind = runtimeapi.MetricType_COUNTER
		}
		for _, v := range m.read(u) {
			out = append(out, &runtimeapi.Metric{Name: m.name, Timestamp: nanos(v.at), MetricType: kind,
				LabelValues: append(append([]string{}, labels...), v.labels...), Value: count(v.value)})
		}
	}
	return out
}
