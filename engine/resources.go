package engine

import (
	"fmt"
	"maps"
	"slices"

	"github.com/longshore/longshore/internal/cgroup"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// linuxResources translates limits; nil is none.
func linuxResources(r *Resources) *specs.LinuxResources {
	out := &specs.LinuxResources{}
	if r == nil {
		return out
	}
	if r.CPUPeriod != 0 || r.CPUQuota != 0 || r.CPUShares != 0 || r.CpusetCPUs != "" || r.CpusetMems != "" {
		out.CPU = &specs.LinuxCPU{Cpus: r.CpusetCPUs, Mems: r.CpusetMems,
			Period: set(uint64(r.CPUPeriod)), Quota: set(r.CPUQuota), Shares: set(uint64(r.CPUShares))}
	}
	if r.MemoryLimit != 0 || r.SwapLimit != 0 {
		out.Memory = &specs.LinuxMemory{Limit: set(r.MemoryLimit), Swap: set(r.SwapLimit)}
	}
	for _, size := range slices.Sorted(maps.Keys(r.HugePages)) {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: r.HugePages[size]})
	}
	out.Unified = r.Unified
	return out
}

// checkHugePages refuses a limit that this kernel cannot set. Kubelet sends one
// of 0 for each page size that the node has, whoever asks for none.
func checkHugePages(host *cgroup.Host, r *Resources) error {
	if r == nil || host.Has("hugetlb") {
		return nil
	}
	for size, limit := range r.HugePages {
		if limit > 0 {
			return fmt.Errorf("%w: limit of huge pages of %s: this kernel has no hugetlb controller", ErrInvalid, size)
		}
	}
	return nil
}

// set gives a pointer to a value that is set, which zero is not.
func set[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// mergeResources gives what is in force after a change.
func mergeResources(before *Resources, change Resources) Resources {
	if before == nil {
		return change
	}
	merged := *before
	pick(&merged.CPUPeriod, change.CPUPeriod)
	pick(&merged.CPUQuota, change.CPUQuota)
	pick(&merged.CPUShares, change.CPUShares)
	pick(&merged.MemoryLimit, change.MemoryLimit)
	pick(&merged.SwapLimit, change.SwapLimit)
	pick(&merged.OOMScoreAdj, change.OOMScoreAdj)
	pick(&merged.CpusetCPUs, change.CpusetCPUs)
	pick(&merged.CpusetMems, change.CpusetMems)
	merged.HugePages = mergeMaps(before.HugePages, change.HugePages)
	merged.Unified = mergeMaps(before.Unified, change.Unified)
	return merged
}

func pick[T comparable](into *T, v T) {
	var zero T
	if v != zero {
		*into = v
	}
}

func mergeMaps[V any](a, b map[string]V) map[string]V {
	if len(b) == 0 {
		return a
	}
	merged := maps.Clone(a)
	if merged == nil {
		merged = map[string]V{}
	}
	maps.Copy(merged, b)
	return merged
}
