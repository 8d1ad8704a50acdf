package cgroup

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// needsRoot skips without root, and fails where root was promised.
func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if strings.Contains(os.Getenv("REQUIRE"), "root") {
		t.Fatal("needs root: makes cgroups")
	}
	t.Skip("needs root: makes cgroups")
}

// realGroup makes a group of its own on this machine, removed at the end.
func realGroup(t *testing.T, res *specs.LinuxResources) (*Host, *Group) {
	t.Helper()
	needsRoot(t)
	h, err := detect()
	sameAsMountinfo(t, h)
	if err != nil {
		t.Fatal(err)
	}
	g, err := h.New("/longshore-test-"+rand.Text()+"/ctr", res)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		top := h.Load(g.path[:strings.LastIndex(g.path, "/")])
		if err := errors.Join(top.Kill(), top.WaitEmpty(ctx), top.Remove()); err != nil {
			t.Error(err)
		}
	})
	return h, g
}

// shell is our end of a script's standard input, and of what it says first.
type shell struct {
	io.WriteCloser
	joined io.Reader
}

// start runs a shell command inside the group: a process that joins as the
// package doc of [Joins] says and waits for its standard input first.
func start(t *testing.T, g *Group, script string) (cmd *exec.Cmd, in shell) {
	t.Helper()
	j, err := g.Joins()
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	join := "read go\n"
	cmd = exec.Command("/bin/sh", "-c")
	for i, f := range j.Tasks {
		fd, err := unix.Dup(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd), f.Name())
		t.Cleanup(func() { file.Close() })
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
		join = "echo 0 >&" + string(rune('3'+i)) + "\n" + join
	}
	if len(j.Tasks) > 7 { // the shell has file descriptors 3 to 9 only
		join = "read go\n"
		for _, f := range j.Tasks {
			join = "echo 0 >" + f.Name() + "\n" + join
		}
		cmd.ExtraFiles = nil
	}
	cmd.Args = append(cmd.Args, join+"echo joined; exec >/dev/null\n"+script)
	if j.Into != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(openDir(t, j.Into).Fd())}
	}
	if in.WriteCloser, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if in.joined, err = cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, in
}

func openDir(t *testing.T, f *Way) *os.File {
	t.Helper()
	dir, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

// release writes the line the script waits for, and waits until it has joined: the
// cgroup2 tree it is in from its beginning, and looking there does not tell.
func release(t *testing.T, in shell) {
	t.Helper()
	if _, err := io.WriteString(in, "go\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(in.joined, make([]byte, len("joined\n"))); err != nil {
		t.Fatal("the script has not joined: ", err)
	}
}

func TestLimitsOfAProcess(t *testing.T) {
	h, g := realGroup(t, &specs.LinuxResources{
		Pids:   &specs.LinuxPids{Limit: ptr(int64(50))},
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20))},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Cpus: "0", Mems: "0"},
	})
	cmd, in := start(t, g, "read more")
	release(t, in)
	awaitProc(t, g, cmd.Process.Pid)
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if h.Has("pids") && (s.Pids.Current != 1 || s.Pids.Limit != 50) {
		t.Errorf("pids = %+v", s.Pids)
	}
	if h.Has("memory") && (s.Memory.Limit != 64<<20 || s.Memory.Usage == 0) {
		t.Errorf("memory = %+v", s.Memory)
	}
	if h.unified() != nil && s.CPU.Pressure == nil {
		t.Error("no pressure")
	}
	if err := g.Update(&specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(32 << 20)), Swap: ptr(int64(32 << 20))},
		CPU:    &specs.LinuxCPU{Quota: ptr(int64(1000)), Period: ptr(uint64(1000))},
	}); err != nil {
		t.Error(err)
	}
	if err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(128 << 20)), Swap: ptr(int64(-1))}}); err != nil {
		t.Error(err)
	}
	if err := g.Remove(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("Remove of a group in use = %v", err)
	}
}

// awaitProc fails unless the process has entered every hierarchy: the write to
// its standard input is read after the joins, so the wait is for its next step.
func awaitProc(t *testing.T, g *Group, pid int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		joined := true
		for i := range g.host.Trees {
			pids, err := procsBelow(g.dir(&g.host.Trees[i]))
			if err != nil {
				t.Fatal(err)
			}
			joined = joined && slices.Contains(pids, pid)
		}
		if joined {
			return
		}
	}
	t.Fatalf("process %d is not in %s", pid, g.Path())
}

func TestKillReachesEveryProcess(t *testing.T) {
	_, g := realGroup(t, nil)
	cmd, in := start(t, g, "(trap '' TERM; (sleep 1000 & sleep 1000) & sleep 1000) & read more")
	release(t, in)
	awaitProc(t, g, cmd.Process.Pid)
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := g.WaitEmpty(ctx); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Procs(); len(pids) != 0 || err != nil {
		t.Errorf("left: %v, %v", pids, err)
	}
	if err := errors.Join(g.Remove(), g.Remove(), g.Kill(), g.WaitEmpty(ctx), g.Freeze()); err != nil {
		t.Errorf("of a group that is gone: %v", err)
	}
}

// TestSignalReachesOnlyMembers: an id on an old list may be another's by now.
func TestSignalReachesOnlyMembers(t *testing.T) {
	_, g := realGroup(t, nil)
	cmd, in := start(t, g, "exec sleep 1000")
	release(t, in)
	awaitProc(t, g, cmd.Process.Pid)
	stranger := exec.Command("sleep", "1000")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.signal([]int{cmd.Process.Pid, stranger.Process.Pid}, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	_ = stranger.Process.Signal(unix.SIGTERM)
	_ = stranger.Wait()
	if sig := stranger.ProcessState.Sys().(syscall.WaitStatus).Signal(); sig != unix.SIGTERM {
		t.Errorf("a process of another group ended by %v", sig)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := g.WaitEmpty(ctx); err != nil {
		t.Error(err)
	}
}

// TestClaimLeavesOthersAlone: a group with processes is not the claimant's.
func TestClaimLeavesOthersAlone(t *testing.T) {
	h, g := realGroup(t, nil)
	cmd, in := start(t, g, "sleep 1000")
	release(t, in)
	awaitProc(t, g, cmd.Process.Pid)
	for _, name := range []string{g.Path(), path.Dir(g.Path())} {
		if _, err := h.Claim(name, nil); !errors.Is(err, unix.EBUSY) {
			t.Errorf("claim %s: %v", name, err)
		}
	}
	if pids, err := g.Procs(); err != nil || !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("left: %v, %v", pids, err)
	}
}

// TestKillReachesWhoIsInOneHierarchyOnly: another runtime was killed while it
// placed a process. The last hierarchy is none that is asked first.
func TestKillReachesWhoIsInOneHierarchyOnly(t *testing.T) {
	h, g := realGroup(t, nil)
	if h.Mode == V2 {
		t.Skip("this machine has one hierarchy")
	}
	cmd, in := start(t, g, "sleep 1000") // in all
	release(t, in)
	awaitProc(t, g, cmd.Process.Pid)
	var last *Tree
	for i := range h.Trees {
		if t := &h.Trees[i]; !t.Unified {
			last = t
		}
	}
	astray := exec.Command("sleep", "1000")
	if err := astray.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- astray.Wait() }()
	if err := writeFile(g.dir(last), "cgroup.procs", strconv.Itoa(astray.Process.Pid)); err != nil {
		astray.Process.Kill()
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := errors.Join(g.Kill(), g.WaitEmpty(ctx)); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-ctx.Done():
		t.Errorf("a process in %s only goes on", last.Mount)
		astray.Process.Kill()
		<-ended
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
}

// only gives the same machine as if just its version 1, or just cgroup2, were there.
func only(h *Host, unified bool) *Host {
	some := &Host{Mode: V1}
	if unified {
		some.Mode = V2
	}
	for _, t := range h.Trees {
		if t.Unified == unified {
			some.Trees = append(some.Trees, t)
		}
	}
	return some
}

func TestEachVersionAlone(t *testing.T) {
	needsRoot(t)
	h, err := detect()
	if err != nil {
		t.Fatal(err)
	}
	for _, unified := range []bool{false, true} {
		host := only(h, unified)
		t.Run(host.Mode.String(), func(t *testing.T) {
			if len(host.Trees) == 0 {
				t.Skip("this machine has none")
			}
			_, g := realGroup(t, nil)
			cmd, in := start(t, g, "sleep 1000 & sleep 1000")
			release(t, in)
			awaitProc(t, g, cmd.Process.Pid)
			g = host.Load(g.Path())
			if err := g.Freeze(); err != nil {
				t.Fatal(err)
			}
			if err := g.Thaw(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			ended, end := context.WithCancelCause(ctx)
			end(unix.ECANCELED)
			if err := g.WaitEmpty(ended); !errors.Is(err, unix.ECANCELED) {
				t.Errorf("WaitEmpty with an ended context = %v", err)
			}
			if err := errors.Join(g.Kill(), g.WaitEmpty(ctx)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestOOMKillIsCounted(t *testing.T) {
	h, g := realGroup(t, nil)
	if !h.Has("memory") {
		t.Skip("no memory controller")
	}
	if err := g.Limit(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(8 << 20)), Swap: ptr(int64(8 << 20))}}); err != nil {
		t.Fatal(err)
	}
	cmd, in := start(t, g, "x=0123456789; while :; do x=$x$x; done")
	release(t, in)
	in.Close()
	if err := cmd.Wait(); err == nil {
		t.Fatal("the process lived")
	}
	if n, err := g.OOMKills(); n == 0 || err != nil {
		t.Errorf("OOMKills = %d, %v", n, err)
	}
	// Its time is accounted at the latest when it ends.
	if s, err := g.StatsOf(PartCPU); h.Has("cpuacct") && s.CPU.Usage == 0 || err != nil {
		t.Errorf("cpu = %+v, %v", s.CPU, err)
	}
}

// deviceResources allow /dev/null in every way and /dev/zero not at all.
var deviceResources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
	{Access: "rwm"},
	{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "rwm"},
	{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(9)), Access: "r"},
}}

func checkDevices(t *testing.T, g *Group) {
	t.Helper()
	cmd, in := start(t, g, `
true </dev/null >/dev/null || exit 10
(true </dev/zero) 2>/dev/null && exit 11
true </dev/urandom || exit 12
(true >/dev/urandom) 2>/dev/null && exit 13
exit 0`)
	release(t, in)
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("devices: %v", err)
	}
}

// TestDevices: twice, since the second takes the place of the first; and on a
// hybrid host too by cgroup2's program, unless the kernel has none.
func TestDevices(t *testing.T) {
	t.Cleanup(func() { noFilters = false })
	for _, noFilters = range []bool{false, true} {
		h, g := realGroup(t, nil)
		if !h.Has("devices") {
			t.Skip("no device controller")
		}
		old := only(h, false)
		listed := len(old.Trees) > 0 && old.Has("devices")
		if noFilters && !listed {
			continue
		}
		for _, set := range []func(*specs.LinuxResources) error{g.Limit, g.Update} {
			if err := set(deviceResources); err != nil {
				t.Fatal(err)
			}
			checkDevices(t, g)
		}
		if !listed {
			continue
		}
		tree, _ := old.tree("devices")
		list, err := readFile(g.dir(tree), "devices.list")
		if byList := !strings.HasPrefix(list, "a "); err != nil || byList != (noFilters || h.unified() == nil) {
			t.Errorf("no filters: %v; version 1's list is %q, %v", noFilters, list, err)
		}
	}
}

func TestDeviceFilterOnTheUnifiedTree(t *testing.T) {
	h, g := realGroup(t, nil)
	if h.unified() == nil {
		t.Skip("no cgroup2")
	}
	v2 := only(h, true).Load(g.Path())
	// Twice: the second takes the place of the first.
	for range 2 {
		err := v2.Update(deviceResources)
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
			t.Skipf("this kernel has no cgroup device programs: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		checkDevices(t, g)
	}
	dir := openDir(t, &Way{name: v2.dir(v2.host.unified())})
	fds, err := bpfAttached(int(dir.Fd()))
	if err != nil || len(fds) != 1 {
		t.Errorf("attached programs = %v, %v; want one", fds, err)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// TestUnifiedIsWrittenLineByLine: the specification's example for io.max has two
// lines, which the kernel takes one at a time.
func TestUnifiedIsWrittenLineByLine(t *testing.T) {
	h, g := realGroup(t, nil)
	tree := h.unified()
	disks, _ := filepath.Glob("/sys/block/*/dev")
	if tree == nil || !slices.Contains(tree.Controllers, "io") || len(disks) == 0 {
		t.Skip("needs io in cgroup2, and a disk")
	}
	disk, err := readFile(filepath.Dir(disks[0]), "dev")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Update(&specs.LinuxResources{Unified: map[string]string{
		"io.max": disk + " rbps=2097152\n" + disk + " wbps=1048576\n",
	}}); err != nil {
		t.Fatal(err)
	}
	want := disk + " rbps=2097152 wbps=1048576 riops=max wiops=max"
	if got, err := readFile(g.dir(tree), "io.max"); got != want || err != nil {
		t.Errorf("io.max = %q, %v; want %q", got, err, want)
	}
}

// sameAsMountinfo: whichever way they are found, the hierarchies are the same.
func sameAsMountinfo(t *testing.T, h *Host) {
	t.Helper()
	mounted, err := mountedTrees()
	if err != nil || h == nil || len(mounted) != len(h.Trees) {
		t.Fatalf("found %+v, mounted are %+v, %v", h, mounted, err)
	}
	for _, m := range mounted {
		if !slices.ContainsFunc(h.Trees, func(f Tree) bool {
			return f.Mount == m.Mount && f.Unified == m.Unified && (m.Unified || slices.Equal(f.Controllers, m.Controllers))
		}) {
			t.Errorf("%+v is mounted and not found", m)
		}
	}
}

// TestRemoveBesideAnother: a pod's group is removed while a container's shim
// removes the one below it.
func TestRemoveBesideAnother(t *testing.T) {
	needsRoot(t)
	h, err := detect()
	if err != nil {
		t.Fatal(err)
	}
	parent := "/longshore-test-" + rand.Text()
	for range 300 {
		if _, err := h.New(parent+"/ctr", nil); err != nil {
			t.Fatal(err)
		}
		child := make(chan error, 1)
		go func() { child <- h.Load(parent + "/ctr").Remove() }()
		if err := h.Load(parent).Remove(); err != nil {
			t.Error(err)
		}
		if err := <-child; err != nil {
			t.Error(err)
		}
		if err := h.Load(parent).Remove(); err != nil {
			t.Fatal(err)
		}
	}
}

// noKillEnv makes the tests do without cgroup.kill.
const noKillEnv = "CGROUP_TEST_NO_KILL_FILE"

func detect() (*Host, error) {
	h, err := find()
	if err == nil {
		h.NoKillFile = os.Getenv(noKillEnv) != ""
	}
	return h, err
}

// TestSuiteWithoutKillFile runs every other test again as on a kernel before
// 5.14: a group is frozen and its processes are signalled one by one.
func TestSuiteWithoutKillFile(t *testing.T) {
	needsRoot(t)
	cmd := exec.Command("/proc/self/exe", "-test.skip", "^(TestSuiteWithoutKillFile|Fuzz)")
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), noKillEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "no tests to run") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestChildIsKilledApart: what runs in a child ends without what runs beside it,
// is counted and killed with the group, and is limited with it in version 1.
func TestChildIsKilledApart(t *testing.T) {
	_, g := realGroup(t, nil)
	start(t, g, "sleep 1000")
	child, err := g.Child("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	if child == nil {
		t.Skip("needs a cgroup2 tree")
	}
	if _, err := g.Child(".."); err == nil {
		t.Error("a child's name led out of its group")
	}
	in := exec.Command("sleep", "1000")
	j, err := g.Joins()
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := j.Narrow(child); err != nil {
		t.Fatal(err)
	}
	in.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(openDir(t, j.Into).Fd())}
	if err := in.Start(); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Procs(); err != nil || !slices.Contains(pids, in.Process.Pid) {
		t.Errorf("processes of the group: %v, %v; want %d among them", pids, err, in.Process.Pid)
	}
	if err := child.Remove(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("remove a child with a process: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := errors.Join(child.Kill(), child.WaitEmpty(ctx)); err != nil {
		t.Fatal(err)
	}
	in.Wait() // it was killed
	if err := child.Remove(); err != nil {
		t.Error(err)
	}
	if pids, err := g.Procs(); err != nil || len(pids) == 0 {
		t.Errorf("the group's own processes: %v, %v", pids, err)
	}
	if err := errors.Join(child.Kill(), child.WaitEmpty(ctx), child.Remove()); err != nil {
		t.Errorf("a child that is gone: %v", err)
	}
}

// whileItGoes looks at a group that is removed meanwhile, time and again.
func whileItGoes(t *testing.T, look func(h *Host, g *Group)) {
	h, parent := realGroup(t, nil)
	for range 300 {
		g, err := h.New(parent.Path()+"/going", nil)
		if err != nil {
			t.Fatal(err)
		}
		removed := make(chan error, 1)
		go func() { removed <- g.Remove() }()
		look(h, g)
		if err := <-removed; err != nil {
			t.Fatal(err)
		}
	}
}

// TestStatsOfAGroupThatGoes: whoever reads while a group is removed gets all of
// it, or learns that it is not there.
func TestStatsOfAGroupThatGoes(t *testing.T) {
	whileItGoes(t, func(_ *Host, g *Group) {
		var err error
		for err == nil {
			_, err = g.Stats()
		}
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("stats: %v", err)
		}
	})
}

// TestWaitForAGroupThatGoes: one that is removed meanwhile has no process, as one
// that is not there: systemd removes a scope with its last process.
func TestWaitForAGroupThatGoes(t *testing.T) {
	whileItGoes(t, func(h *Host, g *Group) {
		for there := true; there; {
			there = exists(g.dir(&h.Trees[0]))
			if err := errors.Join(g.WaitEmpty(t.Context()), g.Kill()); err != nil {
				t.Error(err)
				return
			}
		}
	})
}

// BenchmarkStats reads what kubelet asks for of each group every few seconds.
func BenchmarkStats(b *testing.B) {
	h, err := Detect()
	if err != nil {
		b.Fatal(err)
	}
	g, err := h.New("/longshore-test-"+rand.Text()+"/pod/container", nil)
	if err != nil {
		b.Skip(err) // needs root
	}
	b.Cleanup(func() { _ = h.Load(g.path[:strings.Index(g.path, "/pod")]).Remove() })
	for name, parts := range map[string]Parts{"cpu": PartCPU, "memory": PartMemory, "pressure": PartPressure, "all": PartCPU | PartMemory | PartPressure} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := g.StatsOf(parts); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("procs", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := g.Procs(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkDeviceRules sets the rules of a usual container on a new group, with
// each version in turn. What is left of a program that another group has loaded
// already is measured apart.
func BenchmarkDeviceRules(b *testing.B) {
	h, err := find()
	if err != nil {
		b.Fatal(err)
	}
	old, ok := h.tree("devices")
	if !ok || old.Unified || h.unified() == nil {
		b.Skip("needs both versions")
	}
	res := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}, {136, anyNumber}} {
		res.Devices = append(res.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d[0], Minor: &d[1], Access: "rwm"})
	}
	rules, err := deviceRules(res.Devices)
	if err != nil {
		b.Fatal(err)
	}
	loaded, err := bpfLoad(deviceProgram(rules))
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(loaded)
	times := map[string][]time.Duration{}
	measure := func(name string, host *Host, set func(*Group) error) {
		g, err := host.New("/longshore-bench-"+rand.Text(), nil)
		if err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		err = set(g)
		times[name] = append(times[name], time.Since(begin))
		if err := errors.Join(err, g.Remove()); err != nil {
			b.Fatal(err)
		}
	}
	limit := func(g *Group) error { return g.Limit(res) }
	for b.Loop() {
		measure("v1", &Host{Mode: V1, Trees: []Tree{*old}}, limit)
		measure("v2", only(h, true), limit)
		measure("loaded", only(h, true), func(g *Group) error {
			dir, err := unix.Open(g.dir(h.unified()), unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(dir)
			return bpfAttach(dir, loaded, -1)
		})
	}
	for name, all := range times {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/10].Nanoseconds()), name+"-p10-ns")
	}
}
