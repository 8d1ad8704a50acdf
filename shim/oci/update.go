package oci

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/resctrl"
)

// update changes the limits that are given and leaves the others alone.
func (c *cli) update(args []string) error {
	f := newFlags("update")
	var file string
	f.StringVar(&file, "resources", "", "")
	f.StringVar(&file, "r", "", "")
	res := limitFlags(f)
	var l3, bandwidth string
	f.StringVar(&l3, "l3-cache-schema", "", "")
	f.StringVar(&bandwidth, "mem-bw-schema", "", "")
	for _, name := range []string{"kernel-memory", "kernel-memory-tcp"} {
		f.Func(name, "", func(string) error {
			// The kernel has no limit of its own for kernel memory any more (Linux 5.16).
			c.warn(fmt.Errorf("--%s is ignored", name))
			return nil
		})
	}
	ids, err := parse(f, args, 1, 1)
	if err != nil {
		return err
	}
	if file != "" {
		if res, err = c.readResources(file); err != nil {
			return err
		}
	}
	prune(res)
	ct, err := c.openLocked(ids[0])
	if err != nil {
		return err
	}
	defer ct.unlock()
	p, err := ct.process()
	if err != nil {
		return err
	}
	if p.Ended() {
		return fmt.Errorf("update container %s: it is stopped: %w", ct.ID, unix.EINVAL)
	}
	_, group, err := ct.group()
	if err != nil {
		return err
	}
	// A class that does not take its schemata leaves the limits as they were.
	if err := ct.setClass(l3, bandwidth); err != nil {
		return fmt.Errorf("update container %s: %w", ct.ID, err)
	}
	if err := group.Update(res); err != nil {
		return fmt.Errorf("update container %s: %w", ct.ID, err)
	}
	return nil
}

// setClass changes the schemata of the container's class of Intel's RDT.
func (ct *container) setClass(l3, bandwidth string) error {
	if l3 == "" && bandwidth == "" {
		return nil
	}
	spec, _, err := ct.config()
	if err != nil {
		return err
	}
	if spec.Linux.IntelRdt == nil {
		return fmt.Errorf("linux.intelRdt: the container has no class: %w", unix.EINVAL)
	}
	class, err := resctrl.New(resctrl.Mount, ct.ID, &specs.LinuxIntelRdt{
		ClosID: spec.Linux.IntelRdt.ClosID, L3CacheSchema: l3, MemBwSchema: bandwidth,
	})
	if err != nil {
		return err
	}
	return class.Set()
}

// readResources reads the JSON of linux.resources, "-" for standard input.
func (c *cli) readResources(name string) (*specs.LinuxResources, error) {
	in := c.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	var res specs.LinuxResources
	return &res, readJSON(name, in, &res)
}

// limitFlags defines a flag for each limit; what is not given stays nil.
func limitFlags(f *flag.FlagSet) *specs.LinuxResources {
	cpu, memory, io := &specs.LinuxCPU{}, &specs.LinuxMemory{}, &specs.LinuxBlockIO{}
	pids := &specs.LinuxPids{}
	bytes := func(name string, to **int64) {
		f.Func(name, "", func(s string) error {
			n, err := parseBytes(s)
			*to = &n
			return err
		})
	}
	signed := func(name string, to **int64) {
		f.Func(name, "", func(s string) error {
			n, err := strconv.ParseInt(s, 10, 64)
			*to = &n
			return err
		})
	}
	unsigned := func(name string, to **uint64) {
		f.Func(name, "", func(s string) error {
			n, err := strconv.ParseUint(s, 10, 64)
			*to = &n
			return err
		})
	}
	unsigned("cpu-period", &cpu.Period)
	signed("cpu-quota", &cpu.Quota)
	unsigned("cpu-burst", &cpu.Burst)
	unsigned("cpu-share", &cpu.Shares)
	unsigned("cpu-rt-period", &cpu.RealtimePeriod)
	signed("cpu-rt-runtime", &cpu.RealtimeRuntime)
	signed("cpu-idle", &cpu.Idle)
	f.StringVar(&cpu.Cpus, "cpuset-cpus", "", "")
	f.StringVar(&cpu.Mems, "cpuset-mems", "", "")
	bytes("memory", &memory.Limit)
	bytes("memory-reservation", &memory.Reservation)
	bytes("memory-swap", &memory.Swap)
	signed("pids-limit", &pids.Limit)
	f.Func("blkio-weight", "", func(s string) error {
		n, err := strconv.ParseUint(s, 10, 16)
		weight := uint16(n)
		io.Weight = &weight
		return err
	})
	return &specs.LinuxResources{CPU: cpu, Memory: memory, Pids: pids, BlockIO: io}
}

// prune takes away what sets nothing.
func prune(res *specs.LinuxResources) {
	if res.CPU != nil && *res.CPU == (specs.LinuxCPU{}) {
		res.CPU = nil
	}
	if res.Memory != nil && *res.Memory == (specs.LinuxMemory{}) {
		res.Memory = nil
	}
	if res.Pids != nil && res.Pids.Limit == nil {
		res.Pids = nil
	}
}

// parseBytes reads a number of bytes, with a suffix of k, m, g or t for powers
// of 1024; -1 is no limit.
func parseBytes(s string) (int64, error) {
	number, shift := strings.ToLower(s), 0
	number = strings.TrimSuffix(number, "b")
	for i, suffix := range []string{"k", "m", "g", "t"} {
		if base, ok := strings.CutSuffix(number, suffix); ok {
			number, shift = base, 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("size %.32q: %w", s, unix.EINVAL)
	}
	if n > (1<<63-1)>>shift || n < -1 || n == -1 && shift > 0 {
		return 0, fmt.Errorf("size %.32q: %w", s, unix.ERANGE)
	}
	return n << shift, nil
}
