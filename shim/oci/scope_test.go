package oci

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/internal/systemd"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestScopeNeedsSystemd(t *testing.T) {
	if systemd.Running() {
		t.Skip("systemd runs here")
	}
	f := newFixture(t, "wait")
	f.spec.Linux.CgroupsPath = "longshoretest.slice:oci:" + f.id
	f.write()
	f.fails("systemd does not run here", "--systemd-cgroup", "create", "--bundle", f.bundle, f.id)
	if f.exists() {
		t.Error("the state is left")
	}
}

// TestScopeOfSystemd: the container is in a group of its own below the scope,
// which is gone with it, and its name can be used again at once.
func TestScopeOfSystemd(t *testing.T) {
	if !systemd.Running() {
		t.Skip("systemd is not the first process here; the machine of test-systemd has it")
	}
	host, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("oci-%d.scope", os.Getpid())
	dir := filepath.Join(host.Trees[0].Mount, "longshoretest.slice", name)
	for range 2 {
		f := newFixture(t, "wait")
		limit := int64(64 << 20)
		f.spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
		f.spec.Linux.CgroupsPath = fmt.Sprintf("longshoretest.slice:oci:%d", os.Getpid())
		f.write()
		f.ok("--systemd-cgroup", "create", "--bundle", f.bundle, f.id)
		pid := f.wantStatus(specs.StateCreated).Pid
		if shown := properties(t, name); !strings.Contains(shown, "ActiveState=active") || !strings.Contains(shown, "Delegate=yes") {
			t.Errorf("the scope is %s", shown)
		}
		groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil || !strings.Contains(string(groups), name+containerGroup) {
			t.Errorf("the container is in %s, %v", groups, err)
		}
		if own, err := os.ReadFile("/proc/self/cgroup"); err != nil || strings.Contains(string(own), name) {
			t.Errorf("the caller is in %s, %v", own, err)
		}
		if left, err := os.Stat(dir + callerGroup); err == nil {
			t.Errorf("%s is left", left.Name())
		}
		if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		f.ok("update", "--pids-limit", "7", f.id)
		f.ok("kill", f.id, "KILL")
		reap(t, pid)
		f.ok("delete", f.id)
		if shown := properties(t, name); !strings.Contains(shown, "LoadState=not-found") {
			t.Errorf("after delete the scope is %s", shown)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}

// TestFailedCreateLeavesNoScope holds that for a create that fails late.
func TestFailedCreateLeavesNoScope(t *testing.T) {
	if !systemd.Running() {
		t.Skip("systemd is not the first process here; the machine of test-systemd has it")
	}
	f := newFixture(t, "wait")
	f.spec.Linux.CgroupsPath = "longshoretest.slice:oci:failed"
	f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: "/x", Type: "nosuchfs", Source: "none"})
	f.write()
	f.fails("nosuchfs", "--systemd-cgroup", "create", "--bundle", f.bundle, f.id)
	if shown := properties(t, "oci-failed.scope"); !strings.Contains(shown, "LoadState=not-found") {
		t.Errorf("the scope is %s", shown)
	}
}

func properties(t *testing.T, unit string) string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", "-p", "ActiveState", "-p", "LoadState", "-p", "Delegate", unit).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	return string(out)
}
