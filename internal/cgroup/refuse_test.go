package cgroup

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestLimitsWithoutEffectAreRefused: "The runtime MUST generate an error when the
// configuration refers to a cgroup controller that is not present" (config-linux.md).
func TestLimitsWithoutEffectAreRefused(t *testing.T) {
	cpu := func(c specs.LinuxCPU) specs.LinuxResources { return specs.LinuxResources{CPU: &c} }
	memory := func(m specs.LinuxMemory) specs.LinuxResources { return specs.LinuxResources{Memory: &m} }
	block := func(b specs.LinuxBlockIO) specs.LinuxResources { return specs.LinuxResources{BlockIO: &b} }
	network := func(n specs.LinuxNetwork) specs.LinuxResources { return specs.LinuxResources{Network: &n} }
	one, two := ptr(int64(1)), ptr(uint64(2))
	weight := []specs.LinuxWeightDevice{{Weight: ptr(uint16(10)), LeafWeight: ptr(uint16(10))}}
	throttle := []specs.LinuxThrottleDevice{{Rate: 1}}
	// "" is a host with none of the controllers.
	for _, tt := range []struct {
		version, field string
		res            specs.LinuxResources
	}{
		{"", "cpu.shares", cpu(specs.LinuxCPU{Shares: two})},
		{"", "cpu.quota", cpu(specs.LinuxCPU{Quota: one})},
		{"", "cpu.burst", cpu(specs.LinuxCPU{Burst: two})},
		{"", "cpu.idle", cpu(specs.LinuxCPU{Idle: one})},
		{"", "cpu.realtimeRuntime", cpu(specs.LinuxCPU{RealtimeRuntime: one})},
		{"", "cpu.realtimePeriod", cpu(specs.LinuxCPU{RealtimePeriod: two})},
		{"", "cpu.cpus", cpu(specs.LinuxCPU{Cpus: "0"})},
		{"", "cpu.mems", cpu(specs.LinuxCPU{Mems: "0"})},
		{"", "memory.limit", memory(specs.LinuxMemory{Limit: one})},
		{"", "memory.swap", memory(specs.LinuxMemory{Swap: one})},
		{"", "memory.reservation", memory(specs.LinuxMemory{Reservation: one})},
		{"", "memory.swappiness", memory(specs.LinuxMemory{Swappiness: ptr(uint64(0))})},
		{"", "pids.limit", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(0))}}},
		{"", "blockIO.weight", block(specs.LinuxBlockIO{Weight: ptr(uint16(10))})},
		{"", "blockIO.leafWeight", block(specs.LinuxBlockIO{LeafWeight: ptr(uint16(10))})},
		{"", "blockIO.weightDevice", block(specs.LinuxBlockIO{WeightDevice: weight})},
		{"", "blockIO.throttleReadBpsDevice", block(specs.LinuxBlockIO{ThrottleReadBpsDevice: throttle})},
		{"", "blockIO.throttleWriteIOPSDevice", block(specs.LinuxBlockIO{ThrottleWriteIOPSDevice: throttle})},
		{"", "hugepageLimits", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}}}},
		{"", "network.classID", network(specs.LinuxNetwork{ClassID: ptr(uint32(1))})},
		{"", "network.priorities", network(specs.LinuxNetwork{Priorities: []specs.LinuxInterfacePriority{{Name: "lo", Priority: 1}}})},
		{"", "rdma", specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx5_0": {HcaHandles: ptr(uint32(3))}}}},
		{"", "devices", specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}}},
		{"v1", "cpu.idle", cpu(specs.LinuxCPU{Idle: one})},
		{"v1", "cpu.cfs_burst_us", cpu(specs.LinuxCPU{Burst: two})},
		{"v1", "memory.swappiness", memory(specs.LinuxMemory{Swappiness: ptr(uint64(60))})},
		{"v1", "memory.kmem.tcp.limit_in_bytes", memory(specs.LinuxMemory{KernelTCP: one})},
		{"v1", "memory.oom_control", memory(specs.LinuxMemory{DisableOOMKiller: ptr(true)})},
		{"v1", "blkio.weight", block(specs.LinuxBlockIO{Weight: ptr(uint16(10))})},
		{"v1", "blkio.weight_device", block(specs.LinuxBlockIO{WeightDevice: weight})},
		{"v1", "blkio.leaf_weight", block(specs.LinuxBlockIO{LeafWeight: ptr(uint16(10))})},
		{"v2", "cpu.max.burst", cpu(specs.LinuxCPU{Burst: two})},
		{"v2", "cpu.realtimeRuntime", cpu(specs.LinuxCPU{RealtimeRuntime: one})},
		{"v2", "cpu.realtimePeriod", cpu(specs.LinuxCPU{RealtimePeriod: two})},
		{"v2", "memory.kernelTCP", memory(specs.LinuxMemory{KernelTCP: one})},
		{"v2", "memory.swappiness", memory(specs.LinuxMemory{Swappiness: ptr(uint64(60))})},
		{"v2", "memory.disableOOMKiller", memory(specs.LinuxMemory{DisableOOMKiller: ptr(true)})},
		{"v2", "blockIO.leafWeight", block(specs.LinuxBlockIO{LeafWeight: ptr(uint16(10))})},
		{"v2", "blockIO.weightDevice.leafWeight", block(specs.LinuxBlockIO{WeightDevice: weight})},
		{"v2", "io.weight", block(specs.LinuxBlockIO{Weight: ptr(uint16(10))})},
	} {
		v1, v2 := []string{"freezer"}, []string(nil)
		switch tt.version {
		case "v1":
			v1 = []string{"cpu", "memory", "blkio"}
		case "v2":
			v1, v2 = nil, []string{"cpu", "memory", "io"}
		}
		_, g, _ := fake(t, v1, v2, nil)
		err := g.Update(&tt.res)
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), tt.field) {
			t.Errorf("%s %s: %v, want an error that names it", tt.version, tt.field, err)
		}
	}
}

// TestHabitsAreHarmless: what Docker, Podman and kubelet send to say that there is
// no limit, and kernel memory, which is "NOT RECOMMENDED", ask for nothing.
func TestHabitsAreHarmless(t *testing.T) {
	res := &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Shares: ptr(uint64(0)), Quota: ptr(int64(-1)), Period: ptr(uint64(100000)), Burst: ptr(uint64(0)), Idle: ptr(int64(0)),
			RealtimeRuntime: ptr(int64(0)), RealtimePeriod: ptr(uint64(0))},
		Memory: &specs.LinuxMemory{Limit: ptr(int64(0)), Swap: ptr(int64(-1)), Reservation: ptr(int64(0)), Kernel: ptr(int64(1)),
			KernelTCP: ptr(int64(-1)), DisableOOMKiller: ptr(false), UseHierarchy: ptr(true)},
		Pids:           &specs.LinuxPids{Limit: ptr(int64(-1))},
		BlockIO:        &specs.LinuxBlockIO{Weight: ptr(uint16(0))},
		Network:        &specs.LinuxNetwork{ClassID: ptr(uint32(0))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}},
		Devices:        []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}},
	}
	_, g, _ := fake(t, []string{"freezer"}, nil, nil)
	if err := g.Update(res); err != nil {
		t.Errorf("without controllers: %v", err)
	}
	res.Devices = nil // need a kernel
	_, g, _ = fake(t, nil, []string{"cpu", "memory", "io"}, map[string]string{"unified/cpu.max": "max 100000"})
	if err := g.Update(res); err != nil {
		t.Errorf("cgroup v2 of an old kernel: %v", err)
	}
}
