package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/undo"
)

// maxDepth bounds how far below itself a group is walked. A container may nest
// groups; the kernel's own limit is the path length.
const maxDepth = 64

// maxPath bounds a group's name, which a client gives.
const maxPath = 4096

// Group is one control group, the same path in every hierarchy.
type Group struct {
	host *Host
	path string
}

// errRoot keeps a lost or empty path from acting on the whole machine.
var errRoot = errors.New("the root cgroup is not ours to change")

// Load names a group without touching it. The path is cleaned and taken below
// each hierarchy's root, so ".." leads nowhere.
func (h *Host) Load(name string) *Group {
	return &Group{host: h, path: path.Clean("/" + name)}
}

// New makes the group in every hierarchy, with its parents, and applies res
// (nil for no limits). A group that exists is adopted. On an error, what was
// made is removed again; parents that existed before stay.
func (h *Host) New(name string, res *specs.LinuxResources) (*Group, error) {
	return h.create(name, res, func(string) error { return nil })
}

// Claim is [Host.New] for a group that shall be the caller's alone, who will kill
// what is in it and remove it. One that exists must hold no process, in it or
// below, or the error wraps [unix.EBUSY].
func (h *Host) Claim(name string, res *specs.LinuxResources) (*Group, error) {
	return h.create(name, res, vacant)
}

// Vacant says by an error that wraps [unix.EBUSY] that [Host.Claim] would be
// refused: for whoever writes down first what is to be claimed, and so killed.
func (h *Host) Vacant(name string) error {
	g := h.Load(name)
	for i := range h.Trees {
		if err := vacant(g.dir(&h.Trees[i])); err != nil {
			return fmt.Errorf("create cgroup %s: %w", g.path, err)
		}
	}
	return nil
}

// vacant wants no process in a group's directory or below; one that does not exist
// has none.
func vacant(dir string) error {
	pids, err := procsBelow(dir)
	if len(pids) > 0 {
		return fmt.Errorf("%s is not empty: %d processes are in it: %w", dir, len(pids), unix.EBUSY)
	}
	return err
}

// create makes the group; adopt is asked about each directory that is there.
func (h *Host) create(name string, res *specs.LinuxResources, adopt func(dir string) error) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	g := h.Load(name)
	var made undo.Stack
	defer made.Run()
	for i := range h.Trees {
		if err := g.makeIn(&h.Trees[i], adopt, &made); err != nil {
			return nil, fmt.Errorf("create cgroup %s: %w", g.path, err)
		}
	}
	if res != nil {
		if err := g.Limit(res); err != nil {
			return nil, err
		}
	}
	made.Keep()
	return g, nil
}

// makeIn makes the group in one hierarchy.
func (g *Group) makeIn(t *Tree, adopt func(dir string) error, made *undo.Stack) error {
	dir := g.dir(t)
	fresh, err := mkdirAll(t.Mount, dir, made)
	if err == nil && !fresh {
		err = adopt(dir)
	}
	if err != nil {
		return err
	}
	if t.Unified {
		enableControllers(t, g.path)
	} else if slices.Contains(t.Controllers, "cpuset") {
		return inheritCpuset(t.Mount, dir, fresh)
	}
	return nil
}

// Halves gives the host twice, each with a part of the hierarchies: first those
// that a process should be in from its beginning, which are the cgroup2 tree,
// into which it is cloned, and the one of the memory controller, that it be charged
// for what it makes. To make a group takes some 40 µs in each of the others, which
// is done while the process is busy.
func (h *Host) Halves() (first, rest *Host) {
	first, rest = &Host{}, &Host{}
	for _, half := range []*Host{first, rest} {
		half.Mode, half.NoKillFile, half.PageSizes = h.Mode, h.NoKillFile, h.PageSizes
	}
	for _, t := range h.Trees {
		if t.Unified || slices.Contains(t.Controllers, "memory") {
			first.Trees = append(first.Trees, t)
		} else {
			rest.Trees = append(rest.Trees, t)
		}
	}
	return first, rest
}

// Child makes a group directly below g in the cgroup2 tree alone, for processes
// that shall be killed together and are limited and measured with g. It is nil
// where there is no cgroup2 tree or g can have no such group: a group in which
// someone has made a threaded one takes no other kind below it.
func (g *Group) Child(name string) (*Group, error) {
	t := g.host.unified()
	if t == nil || !exists(g.dir(t)) {
		return nil, nil
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	host := &Host{Mode: V2, Trees: []Tree{*t}, PageSizes: g.host.PageSizes}
	child := host.Load(path.Join(g.path, name))
	dir := child.dir(t)
	if err := unix.Mkdir(dir, 0o755); err != nil {
		return nil, &fs.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	// Only who holds the delegated tree of a V2 host could have changed its type.
	if g.host.Mode == V2 {
		if kind, err := readFile(dir, "cgroup.type"); err != nil || kind != "domain" {
			return nil, errors.Join(err, child.Remove())
		}
	}
	return child, nil
}

// Below finds a group below g that somebody else has made, in the hierarchies that
// have it. The name is below g, whatever it begins with.
func (g *Group) Below(name string) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	full := path.Join(g.path, name)
	host := *g.host
	host.Trees = slices.DeleteFunc(slices.Clone(host.Trees), func(t Tree) bool { return !exists(t.Mount + full) })
	if len(host.Trees) == 0 {
		return nil, fmt.Errorf("cgroup %s: %w", full, unix.ENOENT)
	}
	return host.Load(full), nil
}

// checkName refuses what cannot be a group: the name comes from a client.
func checkName(name string) error {
	switch {
	case len(name) > maxPath || strings.ContainsAny(name, "\x00\n"):
		return fmt.Errorf("cgroup path %.64q: %w", name, unix.EINVAL)
	case slices.Contains(strings.Split(name, "/"), ".."):
		return fmt.Errorf("cgroup path %q: %w", name, unix.EINVAL)
	case path.Clean("/"+name) == "/":
		return fmt.Errorf("cgroup path %q: %w", name, errRoot)
	}
	return nil
}

// Path gives the group's name below each hierarchy's root, such as
// "/kubepods/besteffort/pod1".
func (g *Group) Path() string { return g.path }

// dir gives the group's directory; both parts are clean.
func (g *Group) dir(t *Tree) string { return t.Mount + g.path }

// mkdirAll makes dir and its missing parents below mount, and says whether there
// was no dir before.
func mkdirAll(mount, dir string, made *undo.Stack) (fresh bool, err error) {
	err = unix.Mkdir(dir, 0o755)
	if err == unix.ENOENT && dir != mount {
		if _, err := mkdirAll(mount, filepath.Dir(dir), made); err != nil {
			return false, err
		}
		err = unix.Mkdir(dir, 0o755)
	}
	if err == unix.EEXIST {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	made.Add(func() { unix.Rmdir(dir) })
	return true, nil
}

// inheritCpuset fills the CPUs and memory nodes of a new v1 cpuset, and of its
// parents, from above: a process cannot join a cpuset whose lists are empty.
// What a fresh one has is not looked at: nothing, or its parent's.
func inheritCpuset(mount, dir string, fresh bool) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if _, err := inheritFile(mount, dir, file, fresh && dir != mount); err != nil {
			return err
		}
	}
	return nil
}

func inheritFile(mount, dir, file string, fresh bool) (value string, err error) {
	if !fresh {
		if value, err = readFile(dir, file); err != nil || value != "" || dir == mount {
			return value, err
		}
	}
	if value, err = inheritFile(mount, filepath.Dir(dir), file, false); err != nil {
		return "", err
	}
	return value, writeFile(dir, file, value)
}

// enableControllers hands every controller down to the group. What an ancestor
// refuses (EBUSY: it has processes of its own) is left off: the limit that
// needs the controller then fails naming its file.
func enableControllers(t *Tree, name string) {
	if len(t.Controllers) == 0 {
		return
	}
	parent := filepath.Join(t.Mount, path.Dir(name))
	if enabled, err := readFile(parent, "cgroup.subtree_control"); err == nil && hasAll(strings.Fields(enabled), t.Controllers) {
		return
	}
	all := "+" + strings.Join(t.Controllers, " +")
	at := t.Mount
	for part := range strings.SplitSeq(path.Dir(name)[1:], "/") {
		enableIn(at, t.Controllers, all)
		at = filepath.Join(at, part)
	}
	if at != t.Mount {
		enableIn(at, t.Controllers, all)
	}
}

func enableIn(dir string, controllers []string, all string) {
	err := writeFile(dir, "cgroup.subtree_control", all)
	// EBUSY: dir has processes. It would still take the threaded controllers
	// alone, and no process could enter a group below it any more.
	if err == nil || errors.Is(err, unix.EBUSY) {
		return
	}
	for _, c := range controllers {
		_ = writeFile(dir, "cgroup.subtree_control", "+"+c)
	}
}

func hasAll(have, want []string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}

// Joins are the open files through which a new process enters a group, made
// ahead so that the process need not resolve a path.
type Joins struct {
	// Tasks are version 1's "tasks" files, open for writing. A single-threaded
	// process writes "0" to each, in order. That way takes no lock that waits
	// for a grace period, which cgroup.procs does. The cpu group is last (after
	// it the process runs at the container's share), memory before it.
	Tasks []*Way
	// Into is the cgroup2 directory for clone3's CLONE_INTO_CGROUP (Linux 5.7),
	// nil where there is no cgroup2.
	Into *Way
}

// Way is one open file of [Joins]. It is no [os.File]: a launch opens a dozen,
// and uses each once, by its number.
type Way struct {
	fd   int
	name string
}

// Fd is the open descriptor, which the Way keeps owning.
func (w *Way) Fd() uintptr { return uintptr(w.fd) }

// Name is the path of the file.
func (w *Way) Name() string { return w.name }

// Close closes every file.
func (j *Joins) Close() error {
	var errs []error
	for _, f := range j.Tasks {
		errs = append(errs, unix.Close(f.fd))
	}
	if j.Into != nil {
		errs = append(errs, unix.Close(j.Into.fd))
	}
	j.Tasks, j.Into = nil, nil
	return errors.Join(errs...)
}

// joinRank orders the hierarchies for [Joins.Tasks].
func joinRank(t *Tree) int {
	switch {
	case slices.Contains(t.Controllers, "cpu"):
		return 2
	case slices.Contains(t.Controllers, "memory"):
		return 1
	}
	return 0
}

// Joins opens the ways into the group. The caller closes them.
func (g *Group) Joins() (*Joins, error) {
	trees := slices.Clone(g.host.Trees)
	slices.SortStableFunc(trees, func(a, b Tree) int { return joinRank(&a) - joinRank(&b) })
	j := &Joins{}
	for i := range trees {
		t := &trees[i]
		name, flags := "", unix.O_WRONLY
		if t.Unified {
			name, flags = g.dir(t), unix.O_PATH|unix.O_DIRECTORY
		} else {
			name = t.Mount + g.path + "/tasks"
		}
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			j.Close()
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		f := &Way{fd, name}
		if t.Unified {
			j.Into = f
		} else {
			j.Tasks = append(j.Tasks, f)
		}
	}
	return j, nil
}

// Narrow makes the ways lead to a [Group.Child] or to a group that is [Group.Below];
// into the hierarchies that have no such group they stay.
func (j *Joins) Narrow(group *Group) error {
	narrow, err := group.Joins()
	if err != nil {
		return err
	}
	for i := range group.host.Trees {
		mount := group.host.Trees[i].Mount
		if from, to := j.way(mount), narrow.way(mount); from != nil && to != nil {
			*from, *to = *to, *from
		}
	}
	if narrow.Into != nil {
		j.Into, narrow.Into = narrow.Into, j.Into
	}
	return narrow.Close()
}

// way finds the one into a hierarchy of version 1, by where that is mounted.
func (j *Joins) way(mount string) *Way {
	for _, w := range j.Tasks {
		if strings.HasPrefix(w.name, mount+"/") {
			return w
		}
	}
	return nil
}

// Follow makes the way into the cgroup2 tree lead to the group of one of g's
// processes. A group that hands controllers down (cgroup.subtree_control) takes
// no process, which clone3 says by EBUSY: so is that of a container that manages
// its own, as systemd and Docker do, and that has moved its processes below.
// Where they are is the container's choice, so what is not below g is refused.
func (j *Joins) Follow(g *Group, pid int) error {
	place, err := g.host.PlaceOf(strconv.Itoa(pid))
	if err != nil {
		return err
	}
	for i := range g.host.Trees {
		if t := &g.host.Trees[i]; t.Unified {
			at := g.host.Load(place.paths[i])
			if !strings.HasPrefix(at.path, g.path+"/") {
				return fmt.Errorf("process %d is in cgroup %s, not below %s: %w", pid, at.path, g.path, unix.EBUSY)
			}
			at.host = &Host{Mode: V2, Trees: []Tree{*t}}
			return j.Narrow(at)
		}
	}
	return fmt.Errorf("follow process %d: no cgroup2 tree: %w", pid, unix.EOPNOTSUPP)
}

// Procs lists the processes of the group and of all groups below it, in
// ascending order. A group that does not exist has none.
func (g *Group) Procs() ([]int, error) {
	if t := g.host.unified(); t != nil {
		pids, err := procsBelow(g.dir(t))
		if len(pids) > 0 || err != nil {
			return pids, err
		}
	}
	// Another tool's processes may be in version 1 only.
	for i := range g.host.Trees {
		if t := &g.host.Trees[i]; !t.Unified && exists(g.dir(t)) {
			return procsBelow(g.dir(t))
		}
	}
	return nil, nil
}

// everywhere lists the processes of the group and below in all hierarchies. One
// whose runtime was killed while it placed it is in some of them only.
func (g *Group) everywhere() ([]int, error) {
	var all []int
	for i := range g.host.Trees {
		pids, err := procsBelow(g.dir(&g.host.Trees[i]))
		if err != nil {
			return nil, err
		}
		all = append(all, pids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// populated gives the hierarchy to ask about the group's processes. On a
// hybrid host that is cgroup2 if anything joined it there, else version 1:
// another tool's processes may be in one only. It is nil where the group does
// not exist.
func (g *Group) populated() (*Tree, error) {
	var found *Tree
	for i := range g.host.Trees {
		t := &g.host.Trees[i]
		if !t.Unified {
			if found == nil && exists(g.dir(t)) {
				found = t
			}
			continue
		}
		value, err := readEvent(g.dir(t), "populated")
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if value == 1 || g.host.Mode == V2 {
			return t, nil
		}
	}
	return found, nil
}

func exists(dir string) bool {
	var st unix.Stat_t
	return unix.Lstat(dir, &st) == nil
}

func procsBelow(dir string) ([]int, error) {
	var pids []int
	err := walk(dir, 0, func(dir string) error {
		text, err := readFile(dir, "cgroup.procs")
		// EOPNOTSUPP: a threaded group, whose processes show in its root.
		if errors.Is(err, unix.EOPNOTSUPP) || gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		for field := range strings.FieldsSeq(text) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return fmt.Errorf("parse %s/cgroup.procs: %w", dir, err)
			}
			// 0 is a process outside this PID namespace.
			if pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	slices.Sort(pids)
	return slices.Compact(pids), err
}

// gone says that a group was removed while it was looked at.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// walk visits dir and every group below it, parents first.
func walk(dir string, depth int, visit func(dir string) error) error {
	if err := visit(dir); err != nil {
		return err
	}
	if depth == maxDepth {
		return fmt.Errorf("walk %s: more than %d levels", dir, maxDepth)
	}
	children, err := subdirs(dir)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := walk(child, depth+1, visit); err != nil {
			return err
		}
	}
	return nil
}

// subdirs lists the groups directly below dir. The link count says without a
// listing that there are none, which is the usual case.
func subdirs(dir string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err == unix.ENOENT {
		return nil, nil
	} else if err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Nlink == 2 {
		return nil, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !gone(err) {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(dir, e.Name()))
		}
	}
	return dirs, nil
}

// Remove removes the group and the groups below it from every hierarchy. A
// group that is not there is success. While a process is left in it the error
// wraps [unix.EBUSY]; the other hierarchies are removed nevertheless.
func (g *Group) Remove() error {
	if g.path == "/" {
		return errRoot
	}
	var errs []error
	for i := range g.host.Trees {
		errs = append(errs, removeAll(g.dir(&g.host.Trees[i]), 0))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", g.path, err)
	}
	return nil
}

func removeAll(dir string, depth int) error {
	err := unix.Rmdir(dir)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	// cgroupfs says EBUSY both for groups below and for processes inside.
	children, listErr := subdirs(dir)
	if listErr == nil && depth < maxDepth {
		for _, child := range children {
			if err := removeAll(child, depth+1); err != nil {
				return err
			}
		}
		// Also without children: somebody else may have removed the last one
		// since the first try.
		if err = unix.Rmdir(dir); err == nil || err == unix.ENOENT {
			return nil
		}
	}
	return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
}
