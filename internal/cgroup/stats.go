package cgroup

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Parts selects what [Group.StatsOf] reads.
type Parts uint

const (
	PartCPU Parts = 1 << iota
	PartMemory
	PartPids
	PartIO
	PartHugepages
	PartPressure
	// PartDetails is what costs version 1 more files: CPU time beside the usage,
	// what the memory controller counted, the limit of pids.
	PartDetails
	AllParts = PartCPU | PartMemory | PartPids | PartIO | PartHugepages | PartPressure | PartDetails
)

// Stats is one reading of a group and all below it. What a kernel or a missing
// controller does not tell is zero, a pressure nil. A limit that is not set is
// [Unlimited].
type Stats struct {
	Time       time.Time
	CPU        CPUStats
	Memory     MemoryStats
	Pids       PidsStats
	IO         []DeviceIO // a device per entry, those without traffic left out
	IOPressure *Pressure
	Hugepages  []HugepageStats
}

// CPUStats are sums since the group was made.
type CPUStats struct {
	Usage, User, System time.Duration
	Periods             uint64 // periods of the quota that have passed
	ThrottledPeriods    uint64 // those in which the quota ran out
	Throttled           time.Duration
	Pressure            *Pressure
}

// MemoryStats are in bytes, the faults counted since the group was made.
type MemoryStats struct {
	Usage uint64
	// WorkingSet is the usage without inactive file cache, what kubelet calls so.
	WorkingSet uint64
	// Available is what the limit leaves beside the working set, [Unlimited]
	// without a limit.
	Available       uint64
	RSS             uint64 // anonymous memory
	Cache           uint64
	Limit           uint64
	Swap, SwapLimit uint64 // swap alone, in both versions
	PageFaults      uint64
	MajorPageFaults uint64
	Pressure        *Pressure
	Mapped          uint64 // file cache that is mapped
	Max             uint64 // the largest usage since the group was made
	LimitHits       uint64 // how often the usage met the limit
	OOMKills        uint64 // see [Group.OOMKills]
	Kernel          uint64 // the kernel's own, charged to the group
	Reservation     uint64 // what reclaim leaves as long as it can, 0 for nothing
}

// PidsStats counts tasks, that is threads.
type PidsStats struct{ Current, Limit uint64 }

// DeviceIO is the traffic with one block device since the group was made.
type DeviceIO struct {
	Major, Minor          uint64
	ReadBytes, WriteBytes uint64
	ReadOps, WriteOps     uint64
}

// HugepageStats are of one page size, in bytes.
type HugepageStats struct {
	PageSize     string // 2MB
	Usage, Limit uint64
	Max          *uint64 // the largest usage since the group was made; nil: cgroup2 does not tell
}

// Pressure is the kernel's pressure stall information (Linux 4.20).
type Pressure struct{ Some, Full Stall }

// Stall is the share of time, in percent over 10, 60 and 300 seconds, and the
// total time that some or all tasks waited.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                time.Duration
}

// Stats reads everything; see [Group.StatsOf] for less.
func (g *Group) Stats() (Stats, error) { return g.StatsOf(AllParts) }

// StatsOf reads some parts. A group that does not exist, or goes meanwhile, gives
// an error that wraps [fs.ErrNotExist]; a file that a kernel lacks does not.
func (g *Group) StatsOf(parts Parts) (Stats, error) {
	s := Stats{Time: time.Now()}
	t, err := g.first()
	if err != nil {
		return s, err
	}
	missing := false
	for _, part := range []struct {
		bit  Parts
		read func(*Stats) error
	}{
		{PartCPU, g.cpuStats}, {PartMemory, g.memoryStats}, {PartPids, g.pidsStats},
		{PartIO, g.ioStats}, {PartHugepages, g.hugepageStats}, {PartPressure, g.pressure}, {PartDetails, g.details},
	} {
		if parts&part.bit == 0 {
			continue
		}
		if err := part.read(&s); gone(err) {
			missing = true
		} else if err != nil {
			return s, err
		}
	}
	if missing && !exists(g.dir(t)) {
		return s, &fs.PathError{Op: "stat", Path: g.dir(t), Err: unix.ENOENT}
	}
	return s, nil
}

func (g *Group) first() (*Tree, error) {
	if len(g.host.Trees) == 0 {
		return nil, ErrNoCgroups
	}
	return &g.host.Trees[0], nil
}

// cpuStats reads the usage; cgroup2 has all times in the same file, and counts
// them without a controller.
func (g *Group) cpuStats(s *Stats) (err error) {
	c := &s.CPU
	t, ok := g.host.tree("cpuacct")
	if !ok {
		return nil
	}
	if t.Unified {
		return cpuStat(g.dir(t), c)
	}
	usage, err := readUint(g.dir(t), "cpuacct.usage")
	c.Usage = time.Duration(usage)
	return err
}

func cpuStat(dir string, c *CPUStats) error {
	text, err := readFile(dir, "cpu.stat")
	if err != nil {
		return err
	}
	keyed(text, func(key string, v uint64) {
		switch key {
		case "usage_usec":
			c.Usage = time.Duration(v) * time.Microsecond
		case "user_usec":
			c.User = time.Duration(v) * time.Microsecond
		case "system_usec":
			c.System = time.Duration(v) * time.Microsecond
		case "nr_periods":
			c.Periods = v
		case "nr_throttled":
			c.ThrottledPeriods = v
		case "throttled_usec":
			c.Throttled = time.Duration(v) * time.Microsecond
		case "throttled_time": // version 1, nanoseconds
			c.Throttled = time.Duration(v)
		}
	})
	return nil
}

// cpuDetails reads what version 1 keeps in other files than the usage.
func (g *Group) cpuDetails(s *Stats) error {
	c := &s.CPU
	if t, ok := g.host.tree("cpu"); ok && !t.Unified {
		if err := cpuStat(g.dir(t), c); err != nil {
			return err
		}
	}
	t, ok := g.host.tree("cpuacct")
	if !ok || t.Unified {
		return nil
	}
	for _, f := range []struct {
		file string
		to   *time.Duration
	}{{"cpuacct.usage_user", &c.User}, {"cpuacct.usage_sys", &c.System}} {
		n, err := readUint(g.dir(t), f.file)
		if err != nil {
			return err
		}
		*f.to = time.Duration(n)
	}
	return nil
}

func (g *Group) memoryStats(s *Stats) error {
	t, ok := g.host.tree("memory")
	if !ok {
		return nil
	}
	m := &s.Memory
	var inactive uint64
	var err error
	if t.Unified {
		inactive, err = memoryStats2(g.dir(t), m)
	} else {
		inactive, err = memoryStats1(g.dir(t), m)
	}
	if err != nil {
		return err
	}
	if m.Usage > inactive {
		m.WorkingSet = m.Usage - inactive
	}
	m.Available = Unlimited
	if m.Limit != Unlimited {
		m.Available = m.Limit - min(m.WorkingSet, m.Limit)
	}
	return nil
}

// unlimitedFrom is where version 1's "no limit" begins: the largest count of
// pages in a signed number, less on machines with large pages.
const unlimitedFrom = 1 << 62

func memoryStats1(dir string, m *MemoryStats) (inactive uint64, err error) {
	if m.Usage, err = readUint(dir, "memory.usage_in_bytes"); err != nil {
		return 0, err
	}
	text, err := readFile(dir, "memory.stat")
	if err != nil {
		return 0, err
	}
	swapLimit := uint64(Unlimited)
	m.Limit = Unlimited
	keyed(text, func(key string, v uint64) {
		switch key {
		case "total_rss":
			m.RSS = v
		case "total_cache":
			m.Cache = v
		case "total_mapped_file":
			m.Mapped = v
		case "total_swap":
			m.Swap = v
		case "total_pgfault":
			m.PageFaults = v
		case "total_pgmajfault":
			m.MajorPageFaults = v
		case "total_inactive_file":
			inactive = v
		case "hierarchical_memory_limit":
			if v < unlimitedFrom {
				m.Limit = v
			}
		case "hierarchical_memsw_limit":
			swapLimit = v
		}
	})
	m.SwapLimit = Unlimited
	if m.Limit != Unlimited && swapLimit < unlimitedFrom {
		m.SwapLimit = swapLimit - min(m.Limit, swapLimit)
	}
	return inactive, nil
}

func memoryStats2(dir string, m *MemoryStats) (inactive uint64, err error) {
	text, err := readFile(dir, "memory.stat")
	if err != nil {
		return 0, err
	}
	keyed(text, func(key string, v uint64) {
		switch key {
		case "anon":
			m.RSS = v
		case "file":
			m.Cache = v
		case "file_mapped":
			m.Mapped = v
		case "pgfault":
			m.PageFaults = v
		case "pgmajfault":
			m.MajorPageFaults = v
		case "inactive_file":
			inactive = v
		}
	})
	for _, f := range []struct {
		file    string
		to      *uint64
		missing uint64
	}{
		// The root has no such files, nor have kernels without swap the last two.
		{"memory.current", &m.Usage, m.RSS + m.Cache}, {"memory.max", &m.Limit, Unlimited},
		{"memory.swap.current", &m.Swap, 0}, {"memory.swap.max", &m.SwapLimit, Unlimited},
	} {
		*f.to, err = readUint(dir, f.file)
		if errors.Is(err, fs.ErrNotExist) {
			*f.to, err = f.missing, nil
		}
		if err != nil {
			return 0, err
		}
	}
	return inactive, nil
}

// details reads the rest of CPU, memory and pids. memory.peak came with Linux
// 5.19, "kernel" in memory.stat with 5.18.
func (g *Group) details(s *Stats) error {
	for _, read := range []func(*Stats) error{g.cpuDetails, g.memoryDetails, g.pidsLimit} {
		if err := read(s); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (g *Group) memoryDetails(s *Stats) error {
	t, ok := g.host.tree("memory")
	if !ok {
		return nil
	}
	m := &s.Memory
	var errs [5]error
	if dir := g.dir(t); t.Unified {
		m.Max, errs[0] = readUint(dir, "memory.peak")
		m.LimitHits, errs[1] = readKey(dir, "memory.events", "max")
		m.Kernel, errs[2] = readKey(dir, "memory.stat", "kernel")
		m.Reservation, errs[3] = readUint(dir, "memory.low")
	} else {
		m.Max, errs[0] = readUint(dir, "memory.max_usage_in_bytes")
		m.LimitHits, errs[1] = readUint(dir, "memory.failcnt")
		m.Kernel, errs[2] = readUint(dir, "memory.kmem.usage_in_bytes")
		m.Reservation, errs[3] = readUint(dir, "memory.soft_limit_in_bytes")
	}
	if m.Reservation >= unlimitedFrom {
		m.Reservation = 0
	}
	m.OOMKills, errs[4] = g.OOMKills()
	for _, err := range errs {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (g *Group) pidsStats(s *Stats) (err error) {
	if t, ok := g.host.tree("pids"); ok {
		s.Pids.Current, err = readUint(g.dir(t), "pids.current")
	}
	return err
}

func (g *Group) pidsLimit(s *Stats) (err error) {
	if t, ok := g.host.tree("pids"); ok {
		s.Pids.Limit, err = readUint(g.dir(t), "pids.max")
	}
	return err
}

func (g *Group) ioStats(s *Stats) error {
	t, ok := g.host.tree("blkio")
	if !ok {
		return nil
	}
	if t.Unified {
		text, err := readFile(g.dir(t), "io.stat")
		s.IO = parseIO2(text)
		return err
	}
	bytes, err := readFile(g.dir(t), "blkio.throttle.io_service_bytes_recursive")
	if err != nil {
		return err
	}
	ops, err := readFile(g.dir(t), "blkio.throttle.io_serviced_recursive")
	s.IO = parseIO1(bytes, ops)
	return err
}

// parseIO2 reads lines like "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0".
func parseIO2(text string) []DeviceIO {
	var all []DeviceIO
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		d, ok := parseDevice(fields[0])
		if !ok {
			continue
		}
		for _, field := range fields[1:] {
			key, value, _ := strings.Cut(field, "=")
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				continue
			}
			switch key {
			case "rbytes":
				d.ReadBytes = n
			case "wbytes":
				d.WriteBytes = n
			case "rios":
				d.ReadOps = n
			case "wios":
				d.WriteOps = n
			}
		}
		all = append(all, d)
	}
	return all
}

// parseIO1 reads lines like "8:0 Read 4096" of two files.
func parseIO1(bytes, ops string) []DeviceIO {
	var all []DeviceIO
	add := func(text string, field func(d *DeviceIO, direction string) *uint64) {
		for line := range strings.Lines(text) {
			fields := strings.Fields(line)
			if len(fields) != 3 {
				continue // the total
			}
			d, ok := parseDevice(fields[0])
			n, err := strconv.ParseUint(fields[2], 10, 64)
			if !ok || err != nil || n == 0 {
				continue
			}
			i := 0
			for i < len(all) && (all[i].Major != d.Major || all[i].Minor != d.Minor) {
				i++
			}
			if i == len(all) {
				all = append(all, d)
			}
			if to := field(&all[i], fields[1]); to != nil {
				*to = n
			}
		}
	}
	add(bytes, func(d *DeviceIO, direction string) *uint64 { return pick(direction, &d.ReadBytes, &d.WriteBytes) })
	add(ops, func(d *DeviceIO, direction string) *uint64 { return pick(direction, &d.ReadOps, &d.WriteOps) })
	return all
}

func pick(direction string, read, write *uint64) *uint64 {
	switch direction {
	case "Read":
		return read
	case "Write":
		return write
	}
	return nil
}

func parseDevice(text string) (DeviceIO, bool) {
	major, minor, ok := strings.Cut(text, ":")
	x, err1 := strconv.ParseUint(major, 10, 32)
	y, err2 := strconv.ParseUint(minor, 10, 32)
	return DeviceIO{Major: x, Minor: y}, ok && err1 == nil && err2 == nil
}

func (g *Group) hugepageStats(s *Stats) error {
	t, ok := g.host.tree("hugetlb")
	if !ok {
		return nil
	}
	usage, limit := "usage_in_bytes", "limit_in_bytes"
	if t.Unified {
		usage, limit = "current", "max"
	}
	for _, size := range g.host.PageSizes() {
		h := HugepageStats{PageSize: size}
		var err error
		if h.Usage, err = readUint(g.dir(t), "hugetlb."+size+"."+usage); err != nil {
			return err
		}
		if h.Limit, err = readUint(g.dir(t), "hugetlb."+size+"."+limit); err != nil {
			return err
		}
		if h.Limit >= unlimitedFrom {
			h.Limit = Unlimited
		}
		if !t.Unified {
			largest, err := readUint(g.dir(t), "hugetlb."+size+".max_usage_in_bytes")
			if err != nil {
				return err
			}
			h.Max = &largest
		}
		s.Hugepages = append(s.Hugepages, h)
	}
	return nil
}

// pressure is told by cgroup2 only, there without any controller.
func (g *Group) pressure(s *Stats) error {
	t := g.host.unified()
	if t == nil {
		return nil
	}
	for _, p := range []struct {
		file string
		to   **Pressure
	}{{"cpu.pressure", &s.CPU.Pressure}, {"memory.pressure", &s.Memory.Pressure}} {
		var err error
		if *p.to, err = readPressure(g.dir(t), p.file); err != nil {
			return err
		}
	}
	var err error
	s.IOPressure, err = readPressure(g.dir(t), "io.pressure")
	return err
}

func readPressure(dir, file string) (*Pressure, error) {
	text, err := readFile(dir, file)
	// EOPNOTSUPP: switched off at boot (psi=0) or for this group (cgroup.pressure).
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parsePressure(text), nil
}

// parsePressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the
// same for "full".
func parsePressure(text string) *Pressure {
	p := &Pressure{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		stall := &p.Some
		if fields[0] == "full" {
			stall = &p.Full
		}
		for _, field := range fields[1:] {
			key, value, _ := strings.Cut(field, "=")
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				continue
			}
			switch key {
			case "avg10":
				stall.Avg10 = n
			case "avg60":
				stall.Avg60 = n
			case "avg300":
				stall.Avg300 = n
			case "total":
				stall.Total = time.Duration(n) * time.Microsecond
			}
		}
	}
	return p
}
