package cri

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/longshore/longshore/engine"
	"github.com/longshore/longshore/internal/cgroup"
)

// TestMetricsMatchTheirDescriptors holds that a value comes with as many
// labels as its descriptor has keys: kubelet drops the others.
func TestMetricsMatchTheirDescriptors(t *testing.T) {
	descriptors, err := new(Server).ListMetricDescriptors(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]int{}
	for _, d := range descriptors.Descriptors {
		if _, twice := keys[d.Name]; twice || d.Help == "" {
			t.Errorf("descriptor %s is there twice or has no help", d.Name)
		}
		keys[d.Name] = len(d.LabelKeys)
	}
	usage := &engine.Usage{Layer: &engine.DiskUsage{Bytes: 7}, Network: []engine.InterfaceUsage{{Name: "eth0", RxBytes: 5}}}
	usage.CPU.Usage = 3 * time.Second
	usage.Details = &engine.Details{Processes: 2}
	usage.IO = []cgroup.DeviceIO{{Major: 8, ReadBytes: 9}}
	usage.Hugepages = []cgroup.HugepageStats{{PageSize: "2MB"}}
	usage.IOPressure = &cgroup.Pressure{Full: cgroup.Stall{Total: 4 * time.Second}}
	usage.CPU.Pressure, usage.Memory.Pressure = usage.IOPressure, usage.IOPressure
	usage.Memory.Limit = cgroup.Unlimited
	all := slices.Concat(readMetrics(containerMetrics, usage, []string{"id", "name", "image"}), readMetrics(podMetrics, usage, []string{"id"}))
	values := map[string]uint64{}
	for _, m := range all {
		if len(m.LabelValues) != keys[m.Name] {
			t.Errorf("%s has %d labels, its descriptor %d", m.Name, len(m.LabelValues), keys[m.Name])
		}
		values[m.Name] = m.Value.Value
	}
	if len(values) != len(keys) {
		t.Errorf("%d metrics of %d have a value", len(values), len(keys))
	}
	for name, want := range map[string]uint64{
		"container_cpu_usage_seconds_total": 3, "container_fs_usage_bytes": 7, "container_network_receive_bytes_total": 5,
		"container_processes": 2, "container_fs_reads_bytes_total": 9, "container_pressure_io_stalled_seconds_total": 4,
		"container_spec_memory_limit_bytes": 0,
	} {
		if values[name] != want {
			t.Errorf("%s is %d, want %d", name, values[name], want)
		}
	}
}
