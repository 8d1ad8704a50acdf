package engine

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/nri/pkg/api"
	nrigen "github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/generate"
)

// AdjustSpec changes a container's specification as plugins want. CDI devices
// are looked up in cdiDirs. Classes of block I/O or cache allocation, which a
// runtime may define by name, are refused, since none are defined here.
func AdjustSpec(spec *specs.Spec, adjust *api.ContainerAdjustment, cdiDirs []string) error {
	if adjust == nil {
		return nil
	}
	resources := adjust.GetLinux().GetResources()
	if err := checkClasses(resources); err != nil {
		return err
	}
	g := generate.NewFromSpec(spec)
	adjuster := nrigen.SpecGenerator(&g, nrigen.WithCDIDeviceInjector(func(s *specs.Spec, names []string) error {
		return InjectCDI(s, cdiDirs, names)
	}))
	if err := adjuster.Adjust(adjust); errors.Is(err, ErrInvalid) {
		return err
	} else if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if errno := adjust.GetLinux().GetSeccompPolicy().GetDefaultErrno(); errno != nil {
		spec.Linux.Seccomp.DefaultErrnoRet = ptr(uint(errno.GetValue()))
	}
	adjustMemory(spec, resources.GetMemory())
	return nil
}

func ptr[T any](v T) *T { return &v }

// adjustMemory sets what the library leaves out: it takes the limit alone, and
// the same limit for memory and swap together.
func adjustMemory(spec *specs.Spec, m *api.LinuxMemory) {
	if m == nil {
		return
	}
	want := (&api.LinuxResources{Memory: m}).ToOCI().Memory
	if spec.Linux.Resources.Memory == nil {
		spec.Linux.Resources.Memory = &specs.LinuxMemory{}
	}
	mergeMemory(spec.Linux.Resources.Memory, want)
}

// mergeMemory sets in a what b has.
func mergeMemory(a, b *specs.LinuxMemory) {
	over(&a.Limit, b.Limit)
	over(&a.Reservation, b.Reservation)
	over(&a.Swap, b.Swap)
	over(&a.Swappiness, b.Swappiness)
	over(&a.DisableOOMKiller, b.DisableOOMKiller)
	over(&a.UseHierarchy, b.UseHierarchy)
}

func over[T any](into **T, v *T) {
	if v != nil {
		*into = v
	}
}

// checkClasses refuses names that nobody has defined.
func checkClasses(r *api.LinuxResources) error {
	if class := r.GetBlockioClass().GetValue(); class != "" {
		return fmt.Errorf("%w: block I/O class %q is not defined", ErrInvalid, class)
	}
	if class := r.GetRdtClass().GetValue(); class != "" {
		return fmt.Errorf("%w: RDT class %q is not defined", ErrInvalid, class)
	}
	return nil
}

// maxAdjustedSpec bounds a specification that plugins have adjusted, in bytes
// of JSON: it is kept, and read again with each event.
const maxAdjustedSpec = 2 << 20

// checkAdjusted refuses an adjusted specification that is not a container of
// its own. A control group is ended and removed with its container, so it must
// not be one that others are in.
func (e *Engine) checkAdjusted(p Pod, c *container, spec *specs.Spec, size int) error {
	if size > maxAdjustedSpec {
		return fmt.Errorf("%w: the specification has %d bytes, %d are allowed", ErrInvalid, size, maxAdjustedSpec)
	}
	if spec.Process == nil || len(spec.Process.Args) == 0 || spec.Linux == nil {
		return fmt.Errorf("%w: the specification has no process", ErrInvalid)
	}
	group := spec.Linux.CgroupsPath
	if group != path.Clean("/"+group) || group == "/" {
		return fmt.Errorf("%w: control group %q is not an absolute path", ErrInvalid, group)
	}
	taken := []string{e.podCgroup(p)}
	for _, other := range e.allContainers() {
		if other != c {
			taken = append(taken, other.snapshot().CgroupPath)
		}
	}
	for _, other := range taken {
		if strings.HasPrefix(other+"/", group+"/") {
			return fmt.Errorf("%w: control group %s holds others", ErrInvalid, group)
		}
	}
	return nil
}

// resourcesOf translates limits back.
func resourcesOf(o *specs.LinuxResources) Resources {
	var r Resources
	if c := o.CPU; c != nil {
		r.CPUPeriod, r.CPUQuota, r.CPUShares = int64(value(c.Period)), value(c.Quota), int64(value(c.Shares))
		r.CpusetCPUs, r.CpusetMems = c.Cpus, c.Mems
	}
	if m := o.Memory; m != nil {
		r.MemoryLimit, r.SwapLimit = value(m.Limit), value(m.Swap)
	}
	for _, h := range o.HugepageLimits {
		if r.HugePages == nil {
			r.HugePages = map[string]uint64{}
		}
		r.HugePages[h.Pagesize] = h.Limit
	}
	r.Unified = o.Unified
	return r
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// mergeOCI gives limits with those of another set over them.
func mergeOCI(base, set *specs.LinuxResources) *specs.LinuxResources {
	out := *base
	if set.CPU != nil {
		cpu := value(base.CPU)
		over(&cpu.Shares, set.CPU.Shares)
		over(&cpu.Quota, set.CPU.Quota)
		over(&cpu.Period, set.CPU.Period)
		over(&cpu.RealtimeRuntime, set.CPU.RealtimeRuntime)
		over(&cpu.RealtimePeriod, set.CPU.RealtimePeriod)
		pick(&cpu.Cpus, set.CPU.Cpus)
		pick(&cpu.Mems, set.CPU.Mems)
		out.CPU = &cpu
	}
	if set.Memory != nil {
		memory := value(base.Memory)
		mergeMemory(&memory, set.Memory)
		out.Memory = &memory
	}
	over(&out.Pids, set.Pids)
	out.HugepageLimits = append(out.HugepageLimits[:len(out.HugepageLimits):len(out.HugepageLimits)], set.HugepageLimits...)
	out.Unified = mergeMaps(base.Unified, set.Unified)
	return &out
}
