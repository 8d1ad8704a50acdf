package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// sharedDir is a directory of the host that is a shared mount.
func sharedDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

// mountWays are the ways to come by a container's mount namespace.
var mountWays = []struct {
	name string
	set  func(f *fixture)
}{
	{"host mounts copied", func(*fixture) {}},
	{"template", func(f *fixture) {
		f.cfg.Template = filepath.Join(f.t.TempDir(), "template")
		if err := PinTemplate(f.cfg.Template); err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(func() { RemoveTemplate(f.cfg.Template) })
	}},
	{"workshop", func(*fixture) { kernel.noDetachedTargets, kernel.noWorkshop = true, false }},
}

// TestMountsPropagateToTheHost is mountPropagation: Bidirectional. It holds with a
// user namespace too: the volume is a peer, and not a copy that the kernel made a
// slave with the mount namespace (mount_namespaces(7)).
func TestMountsPropagateToTheHost(t *testing.T) {
	needRoot(t)
	for _, way := range mountWays {
		for _, users := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/user namespace %v", way.name, users), func(t *testing.T) {
				host := sharedDir(t)
				os.Mkdir(host+"/made", 0o755)
				f := newFixture(t, "wait")
				old := kernel
				defer func() { kernel = old }()
				way.set(f)
				if users {
					f.userNS("")
				}
				caps := append([]string{"CAP_SYS_ADMIN"}, defaultCaps...)
				f.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
				f.mount(specs.Mount{Destination: "/vol", Source: host, Options: []string{"rbind", "rshared"}})
				c := f.create()
				if err := c.Start(); err != nil {
					t.Fatal(err)
				}
				out := f.exec(c, "mount", "/vol/made")
				mounts, err := os.ReadFile("/proc/self/mountinfo")
				if err != nil {
					t.Fatal(err)
				}
				seen := strings.Contains(string(mounts), " "+host+"/made ")
				defer unix.Unmount(host+"/made", unix.MNT_DETACH)
				if out != "<nil>\n" || !seen {
					t.Errorf("mount: %s, seen on the host: %v", out, seen)
				}
			})
		}
	}
}

// TestRootIsASlave: a root that is a directory of the host follows it.
func TestRootIsASlave(t *testing.T) {
	needRoot(t)
	for _, way := range mountWays {
		for _, mode := range []string{"", "slave", "rslave"} {
			t.Run(way.name+" "+mode, func(t *testing.T) {
				f := newFixture(t, "wait")
				old := kernel
				defer func() { kernel = old }()
				way.set(f)
				host := sharedDir(t)
				for _, dir := range []string{"late", "dev", "proc", "sys"} {
					os.Mkdir(filepath.Join(host, dir), 0o755)
				}
				copyProbe(t, probeBinary(t), filepath.Join(host, "probe"))
				f.cfg.Rootfs, f.spec.Root.Path, f.spec.Linux.RootfsPropagation = nil, host, mode
				c := f.create()
				if err := c.Start(); err != nil {
					t.Fatal(err)
				}
				if err := unix.Mount("tmpfs", host+"/late", "tmpfs", 0, "size=4k"); err != nil {
					t.Fatal(err)
				}
				defer unix.Unmount(host+"/late", unix.MNT_DETACH)
				if seen := mountOf(decode(t, f.exec(c, "report")), "/late") != ""; seen != (mode != "") {
					t.Errorf("follows the host: %v", seen)
				}
			})
		}
	}
}

func TestRelativePathsOfMounts(t *testing.T) {
	f := newFixture(t, "read", "/vol/file")
	if err := os.MkdirAll(filepath.Join(f.bundle, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(f.bundle, "data/file"), []byte("inside"), 0o644)
	f.mount(specs.Mount{Destination: "vol", Source: "data", Options: []string{"bind"}})
	if out, _ := f.run(); !strings.Contains(out, "inside") {
		t.Errorf("reads %s", out)
	}
}

// TestOptionsOfFilesystems: those that mount(8) has for all of them.
func TestOptionsOfFilesystems(t *testing.T) {
	f := newFixture(t, "report")
	f.mount(specs.Mount{Destination: "/sync", Type: "tmpfs", Options: []string{"sync", "dirsync", "lazytime"}})
	f.mount(specs.Mount{Destination: "/plain", Type: "tmpfs", Options: superOptions[:1]})
	all := append([]string{"rbind"}, superOptions[:]...)
	f.mount(specs.Mount{Destination: "/bound", Source: f.t.TempDir(), Options: all})
	f.mount(specs.Mount{Destination: "/all", Type: "tmpfs", Options: append([]string{"sync", "lazytime"}, superOptions[:]...)})
	out, _ := f.run()
	r := decode(t, out)
	if line := mountOf(r, "/sync"); !strings.Contains(line, "rw,sync,dirsync,lazytime") {
		t.Errorf("mounted: %s", line)
	}
	for _, at := range []string{"/plain", "/bound", "/all"} {
		if mountOf(r, at) == "" {
			t.Errorf("%s is not mounted", at)
		}
	}
}

// TestManyFilesystems: an idle child mounts some of them, but what it hands over is
// bounded by the kernel (SCM_RIGHTS, 253), and its program by us.
func TestManyFilesystems(t *testing.T) {
	f := newFixture(t, "report")
	f.without(specs.NetworkNamespace)
	f.dropMount("/sys")
	const count = 300
	for i := range count {
		f.mount(specs.Mount{Destination: fmt.Sprintf("/many/%d", i), Type: "tmpfs", Options: []string{"size=4k", "mode=700"}})
	}
	out, _ := f.run()
	r := decode(t, out)
	for _, i := range []int{0, 100, count - 1} {
		if at := fmt.Sprintf("/many/%d", i); mountOf(r, at) == "" {
			t.Errorf("%s is not mounted", at)
		}
	}
}

func TestMountsAndNamespacesAreRefused(t *testing.T) {
	maps := []specs.LinuxIDMapping{{HostID: 1000, Size: 1}}
	for _, tt := range []struct {
		want string
		set  func(f *fixture)
	}{
		{"uidMappings and gidMappings of mqueue", func(f *fixture) {
			f.mount(specs.Mount{Destination: "/q", Type: "mqueue", Source: "mqueue", UIDMappings: maps, GIDMappings: maps})
		}},
		{"uidMappings and gidMappings of cgroup", func(f *fixture) {
			f.mount(specs.Mount{Destination: "/c", Type: "cgroup", Source: "cgroup", Options: []string{"idmap"}})
		}},
		{`path "proc/self/ns/net" of network is not absolute`, func(f *fixture) { f.spec.Linux.Namespaces[1].Path = "proc/self/ns/net" }},
		{"destination: missing", func(f *fixture) { f.mount(specs.Mount{Type: "tmpfs"}) }},
	} {
		f := newFixture(t, "report")
		tt.set(f)
		if err := f.try(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("create: %v, want %q", err, tt.want)
		}
	}
}
