package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestTimeNamespaceBesideOthers makes a time namespace in each company.
func TestTimeNamespaceBesideOthers(t *testing.T) {
	for _, way := range []struct {
		name string
		set  func(f *fixture)
	}{
		{"joined pid namespace", func(f *fixture) { f.spec.Linux.Namespaces[0].Path = "/proc/self/ns/pid" }},
		{"pid namespace of another container", func(f *fixture) {
			other := newFixture(f.t, "pause")
			c := other.create()
			f.spec.Linux.Namespaces[0].Path = fmt.Sprintf("/proc/%d/ns/pid", c.Init().Pid())
		}},
		{"new user namespace", func(f *fixture) { f.userNS("") }},
		{"joined user namespace", func(f *fixture) {
			cfg, _ := newSandbox(f.t, SandboxConfig{NewNet: true, UIDMappings: podMaps, GIDMappings: podMaps})
			f.userNS(filepath.Join(cfg.Dir, "user"))
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			f := newFixture(t, "wait")
			way.set(f)
			f.spec.Linux.Namespaces = append(f.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
			f.spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1000000000}, "monotonic": {Secs: 7}}
			c := f.create()
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			if out := f.exec(c, "read", "/proc/uptime"); !regexp.MustCompile(`uptime: \d+ "10000`).MatchString(out) {
				t.Errorf("sees\n%s", out)
			}
			r := decode(t, f.exec(c, "report"))
			if r.NS["time"] == ownNS(t, "time") {
				t.Error("shares the host's time namespace")
			}
			checkNoLeaks(t, r)
		})
	}
}

// TestNewUserNamespaceWithJoinedOnes joins what the host owns, and lives in a
// user namespace of its own beside.
func TestNewUserNamespaceWithJoinedOnes(t *testing.T) {
	needRoot(t)
	host := newFixture(t, "pause")
	other := host.create()
	path := func(kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", other.Init().Pid(), kind) }
	for _, pid := range []string{"", path("pid")} {
		t.Run("pid namespace "+pid, func(t *testing.T) {
			f := newFixture(t, "wait")
			f.userNS("")
			f.spec.Hostname = ""
			f.spec.Linux.Namespaces[0].Path = pid
			f.spec.Linux.Namespaces[1].Path = path("net")
			f.spec.Linux.Namespaces[2].Path = path("ipc")
			f.spec.Linux.Namespaces[3].Path = path("uts")
			// Only their owner may mount what shows these namespaces.
			f.spec.Mounts = slices.DeleteFunc(f.spec.Mounts, func(m specs.Mount) bool {
				return m.Type == "mqueue" || m.Type == "sysfs" || m.Type == "cgroup" || pid != "" && m.Type == "proc"
			})
			if pid != "" {
				f.spec.Linux.MaskedPaths, f.spec.Linux.ReadonlyPaths = nil, nil
				f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: "/proc", Source: "/proc", Options: []string{"rbind", "ro"}})
			}
			c := f.create()
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			dir := fmt.Sprintf("/proc/%d/", c.Init().Pid())
			for kind, same := range map[string]bool{"net": true, "ipc": true, "uts": true, "user": false, "mnt": false, "pid": pid != ""} {
				ours, err := os.Readlink(dir + "ns/" + kind)
				if err != nil {
					t.Fatal(err)
				}
				if theirs, _ := os.Readlink(path(kind)); (ours == theirs) != same {
					t.Errorf("%s namespace is %s, the other container's %s", kind, ours, theirs)
				}
			}
			status, _ := os.ReadFile(dir + "status")
			if !strings.Contains(string(status), "Uid:\t200000\t") {
				t.Errorf("not root of its user namespace:\n%s", status)
			}
			if out := f.exec(c, "stat", "/etc/passwd"); !strings.Contains(out, "uid=0 gid=0") {
				t.Errorf("exec sees %s", out)
			}
		})
	}
}

// without takes a namespace out of the spec: the container shares the host's.
func (f *fixture) without(kind specs.LinuxNamespaceType) {
	f.spec.Linux.Namespaces = slices.DeleteFunc(f.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
}

func TestHostNamespaces(t *testing.T) {
	for _, userNS := range []bool{false, true} {
		t.Run(fmt.Sprintf("user namespace %v", userNS), func(t *testing.T) {
			f := newFixture(t, "report")
			for _, kind := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace} {
				f.without(kind)
			}
			f.spec.Hostname = ""
			if userNS {
				f.userNS("")
			}
			out, status := f.run()
			if status != 0 {
				t.Fatalf("status %#x", status)
			}
			r := decode(t, out)
			for _, kind := range []string{"pid", "net", "ipc", "uts"} {
				if r.NS[kind] != ownNS(t, kind) {
					t.Errorf("%s namespace is not the host's", kind)
				}
			}
			for _, at := range []string{"/proc", "/sys", "/dev/mqueue"} {
				if mountOf(r, at) == "" {
					t.Errorf("no mount at %s", at)
				}
			}
		})
	}
}

func TestIDMappedMount(t *testing.T) {
	f := newFixture(t, "wait")
	f.userNS("")
	volume := filepath.Join(f.bundle, "volume")
	os.Mkdir(volume, 0o755)
	os.WriteFile(volume+"/file", nil, 0o600)
	os.Chown(volume+"/file", 5, 6)
	f.spec.Mounts = append(f.spec.Mounts,
		specs.Mount{Destination: "/mapped", Source: volume, Options: []string{"bind"}, UIDMappings: podMaps, GIDMappings: podMaps},
		specs.Mount{Destination: "/idmap", Source: volume, Options: []string{"rbind", "ridmap"}},
		specs.Mount{Destination: "/plain", Source: volume, Options: []string{"bind"}})
	if f.mapsNoIDs() {
		return
	}
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	out := f.exec(c, "stat", "/mapped/file", "/idmap/file", "/plain/file")
	for _, want := range []string{"/mapped/file mode=100600 dev=0:0 uid=5 gid=6", "/idmap/file mode=100600 dev=0:0 uid=5 gid=6", "/plain/file mode=100600 dev=0:0 uid=65534 gid=65534"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestCgroupIsSeen(t *testing.T) {
	f := newFixture(t, "wait")
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if c.host.Mode != cgroup.V2 {
		out := f.exec(c, "read", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/pids/pids.max")
		if !strings.Contains(out, `"268435456\n"`) || !strings.Contains(out, `"200\n"`) {
			t.Errorf("sees\n%s", out)
		}
		if out := f.exec(c, "write", "/sys/fs/cgroup/memory/memory.limit_in_bytes"); !strings.Contains(out, "read-only") {
			t.Errorf("write: %s", out)
		}
	}
	pids, err := c.Cgroup().Procs()
	if err != nil || !slices.Contains(pids, c.Init().Pid()) {
		t.Errorf("processes %v, %v", pids, err)
	}
}
