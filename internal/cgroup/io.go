package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func (g *Group) updateIO(res *specs.LinuxResources) error {
	t, ok := g.host.tree("blkio")
	if !ok || res.BlockIO == nil {
		return nil
	}
	if t.Unified {
		return setIO2(g.dir(t), res.BlockIO)
	}
	return setIO1(g.dir(t), res.BlockIO)
}

// ioWeight maps blkio.weight's 10..1000 to io.weight's 1..10000, linearly, as
// runc and crun do.
func ioWeight(blkio uint16) uint64 {
	if blkio < 10 {
		return 1
	}
	return 1 + (uint64(blkio)-10)*9999/990
}

// setIO1 writes version 1's files. Weights are the I/O scheduler's (BFQ's, or
// CFQ's before Linux 5.0); where the kernel has none of them, a weight is
// passed over: it is a preference, unlike the throttles.
func setIO1(dir string, b *specs.LinuxBlockIO) error {
	if b.Weight != nil && *b.Weight != 0 {
		if err := writeFirst(dir, strconv.Itoa(int(*b.Weight)), "blkio.bfq.weight", "blkio.weight"); err != nil {
			return err
		}
	}
	if b.LeafWeight != nil && *b.LeafWeight != 0 {
		if err := writeIfThere(dir, "blkio.leaf_weight", strconv.Itoa(int(*b.LeafWeight))); err != nil {
			return err
		}
	}
	for _, d := range b.WeightDevice {
		if d.Weight != nil {
			line := fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.Weight)
			if err := writeFirst(dir, line, "blkio.bfq.weight_device", "blkio.weight_device"); err != nil {
				return err
			}
		}
		if d.LeafWeight != nil {
			if err := writeIfThere(dir, "blkio.leaf_weight_device", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.LeafWeight)); err != nil {
				return err
			}
		}
	}
	for _, t := range throttles(b) {
		for _, d := range t.devices {
			if err := writeFile(dir, t.v1, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate)); err != nil {
				return err
			}
		}
	}
	return nil
}

func setIO2(dir string, b *specs.LinuxBlockIO) error {
	if b.Weight != nil && *b.Weight != 0 {
		err := writeFile(dir, "io.bfq.weight", strconv.Itoa(int(*b.Weight)))
		if errors.Is(err, fs.ErrNotExist) {
			err = writeIfThere(dir, "io.weight", strconv.FormatUint(ioWeight(*b.Weight), 10))
		}
		if err != nil {
			return err
		}
	}
	for _, d := range b.WeightDevice {
		if d.Weight == nil {
			continue
		}
		if err := writeIfThere(dir, "io.bfq.weight", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.Weight)); err != nil {
			return err
		}
	}
	for _, t := range throttles(b) {
		for _, d := range t.devices {
			rate := "max" // version 1 spells "no limit" 0
			if d.Rate != 0 {
				rate = strconv.FormatUint(d.Rate, 10)
			}
			if err := writeFile(dir, "io.max", fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, t.v2, rate)); err != nil {
				return err
			}
		}
	}
	return nil
}

type throttle struct {
	v1, v2  string // version 1's file; the key in cgroup2's io.max
	devices []specs.LinuxThrottleDevice
}

func throttles(b *specs.LinuxBlockIO) []throttle {
	return []throttle{
		{"blkio.throttle.read_bps_device", "rbps", b.ThrottleReadBpsDevice},
		{"blkio.throttle.write_bps_device", "wbps", b.ThrottleWriteBpsDevice},
		{"blkio.throttle.read_iops_device", "riops", b.ThrottleReadIOPSDevice},
		{"blkio.throttle.write_iops_device", "wiops", b.ThrottleWriteIOPSDevice},
	}
}

// writeFirst writes to the first of the files that exists, if any does.
func writeFirst(dir, value string, files ...string) error {
	for _, file := range files {
		err := writeFile(dir, file, value)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
