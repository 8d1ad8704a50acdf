package cgroup

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestUpdateIsAllOrNothing: what the steps before one that fails have written is
// put back, whatever kind of file it is.
func TestUpdateIsAllOrNothing(t *testing.T) {
	device := specs.LinuxBlockIODevice{Major: 8, Minor: 16}
	res := &specs.LinuxResources{
		Memory:         &specs.LinuxMemory{Limit: ptr(int64(200)), Swap: ptr(int64(300)), Reservation: ptr(int64(50))},
		CPU:            &specs.LinuxCPU{Shares: ptr(uint64(2)), Quota: ptr(int64(5000)), Period: ptr(uint64(9000)), Cpus: "1"},
		Pids:           &specs.LinuxPids{Limit: ptr(int64(7))},
		BlockIO:        &specs.LinuxBlockIO{ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: device, Rate: 5}}},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}},
		Unified:        map[string]string{"memory.high": "77", "x.missing": "1"}, // in the order of their names
	}
	common := map[string]string{"unified/memory.high": "max"}
	for name, tc := range map[string]struct {
		v1, v2      []string
		files, want map[string]string
	}{
		"v1": {
			v1: []string{"memory", "cpu", "cpuset", "pids", "blkio", "hugetlb"}, v2: []string{},
			files: map[string]string{
				"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.memsw.limit_in_bytes": "9223372036854771712",
				"memory/memory.soft_limit_in_bytes": "9223372036854771712", "cpu/cpu.shares": "1024", "cpu/cpu.cfs_quota_us": "-1",
				"cpu/cpu.cfs_period_us": "100000", "cpuset/cpuset.cpus": "0-1", "pids/pids.max": "max",
				"blkio/blkio.throttle.read_bps_device": "", "hugetlb/hugetlb.2MB.limit_in_bytes": "9223372036852678656",
			},
			want: map[string]string{"blkio/blkio.throttle.read_bps_device": "8:16 0"},
		},
		"v2": {
			v2: []string{"memory", "cpu", "cpuset", "pids", "io", "hugetlb"},
			files: map[string]string{
				"unified/memory.max": "max", "unified/memory.swap.max": "max", "unified/memory.low": "0", "unified/cpu.weight": "100",
				"unified/cpu.max": "max 100000", "unified/cpuset.cpus": "", "unified/pids.max": "max", "unified/io.max": "",
				"unified/hugetlb.2MB.max": "max", "unified/hugetlb.2MB.rsvd.max": "max",
			},
			want: map[string]string{"unified/io.max": "8:16 rbps=max wbps=max riops=max wiops=max"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			maps.Copy(tc.files, common)
			_, g, root := fake(t, tc.v1, tc.v2, tc.files)
			if err := g.Update(res); err == nil || !strings.Contains(err.Error(), "x.missing") || strings.Contains(err.Error(), "stay") {
				t.Fatalf("Update = %v, want an error of x.missing alone", err)
			}
			want := maps.Clone(tc.files)
			maps.Copy(want, tc.want)
			for file, text := range want {
				tree, base, _ := strings.Cut(file, "/")
				got, err := os.ReadFile(filepath.Join(root, tree, "g", base))
				if err != nil || strings.TrimSuffix(string(got), "\n") != text {
					t.Errorf("%s = %q, %v; want %q", file, got, err, text)
				}
			}
		})
	}
}

// TestKeyedFilesAreRestoredByKey writes to a file that keeps the last line only,
// as the kernel's would take each.
func TestKeyedFilesAreRestoredByKey(t *testing.T) {
	for _, tt := range []struct{ file, before, now, last string }{
		{"io.max", "8:0 rbps=1", "8:0 rbps=1\n8:16 rbps=5", "8:16 rbps=max wbps=max riops=max wiops=max"},
		{"io.max", "8:0 rbps=1 wbps=max", "8:0 rbps=5 wbps=max", "8:0 rbps=1 wbps=max"},
		{"io.bfq.weight", "default 100\n8:0 5", "default 200\n8:0 5", "100"},
		{"net_prio.ifpriomap", "lo 0\neth0 1", "lo 0\neth0 2", "eth0 1"},
		{"misc.max", "a 1", "a 1\nb 2", "a 1\nb 2"},
		{"cpuset.cpus", "", "1", "\n"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, tt.file), []byte(tt.now), 0o600); err != nil {
			t.Fatal(err)
		}
		err := (&entry{dir, tt.file, tt.before}).restore()
		if got, _ := os.ReadFile(filepath.Join(dir, tt.file)); err != nil || string(got) != tt.last {
			t.Errorf("%s from %q to %q: last written is %q, %v; want %q", tt.file, tt.now, tt.before, got, err, tt.last)
		}
	}
}
