package launch

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/shim/seccomp"
)

// TestLayoutIsWhatTheLoopReads ties the structures to the assembly's offsets.
func TestLayoutIsWhatTheLoopReads(t *testing.T) {
	var r run
	var o op
	for _, tt := range []struct {
		name string
		got  uintptr
		want uintptr
	}{
		{"run.first", unsafe.Offsetof(r.first), 0}, {"run.end", unsafe.Offsetof(r.end), 8}, {"run.mask", unsafe.Offsetof(r.mask), 16},
		{"run.failed", unsafe.Offsetof(r.failed), 24}, {"run.errno", unsafe.Offsetof(r.errno), 32},
		{"op.nr", unsafe.Offsetof(o.nr), 0}, {"op.args", unsafe.Offsetof(o.args), 8}, {"op.flags", unsafe.Offsetof(o.flags), 56},
		{"op.res", unsafe.Offsetof(o.res), 64}, {"op.other", unsafe.Offsetof(o.other), 72}, {"op", unsafe.Sizeof(o), 80},
		{"clone_args", unsafe.Sizeof(cloneArgs{}), 88},
	} {
		if tt.got != tt.want {
			t.Errorf("%s is %d, the loop has %d", tt.name, tt.got, tt.want)
		}
	}
	if start, end := loopText(); end <= start || end-start > 4096 {
		t.Errorf("loop from %#x to %#x", start, end)
	}
}

// inChild runs operations in a child that needs no privilege.
func inChild(t *testing.T, share bool, write func(b *builder)) *launching {
	t.Helper()
	l, childEnd, err := newLaunching(share, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.plan = &plan{}
	write(l.builder)
	err = l.clone(0, -1, -1, false)
	unix.Close(childEnd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.abort)
	return l
}

func TestLoop(t *testing.T) {
	const fine, bad = unix.SYS_GETPID, unix.SYS_CHROOT // chroot of nothing: EFAULT, whoever we are
	for _, tt := range []struct {
		name  string
		write func(b *builder)
		want  string // the failure; "" if the child reached the end
	}{
		{"runs to the end", func(b *builder) { b.do("a", fine); b.do("b", fine) }, ""},
		{"names the failure", func(b *builder) { b.do("a", fine); b.add(opName{"change", "root"}, 0, bad, 0) }, "change root: bad address"},
		{"ignores", func(b *builder) { b.add(opName{"x", ""}, opIgnore, bad, 0); b.do("b", fine) }, ""},
		{"zero fails", func(b *builder) { b.add(opName{"gate", ""}, opNotZero, unix.SYS_SCHED_YIELD) }, "gate: broken pipe"},
		{"rooted", func(b *builder) { b.add(opName{"cwd", ""}, opRooted, unix.SYS_GETCWD, b.addr(b.space(4096)), 4096) }, ""},
		{"not rooted", func(b *builder) { b.add(opName{"cwd", ""}, opRooted, fine, b.str("(unreachable)/")) }, "cwd: no such file or directory"},
		{"forgiven by an earlier success", func(b *builder) {
			a := b.do("a", fine)
			b.forgive(b.add(opName{"x", ""}, 0, bad, 0), a)
		}, ""},
		{"not forgiven by an earlier failure", func(b *builder) {
			a := b.add(opName{"a", ""}, opIgnore, bad, 0)
			b.forgive(b.add(opName{"x", ""}, 0, bad, 0), a)
		}, "x: bad address"},
	} {
		for _, share := range []bool{false, true} {
			l := inChild(t, share, tt.write)
			if _, err := l.link.await(0); !errors.Is(err, errLeft) {
				t.Errorf("%s: %v", tt.name, err)
			}
			got := ""
			if err := l.failureError(); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("%s, shared memory %v: %q, want %q", tt.name, share, got, tt.want)
			}
			if status, err := l.proc.Wait(); err != nil || status.ExitStatus() != 125 {
				t.Errorf("%s: status %#x, %v", tt.name, status, err)
			}
		}
	}
}

// TestChildGetsLittleMemory: no more than the loop and the arena, and what the
// kernel adds, is copied for a child.
func TestChildGetsLittleMemory(t *testing.T) {
	if dynamicallyLinked() {
		t.Skip("with libc all is copied")
	}
	p, err := newProgram(false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.free()
	parent, childEnd, err := newLink()
	if err != nil {
		t.Fatal(err)
	}
	defer parent.close()
	b := newBuilder(p, childEnd, nil)
	b.wait(0)
	other, err := newProgram(false) // of a launch at the same time
	if err != nil {
		t.Fatal(err)
	}
	defer other.free()
	pid, pidfd, err := p.clone(0, -1, -1)
	unix.Close(childEnd)
	if err != nil {
		t.Fatal(err)
	}
	defer newProcess(pid, pidfd).kill()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	// The loop, the arena, at most a piece of the stack; vdso and its data.
	if n := strings.Count(string(maps), "\n"); n > 3+4 {
		t.Errorf("%d mappings:\n%s", n, maps)
	}
	if pid, pidfd, err = other.clone(0, -1, -1); err != nil { // marked by the first
		t.Fatal(err)
	}
	child := newProcess(pid, pidfd)
	if status, err := child.Wait(); err != nil || status.ExitStatus() != 125 {
		t.Errorf("second child: status %#x, %v", status, err)
	}
}

// TestProgramGrowsAtGate: operations may be added while the child waits.
func TestProgramGrowsAtGate(t *testing.T) {
	l := inChild(t, false, func(b *builder) {
		b.send()
		b.wait(1)
	})
	if _, err := l.await(0); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l.add(opName{"fail", "here"}, 0, unix.SYS_CHROOT, 0)
	if err := l.extend(); err != nil {
		t.Fatal(err)
	}
	if err := l.link.open(int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := l.await(0); err == nil || !strings.Contains(err.Error(), "fail here: bad address") {
		t.Errorf("await: %v", err)
	}
}

func TestSecondCloneIsOurChild(t *testing.T) {
	l, childEnd, err := newLaunching(false, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.plan = &plan{}
	l.secondClone(0)
	l.send()
	l.wait(0)
	err = l.clone(0, -1, -1, true)
	unix.Close(childEnd)
	if err != nil {
		t.Fatal(err)
	}
	defer l.abort()
	if _, err := l.await(0); err != nil {
		t.Fatal(err)
	}
	if err := l.adopt(); err != nil {
		t.Fatal(err)
	}
	l.link.close()
	if status, err := l.proc.Wait(); err != nil || status.ExitStatus() != 125 {
		t.Errorf("status %#x, %v", status, err)
	}
}

func TestCaps(t *testing.T) {
	chown, kill := []string{"CAP_CHOWN"}, []string{"CAP_CHOWN", "CAP_KILL"}
	for _, tt := range []struct {
		name      string
		in        *specs.LinuxCapabilities
		available uint64
		want      capSets
	}{
		{"none", nil, ^uint64(0), capSets{}},
		{"all", &specs.LinuxCapabilities{Bounding: kill, Effective: kill, Permitted: kill, Inheritable: kill, Ambient: kill}, ^uint64(0), capSets{0x21, 0x21, 0x21, 0x21, 0x21}},
		{"not ours to give", &specs.LinuxCapabilities{Bounding: kill, Effective: kill, Permitted: kill}, 1, capSets{1, 1, 1, 0, 0}},
		{"effective within permitted", &specs.LinuxCapabilities{Bounding: kill, Effective: kill, Permitted: chown}, ^uint64(0), capSets{0x21, 1, 1, 0, 0}},
		{"ambient within both", &specs.LinuxCapabilities{Bounding: kill, Permitted: kill, Inheritable: chown, Ambient: kill}, ^uint64(0), capSets{0x21, 0, 0x21, 1, 1}},
		{"inheritable within bounding", &specs.LinuxCapabilities{Bounding: chown, Permitted: kill, Inheritable: kill}, ^uint64(0), capSets{1, 0, 0x21, 1, 0}},
	} {
		if got, _ := parseCaps(tt.in, tt.available); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
	names := []string{"CAP_CHOWN", "CAP_KILL", "CAP_NONSENSE"}
	got, lacking := parseCaps(&specs.LinuxCapabilities{Bounding: names, Permitted: names}, 1)
	if got != (capSets{bounding: 1, permitted: 1}) || !slices.Equal(lacking, names[1:]) {
		t.Errorf("%+v without %q", got, lacking)
	}
}

func TestOverlayOptions(t *testing.T) {
	o, err := parseOverlay([]string{`lowerdir=/a\:b:/c\\d:/e`, "upperdir=/u", "workdir=/w", "index=off", "volatile", "uidmap=0:1000:5,7:2000:1"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(o.lower, []string{"/a:b", `/c\d`, "/e"}) || o.upper != "/u" || o.work != "/w" || !o.volatile ||
		!slices.Equal(o.rest, []string{"index=off", "volatile"}) || len(o.uids) != 2 || o.uids[1].HostID != 2000 {
		t.Errorf("overlay %+v", o)
	}
	for _, bad := range [][]string{{"upperdir=/u"}, {"lowerdir=/a", "uidmap=0:1"}, {"lowerdir=/a", "gidmap=x:0:1"}, {"lowerdir=/a", "uidmap=0:0:99999999999"}} {
		if _, err := parseOverlay(bad); err == nil {
			t.Errorf("options %q were taken", bad)
		}
	}
}

func TestSysctlPath(t *testing.T) {
	for _, tt := range []struct{ name, key, file string }{
		{"net.ipv4.ip_forward", "net.ipv4.ip_forward", "net/ipv4/ip_forward"},
		{"net/ipv4/ip_forward", "net.ipv4.ip_forward", "net/ipv4/ip_forward"},
		{"net.ipv4.conf.eth0/100.forwarding", "net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"},
		{"net/ipv4/conf/eth0.100/forwarding", "net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"},
	} {
		if key, file := sysctlPath(tt.name); key != tt.key || file != tt.file {
			t.Errorf("%s: key %s, file %s", tt.name, key, file)
		}
	}
}

func TestAffinity(t *testing.T) {
	for _, tt := range []struct {
		in             specs.CPUAffinity
		initial, final []uint64
		ok             bool
	}{
		{specs.CPUAffinity{}, nil, nil, true}, {specs.CPUAffinity{Final: "64"}, nil, []uint64{0, 1}, true},
		{specs.CPUAffinity{Initial: "0", Final: "1,3-5"}, []uint64{1}, []uint64{0b111010}, true},
		{specs.CPUAffinity{Initial: "1"}, []uint64{2}, slices.Repeat([]uint64{^uint64(0)}, maxCPU/64), true},
		{specs.CPUAffinity{Final: "5-1"}, nil, nil, false}, {specs.CPUAffinity{Final: "0-99999999"}, nil, nil, false}, {specs.CPUAffinity{Initial: "a"}, nil, nil, false},
	} {
		got, err := parseAffinity(&tt.in)
		if (err == nil) != tt.ok || tt.ok && !reflect.DeepEqual(got, affinity{tt.initial, tt.final}) {
			t.Errorf("%+v: %v, %v", tt.in, got, err)
		}
	}
}

func TestHostID(t *testing.T) {
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 10}, {ContainerID: 4294967290, HostID: 5, Size: 5}}
	for _, tt := range []struct {
		in, want uint32
		ok       bool
	}{{0, 1000, true}, {9, 1009, true}, {10, 0, false}, {4294967294, 9, true}, {4294967295, 0, false}} {
		if got, ok := hostID(maps, tt.in); got != tt.want || ok != tt.ok {
			t.Errorf("%d: %d, %v", tt.in, got, ok)
		}
	}
}

func TestHome(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct{ name, passwd, want string }{
		{"found", "a:x:5:5::/a:/bin/sh\nb:x:7:7::/b:\n", "/b"}, {"missing", "a:x:5:5::/a:\n", "/"}, {"relative", "b:x:7:7::b:\n", "/"},
		{"long line", strings.Repeat("x", 5000) + "\nb:x:7:7::/b:\n", "/b"}, {"empty", "", "/"}, {"no newline", ":::\n::7\nb:x:7:7::/b:", "/b"},
	} {
		dir := t.TempDir()
		os.Mkdir(dir+"/etc", 0o755)
		os.WriteFile(dir+"/etc/passwd", []byte(tt.passwd), 0o644)
		root, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := homeOf(root, 7); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
		unix.Close(root)
	}
}

// TestHomeIsNotReadOverAMount: what the container mounts may never answer.
func TestHomeIsNotReadOverAMount(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	os.Mkdir(dir+"/etc", 0o755)
	if err := unix.Mount("tmpfs", dir+"/etc", "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir+"/etc", unix.MNT_DETACH)
	os.WriteFile(dir+"/etc/passwd", []byte("b:x:7:7::/b:\n"), 0o644)
	root, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	if got := homeOf(root, 7); got != "/" {
		t.Errorf("home %s", got)
	}
}

// FuzzProgram feeds specs to everything that writes a program: it may refuse
// them, but not panic, and what it writes must stay inside its arena.
func FuzzProgram(f *testing.F) {
	f.Add("sh", "PATH=/bin", "/", "CAP_CHOWN", "RLIMIT_NOFILE", "net.ipv4.ip_forward", "1", "proc", "hidepid=2", uint32(0), uint64(5))
	f.Add("/x", "A=B", "/x", "CAP_X", "NOFILE", "a/../b", "", "tmpfs", "ro", uint32(9), uint64(0))
	f.Fuzz(func(t *testing.T, arg, env, cwd, capability, limit, key, value, fsType, option string, id uint32, number uint64) {
		prog, err := newProgram(false)
		if err != nil {
			t.Fatal(err)
		}
		defer prog.free()
		b := newBuilder(prog, 5, []int{3, 4})
		pl, err := newPlan(&specs.Process{
			Args: []string{arg, value}, Env: []string{env, key}, Cwd: cwd, User: specs.User{UID: id, GID: id, AdditionalGids: []uint32{id}},
			Capabilities: &specs.LinuxCapabilities{Bounding: []string{capability}, Ambient: []string{capability}},
			Rlimits:      []specs.POSIXRlimit{{Type: limit, Soft: number, Hard: number}},
			Scheduler:    &specs.Scheduler{Policy: specs.LinuxSchedulerPolicy(option)}, ExecCPUAffinity: &specs.CPUAffinity{Final: value},
		}, planContext{exec: true, filter: &seccomp.Filter{Program: make([]unix.SockFilter, number%5000)}})
		if err != nil {
			pl, _ = newPlan(&specs.Process{Args: []string{arg + "x", value}, Env: []string{env}, Cwd: "/" + cwd}, planContext{})
		}
		for range number % 40 {
			_ = b.sysctls(map[string]string{key: value}, ^uintptr(0), 7)
			o := parseOptions(fsType, []string{option, value, "r" + option})
			b.newMount(fsType, key, cwd, o.data, o.set)
		}
		_ = b.hostNames(^uintptr(0), value, key)
		b.send(3, 4)
		b.wait(int(number % 250))
		b.finish(pl, 7, func(b *builder) { b.wait(0) }, nil)
		if b.extend() == nil {
			checkProgram(t, b)
		}
		_, _ = parseDevice(&specs.LinuxDevice{Path: cwd, Type: option, Major: int64(number), Minor: int64(id)})
		_, _ = parseOverlay([]string{option, "lowerdir=" + cwd, "uidmap=" + value})
		_ = b.execError(pl)
	})
}

// checkProgram holds that a program is within its bounds.
func checkProgram(t *testing.T, b *builder) {
	t.Helper()
	if len(b.program.names) > maxOps || b.used > len(b.mem) {
		t.Errorf("%d operations, %d bytes", len(b.program.names), b.used)
	}
	if b.run().end > b.addr(0)+uintptr(dataStart) {
		t.Error("operations run into the data")
	}
}
