package cri

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/longshore/longshore/engine"
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
	if values["container_cpu_usage_seconds_total"] != 3 || values["container_fs_usage_bytes"] != 7 || values["container_network_receive_bytes_total"] != 5 {
		t.Errorf("values: %v", values)
	}
}
