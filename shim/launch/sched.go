package launch

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// schedPolicies and schedFlags are in the kernel's order: policies by number,
// flags by bit.
var (
	schedPolicies = [...]specs.LinuxSchedulerPolicy{
		specs.SchedOther, specs.SchedFIFO, specs.SchedRR, specs.SchedBatch, specs.SchedISO, specs.SchedIdle, specs.SchedDeadline,
	}
	schedFlags = [...]specs.LinuxSchedulerFlag{
		specs.SchedFlagResetOnFork, specs.SchedFlagReclaim, specs.SchedFlagDLOverrun, specs.SchedFlagKeepPolicy,
		specs.SchedFlagKeepParams, specs.SchedFlagUtilClampMin, specs.SchedFlagUtilClampMax,
	}
)

func parseScheduler(s *specs.Scheduler) (*unix.SchedAttr, error) {
	if s == nil {
		return nil, nil
	}
	policy := slices.Index(schedPolicies[:], s.Policy)
	if policy < 0 {
		return nil, fmt.Errorf("process.scheduler.policy %q: %w", s.Policy, unix.EINVAL)
	}
	attr := &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: uint32(policy), Nice: s.Nice, Priority: uint32(s.Priority),
		Runtime: s.Runtime, Deadline: s.Deadline, Period: s.Period,
	}
	for _, f := range s.Flags {
		bit := slices.Index(schedFlags[:], f)
		if bit < 0 {
			return nil, fmt.Errorf("process.scheduler.flags %q: %w", f, unix.EINVAL)
		}
		attr.Flags |= 1 << bit
	}
	return attr, nil
}

// parseIOPriority gives ioprio_set(2)'s value, or -1 for none.
func parseIOPriority(p *specs.LinuxIOPriority) (int, error) {
	if p == nil {
		return -1, nil
	}
	classes := [...]specs.IOPriorityClass{specs.IOPRIO_CLASS_RT, specs.IOPRIO_CLASS_BE, specs.IOPRIO_CLASS_IDLE}
	class := 1 + slices.Index(classes[:], p.Class)
	if class == 0 {
		return -1, fmt.Errorf("process.ioPriority.class %q: %w", p.Class, unix.EINVAL)
	}
	if p.Priority < 0 || p.Priority > 7 {
		return -1, fmt.Errorf("process.ioPriority.priority %d: %w", p.Priority, unix.EINVAL)
	}
	return class<<13 | p.Priority, nil
}

func parsePersonality(p *specs.LinuxPersonality) (persona uintptr, set bool, err error) {
	if p == nil {
		return 0, false, nil
	}
	if len(p.Flags) > 0 {
		return 0, false, fmt.Errorf("linux.personality.flags: %w", unix.EINVAL)
	}
	switch p.Domain {
	case specs.PerLinux:
		return 0, true, nil
	case specs.PerLinux32:
		return 8, true, nil // PER_LINUX32
	}
	return 0, false, fmt.Errorf("linux.personality.domain %q: %w", p.Domain, unix.EINVAL)
}

// maxCPU bounds a CPU list, whose text a client gives.
const maxCPU = 8192

// affinity is the CPUs of an exec before it joins the container's groups, and
// from then on; nil for none.
type affinity struct{ initial, final []uint64 }

// parseAffinity reads the CPUs of an exec. With an initial list alone it is free
// again in the container's groups: the kernel would hold on to that list (Linux 6.2).
func parseAffinity(a *specs.CPUAffinity) (out affinity, err error) {
	if a == nil {
		return out, nil
	}
	for _, l := range []struct {
		field, list string
		mask        *[]uint64
	}{{"initial", a.Initial, &out.initial}, {"final", a.Final, &out.final}} {
		if l.list == "" {
			continue
		}
		if *l.mask, err = parseList(l.list, maxCPU); err != nil {
			return out, fmt.Errorf("process.execCPUAffinity.%s %q: %w", l.field, l.list, err)
		}
	}
	if out.initial != nil && out.final == nil {
		out.final = slices.Repeat([]uint64{^uint64(0)}, maxCPU/64)
	}
	return out, nil
}

// parseList reads a list of ranges, "0-3,7", as a mask of bits below limit.
func parseList(list string, limit int) ([]uint64, error) {
	var mask []uint64
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		first, err := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err != nil || err2 != nil || first < 0 || last < first || last >= limit {
			return nil, unix.EINVAL
		}
		for bit := first; bit <= last; bit++ {
			for len(mask) <= bit/64 {
				mask = append(mask, 0)
			}
			mask[bit/64] |= 1 << (bit % 64)
		}
	}
	return mask, nil
}

// maxNode bounds a list of memory nodes (the kernel's MAX_NUMNODES at most).
const maxNode = 1024

// memoryPolicies are in the kernel's order (include/uapi/linux/mempolicy.h).
var memoryPolicies = [...]specs.MemoryPolicyModeType{
	specs.MpolDefault, specs.MpolPreferred, specs.MpolBind, specs.MpolInterleave, specs.MpolLocal, specs.MpolPreferredMany, specs.MpolWeightedInterleave,
}

type memoryFlag struct {
	name specs.MemoryPolicyFlagType
	bit  uintptr
}

var memoryFlags = [...]memoryFlag{
	{specs.MpolFNumaBalancing, 1 << 13}, {specs.MpolFRelativeNodes, 1 << 14}, {specs.MpolFStaticNodes, 1 << 15},
}

// memoryPolicy is what set_mempolicy(2) takes.
type memoryPolicy struct {
	mode  uintptr
	nodes []uint64
}

func parseMemoryPolicy(p *specs.LinuxMemoryPolicy) (*memoryPolicy, error) {
	if p == nil {
		return nil, nil
	}
	mode := slices.Index(memoryPolicies[:], p.Mode)
	if mode < 0 {
		return nil, fmt.Errorf("linux.memoryPolicy.mode %q: %w", p.Mode, unix.EINVAL)
	}
	out := &memoryPolicy{mode: uintptr(mode)}
	for _, flag := range p.Flags {
		i := slices.IndexFunc(memoryFlags[:], func(f memoryFlag) bool { return f.name == flag })
		if i < 0 {
			return nil, fmt.Errorf("linux.memoryPolicy.flags %q: %w", flag, unix.EINVAL)
		}
		out.mode |= memoryFlags[i].bit
	}
	if p.Nodes == "" {
		return out, nil
	}
	var err error
	if out.nodes, err = parseList(p.Nodes, maxNode); err != nil {
		return nil, fmt.Errorf("linux.memoryPolicy.nodes %q: %w", p.Nodes, err)
	}
	return out, nil
}

// tuning appends personality, scheduler, I/O priority, CPU affinity and memory
// policy, which need root's capabilities.
func (b *builder) tuning(pl *plan) {
	if pl.setPersona {
		b.do("set personality", unix.SYS_PERSONALITY, pl.persona)
	}
	if a := pl.sched; a != nil {
		attr := b.ints(a.Size, a.Policy, uint32(a.Flags), uint32(a.Flags>>32), uint32(a.Nice), a.Priority,
			uint32(a.Runtime), uint32(a.Runtime>>32), uint32(a.Deadline), uint32(a.Deadline>>32),
			uint32(a.Period), uint32(a.Period>>32), 0, 0)
		b.do("set scheduler", unix.SYS_SCHED_SETATTR, 0, attr, 0)
	}
	if pl.ioprio >= 0 {
		b.do("set I/O priority", unix.SYS_IOPRIO_SET, 1, 0, uintptr(pl.ioprio))
	}
	b.runOn(pl.affinity.final)
	if m := pl.memory; m != nil {
		var nodes, bits uintptr
		if len(m.nodes) > 0 {
			// The kernel takes one bit less than it is told there are.
			nodes, bits = b.mask(m.nodes), uintptr(len(m.nodes)*64+1)
		}
		b.do("set memory policy", unix.SYS_SET_MEMPOLICY, m.mode, nodes, bits)
	}
}

// runOn appends setting the CPU affinity, nothing for nil.
func (b *builder) runOn(cpus []uint64) {
	if len(cpus) > 0 {
		b.do("set CPU affinity", unix.SYS_SCHED_SETAFFINITY, 0, uintptr(len(cpus)*8), b.mask(cpus))
	}
}

// mask places a bit mask in the arena.
func (b *builder) mask(mask []uint64) uintptr {
	words := make([]uintptr, len(mask))
	for i, w := range mask {
		words[i] = uintptr(w)
	}
	return b.words(words...)
}

// labels appends the writes of the security labels that execve will apply.
func (b *builder) labels(pl *plan, procfs uintptr) {
	if pl.apparmor != "" && pl.apparmor != "unconfined" {
		file := "thread-self/attr/exec"
		if hasStackedAppArmor() {
			file = "thread-self/attr/apparmor/exec"
		}
		b.writeFile(opName{"set AppArmor profile", pl.apparmor}, procfs, file, "exec "+pl.apparmor)
	}
	if pl.selinux != "" {
		b.writeFile(opName{"set SELinux label", pl.selinux}, procfs, "thread-self/attr/exec", pl.selinux)
		// The session keyring that is made here is the container's.
		b.writeFile(opName{"set SELinux label of keys", pl.selinux}, procfs, "thread-self/attr/keycreate", pl.selinux)
	}
}

func hasStackedAppArmor() bool {
	return unix.Access("/proc/self/attr/apparmor/exec", unix.F_OK) == nil // Linux 5.8
}
