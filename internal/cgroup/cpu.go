package cgroup

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxShares is the kernel's upper bound of version 1's cpu.shares.
const maxShares = 262144

// WeightOfShares turns version 1's cpu.shares (2..262144, default 1024) into
// cgroup2's cpu.weight (1..10000, default 100). The curve is the one runc 1.3.2
// and crun 1.23 share (KEP-2254): a quadratic in the logarithm through minimum,
// default and maximum, so that a default share is a default weight. 0 stays 0:
// not set.
func WeightOfShares(shares uint64) uint64 {
	switch {
	case shares == 0:
		return 0
	case shares <= 2:
		return 1
	case shares >= maxShares:
		return 10000
	}
	l := math.Log2(float64(shares))
	exponent := (l*l+125*l)/612 - 7.0/34
	return uint64(math.Ceil(math.Pow(10, exponent)))
}

func (u *update) cpu(res *specs.LinuxResources) error {
	c := res.CPU
	if c == nil {
		return nil
	}
	t, ok := u.group.host.tree("cpu")
	if !ok {
		// Kubelet sends a period always, also without a quota.
		return refuse("no cpu controller", wish{"cpu.shares", nonzero(c.Shares)}, wish{"cpu.quota", above(c.Quota)},
			wish{"cpu.burst", nonzero(c.Burst)}, wish{"cpu.idle", nonzero(c.Idle)},
			wish{"cpu.realtimeRuntime", above(c.RealtimeRuntime)}, wish{"cpu.realtimePeriod", nonzero(c.RealtimePeriod)})
	}
	f := u.files(t)
	weight := "cpu.shares"
	if t.Unified {
		weight = "cpu.weight"
	}
	// The kernel refuses a weight while a group is idle, so idle goes first.
	if c.Idle != nil {
		f.note(weight)                                                                                 // which the kernel changes with it
		if err := f.writeAsked("cpu.idle", strconv.FormatInt(*c.Idle, 10), *c.Idle != 0); err != nil { // Linux 5.15
			return err
		}
	}
	idle := c.Idle != nil && *c.Idle == 1
	if c.Shares != nil && *c.Shares != 0 && !idle {
		value := *c.Shares
		if t.Unified {
			value = WeightOfShares(value)
		}
		if err := f.write(weight, strconv.FormatUint(value, 10)); err != nil {
			return err
		}
	}
	if t.Unified {
		if err := refuse("cgroup v2 has no real-time share",
			wish{"cpu.realtimeRuntime", above(c.RealtimeRuntime)}, wish{"cpu.realtimePeriod", nonzero(c.RealtimePeriod)}); err != nil {
			return err
		}
		return setBandwidth2(f, c)
	}
	if err := setRealtime(f, c); err != nil {
		return err
	}
	return setBandwidth1(f, c)
}

// setBandwidth2 writes cpu.max, keeping the half that is not set.
func setBandwidth2(f files, c *specs.LinuxCPU) error {
	burst := func() error {
		if c.Burst == nil {
			return nil
		}
		return f.writeAsked("cpu.max.burst", strconv.FormatUint(*c.Burst, 10), *c.Burst != 0) // Linux 5.14
	}
	quota := set(c.Quota)
	period := c.Period != nil && *c.Period != 0
	if !quota && !period {
		return burst()
	}
	now, err := readFile(f.dir, "cpu.max")
	if err != nil {
		return err
	}
	oldQuota, oldPeriod, ok := strings.Cut(now, " ")
	if !ok {
		return fmt.Errorf("parse %s/cpu.max: %q", f.dir, now)
	}
	if quota {
		oldQuota = limit(*c.Quota)
	}
	if period {
		oldPeriod = strconv.FormatUint(*c.Period, 10)
	}
	return retryAfter(burst, func() error { return f.write("cpu.max", oldQuota+" "+oldPeriod) })
}

func setBandwidth1(f files, c *specs.LinuxCPU) error {
	period := func() error {
		if c.Period == nil || *c.Period == 0 {
			return nil
		}
		return f.write("cpu.cfs_period_us", strconv.FormatUint(*c.Period, 10))
	}
	quota := func() error {
		if !set(c.Quota) {
			return nil
		}
		return f.write("cpu.cfs_quota_us", strconv.FormatInt(*c.Quota, 10))
	}
	burst := func() error {
		if c.Burst == nil {
			return nil
		}
		return f.writeAsked("cpu.cfs_burst_us", strconv.FormatUint(*c.Burst, 10), *c.Burst != 0)
	}
	return retryAfter(burst, func() error { return retryAfter(period, quota) })
}

// retryAfter does first, then second; where the kernel refuses first because
// it does not fit what second is about to change (a shorter period under the
// old quota, a burst above it), first is tried again afterwards.
func retryAfter(first, second func() error) error {
	err := first()
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := second(); err != nil {
		return err
	}
	if err != nil {
		return first()
	}
	return nil
}

// setRealtime writes version 1's real-time share; cgroup2 has none.
func setRealtime(f files, c *specs.LinuxCPU) error {
	if c.RealtimePeriod != nil && *c.RealtimePeriod != 0 {
		if err := f.write("cpu.rt_period_us", strconv.FormatUint(*c.RealtimePeriod, 10)); err != nil {
			return err
		}
	}
	if set(c.RealtimeRuntime) {
		return f.write("cpu.rt_runtime_us", strconv.FormatInt(*c.RealtimeRuntime, 10))
	}
	return nil
}

func set(n *int64) bool { return n != nil && *n != 0 }

func (u *update) cpuset(res *specs.LinuxResources) error {
	if res.CPU == nil {
		return nil
	}
	t, ok := u.group.host.tree("cpuset")
	if !ok {
		return refuse("no cpuset controller", wish{"cpu.cpus", res.CPU.Cpus != ""}, wish{"cpu.mems", res.CPU.Mems != ""})
	}
	if res.CPU.Cpus != "" {
		if err := u.files(t).write("cpuset.cpus", res.CPU.Cpus); err != nil {
			return err
		}
	}
	if res.CPU.Mems != "" {
		return u.files(t).write("cpuset.mems", res.CPU.Mems)
	}
	return nil
}
