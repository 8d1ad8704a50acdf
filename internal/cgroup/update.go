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

// update is one change of a group's limits.
type update struct {
	group  *Group
	before *journal // nil: the group goes if it fails
}

// Update changes the limits that res sets and leaves the others alone. A
// negative limit means none; zero means "not set", as in the OCI runtime
// specification's JSON. If a limit cannot be set, which the error names by file
// and value, all are as they were before.
func (g *Group) Update(res *specs.LinuxResources) error {
	var before journal
	err := (&update{g, &before}).all(res)
	if err != nil {
		if undoErr := before.restore(); undoErr != nil {
			err = fmt.Errorf("%w; limits that were changed stay: %w", err, undoErr)
		}
	}
	return err
}

// Limit is Update for a group that is being made, and goes if a limit cannot be
// set: it does not look at what was there before.
func (g *Group) Limit(res *specs.LinuxResources) error { return (&update{group: g}).all(res) }

// all sets devices last: nothing after them fails, so they need not be put
// back, which is not possible with cgroup v2.
func (u *update) all(res *specs.LinuxResources) error {
	if u.group.path == "/" {
		return errRoot
	}
	steps := []func(*specs.LinuxResources) error{
		u.memory, u.cpu, u.cpuset, u.pids, u.io, u.hugepages, u.network, u.rdma, u.unified, u.devices,
	}
	for _, step := range steps {
		if err := step(res); err != nil {
			return fmt.Errorf("limit cgroup %s: %w", u.group.path, err)
		}
	}
	return nil
}

// files are those of the group in one hierarchy.
func (u *update) files(t *Tree) files { return files{u.group.dir(t), u.before} }

func limit(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func (u *update) pids(res *specs.LinuxResources) error {
	t, ok := u.group.host.tree("pids")
	if !ok || res.Pids == nil || res.Pids.Limit == nil {
		return nil
	}
	n := *res.Pids.Limit
	if n == 0 { // Docker's and older specifications' way to say "no limit"
		n = -1
	}
	return u.files(t).write("pids.max", limit(n))
}

// hugepages limits faults and, where the kernel has it (5.7), the
// reservation made by mmap, which fails cleanly where a fault is a SIGBUS.
func (u *update) hugepages(res *specs.LinuxResources) error {
	t, ok := u.group.host.tree("hugetlb")
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
		if err := u.files(t).write("hugetlb."+l.Pagesize+"."+suffix, value); err != nil {
			return err
		}
		if err := u.files(t).writeIfThere("hugetlb."+l.Pagesize+".rsvd."+suffix, value); err != nil {
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

// network sets version 1's traffic class and priorities; cgroup2 has
// neither.
func (u *update) network(res *specs.LinuxResources) error {
	if res.Network == nil {
		return nil
	}
	if t, ok := u.group.host.tree("net_cls"); ok && !t.Unified && res.Network.ClassID != nil {
		id := strconv.FormatUint(uint64(*res.Network.ClassID), 10)
		if err := u.files(t).write("net_cls.classid", id); err != nil {
			return err
		}
	}
	if t, ok := u.group.host.tree("net_prio"); ok && !t.Unified {
		for _, p := range res.Network.Priorities {
			if err := u.files(t).write("net_prio.ifpriomap", fmt.Sprintf("%s %d", p.Name, p.Priority)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (u *update) rdma(res *specs.LinuxResources) error {
	t, ok := u.group.host.tree("rdma")
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
		if err := u.files(t).write("rdma.max", line); err != nil {
			return err
		}
	}
	return nil
}

// unified writes cgroup2 files by name. The names are the client's: only files of
// this very group are reached, and not those by which processes are moved, stopped
// or killed and the runtime keeps the group usable.
func (u *update) unified(res *specs.LinuxResources) error {
	if len(res.Unified) == 0 {
		return nil
	}
	t := u.group.host.unified()
	if t == nil {
		return fmt.Errorf("unified resources need cgroup v2, this host has %s: %w", u.group.host.Mode, unix.EOPNOTSUPP)
	}
	for _, file := range slices.Sorted(maps.Keys(res.Unified)) {
		if !isUnified(file) {
			return fmt.Errorf("unified resource %.64q is no limit: %w", file, unix.EINVAL)
		}
		// The kernel takes one line of io.max, and its like, at a time.
		err := u.files(t).write(file, linesOf(res.Unified[file])...)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unified resource %q: no such file in cgroup v2 here (kernel or controller missing): %w", file, unix.EINVAL)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func isUnified(file string) bool {
	switch file {
	case "cgroup.procs", "cgroup.threads", "cgroup.kill", "cgroup.freeze", "cgroup.type", "cgroup.subtree_control":
		return false
	}
	return !strings.ContainsAny(file, "/\x00") && strings.Index(file, ".") > 0
}

// linesOf gives what to write one by one: a value of one line stays as it is.
func linesOf(value string) []string {
	if some := lines(value); len(some) > 1 {
		return some
	}
	return []string{value}
}
