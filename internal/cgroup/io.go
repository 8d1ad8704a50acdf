package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func (u *update) io(res *specs.LinuxResources) error {
	b := res.BlockIO
	if b == nil {
		return nil
	}
	t, ok := u.group.host.tree("blkio")
	switch {
	case !ok:
		wishes := []wish{{"blockIO.weight", nonzero(b.Weight)}, {"blockIO.leafWeight", nonzero(b.LeafWeight)},
			{"blockIO.weightDevice", len(b.WeightDevice) > 0}}
		for _, t := range throttles(b) {
			wishes = append(wishes, wish{t.field, len(t.devices) > 0})
		}
		return refuse("no blkio controller", wishes...)
	case t.Unified:
		return setIO2(u.files(t), b)
	}
	return setIO1(u.files(t), b)
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
// CFQ's before Linux 5.0, which alone had leaf weights).
func setIO1(f files, b *specs.LinuxBlockIO) error {
	if nonzero(b.Weight) {
		if err := f.writeFirst(strconv.Itoa(int(*b.Weight)), "blkio.bfq.weight", "blkio.weight"); err != nil {
			return err
		}
	}
	if nonzero(b.LeafWeight) {
		if err := f.write("blkio.leaf_weight", strconv.Itoa(int(*b.LeafWeight))); err != nil {
			return err
		}
	}
	for _, d := range b.WeightDevice {
		if nonzero(d.Weight) {
			line := fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.Weight)
			if err := f.writeFirst(line, "blkio.bfq.weight_device", "blkio.weight_device"); err != nil {
				return err
			}
		}
		if nonzero(d.LeafWeight) {
			if err := f.write("blkio.leaf_weight_device", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.LeafWeight)); err != nil {
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
	leaf := func(d specs.LinuxWeightDevice) bool { return nonzero(d.LeafWeight) }
	if err := refuse("cgroup v2 has no leaf weights", wish{"blockIO.leafWeight", nonzero(b.LeafWeight)},
		wish{"blockIO.weightDevice.leafWeight", slices.ContainsFunc(b.WeightDevice, leaf)}); err != nil {
		return err
	}
	if nonzero(b.Weight) {
		if err := setWeight2(f, "", *b.Weight); err != nil {
			return err
		}
	}
	for _, d := range b.WeightDevice {
		if !nonzero(d.Weight) {
			continue
		}
		if err := setWeight2(f, fmt.Sprintf("%d:%d ", d.Major, d.Minor), *d.Weight); err != nil {
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

// setWeight2 writes the weight of all devices, or of the one that key names, for
// BFQ or else for the controller's own cost model.
func setWeight2(f files, key string, weight uint16) error {
	err := f.write("io.bfq.weight", key+strconv.Itoa(int(weight)))
	if errors.Is(err, fs.ErrNotExist) {
		err = f.write("io.weight", key+strconv.FormatUint(ioWeight(weight), 10))
	}
	return err
}

type throttle struct {
	field   string // of the specification
	v1, v2  string // version 1's file; the key in cgroup2's io.max
	devices []specs.LinuxThrottleDevice
}

func throttles(b *specs.LinuxBlockIO) []throttle {
	return []throttle{
		{"blockIO.throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps", b.ThrottleReadBpsDevice},
		{"blockIO.throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps", b.ThrottleWriteBpsDevice},
		{"blockIO.throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops", b.ThrottleReadIOPSDevice},
		{"blockIO.throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops", b.ThrottleWriteIOPSDevice},
	}
}
