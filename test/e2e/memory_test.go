package e2e

import (
	"debug/buildinfo"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// shimBudget is the memory in KiB that a shim with one idle container may have
// to itself: private and dirty, as smaps_rollup counts it (proc(5)). 800 is
// what a node with hundreds of containers allows; see hack/build.sh.
const shimBudget = 800

// greenBudget comes on top in a build that hack/build.sh did not make.
const greenBudget = 64

// workshopBudget comes on top before Linux 6.15: the root is assembled on a
// thread with a mount namespace of its own, and what its goroutines took stays.
const workshopBudget = 96

// TestShimMemoryBudget holds what a container costs beside its own processes.
func TestShimMemoryBudget(t *testing.T) {
	needRoot(t)
	s, ctx := newSession(t, "")
	const containers = 5
	for _, step := range []func() error{
		func() error { return pod(s, ctx, []string{"p"}, io.Discard) },
		func() error {
			for i := range containers {
				if err := runVerb(s, ctx, []string{fmt.Sprint("c", i), "p", "--", "pause"}, io.Discard); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	shims, err := busyShims(s.node.Cgroup)
	if err != nil || len(shims) != containers {
		t.Fatalf("shims of %d containers: %v, %v", containers, shims, err)
	}
	budget := shimBudget
	if kernelBefore(t, 6, 15) {
		budget += workshopBudget
	}
	if info, err := buildinfo.ReadFile(filepath.Join(bin, "longshore-shim")); err != nil {
		t.Fatal(err)
	} else if !slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool {
		return s.Key == "GOEXPERIMENT" && strings.Contains(s.Value, "nogreenteagc")
	}) {
		budget += greenBudget
	}
	for _, pid := range shims {
		kib, err := privateDirty(pid)
		if err != nil {
			t.Fatal(err)
		}
		status, _ := os.ReadFile(filepath.Join("/proc", pid, "status"))
		_, threads, _ := strings.Cut(string(status), "Threads:")
		t.Logf("shim %s: %d KiB private and dirty, %s threads", pid, kib, strings.Fields(threads)[0])
		if kib > budget {
			t.Errorf("shim %s: %d KiB private and dirty, more than %d", pid, kib, budget)
		}
	}
}

func kernelBefore(t *testing.T, major, minor int) bool {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	var haveMajor, haveMinor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &haveMajor, &haveMinor); err != nil {
		t.Fatal(err)
	}
	return haveMajor < major || haveMajor == major && haveMinor < minor
}

// busyShims gives the parents of the guests below a cgroup.
func busyShims(cgroup string) ([]string, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var parents []string
	for _, name := range stats {
		groups, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "cgroup")) // "" once it has gone
		if !strings.Contains(string(groups), "/"+cgroup+"/") {
			continue
		}
		stat, _ := os.ReadFile(name)
		if _, after, ok := strings.Cut(string(stat), "(guest) "); ok {
			parents = append(parents, strings.Fields(after)[1])
		}
	}
	return parents, nil
}

// privateDirty gives the Private_Dirty line of a process's smaps_rollup, in KiB.
func privateDirty(pid string) (int, error) { return rollup(pid, "Private_Dirty:") }

// rollup gives a line of a process's smaps_rollup, in KiB.
func rollup(pid, line string) (int, error) {
	data, err := os.ReadFile(filepath.Join("/proc", pid, "smaps_rollup"))
	if err != nil {
		return 0, err
	}
	_, after, ok := strings.Cut(string(data), line)
	if !ok {
		return 0, fmt.Errorf("no %s in %q", line, data)
	}
	return strconv.Atoi(strings.Fields(after)[0])
}
