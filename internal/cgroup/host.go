// Package cgroup makes, limits, measures, kills and removes control groups.
//
// A [Host] says where each controller lives: in a hierarchy of cgroup v1, in
// the one cgroup2 tree, or, on a hybrid host, some here and some there. Every
// step asks that per controller, so there is one code path for all three. A
// [Group] is a name below all hierarchies at once and holds no state: whoever
// knows the path may use it, from any process, and the kernel's files are the
// only truth. A limit whose controller or file the kernel lacks is an error that
// names it, not passed over; [Host.Has] tells who must know before.
//
// The group's name is the only input a client shapes that becomes a path; it
// is cleaned and never leads out of a hierarchy.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Mode is how a host mounts its control groups.
type Mode int

const (
	// V1 has a hierarchy per controller and no cgroup2 tree.
	V1 Mode = iota
	// Hybrid has a cgroup2 tree beside hierarchies of version 1; a controller
	// is in one or the other.
	Hybrid
	// V2 has the cgroup2 tree only.
	V2
)

// String gives the name used in logs and by "longshore check".
func (m Mode) String() string {
	switch m {
	case V1:
		return "v1"
	case Hybrid:
		return "hybrid"
	}
	return "v2"
}

// Tree is one mounted hierarchy.
type Tree struct {
	// Mount is where its root is mounted.
	Mount string
	// Controllers are the kernel's names; systemd's hierarchy, which has none,
	// holds "name=systemd".
	Controllers []string
	// Unified marks the cgroup2 tree.
	Unified bool
}

// Host is the set of hierarchies of one machine. It is read-only after
// [Detect]; tests fill it with directories of their own.
type Host struct {
	Mode  Mode
	Trees []Tree
	// NoKillFile does without cgroup.kill, as kernels before 5.14 do.
	NoKillFile bool
	// PageSizes gives the huge page sizes as the hugetlb files spell them: 2MB, 1GB.
	PageSizes func() []string
}

// ErrNoCgroups says that no control group hierarchy is mounted.
var ErrNoCgroups = errors.New("no cgroup hierarchy is mounted")

// maxMountinfo bounds one line of mountinfo: a path and its escapes.
const maxMountinfo = 1 << 20

// v1Controllers are the controllers version 1 knows and a container joins.
var v1Controllers = [...]string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids",
	"hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc", "name=systemd"}

// Detect finds the hierarchies this process sees, once: they do not change
// under a running node.
func Detect() (*Host, error) { return detected() }

var detected = sync.OnceValues(find)

// find looks for them. On a busy node mountinfo has thousands of lines, so the
// usual places are tried first.
func find() (*Host, error) {
	trees, ok := usualTrees("/proc/self/cgroup", "/sys/fs/cgroup", filesystem)
	if !ok {
		var err error
		if trees, err = mountedTrees(); err != nil {
			return nil, fmt.Errorf("read mountinfo: %w", err)
		}
	}
	for i := range trees {
		if !trees[i].Unified {
			continue
		}
		controllers, err := readFile(trees[i].Mount, "cgroup.controllers")
		if err != nil {
			return nil, err
		}
		trees[i].Controllers = strings.Fields(controllers)
	}
	h := &Host{Trees: trees, PageSizes: sync.OnceValue(func() []string { return pageSizes("/sys/kernel/mm/hugepages") })}
	var err error
	if h.Mode, err = modeOf(trees); err != nil {
		return nil, err
	}
	return h, nil
}

// filesystem gives the type of the filesystem at a path, 0 if there is none.
func filesystem(path string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return 0
	}
	return int64(st.Type)
}

// usualTrees finds each hierarchy of a /proc/self/cgroup where every
// distribution mounts it (cgroups(7)): a directory with the controllers' names
// below root for version 1; root, or "unified" in it, for cgroup2. It says no if
// one of them is elsewhere or nowhere.
func usualTrees(list, root string, filesystem func(string) int64) ([]Tree, bool) {
	text, err := readFile(filepath.Dir(list), filepath.Base(list))
	if err != nil {
		return nil, false
	}
	var trees []Tree
	for line := range strings.SplitSeq(text, "\n") {
		fields := strings.SplitN(line, ":", 3)
		if len(fields) != 3 {
			return nil, false
		}
		if fields[0] == "0" {
			mount := root
			if filesystem(mount) != unix.CGROUP2_SUPER_MAGIC {
				mount = root + "/unified"
			}
			if filesystem(mount) != unix.CGROUP2_SUPER_MAGIC {
				return nil, false
			}
			trees = append(trees, Tree{Mount: mount, Unified: true})
			continue
		}
		tree := Tree{Mount: root + "/" + strings.TrimPrefix(fields[1], "name=")}
		tree.Controllers = knownControllers(fields[1])
		if len(tree.Controllers) == 0 {
			continue
		}
		if filesystem(tree.Mount) != unix.CGROUP_SUPER_MAGIC {
			return nil, false
		}
		trees = append(trees, tree)
	}
	return trees, true
}

// knownControllers keeps of a list with commas the controllers of version 1.
func knownControllers(list string) []string {
	var known []string
	for option := range strings.SplitSeq(list, ",") {
		if slices.Contains(v1Controllers[:], option) {
			known = append(known, option)
		}
	}
	return known
}

func mountedTrees() ([]Tree, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMountinfo(f)
}

func modeOf(trees []Tree) (Mode, error) {
	unified := slices.ContainsFunc(trees, func(t Tree) bool { return t.Unified })
	switch {
	case len(trees) == 0:
		return V1, ErrNoCgroups
	case !unified:
		return V1, nil
	case len(trees) == 1:
		return V2, nil
	}
	return Hybrid, nil
}

// parseMountinfo finds the hierarchies in a mountinfo table, each once: what is
// mounted a second time elsewhere is the same hierarchy.
func parseMountinfo(r io.Reader) ([]Tree, error) {
	var trees []Tree
	seen := map[string]bool{}
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxMountinfo)
	for lines.Scan() {
		line := lines.Text()
		if !strings.Contains(line, " - cgroup") {
			continue
		}
		before, after, _ := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if len(left) < 5 || len(right) < 3 {
			continue
		}
		tree := Tree{Mount: unescape(left[4])}
		switch right[0] {
		case "cgroup2":
			tree.Unified = true
		case "cgroup":
			tree.Controllers = knownControllers(right[2])
		default:
			continue
		}
		key := right[0] + strings.Join(tree.Controllers, ",")
		if seen[key] || !tree.Unified && len(tree.Controllers) == 0 {
			continue
		}
		seen[key] = true
		trees = append(trees, tree)
	}
	return trees, lines.Err()
}

// unescape undoes the kernel's octal escapes of space, tab, newline and
// backslash in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// pageSizes turns the directory names hugepages-2048kB into 2MB.
func pageSizes(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var sizes []string
	for _, e := range entries {
		var kib uint64
		if _, err := fmt.Sscanf(e.Name(), "hugepages-%dkB", &kib); err != nil {
			continue
		}
		switch {
		case kib >= 1<<20:
			sizes = append(sizes, fmt.Sprintf("%dGB", kib>>20))
		case kib >= 1<<10:
			sizes = append(sizes, fmt.Sprintf("%dMB", kib>>10))
		default:
			sizes = append(sizes, fmt.Sprintf("%dKB", kib))
		}
	}
	return sizes
}

// Has reports whether a controller is there, in either version. The names are
// those of version 1; "devices" and "freezer" are part of cgroup2 itself.
func (h *Host) Has(controller string) bool {
	_, ok := h.tree(controller)
	return ok
}

// v2Name gives the name a controller of version 1 has in cgroup2. An empty
// name is a function that every cgroup2 has without a controller.
func v2Name(controller string) string {
	switch controller {
	case "blkio":
		return "io"
	case "cpuacct", "devices", "freezer":
		return ""
	}
	return controller
}

// tree finds the hierarchy that has a controller; version 1 is asked first,
// because there a controller that is mounted is in use.
func (h *Host) tree(controller string) (*Tree, bool) {
	for i := range h.Trees {
		if t := &h.Trees[i]; !t.Unified && slices.Contains(t.Controllers, controller) {
			return t, true
		}
	}
	t := h.unified()
	if t == nil {
		return nil, false
	}
	name := v2Name(controller)
	if name != "" && !slices.Contains(t.Controllers, name) {
		return nil, false
	}
	return t, true
}

// unified gives the cgroup2 tree, nil on a V1 host.
func (h *Host) unified() *Tree {
	for i := range h.Trees {
		if h.Trees[i].Unified {
			return &h.Trees[i]
		}
	}
	return nil
}
