package cri

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/longshore/longshore/engine"
	"github.com/longshore/longshore/internal/cgroup"
)

// TestMetricsHaveTheirLabels holds names and values of what kubelet shows at
// /metrics/cadvisor: clients ask for cAdvisor's labels.
func TestMetricsHaveTheirLabels(t *testing.T) {
	descriptors, err := new(Server).ListMetricDescriptors(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string][]string{}
	for _, d := range descriptors.Descriptors {
		if _, twice := keys[d.Name]; twice || d.Help == "" {
			t.Errorf("descriptor %s is there twice or has no help", d.Name)
		}
		keys[d.Name] = d.LabelKeys
	}
	pod := &engine.Pod{ID: "podid", Config: engine.PodConfig{PodKey: engine.PodKey{Name: "web", Namespace: "shop"}}}
	container := &engine.Container{ID: "cid", PodID: "podid", Config: engine.ContainerConfig{Name: "server"}}
	usage := wholeUsage()
	got := map[string]string{}
	for _, m := range slices.Concat(readMetrics(containerMetrics, usage, containerLabelValues(pod, container, "example.com/server:1")),
		readMetrics(podMetrics, usage, podLabelValues(pod))) {
		if len(m.LabelValues) != len(keys[m.Name]) {
			t.Fatalf("%s has labels %q for %q", m.Name, m.LabelValues, keys[m.Name])
		}
		var labels []string
		for i, key := range keys[m.Name] {
			labels = append(labels, key+"="+m.LabelValues[i])
		}
		got[m.Name] = fmt.Sprint(strings.Join(labels, ","), " ", m.Value.Value)
		if m.Timestamp != 0 {
			t.Errorf("%s was read live and has a time stamp", m.Name)
		}
	}
	for name := range keys {
		if got[name] == "" {
			t.Errorf("%s has no value", name)
		}
	}
	const ofContainer = "id=cid,name=cid,image=example.com/server:1,namespace=shop,pod=web,container=server"
	for name, want := range map[string]string{
		"container_cpu_usage_seconds_total":           ofContainer + ",cpu=total 3",
		"container_fs_usage_bytes":                    ofContainer + " 7",
		"container_processes":                         ofContainer + " 2",
		"container_fs_reads_bytes_total":              ofContainer + ",device=8:0 9",
		"container_blkio_device_usage_total":          ofContainer + ",device=8:0,major=8,minor=0,operation=Write 0",
		"container_memory_failures_total":             ofContainer + ",failure_type=pgmajfault,scope=container 4",
		"container_ulimits_soft":                      ofContainer + ",ulimit=max_open_files 1024",
		"container_hugetlb_usage_bytes":               ofContainer + ",pagesize=2MB 5",
		"container_hugetlb_max_usage_bytes":           ofContainer + ",pagesize=2MB 6",
		"container_pressure_io_stalled_seconds_total": ofContainer + " 4",
		"container_spec_memory_limit_bytes":           ofContainer + " 0",
		"container_network_receive_bytes_total":       "id=podid,name=podid,namespace=shop,pod=web,interface=eth0 5",
	} {
		if got[name] != want {
			t.Errorf("%s\n  is %s\nwant %s", name, got[name], want)
		}
	}
}

// wholeUsage has something of everything.
func wholeUsage() *engine.Usage {
	pressure := &cgroup.Pressure{Full: cgroup.Stall{Total: 4 * time.Second}}
	u := &engine.Usage{
		Layer:   &engine.DiskUsage{Bytes: 7},
		Network: []engine.InterfaceUsage{{Name: "eth0", RxBytes: 5}},
		Details: &engine.Details{Processes: 2, MaxOpenFiles: 1024},
	}
	u.CPU.Usage = 3 * time.Second
	u.CPU.Pressure, u.Memory.Pressure, u.IOPressure = pressure, pressure, pressure
	u.Memory.MajorPageFaults, u.Memory.Limit = 4, cgroup.Unlimited
	u.IO = []cgroup.DeviceIO{{Major: 8, ReadBytes: 9}}
	u.Hugepages = []cgroup.HugepageStats{{PageSize: "2MB", Usage: 5, Max: new(uint64(6))}}
	return u
}

// TestHugepagesMaximumIsLeftOutWhereTheKernelHasNone: cgroup2 has none.
func TestHugepagesMaximumIsLeftOutWhereTheKernelHasNone(t *testing.T) {
	u := &engine.Usage{Stats: cgroup.Stats{Hugepages: []cgroup.HugepageStats{{PageSize: "2MB"}}}}
	for _, m := range readMetrics(containerMetrics, u, nil) {
		if m.Name == "container_hugetlb_max_usage_bytes" {
			t.Error("it has a value")
		}
	}
}

// TestAFigureFromBeforeHasItsTime: a layer is not counted for each call.
func TestAFigureFromBeforeHasItsTime(t *testing.T) {
	now := time.Now()
	u := &engine.Usage{Stats: cgroup.Stats{Time: now}}
	for name, at := range map[string]time.Time{"counted for this call": now.Add(time.Millisecond), "counted before": now.Add(-time.Second)} {
		u.Layer = &engine.DiskUsage{Time: at}
		want := int64(0)
		if at.Before(now) {
			want = at.UnixNano()
		}
		for _, m := range readMetrics(containerMetrics, u, nil) {
			if m.Name == "container_fs_usage_bytes" && m.Timestamp != want {
				t.Errorf("%s: time stamp %d, want %d", name, m.Timestamp, want)
			}
		}
	}
}
