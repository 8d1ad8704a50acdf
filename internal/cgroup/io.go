package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func (u *update) io(res *specs.LinuxResources) error {
	t, ok := u.group.host.tree("blkio")
	if !ok || res.BlockIO == nil {
		return nil
	}
	if t.Unified {
		return setIO2(u.files(t), res.BlockIO)
	}
	return setIO1(u.files(t), res.BlockIO)
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
func setIO1(f files, b *specs.LinuxBlockIO) error {
	if b.Weight != nil && *b.Weight != 0 {
		if err := f.writeFirst(strconv.Itoa(int(*b.Weight)), "blkio.bfq.weight", "blkio.weight"); err != nil {
			return err
		}
	}
	if b.LeafWeight != nil && *b.LeafWeight != 0 {
		if err := f.writeIfThere("blkio.leaf_weight", strconv.Itoa(int(*b.LeafWeight))); err != nil {
			return err
		}
	}
	for _, d := range b.WeightDevice {
		if d.Weight != nil {
			line := fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.Weight)
			if err := f.writeFirst(line, "blkio.bfq.weight_device", "blkio.weight_device"); err != nil {
				return err
			}
		}
		if d.LeafWeight != nil {
			if err := f.writeIfThere("blkio.leaf_weight_device", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.LeafWeight)); err != nil {
				return err
			}
		}
	}
	for _, t := range throttles(b) {
		for _, d := range t.devices {
			if err := f.write(t.v1, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate)); err != nil {
				return err
			}
		}
	}
	return nil
}

func setIO2(f files, b *specs.LinuxBlockIO) error {
	if b.Weight != nil && *b.Weight != 0 {
		err := f.write("io.bfq.weight", strconv.Itoa(int(*b.Weight)))
		if errors.Is(err, fs.ErrNotExist) {
			err = f.writeIfThere("io.weight", strconv.FormatUint(ioWeight(*b.Weight), 10))
		}
		if err != nil {
			return err
		}
	}
	for _, d := range b.WeightDevice {
		if d.Weight == nil {
			continue
		}
		if err := f.writeIfThere("io.bfq.weight", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.Weight)); err != nil {
			return err
		}
	}
	for _, t := range throttles(b) {
		for _, d := range t.devices {
			rate := "max" // version 1 spells "no limit" 0
			if d.Rate != 0 {
				rate = strconv.FormatUint(d.Rate, 10)
			}
			if err := f.write("io.max", fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, t.v2, rate)); err != nil {
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
