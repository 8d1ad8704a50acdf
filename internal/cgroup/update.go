package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Unlimited is how a limit that is not set is given in [Stats].
const Unlimited = math.MaxUint64

// Update changes the limits that res sets and leaves the others alone. A
// negative limit means none; zero means "not set", as in the OCI runtime
// specification's JSON. What was already written stays when a later write
// fails; the error names the file and the value.
func (g *Group) Update(res *specs.LinuxResources) error {
	if g.path == "/" {
		return errRoot
	}
	steps := []func(*specs.LinuxResources) error{
		g.updateDevices, g.updateMemory, g.updateCPU, g.updateCpuset, g.updatePids, g.updateIO,
		g.updateHugepages, g.updateNetwork, g.updateRdma, g.updateUnified,
	}
	for _, step := range steps {
		if err := step(res); err != nil {
			return fmt.Errorf("limit cgroup %s: %w", g.path, err)
		}
	}
	return nil
}

func limit(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func (g *Group) updatePids(res *specs.LinuxResources) error {
	t, ok := g.host.tree("pids")
	if !ok || res.Pids == nil || res.Pids.Limit == nil {
		return nil
	}
	n := *res.Pids.Limit
	if n == 0 { // Docker's and older specifications' way to say "no limit"
		n = -1
	}
	return writeFile(g.dir(t), "pids.max", limit(n))
}

// updateHugepages limits faults and, where the kernel has it (5.7), the
// reservation made by mmap, which fails cleanly where a fault is a SIGBUS.
func (g *Group) updateHugepages(res *specs.LinuxResources) error {
	t, ok := g.host.tree("hugetlb")
	if !ok {
		return nil
	}
	suffix := "limit_in_bytes"
	if t.Unified {
		suffix = "max"
	}
	for _, l := range res.HugepageLimits {
		if !isPageSize(l.Pagesize) {
			return fmt.Errorf("huge page size %.32q: %w", l.Pagesize, unix.EINVAL)
		}
		value := strconv.FormatUint(l.Limit, 10)
		if err := writeFile(g.dir(t), "hugetlb."+l.Pagesize+"."+suffix, value); err != nil {
			return err
		}
		if err := writeIfThere(g.dir(t), "hugetlb."+l.Pagesize+".rsvd."+suffix, value); err != nil {
			return err
		}
	}
	return nil
}

// isPageSize accepts the kernel's spelling only: the text becomes a file name.
func isPageSize(s string) bool {
	digits := strings.TrimRight(s, "KMGB")
	unit := s[len(digits):]
	if unit != "KB" && unit != "MB" && unit != "GB" {
		return false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return err == nil && n > 0
}

// updateNetwork sets version 1's traffic class and priorities; cgroup2 has
// neither.
func (g *Group) updateNetwork(res *specs.LinuxResources) error {
	if res.Network == nil {
		return nil
	}
	if t, ok := g.host.tree("net_cls"); ok && !t.Unified && res.Network.ClassID != nil {
		id := strconv.FormatUint(uint64(*res.Network.ClassID), 10)
		if err := writeFile(g.dir(t), "net_cls.classid", id); err != nil {
			return err
		}
	}
	if t, ok := g.host.tree("net_prio"); ok && !t.Unified {
		for _, p := range res.Network.Priorities {
			if err := writeFile(g.dir(t), "net_prio.ifpriomap", fmt.Sprintf("%s %d", p.Name, p.Priority)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *Group) updateRdma(res *specs.LinuxResources) error {
	t, ok := g.host.tree("rdma")
	if !ok {
		return nil
	}
	for _, device := range slices.Sorted(maps.Keys(res.Rdma)) {
		line := device
		if n := res.Rdma[device].HcaHandles; n != nil {
			line += fmt.Sprintf(" hca_handle=%d", *n)
		}
		if n := res.Rdma[device].HcaObjects; n != nil {
			line += fmt.Sprintf(" hca_object=%d", *n)
		}
		if err := writeFile(g.dir(t), "rdma.max", line); err != nil {
			return err
		}
	}
	return nil
}

// updateUnified writes cgroup2 files by name. The names are the client's: only
// a controller's file in this very group is reached, and not the cgroup.*
// files, through which foreign processes could be moved or killed.
func (g *Group) updateUnified(res *specs.LinuxResources) error {
	if len(res.Unified) == 0 {
		return nil
	}
	t := g.host.unified()
	if t == nil {
		return fmt.Errorf("unified resources need cgroup v2, this host has %s", g.host.Mode)
	}
	for _, file := range slices.Sorted(maps.Keys(res.Unified)) {
		if strings.ContainsAny(file, "/\x00") || strings.HasPrefix(file, ".") ||
			strings.HasPrefix(file, "cgroup.") || !strings.Contains(file, ".") {
			return fmt.Errorf("unified resource %.64q is not a controller's file: %w", file, unix.EINVAL)
		}
		err := writeFile(g.dir(t), file, res.Unified[file])
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unified resource %q: no such file in cgroup v2 here (kernel or controller missing): %w", file, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
