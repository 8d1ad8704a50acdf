package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func (u *update) memory(res *specs.LinuxResources) error {
	m := res.Memory
	if m == nil {
		return nil
	}
	version1 := []wish{
		{"memory.kernelTCP", above(m.KernelTCP)}, {"memory.swappiness", m.Swappiness != nil},
		{"memory.disableOOMKiller", m.DisableOOMKiller != nil && *m.DisableOOMKiller},
	}
	t, ok := u.group.host.tree("memory")
	if !ok {
		return refuse("no memory controller", append(version1, wish{"memory.limit", above(m.Limit)},
			wish{"memory.swap", above(m.Swap)}, wish{"memory.reservation", above(m.Reservation)})...)
	}
	f := u.files(t)
	if t.Unified {
		if err := refuse("cgroup v2 has no such setting", version1...); err != nil {
			return err
		}
		return setMemory2(f, m)
	}
	if err := setMemory1(f, m); err != nil {
		return err
	}
	if set(m.Reservation) {
		if err := f.write("memory.soft_limit_in_bytes", strconv.FormatInt(*m.Reservation, 10)); err != nil {
			return err
		}
	}
	if set(m.KernelTCP) { // gone since Linux 6.13
		if err := f.writeAsked("memory.kmem.tcp.limit_in_bytes", strconv.FormatInt(*m.KernelTCP, 10), *m.KernelTCP > 0); err != nil {
			return err
		}
	}
	if m.Swappiness != nil {
		if *m.Swappiness > 100 {
			return fmt.Errorf("memory swappiness %d is above 100: %w", *m.Swappiness, unix.EINVAL)
		}
		if err := f.write("memory.swappiness", strconv.FormatUint(*m.Swappiness, 10)); err != nil {
			return err
		}
	}
	if m.DisableOOMKiller != nil {
		value := "0"
		if *m.DisableOOMKiller {
			value = "1"
		}
		const file = "memory.oom_control"
		old, err := readKey(f.dir, file, "oom_kill_disable")
		if err != nil {
			return err
		}
		f.remember(file, strconv.FormatUint(old, 10))
		return writeFile(f.dir, file, value)
	}
	return nil
}

// setMemory1 writes the limit and the limit of memory plus swap in the order
// the kernel accepts: the second is never below the first.
func setMemory1(f files, m *specs.LinuxMemory) error {
	const memoryFile, swapFile = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
	memory := func() error {
		if !set(m.Limit) {
			return nil
		}
		// Version 1 reclaims, and refuses what is below that; it kills nobody.
		err := f.write(memoryFile, strconv.FormatInt(*m.Limit, 10))
		if usage, readErr := readUint(f.dir, "memory.usage_in_bytes"); errors.Is(err, unix.EBUSY) && readErr == nil {
			return fmt.Errorf("memory limit %d is below the usage %d that cannot be reclaimed: %w", *m.Limit, usage, err)
		}
		return err
	}
	swap := func(value int64) error {
		err := f.write(swapFile, strconv.FormatInt(value, 10))
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// Without swap accounting (boot option swapaccount=0) there is no such file.
		limit, err := memoryLimit(f.dir, memoryFile, m)
		if err == nil && value > 0 && uint64(value) != limit {
			err = errNoSwap(value)
		}
		return err
	}
	switch {
	case !set(m.Swap) && set(m.Limit) && *m.Limit < 0:
		// No limit on memory is possible only with none on memory plus swap.
		if err := swap(-1); err != nil {
			return err
		}
		return memory()
	case !set(m.Swap):
		return memory()
	case !set(m.Limit):
		return swap(*m.Swap)
	}
	current, err := readUint(f.dir, memoryFile)
	if err != nil {
		return err
	}
	if *m.Swap < 0 || current < uint64(*m.Swap) {
		if err := swap(*m.Swap); err != nil {
			return err
		}
		return memory()
	}
	if err := memory(); err != nil {
		return err
	}
	return swap(*m.Swap)
}

// setMemory2 converts the specification's sum of memory and swap into
// cgroup2's swap alone.
func setMemory2(f files, m *specs.LinuxMemory) error {
	if set(m.Swap) {
		value := "max"
		if *m.Swap > 0 {
			memory, err := memoryLimit(f.dir, "memory.max", m)
			if err != nil {
				return err
			}
			if memory == Unlimited || uint64(*m.Swap) < memory {
				return fmt.Errorf("memory plus swap %d is below the memory limit: %w", *m.Swap, unix.EINVAL)
			}
			value = strconv.FormatUint(uint64(*m.Swap)-memory, 10)
		}
		err := f.write("memory.swap.max", value)
		// Kernels without swap have no such file.
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
			if value != "0" && value != "max" {
				err = errNoSwap(*m.Swap)
			}
		}
		if err != nil {
			return err
		}
	}
	if set(m.Limit) {
		if err := checkUsage(f.dir, "memory.current", m); err != nil {
			return err
		}
		if err := f.write("memory.max", limit(*m.Limit)); err != nil {
			return err
		}
	}
	if set(m.Reservation) {
		return f.write("memory.low", limit(*m.Reservation))
	}
	return nil
}

// errNoSwap says that swap is not counted. No swap, and no limit on it, which
// clients ask for by habit, are what such a kernel has anyway.
func errNoSwap(limit int64) error {
	return fmt.Errorf("limit %d of memory and swap together: this kernel does not count swap: %w", limit, unix.EOPNOTSUPP)
}

// memoryLimit is the memory limit that will hold after the update.
func memoryLimit(dir, file string, m *specs.LinuxMemory) (uint64, error) {
	switch {
	case !set(m.Limit):
		return readUint(dir, file)
	case *m.Limit < 0:
		return Unlimited, nil
	}
	return uint64(*m.Limit), nil
}

// checkUsage refuses a limit of cgroup2 below the present usage where the client
// asked for that; the kernel would kill instead.
func checkUsage(dir, file string, m *specs.LinuxMemory) error {
	if m.CheckBeforeUpdate == nil || !*m.CheckBeforeUpdate || *m.Limit < 0 {
		return nil
	}
	usage, err := readUint(dir, file)
	if err != nil {
		return err
	}
	if usage > uint64(*m.Limit) {
		return fmt.Errorf("memory limit %d is below the usage %d: %w", *m.Limit, usage, unix.EBUSY)
	}
	return nil
}

// OOMKills counts the processes the kernel's out-of-memory killer ended in the
// group and below it, since the group was made. cgroup2's memory.events counts
// the whole subtree; version 1 counts per group (Linux 4.13), so the groups
// below are added. Groups already removed are not counted there.
func (g *Group) OOMKills() (uint64, error) {
	t, ok := g.host.tree("memory")
	if !ok {
		return 0, nil
	}
	if t.Unified {
		return readKey(g.dir(t), "memory.events", "oom_kill")
	}
	var sum uint64
	err := walk(g.dir(t), 0, func(dir string) error {
		n, err := readKey(dir, "memory.oom_control", "oom_kill")
		if dir != g.dir(t) && gone(err) {
			return nil
		}
		sum += n
		return err
	})
	return sum, err
}
