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

// parseAffinity reads the CPUs of an exec: the final list counts, since the
// process has nothing to do between the initial one and execve.
func parseAffinity(a *specs.CPUAffinity) ([]uint64, error) {
	list, field := a.Final, "final"
	if list == "" {
		list, field = a.Initial, "initial"
	}
	if list == "" {
		return nil, nil
	}
	var mask []uint64
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		first, err := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err != nil || err2 != nil || first < 0 || last < first || last >= maxCPU {
			return nil, fmt.Errorf("process.execCPUAffinity.%s %q: %w", field, list, unix.EINVAL)
		}
		for cpu := first; cpu <= last; cpu++ {
			for len(mask) <= cpu/64 {
				mask = append(mask, 0)
			}
			mask[cpu/64] |= 1 << (cpu % 64)
		}
	}
	return mask, nil
}

// tuning appends personality, scheduler, I/O priority and CPU affinity, which
// need root's capabilities.
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
	if len(pl.affinity) > 0 {
		words := make([]uintptr, len(pl.affinity))
		for i, w := range pl.affinity {
			words[i] = uintptr(w)
		}
		b.do("set CPU affinity", unix.SYS_SCHED_SETAFFINITY, 0, uintptr(len(words)*8), b.words(words...))
	}
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
	}
}

func hasStackedAppArmor() bool {
	return unix.Access("/proc/self/attr/apparmor/exec", unix.F_OK) == nil // Linux 5.8
}
