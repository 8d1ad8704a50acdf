package launch

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/shim/seccomp"
)

// dice makes choices of bytes; when they are used up, always the first.
type dice []byte

func (d *dice) n(sides int) int {
	if len(*d) == 0 {
		return 0
	}
	v := int((*d)[0]) % sides
	*d = (*d)[1:]
	return v
}

func (d *dice) yes() bool { return d.n(2) == 1 }

func (d *dice) rarely() bool { return d.n(16) == 1 }

func (d *dice) word() string {
	if d.rarely() && d.rarely() {
		return "x\x00y"
	}
	return []string{"", "/", "sh", "/bin/sh", "a b", "../..", "/proc/self/fd/7", "ro", "rbind", "CAP_SYS_PTRACE", "net.ipv4.x", "%", "0"}[d.n(13)]
}

func (d *dice) words() (all []string) {
	for range d.n(4) {
		all = append(all, d.word())
	}
	return all
}

// spec is a specification that may or may not be possible.
func (d *dice) spec() *specs.Spec {
	maps := []specs.LinuxIDMapping{{HostID: 1000, Size: 65536}}
	caps := d.words()
	s := &specs.Spec{
		Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: append(d.words(), "sh"), Env: d.words(), Cwd: "/" + d.word(), Terminal: d.yes(), NoNewPrivileges: d.yes(),
			User:            specs.User{UID: uint32(d.n(3)), AdditionalGids: []uint32{1}},
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: d.words(), Ambient: d.words()},
			ApparmorProfile: d.word(), SelinuxLabel: d.word(), ExecCPUAffinity: &specs.CPUAffinity{Initial: []string{"", "0"}[d.n(2)]},
		},
		Linux: &specs.Linux{UIDMappings: maps, GIDMappings: maps, RootfsPropagation: []string{"", "rshared", "slave"}[d.n(3)]},
	}
	if d.rarely() {
		s.Hostname = d.word()
	}
	if d.rarely() {
		s.Linux.Sysctl = map[string]string{d.word(): d.word()}
	}
	if d.n(4) == 1 {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/x"}}}
	}
	for range d.n(6) {
		s.Mounts = append(s.Mounts, specs.Mount{
			Type: []string{"proc", "sysfs", "tmpfs", "mqueue", "bind", "cgroup"}[d.n(6)], Source: "/s" + d.word(), Destination: "/m" + d.word(), Options: d.words(),
		})
	}
	return s
}

// namespaces are some that exist, by descriptors that are never used.
func (d *dice) namespaces(linux *specs.Linux) (*namespaces, error) {
	ns := &namespaces{uids: linux.UIDMappings, gids: linux.GIDMappings}
	for i, kind := range []specs.LinuxNamespaceType{
		specs.MountNamespace, specs.PIDNamespace, specs.NetworkNamespace, specs.UTSNamespace, specs.UserNamespace, specs.TimeNamespace, specs.CgroupNamespace,
	} {
		j := &joined{kind, "/ns", 20 + i}
		how := d.n(3)
		if kind == specs.MountNamespace && !d.rarely() {
			how = 1
		}
		switch {
		case how == 1:
			ns.fresh |= namespaceFlag(kind)
		case how == 2 && kind == specs.PIDNamespace:
			ns.pid, ns.exposed = j, d.yes()
		case how == 2 && kind == specs.UserNamespace:
			ns.user = j
		case how == 2 && kind != specs.MountNamespace:
			ns.join = append(ns.join, *j)
		}
	}
	ns.chrooted = ns.fresh&unix.CLONE_NEWNS == 0
	return ns, ns.check(linux)
}

func (d *dice) filter() *seccomp.Filter {
	f, _ := seccomp.Compile(&specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"clone", "setsid", "read", "write", "exit_group", "ioctl"}[:1+d.n(6)], Action: specs.ActAllow}},
	})
	return []*seccomp.Filter{nil, f}[d.n(2)]
}

// FuzzLaunch writes the programs of containers and of execs in them for random
// specifications. These may be refused, but what is written must keep to what the
// package promises: see checkEscape.
func FuzzLaunch(f *testing.F) {
	r := rand.NewChaCha8([32]byte{})
	for range 256 {
		seed := make([]byte, 128)
		r.Read(seed)
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := dice(data)
		spec := d.spec()
		ns, err := d.namespaces(spec.Linux)
		if err != nil {
			return
		}
		c := &Container{id: "c", spec: spec, ns: ns, filter: d.filter(), warnTo: func(error) {}}
		pl, err := newPlan(spec.Process, planContext{userNS: ns.userNS(), filter: c.filter, exec: true})
		if err != nil {
			return
		}
		writeCreation(t, &d, c, pl)
		writeExec(t, &d, c, pl)
	})
}

func writeCreation(t *testing.T, d *dice, c *Container, pl *plan) {
	prog, err := newProgram(false)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.free()
	k := &creation{cfg: &Config{ID: "c", Bundle: "/b", Spec: c.spec}, c: c, template: -1, procfs: 9, joins: &cgroup.Joins{}, rest: &cgroup.Host{}}
	if d.yes() && !c.ns.userNS() && !c.ns.chrooted && !hasRootHooks(c.spec.Hooks) {
		k.template, c.ns.later = 8, unix.CLONE_NEWNS
	}
	k.parts = assembly{spec: c.spec, uids: c.ns.uids, gids: c.ns.gids, own: c.ns.all(), chrooted: c.ns.chrooted}
	if k.made, err = k.parts.classify(); err != nil {
		return
	}
	k.launching = launchingIn(prog, []int{3, 4, 8, 9, 40})
	k.plan = pl
	k.inheritance([3]int{3, 3, 3}, -1)
	if k.namespaces() != nil || k.afterRoot() != nil || k.extend() != nil {
		return
	}
	checkEscape(t, k.builder, false)
}

func writeExec(t *testing.T, d *dice, c *Container, pl *plan) {
	prog, err := newProgram(d.yes())
	if err != nil {
		t.Fatal(err)
	}
	defer prog.free()
	e := execution{c: c, score: d.word(), std: [3]int{3, 3, 3}}
	e.launching = launchingIn(prog, []int{3, 4, 5, 6})
	e.plan, e.late = pl, c.ns.exposed
	e.write(&cgroup.Joins{}, 5, 6, 4)
	if e.extend() != nil {
		return
	}
	checkEscape(t, e.builder, !c.ns.chrooted)
}

// launchingIn begins a program as launchingOf does.
func launchingIn(prog *program, inherited []int) *launching {
	l := &launching{builder: newBuilder(prog, 7, inherited)}
	l.do("forbid tracing", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	return l
}

// checkEscape holds that a program does not touch a path before it is in the
// container's root, but for those named here; that it enters the root for good;
// that all descriptors are closed before a path is used there; that every
// openat2(2) is bounded; that the working directory is checked when nothing
// changes it any more; and that it ends in execve. joins says that the root comes
// with a mount namespace.
func checkEscape(t *testing.T, b *builder, joins bool) {
	t.Helper()
	checkProgram(t, b)
	const bounded = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV
	var inside, closedLow, closedHigh, checked, dumpable bool
	dumpable = true
	for i := range b.program.names {
		o, name := b.op(i), b.program.names[i].String()
		fail := func(what string) { t.Errorf("operation %d, %s: %s", i, name, what) }
		next := func(nr uintptr) bool { return i+1 < len(b.program.names) && b.op(i+1).nr == nr }
		switch o.nr {
		case unix.SYS_PRCTL:
			dumpable = dumpable && o.args[0] != unix.PR_SET_DUMPABLE
		case unix.SYS_CLOSE_RANGE:
			closedLow = closedLow || o.args[0] == firstFree && o.args[1] == uintptr(b.base-1)
			closedHigh = closedHigh || o.args[0] == uintptr(b.base+b.kept) && o.args[1] == ^uintptr(0)>>32
		case unix.SYS_OPENAT2:
			how := b.mem[o.args[2]-b.addr(0):]
			if binary.LittleEndian.Uint64(how[16:])&bounded != bounded {
				fail("the path is not bounded")
			}
		case unix.SYS_SETNS:
			inside = inside || joins && o.args[1]&unix.CLONE_NEWNS != 0
		case unix.SYS_FCHDIR:
			if !inside && !next(unix.SYS_CHROOT) && !next(unix.SYS_PIVOT_ROOT) {
				fail("the root is not changed")
			}
			checked = false
		case unix.SYS_CHROOT:
			inside = true
		case unix.SYS_PIVOT_ROOT:
			if !next(unix.SYS_UMOUNT2) || b.op(i + 1).args[1] != unix.MNT_DETACH {
				fail("the host's mounts stay")
			}
			inside = true
		case unix.SYS_CHDIR, unix.SYS_EXECVE, unix.SYS_FACCESSAT2, unix.SYS_UMOUNT2:
			if !inside {
				fail("the path is the host's")
			}
			if !(closedLow && closedHigh) {
				fail("descriptors of the host are open")
			}
			if o.nr == unix.SYS_CHDIR {
				checked = false
			}
			if o.nr == unix.SYS_EXECVE && !checked {
				fail("the working directory is not checked")
			}
		case unix.SYS_GETCWD:
			checked = o.flags&opRooted != 0
		case unix.SYS_MOUNT, unix.SYS_MOVE_MOUNT, unix.SYS_OPENAT:
			known := []string{"make mounts private", "attach root at", "write oom_score_adj"}
			if !inside && !slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(name, k) }) {
				fail("the path is the host's")
			}
		}
		if i == len(b.program.names)-1 && o.nr != unix.SYS_EXECVE {
			fail("the program does not end in execve")
		}
	}
	if dumpable {
		t.Error("the process may be traced")
	}
}
