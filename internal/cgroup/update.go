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

// wish is a field of the specification, and whether it asks for a limit. What
// sets none, clients send by habit.
type wish struct {
	field string
	asked bool
}

// refuse gives an error for the first limit that is asked for and that this host
// cannot set: "The runtime MUST generate an error when the configuration refers
// to a cgroup controller that is not present or that cannot be enabled", and
// when a limit of version 1 has no like in cgroup2 (config-linux.md, "Unified").
// Passed over is memory.kernel alone, which the specification advises against and
// Linux 5.16 has taken away.
func refuse(why string, wishes ...wish) error {
	for _, w := range wishes {
		if w.asked {
			return fmt.Errorf("%s: %s: %w", w.field, why, unix.EOPNOTSUPP)
		}
	}
	return nil
}

// nonzero says that a number is given and is not 0; above, that it is a limit.
func nonzero[T int64 | uint64 | uint16 | uint32](n *T) bool { return n != nil && *n != 0 }

func above(n *int64) bool { return n != nil && *n > 0 }

// files are those of the group in one hierarchy.
func (u *update) files(t *Tree) files { return files{u.group.dir(t), u.before} }

func limit(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func (u *update) pids(res *specs.LinuxResources) error {
	if res.Pids == nil || res.Pids.Limit == nil {
		return nil
	}
	n := *res.Pids.Limit
	t, ok := u.group.host.tree("pids")
	if !ok {
		return refuse("no pids controller", wish{"pids.limit", n >= 0})
	}
	// "0 is a valid limit value" (config-linux.md, "PIDs", of 1.3): no process may fork.
	return u.files(t).write("pids.max", limit(n))
}

// hugepages limits faults and, where the kernel has it (5.7), the
// reservation made by mmap, which fails cleanly where a fault is a SIGBUS.
func (u *update) hugepages(res *specs.LinuxResources) error {
	t, ok := u.group.host.tree("hugetlb")
	if !ok {
		// Kubelet sends 0 for each page size that the node has.
		limited := func(l specs.LinuxHugepageLimit) bool { return l.Limit > 0 }
		return refuse("no hugetlb controller", wish{"hugepageLimits", slices.ContainsFunc(res.HugepageLimits, limited)})
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
	id, priorities := res.Network.ClassID, res.Network.Priorities
	if t, ok := u.group.host.tree("net_cls"); !ok {
		if err := refuse("no net_cls controller", wish{"network.classID", nonzero(id)}); err != nil {
			return err
		}
	} else if id != nil {
		if err := u.files(t).write("net_cls.classid", strconv.FormatUint(uint64(*id), 10)); err != nil {
			return err
		}
	}
	t, ok := u.group.host.tree("net_prio")
	if !ok {
		return refuse("no net_prio controller", wish{"network.priorities", len(priorities) > 0})
	}
	for _, p := range priorities {
		if err := u.files(t).write("net_prio.ifpriomap", fmt.Sprintf("%s %d", p.Name, p.Priority)); err != nil {
			return err
		}
	}
	return nil
}

func (u *update) rdma(res *specs.LinuxResources) error {
	t, ok := u.group.host.tree("rdma")
	if !ok {
		return refuse("no rdma controller", wish{"rdma", len(res.Rdma) > 0})
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
