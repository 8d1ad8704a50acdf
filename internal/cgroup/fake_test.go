package cgroup

import (
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func ptr[T any](v T) *T { return &v }

// fake makes a host of plain directories: per controller one of version 1, and
// a cgroup2 tree with the controllers of v2. files are relative to the group
// /g, as tree/file.
func fake(t *testing.T, v1, v2 []string, files map[string]string) (*Host, *Group, string) {
	t.Helper()
	root := t.TempDir()
	h := &Host{PageSizes: func() []string { return []string{"2MB"} }}
	for _, c := range v1 {
		h.Trees = append(h.Trees, Tree{Mount: filepath.Join(root, c), Controllers: []string{c}})
	}
	if v2 != nil {
		h.Trees = append(h.Trees, Tree{Mount: filepath.Join(root, "unified"), Controllers: v2, Unified: true})
	}
	var err error
	if h.Mode, err = modeOf(h.Trees); err != nil {
		t.Fatal(err)
	}
	for _, tree := range h.Trees {
		if err := os.MkdirAll(filepath.Join(tree.Mount, "g"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		tree, file, _ := strings.Cut(name, "/")
		if err := os.WriteFile(filepath.Join(root, tree, "g", file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return h, h.Load("/g"), root
}

func TestUpdateWritesFiles(t *testing.T) {
	cpu := func(c specs.LinuxCPU) *specs.LinuxResources { return &specs.LinuxResources{CPU: &c} }
	memory := func(m specs.LinuxMemory) *specs.LinuxResources { return &specs.LinuxResources{Memory: &m} }
	device := specs.LinuxBlockIODevice{Major: 8, Minor: 16}
	for name, tc := range map[string]struct {
		v1, v2 []string
		files  map[string]string
		res    *specs.LinuxResources
		want   map[string]string // changed files
		err    error
	}{
		"v1 cpu": {
			v1: []string{"cpu"}, files: map[string]string{"cpu/cpu.shares": "", "cpu/cpu.cfs_quota_us": "", "cpu/cpu.cfs_period_us": "", "cpu/cpu.cfs_burst_us": ""},
			res:  cpu(specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Burst: ptr(uint64(7))}),
			want: map[string]string{"cpu/cpu.shares": "512", "cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000", "cpu/cpu.cfs_burst_us": "7"},
		},
		"v2 cpu keeps the period": {
			v2: []string{"cpu"}, files: map[string]string{"unified/cpu.weight": "100", "unified/cpu.max": "max 100000"},
			res:  cpu(specs.LinuxCPU{Shares: ptr(uint64(1024)), Quota: ptr(int64(50000))}),
			want: map[string]string{"unified/cpu.weight": "100", "unified/cpu.max": "50000 100000"},
		},
		"v2 cpu without a quota": {
			v2: []string{"cpu"}, files: map[string]string{"unified/cpu.max": "1000 100000", "unified/cpu.max.burst": "0"},
			res:  cpu(specs.LinuxCPU{Quota: ptr(int64(-1)), Period: ptr(uint64(50000)), Burst: ptr(uint64(0))}),
			want: map[string]string{"unified/cpu.max": "max 50000", "unified/cpu.max.burst": "0"},
		},
		"idle has no weight": {
			v2: []string{"cpu"}, files: map[string]string{"unified/cpu.idle": "0", "unified/cpu.weight": "100"},
			res:  cpu(specs.LinuxCPU{Shares: ptr(uint64(2)), Idle: ptr(int64(1))}),
			want: map[string]string{"unified/cpu.idle": "1"},
		},
		"cpuset in its own v1 tree": {
			v1: []string{"cpuset"}, v2: []string{}, files: map[string]string{"cpuset/cpuset.cpus": "0-7", "cpuset/cpuset.mems": "0"},
			res:  cpu(specs.LinuxCPU{Cpus: "1"}),
			want: map[string]string{"cpuset/cpuset.cpus": "1"},
		},
		"v1 memory and swap": {
			v1: []string{"memory"}, files: map[string]string{"memory/memory.limit_in_bytes": "100", "memory/memory.memsw.limit_in_bytes": "100", "memory/memory.soft_limit_in_bytes": ""},
			res:  memory(specs.LinuxMemory{Limit: ptr(int64(200)), Swap: ptr(int64(300)), Reservation: ptr(int64(50))}),
			want: map[string]string{"memory/memory.limit_in_bytes": "200", "memory/memory.memsw.limit_in_bytes": "300", "memory/memory.soft_limit_in_bytes": "50"},
		},
		"v1 without swap accounting": {
			v1: []string{"memory"}, files: map[string]string{"memory/memory.limit_in_bytes": "100"},
			res:  memory(specs.LinuxMemory{Limit: ptr(int64(200)), Swap: ptr(int64(200))}),
			want: map[string]string{"memory/memory.limit_in_bytes": "200"},
		},
		"v1 without swap accounting, unlimited": {
			v1: []string{"memory"}, files: map[string]string{"memory/memory.limit_in_bytes": "100"},
			res:  memory(specs.LinuxMemory{Limit: ptr(int64(200)), Swap: ptr(int64(-1))}),
			want: map[string]string{"memory/memory.limit_in_bytes": "200"},
		},
		"v1 swap that is not counted": {
			v1: []string{"memory"}, files: map[string]string{"memory/memory.limit_in_bytes": "100"},
			res: memory(specs.LinuxMemory{Limit: ptr(int64(200)), Swap: ptr(int64(300))}),
			err: unix.EOPNOTSUPP,
		},
		"v2 without swap": {
			v2: []string{"memory"}, files: map[string]string{"unified/memory.max": "max"},
			res:  memory(specs.LinuxMemory{Limit: ptr(int64(200)), Swap: ptr(int64(200))}),
			want: map[string]string{"unified/memory.max": "200"},
		},
		"v2 swap that is not counted": {
			v2: []string{"memory"}, files: map[string]string{"unified/memory.max": "max"},
			res: memory(specs.LinuxMemory{Limit: ptr(int64(200)), Swap: ptr(int64(300))}),
			err: unix.EOPNOTSUPP,
		},
		"v2 swap is what lies above memory": {
			v2: []string{"memory"}, files: map[string]string{"unified/memory.max": "max", "unified/memory.swap.max": "max", "unified/memory.low": "0"},
			res:  memory(specs.LinuxMemory{Limit: ptr(int64(200)), Swap: ptr(int64(300)), Reservation: ptr(int64(50))}),
			want: map[string]string{"unified/memory.max": "200", "unified/memory.swap.max": "100", "unified/memory.low": "50"},
		},
		"v2 swap beside the present limit": {
			v2: []string{"memory"}, files: map[string]string{"unified/memory.max": "200", "unified/memory.swap.max": "max"},
			res:  memory(specs.LinuxMemory{Swap: ptr(int64(250))}),
			want: map[string]string{"unified/memory.swap.max": "50"},
		},
		"v2 no limits": {
			v2: []string{"memory"}, files: map[string]string{"unified/memory.max": "200", "unified/memory.swap.max": "1"},
			res:  memory(specs.LinuxMemory{Limit: ptr(int64(-1)), Swap: ptr(int64(-1))}),
			want: map[string]string{"unified/memory.max": "max", "unified/memory.swap.max": "max"},
		},
		"v2 swap below memory": {
			v2: []string{"memory"}, files: map[string]string{"unified/memory.max": "max", "unified/memory.swap.max": "max"},
			res: memory(specs.LinuxMemory{Limit: ptr(int64(200)), Swap: ptr(int64(100))}),
			err: unix.EINVAL,
		},
		"limit below usage is refused on request": {
			v2: []string{"memory"}, files: map[string]string{"unified/memory.max": "max", "unified/memory.current": "500"},
			res: memory(specs.LinuxMemory{Limit: ptr(int64(200)), CheckBeforeUpdate: ptr(true)}),
			err: unix.EBUSY,
		},
		"pids": {
			v1: []string{"pids"}, files: map[string]string{"pids/pids.max": "7"},
			res:  &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}},
			want: map[string]string{"pids/pids.max": "max"},
		},
		"v1 io": {
			v1: []string{"blkio"}, files: map[string]string{"blkio/blkio.bfq.weight": "", "blkio/blkio.throttle.write_iops_device": ""},
			res: &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(500)),
				ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: device, Rate: 9}}}},
			want: map[string]string{"blkio/blkio.bfq.weight": "500", "blkio/blkio.throttle.write_iops_device": "8:16 9"},
		},
		"v2 io": {
			v2: []string{"io"}, files: map[string]string{"unified/io.weight": "", "unified/io.max": ""},
			res: &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(1000)),
				ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: device}}}},
			want: map[string]string{"unified/io.weight": "10000", "unified/io.max": "8:16 rbps=max"},
		},
		"huge pages on the cgroup2 tree of a hybrid host": {
			v1: []string{"memory"}, v2: []string{"hugetlb"}, files: map[string]string{"unified/hugetlb.2MB.max": "max", "unified/hugetlb.2MB.rsvd.max": "max"},
			res:  &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}},
			want: map[string]string{"unified/hugetlb.2MB.max": "4194304", "unified/hugetlb.2MB.rsvd.max": "4194304"},
		},
		"huge page size is no path": {
			v2: []string{"hugetlb"}, res: &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "../2MB"}}},
			err: unix.EINVAL,
		},
		"0 processes are a limit": {
			v1: []string{"pids"}, files: map[string]string{"pids/pids.max": "7"},
			res:  &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(0))}},
			want: map[string]string{"pids/pids.max": "0"},
		},
		"v2 io for a device without BFQ": {
			v2: []string{"io"}, files: map[string]string{"unified/io.weight": ""},
			res: &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
				WeightDevice: []specs.LinuxWeightDevice{{LinuxBlockIODevice: device, Weight: ptr(uint16(1000))}}}},
			want: map[string]string{"unified/io.weight": "8:16 10000"},
		},
		"rdma": {
			v2: []string{"rdma"}, files: map[string]string{"unified/rdma.max": ""},
			res:  &specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx4_0": {HcaHandles: ptr(uint32(3))}}},
			want: map[string]string{"unified/rdma.max": "mlx4_0 hca_handle=3"},
		},
		"unified": {
			v2: []string{}, files: map[string]string{"unified/memory.high": "max"},
			res:  &specs.LinuxResources{Unified: map[string]string{"memory.high": "77"}},
			want: map[string]string{"unified/memory.high": "77"},
		},
		"unified line by line": { // each is a write, which plain files put one behind the other
			v2: []string{}, files: map[string]string{"unified/io.max": ""},
			res:  &specs.LinuxResources{Unified: map[string]string{"io.max": "8:0 rbps=1\n8:16 wbps=2\n"}},
			want: map[string]string{"unified/io.max": "8:0 rbps=18:16 wbps=2"},
		},
		"unified limits groups": {
			v2: []string{}, files: map[string]string{"unified/cgroup.max.descendants": "max", "unified/cgroup.max.depth": "max"},
			res:  &specs.LinuxResources{Unified: map[string]string{"cgroup.max.descendants": "7", "cgroup.max.depth": "2"}},
			want: map[string]string{"unified/cgroup.max.descendants": "7", "unified/cgroup.max.depth": "2"},
		},
		"unified unknown file":    {v2: []string{}, res: &specs.LinuxResources{Unified: map[string]string{"memory.high": "77"}}, err: unix.EINVAL},
		"unified is no path":      {v2: []string{}, res: &specs.LinuxResources{Unified: map[string]string{"../x.y": "1"}}, err: unix.EINVAL},
		"unified moves nobody":    unifiedCase("cgroup.procs"),
		"unified moves no thread": unifiedCase("cgroup.threads"),
		"unified kills nobody":    unifiedCase("cgroup.kill"),
		"unified stops nobody":    unifiedCase("cgroup.freeze"),
		"unified keeps the type":  unifiedCase("cgroup.type"),
		"unified hands none down": unifiedCase("cgroup.subtree_control"),
		"v1 devices from nothing": devicesCase("a *:* rwm\n", map[string]string{"devices/devices.deny": "a", "devices/devices.allow": "c 1:3 rwm"}),
		"v1 devices add, then take": devicesCase("c 1:3 r\nc 1:5 rwm\n",
			map[string]string{"devices/devices.allow": "c 1:3 wm", "devices/devices.deny": "c 1:5 rwm"}),
	} {
		t.Run(name, func(t *testing.T) {
			_, g, root := fake(t, tc.v1, tc.v2, tc.files)
			if err := g.Update(tc.res); !errors.Is(err, tc.err) {
				t.Fatalf("Update = %v, want %v", err, tc.err)
			}
			want := maps.Clone(tc.files)
			maps.Copy(want, tc.want)
			for file, text := range want {
				tree, base, _ := strings.Cut(file, "/")
				got, err := os.ReadFile(filepath.Join(root, tree, "g", base))
				if err != nil || string(got) != text {
					t.Errorf("%s = %q, %v; want %q", file, got, err, text)
				}
			}
		})
	}
}

type updateCase = struct {
	v1, v2 []string
	files  map[string]string
	res    *specs.LinuxResources
	want   map[string]string
	err    error
}

// unifiedCase is a file that is there and not the client's to write.
func unifiedCase(file string) updateCase {
	return updateCase{
		v2: []string{}, files: map[string]string{"unified/" + file: ""},
		res: &specs.LinuxResources{Unified: map[string]string{file: "1"}}, err: unix.EINVAL,
	}
}

func devicesCase(list string, want map[string]string) updateCase {
	return updateCase{
		v1: []string{"devices"}, files: map[string]string{"devices/devices.list": list, "devices/devices.allow": "", "devices/devices.deny": ""},
		res: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
			{Access: "rwm"}, {Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "rwm"},
		}},
		want: want,
	}
}

func TestWeightOfShares(t *testing.T) {
	// Minimum, default and maximum are fixed by the kernel; the rest is the curve between them.
	for shares, want := range map[uint64]uint64{0: 0, 1: 1, 2: 1, 100: 17, 1024: 100, 2048: 174, 10240: 639, 262144: 10000, 1 << 40: 10000} {
		if got := WeightOfShares(shares); got != want {
			t.Errorf("WeightOfShares(%d) = %d, want %d", shares, got, want)
		}
	}
	for s, last := uint64(2), uint64(0); s <= maxShares; s += 17 {
		if w := WeightOfShares(s); w < last || w > 10000 {
			t.Fatalf("WeightOfShares(%d) = %d after %d", s, w, last)
		} else {
			last = w
		}
	}
}

func TestParseMountinfo(t *testing.T) {
	const table = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 master:2 - cgroup cgroup rw,cpu,cpuacct
33 31 0:29 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct
34 31 0:30 / /sys/fs/cgroup/odd rw - cgroup cgroup rw,xattr,name=other
35 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
36 31 0:38 / /sys/fs/cgroup/with\040space rw - cgroup2 cgroup2 rw
`
	got, err := parseMountinfo(strings.NewReader(table))
	want := []Tree{
		{Mount: "/sys/fs/cgroup/cpu,cpuacct", Controllers: []string{"cpu", "cpuacct"}},
		{Mount: "/sys/fs/cgroup/systemd", Controllers: []string{"name=systemd"}},
		{Mount: "/sys/fs/cgroup/with space", Unified: true},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("parseMountinfo = %+v, %v", got, err)
	}
	for _, tc := range []struct {
		trees []Tree
		want  Mode
	}{{want[:2], V1}, {want, Hybrid}, {want[2:], V2}} {
		if got, err := modeOf(tc.trees); got != tc.want || err != nil {
			t.Errorf("modeOf = %v, %v; want %v", got, err, tc.want)
		}
	}
	if _, err := modeOf(nil); !errors.Is(err, ErrNoCgroups) {
		t.Errorf("modeOf(nothing) = %v", err)
	}
}

// TestUsualTrees: what is not where it usually is needs mountinfo.
func TestUsualTrees(t *testing.T) {
	const v1, v2 = unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC
	hybrid := "9:name=systemd:/user.slice\n5:misc2:/\n3:cpu,cpuacct:/a\n0::/user.slice\n"
	for _, tt := range []struct {
		name, list string
		mounts     map[string]int64
		want       []Tree
	}{
		{"v2", "0::/x\n", map[string]int64{"/r": v2}, []Tree{{Mount: "/r", Unified: true}}},
		{"hybrid", hybrid, map[string]int64{"/r/systemd": v1, "/r/cpu,cpuacct": v1, "/r/unified": v2}, []Tree{
			{Mount: "/r/systemd", Controllers: []string{"name=systemd"}}, {Mount: "/r/cpu,cpuacct", Controllers: []string{"cpu", "cpuacct"}},
			{Mount: "/r/unified", Unified: true},
		}},
		{"v1", "3:cpu:/\n", map[string]int64{"/r/cpu": v1}, []Tree{{Mount: "/r/cpu", Controllers: []string{"cpu"}}}},
		{"elsewhere", "3:cpu:/\n", map[string]int64{"/r/cpu2": v1}, nil},
		{"cgroup2 elsewhere", hybrid, map[string]int64{"/r/systemd": v1, "/r/cpu,cpuacct": v1}, nil},
		{"no list", "what\n", nil, nil},
	} {
		list := filepath.Join(t.TempDir(), "cgroup")
		if err := os.WriteFile(list, []byte(tt.list), 0o600); err != nil {
			t.Fatal(err)
		}
		got, ok := usualTrees(list, "/r", func(path string) int64 { return tt.mounts[path] })
		if !reflect.DeepEqual(got, tt.want) || ok != (tt.want != nil) {
			t.Errorf("%s: %+v, %v", tt.name, got, ok)
		}
	}
}

func TestNamesStayBelowTheRoot(t *testing.T) {
	h, _, root := fake(t, []string{"pids"}, []string{}, nil)
	for _, name := range []string{"", "/", "//", ".", "/../x", "a/../../x", "x\ny", "x\x00", strings.Repeat("a/", maxPath)} {
		if _, err := h.New(name, nil); err == nil {
			t.Errorf("New(%q) succeeded", name)
		}
		for _, tree := range h.Trees {
			if dir := h.Load(name).dir(&tree); !strings.HasPrefix(dir, root) {
				t.Errorf("Load(%q) leads to %s", name, dir)
			}
		}
	}
	if err := errors.Join(h.Load("/").Kill(), h.Load("..").Remove(), h.Load("").Freeze()); !errors.Is(err, errRoot) {
		t.Errorf("acts on the root: %v", err)
	}
}

func TestNewTakesBackOnError(t *testing.T) {
	h, _, root := fake(t, []string{"pids"}, []string{}, nil)
	_, err := h.New("/new/pod/ctr", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(1))}})
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "pids.max") {
		t.Errorf("New = %v, want an error naming pids.max", err)
	}
	for _, tree := range []string{"pids", "unified"} {
		if _, err := os.Lstat(filepath.Join(root, tree, "new")); err == nil {
			t.Errorf("%s/new is left", tree)
		}
	}
	if g, err := h.New("/g/pod", nil); err != nil || g.Path() != "/g/pod" {
		t.Errorf("New = %v, %v", g, err)
	}
}

func TestCpusetIsFilledFromAbove(t *testing.T) {
	h, g, root := fake(t, []string{"cpuset"}, nil, map[string]string{"cpuset/cpuset.cpus": "", "cpuset/cpuset.mems": ""})
	for file, text := range map[string]string{"cpuset.cpus": "0-3\n", "cpuset.mems": "0\n"} {
		if err := os.WriteFile(filepath.Join(root, "cpuset", file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.New(g.Path(), nil); err != nil {
		t.Fatal(err)
	}
	got, err := readFile(filepath.Join(root, "cpuset", "g"), "cpuset.cpus")
	if err != nil || got != "0-3" {
		t.Errorf("cpuset.cpus = %q, %v", got, err)
	}
}

func TestControllersAreEnabledFromTheTop(t *testing.T) {
	h, _, root := fake(t, nil, []string{"cpu", "memory"}, map[string]string{"unified/cgroup.subtree_control": ""})
	top := filepath.Join(root, "unified", "cgroup.subtree_control")
	if err := os.WriteFile(top, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := h.New("/g/ctr", nil); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{top, filepath.Join(root, "unified", "g", "cgroup.subtree_control")} {
		if got, err := os.ReadFile(file); err != nil || string(got) != "+cpu +memory" {
			t.Errorf("%s = %q, %v", file, got, err)
		}
	}
}

// TestNarrowKeepsTheOtherWays: a group below is in some hierarchies only.
func TestNarrowKeepsTheOtherWays(t *testing.T) {
	_, g, root := fake(t, []string{"pids", "cpu"}, []string{}, map[string]string{"pids/tasks": "", "cpu/tasks": ""})
	sub := filepath.Join(root, "pids", "g", "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sub, "tasks"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	j, err := g.Joins()
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	below, err := g.Below("/sub")
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Narrow(below); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, way := range append(j.Tasks, j.Into) {
		got = append(got, strings.TrimPrefix(way.Name(), root))
	}
	if want := []string{"/pids/g/sub/tasks", "/cpu/g/tasks", "/unified/g"}; !slices.Equal(got, want) {
		t.Errorf("ways %q, want %q", got, want)
	}
	for _, name := range []string{"none", "..", "a/../../b", ""} {
		if _, err := g.Below(name); err == nil {
			t.Errorf("Below(%q) succeeded", name)
		}
	}
}

func TestOOMKills(t *testing.T) {
	_, g, root := fake(t, []string{"memory"}, nil, map[string]string{"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"})
	sub := filepath.Join(root, "memory", "g", "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sub, "memory.oom_control"), []byte("oom_kill 3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if n, err := g.OOMKills(); n != 5 || err != nil {
		t.Errorf("v1 OOMKills = %d, %v", n, err)
	}
	_, g, _ = fake(t, nil, []string{"memory"}, map[string]string{"unified/memory.events": "low 0\noom 4\noom_kill 4\n"})
	if n, err := g.OOMKills(); n != 4 || err != nil {
		t.Errorf("v2 OOMKills = %d, %v", n, err)
	}
}

// evaluate is the meaning of the rules, written down plainly.
func evaluate(rules []deviceRule, kind byte, major, minor int64, want access) bool {
	for bit := accMknod; bit <= accWrite; bit <<= 1 {
		if want&bit == 0 {
			continue
		}
		allow := false
		for _, r := range rules {
			if r.kind == kind && covers(r.major, major) && covers(r.minor, minor) && r.access&bit != 0 {
				allow = r.allow
			}
		}
		if !allow {
			return false
		}
	}
	return true
}

// run interprets the few instructions a device program has.
func run(t *testing.T, prog []insn, kind byte, major, minor int64, want access) bool {
	t.Helper()
	k := uint32(bpfChar)
	if kind == 'b' {
		k = bpfBlock
	}
	context := map[int16]uint64{0: uint64(uint32(want)<<16 | k), 4: uint64(major), 8: uint64(minor)}
	var r [8]uint64
	for pc, i := range prog {
		dst, src := i.regs&15, i.regs>>4
		switch i.code {
		case opLoadWord:
			r[dst] = context[i.offset]
		case opMoveImm:
			r[dst] = uint64(int64(i.imm))
		case opMoveReg:
			r[dst] = r[src]
		case opAddImm:
			r[dst] += uint64(int64(i.imm))
		case opAndImm:
			r[dst] &= uint64(int64(i.imm))
		case opAndReg:
			r[dst] &= r[src]
		case opOrReg:
			r[dst] |= r[src]
		case opXorImm:
			r[dst] ^= uint64(int64(i.imm))
		case opShiftImm:
			r[dst] >>= uint(i.imm)
		case opMulImm:
			r[dst] *= uint64(int64(i.imm))
		case opExit:
			return r[regAllowed] == 1
		default:
			t.Fatalf("instruction %d: code %#x", pc, i.code)
		}
	}
	t.Fatal("the program runs off its end")
	return false
}

func TestDeviceRulesMeanTheSameEverywhere(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	number := func() *int64 { return []*int64{nil, ptr(int64(-1)), ptr(int64(1)), ptr(int64(2))}[random.IntN(4)] }
	expressible := 0
	for range 3000 {
		var in []specs.LinuxDeviceCgroup
		for range random.IntN(7) {
			in = append(in, specs.LinuxDeviceCgroup{
				Allow: random.IntN(3) > 0, Type: []string{"", "a", "b", "c"}[random.IntN(4)], Major: number(), Minor: number(),
				Access: []string{"", "r", "w", "rw", "m", "rwm"}[random.IntN(6)],
			})
		}
		rules, err := deviceRules(in)
		if err != nil {
			t.Fatal(err)
		}
		prog := deviceProgram(rules)
		list, listErr := deviceList(slices.Clone(rules))
		if listErr == nil {
			expressible++
		}
		for _, kind := range []byte("bc") {
			for major := range int64(4) {
				for minor := range int64(4) {
					for want := access(1); want <= accAll; want++ {
						expect := evaluate(rules, kind, major, minor, want)
						if got := run(t, prog, kind, major, minor, want); got != expect {
							t.Fatalf("rules %v: program says %v for %c %d:%d %s", rules, got, kind, major, minor, want)
						}
						if got := list.allows(kind, major, minor, want); listErr == nil && got != expect {
							t.Fatalf("rules %v: list %+v says %v for %c %d:%d %s", rules, list, got, kind, major, minor, want)
						}
					}
				}
			}
		}
	}
	if expressible < 500 {
		t.Errorf("only %d of the random lists fit version 1", expressible)
	}
}

// allows is the kernel's reading of version 1's list, per right.
func (l allowed) allows(kind byte, major, minor int64, want access) bool {
	var except access
	for _, e := range l.entries {
		if e.kind == kind && covers(e.major, major) && covers(e.minor, minor) {
			except |= e.access
		}
	}
	if l.all {
		return want&except == 0
	}
	return want&^except == 0
}

func TestDeviceRulesRefuse(t *testing.T) {
	for name, d := range map[string]specs.LinuxDeviceCgroup{
		"type": {Type: "x"}, "access": {Access: "rx"}, "number": {Major: ptr(int64(1 << 40))}, "negative": {Minor: ptr(int64(-2))},
	} {
		if _, err := deviceRules([]specs.LinuxDeviceCgroup{d}); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := deviceRules(make([]specs.LinuxDeviceCgroup, maxDeviceRules+1)); err == nil {
		t.Error("too many rules were taken")
	}
}

func TestStatsFromFiles(t *testing.T) {
	pressure := "some avg10=1.50 avg60=0.16 avg300=1.93 total=26747169\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
	_, g, _ := fake(t, nil, []string{"cpu", "memory", "pids", "io", "hugetlb"}, map[string]string{
		"unified/cpu.stat":       "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1\n",
		"unified/memory.current": "1000\n", "unified/memory.max": "4000\n", "unified/memory.swap.current": "5\n", "unified/memory.swap.max": "max\n",
		"unified/memory.stat": "anon 600\nfile 300\nfile_mapped 20\nkernel 70\ninactive_file 100\npgfault 8\npgmajfault 9\n",
		"unified/memory.peak": "2000\n", "unified/memory.low": "80\n", "unified/memory.events": "low 0\nhigh 0\nmax 6\noom 1\noom_kill 4\n",
		"unified/pids.current": "3\n", "unified/pids.max": "max\n",
		"unified/io.stat":             "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:0 \n",
		"unified/hugetlb.2MB.current": "0\n", "unified/hugetlb.2MB.max": "max\n",
		"unified/cpu.pressure": pressure, "unified/memory.pressure": pressure, "unified/io.pressure": pressure,
	})
	got, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	p := &Pressure{Some: Stall{1.5, 0.16, 1.93, 26747169000}, Full: Stall{Total: 7000}}
	want := Stats{
		Time:       got.Time,
		CPU:        CPUStats{Usage: 10000, User: 6000, System: 4000, Periods: 3, ThrottledPeriods: 2, Throttled: 1000, Pressure: p},
		Memory:     MemoryStats{Usage: 1000, WorkingSet: 900, Available: 3100, RSS: 600, Cache: 300, Limit: 4000, Swap: 5, SwapLimit: Unlimited, PageFaults: 8, MajorPageFaults: 9, Mapped: 20, Max: 2000, LimitHits: 6, OOMKills: 4, Kernel: 70, Reservation: 80, Pressure: p},
		Pids:       PidsStats{3, Unlimited},
		IO:         []DeviceIO{{8, 0, 1, 2, 3, 4}},
		IOPressure: p,
		Hugepages:  []HugepageStats{{"2MB", 0, Unlimited, nil}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("v2 stats\n got %+v\nwant %+v", got, want)
	}

	_, g, _ = fake(t, []string{"cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb"}, nil, map[string]string{
		"cpu/cpu.stat":          "nr_periods 3\nnr_throttled 2\nthrottled_time 1\n",
		"cpuacct/cpuacct.usage": "10\n", "cpuacct/cpuacct.usage_user": "6\n", "cpuacct/cpuacct.usage_sys": "4\n",
		"memory/memory.usage_in_bytes":     "1000\n",
		"memory/memory.stat":               "total_rss 600\ntotal_mapped_file 20\ntotal_cache 300\ntotal_swap 5\ntotal_inactive_file 2000\nhierarchical_memory_limit 9223372036854771712\n",
		"memory/memory.max_usage_in_bytes": "2000\n", "memory/memory.failcnt": "6\n", "memory/memory.kmem.usage_in_bytes": "70\n", "memory/memory.soft_limit_in_bytes": "9223372036854771712\n", "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
		"pids/pids.current": "3\n", "pids/pids.max": "9\n",
		"blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
		"blkio/blkio.throttle.io_serviced_recursive":      "8:0 Read 3\n8:0 Write 4\nTotal 7\n",
		"hugetlb/hugetlb.2MB.usage_in_bytes":              "4096\n", "hugetlb/hugetlb.2MB.limit_in_bytes": "9223372036854771712\n", "hugetlb/hugetlb.2MB.max_usage_in_bytes": "8192\n",
	})
	if got, err = g.Stats(); err != nil {
		t.Fatal(err)
	}
	want = Stats{
		Time:   got.Time,
		CPU:    CPUStats{Usage: 10, User: 6, System: 4, Periods: 3, ThrottledPeriods: 2, Throttled: 1},
		Memory: MemoryStats{Usage: 1000, Available: Unlimited, RSS: 600, Cache: 300, Limit: Unlimited, Swap: 5, SwapLimit: Unlimited, Mapped: 20, Max: 2000, LimitHits: 6, OOMKills: 4, Kernel: 70},
		Pids:   PidsStats{3, 9},
		IO:     []DeviceIO{{8, 0, 1, 2, 3, 4}},

		Hugepages: []HugepageStats{{"2MB", 4096, Unlimited, new(uint64(8192))}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("v1 stats\n got %+v\nwant %+v", got, want)
	}
}

func TestReadFileReadsAll(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int{0, 1, 2047, 2048, 4095, 4096, 4097, 100000} {
		want := strings.Repeat("x", size)
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte(want+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := readFile(dir, "f"); got != want || err != nil {
			t.Errorf("of %d bytes %d were read, %v", size, len(got), err)
		}
	}
}

func TestStatsOfNoGroup(t *testing.T) {
	h, _, _ := fake(t, []string{"pids"}, nil, nil)
	if _, err := h.Load("/none").Stats(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Stats = %v", err)
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n")
	f.Fuzz(func(t *testing.T, s string) {
		trees, _ := parseMountinfo(strings.NewReader(s))
		for _, tree := range trees {
			if !tree.Unified && len(tree.Controllers) == 0 {
				t.Errorf("%+v has nothing", tree)
			}
		}
	})
}
