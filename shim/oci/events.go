package oci

import (
	"encoding/json"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
)

// The types have the names that runc prints (its package types), of what is
// measured here.
type (
	event struct {
		Type string `json:"type"`
		ID   string `json:"id"`
		Data used   `json:"data"`
	}
	used struct {
		CPU struct {
			Usage      cpuUsage   `json:"usage"`
			Throttling throttling `json:"throttling"`
		} `json:"cpu"`
		Memory struct {
			Cache  uint64      `json:"cache,omitempty"`
			Usage  memoryUsage `json:"usage"`
			Swap   memoryUsage `json:"swap"` // and memory
			Kernel memoryUsage `json:"kernel"`
		} `json:"memory"`
		Pids struct {
			Current uint64 `json:"current,omitempty"`
			Limit   uint64 `json:"limit,omitempty"`
		} `json:"pids"`
		IO struct {
			Bytes []traffic `json:"ioServiceBytesRecursive,omitempty"`
			Count []traffic `json:"ioServicedRecursive,omitempty"`
		} `json:"blkio"`
		Hugetlb map[string]hugetlb `json:"hugetlb"`
	}
	cpuUsage struct {
		Total  int64 `json:"total,omitempty"` // nanoseconds
		Kernel int64 `json:"kernel"`
		User   int64 `json:"user"`
	}
	throttling struct {
		Periods          uint64 `json:"periods,omitempty"`
		ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
		ThrottledTime    int64  `json:"throttledTime,omitempty"`
	}
	memoryUsage struct {
		Limit   uint64 `json:"limit"`
		Usage   uint64 `json:"usage,omitempty"`
		Max     uint64 `json:"max,omitempty"`
		Failcnt uint64 `json:"failcnt"`
	}
	traffic struct {
		Major uint64 `json:"major,omitempty"`
		Minor uint64 `json:"minor,omitempty"`
		Op    string `json:"op,omitempty"`
		Value uint64 `json:"value,omitempty"`
	}
	hugetlb struct {
		Usage   uint64 `json:"usage,omitempty"`
		Failcnt uint64 `json:"failcnt"`
	}
)

// events prints what a container uses, once.
func (c *cli) events(args []string) error {
	f := newFlags("events")
	stats := f.Bool("stats", false, "")
	f.String("interval", "", "")
	ids, err := parse(f, args, 1, 1)
	if err != nil {
		return err
	}
	if !*stats {
		return fmt.Errorf("events without --stats: %w", unix.EOPNOTSUPP)
	}
	ct, err := c.open(ids[0])
	if err != nil {
		return err
	}
	_, group, err := ct.group()
	if err != nil {
		return err
	}
	s, err := group.Stats()
	if err != nil {
		return fmt.Errorf("events of container %s: %w", ct.ID, err)
	}
	return json.NewEncoder(c.out).Encode(event{"stats", ct.ID, usageOf(&s)})
}

func usageOf(s *cgroup.Stats) (u used) {
	u.CPU.Usage = cpuUsage{int64(s.CPU.Usage), int64(s.CPU.System), int64(s.CPU.User)}
	u.CPU.Throttling = throttling{s.CPU.Periods, s.CPU.ThrottledPeriods, int64(s.CPU.Throttled)}
	m := &s.Memory
	u.Memory.Cache = m.Cache
	u.Memory.Usage = memoryUsage{m.Limit, m.Usage, m.Max, m.LimitHits}
	u.Memory.Swap = memoryUsage{Limit: cgroup.Unlimited, Usage: m.Usage + m.Swap}
	if m.Limit != cgroup.Unlimited && m.SwapLimit <= math.MaxUint64-m.Limit {
		u.Memory.Swap.Limit = m.Limit + m.SwapLimit
	}
	u.Memory.Kernel = memoryUsage{Limit: cgroup.Unlimited, Usage: m.Kernel}
	u.Pids.Current = s.Pids.Current
	if s.Pids.Limit != cgroup.Unlimited { // which runc does not print
		u.Pids.Limit = s.Pids.Limit
	}
	for _, d := range s.IO {
		u.IO.Bytes = append(u.IO.Bytes, traffic{d.Major, d.Minor, "Read", d.ReadBytes}, traffic{d.Major, d.Minor, "Write", d.WriteBytes})
		u.IO.Count = append(u.IO.Count, traffic{d.Major, d.Minor, "Read", d.ReadOps}, traffic{d.Major, d.Minor, "Write", d.WriteOps})
	}
	u.Hugetlb = map[string]hugetlb{}
	for _, h := range s.Hugepages {
		u.Hugetlb[h.PageSize] = hugetlb{Usage: h.Usage}
	}
	return u
}
