package launch

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func newSandbox(t testing.TB, cfg SandboxConfig) (SandboxConfig, int) {
	t.Helper()
	needRoot(t)
	cfg.Dir = t.TempDir()
	pid, err := CreateSandbox(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if pid > 0 {
			unix.Kill(pid, unix.SIGKILL)
			unix.Wait4(pid, nil, unix.WALL, nil)
		}
		if err := RemoveSandbox(cfg.Dir); err != nil {
			t.Error(err)
		}
		if err := RemoveSandbox(cfg.Dir); err != nil {
			t.Error("again:", err)
		}
		if left, _ := os.ReadDir(cfg.Dir); len(left) > 0 {
			t.Errorf("left in the sandbox's directory: %v", left)
		}
	})
	return cfg, pid
}

// join makes the fixture's container a member of the sandbox.
func (f *fixture) join(dir string, kinds ...string) {
	for i := range f.spec.Linux.Namespaces {
		ns := &f.spec.Linux.Namespaces[i]
		for _, kind := range kinds {
			file := map[specs.LinuxNamespaceType]string{"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}[ns.Type]
			if file == kind {
				ns.Path = filepath.Join(dir, file)
			}
		}
	}
}

func TestSandboxIsShared(t *testing.T) {
	cfg, pid := newSandbox(t, SandboxConfig{
		NewNet: true, NewIPC: true, NewUTS: true, Hostname: "pod",
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"},
		ShmSize: 1 << 20,
	})
	if pid != 0 {
		t.Errorf("first process %d without a pid namespace", pid)
	}
	f := newFixture(t, "report")
	f.join(cfg.Dir, "net", "ipc", "uts")
	f.spec.Hostname = ""
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	f.in.Close()
	r := decode(t, readAll(t, f.out))
	if r.Hostname != "pod" || r.Pid != 1 {
		t.Errorf("host name %q, pid %d", r.Hostname, r.Pid)
	}
	for _, kind := range []string{"net", "ipc", "uts"} {
		fd, err := os.Open(filepath.Join(cfg.Dir, kind))
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		unix.Fstat(int(fd.Fd()), &st)
		fd.Close()
		if want := kind + ":[" + strconv.FormatUint(st.Ino, 10) + "]"; r.NS[kind] != want {
			t.Errorf("namespace %s, want %s", r.NS[kind], want)
		}
	}
}

func TestSandboxSettings(t *testing.T) {
	cfg, _ := newSandbox(t, SandboxConfig{
		NewNet: true, NewIPC: true, NewUTS: true,
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "net/ipv4/ping_group_range": "0 10", "kernel.shm_rmid_forced": "1"},
	})
	f := newFixture(t, "read", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/net/ipv4/ping_group_range",
		"/proc/sys/kernel/shm_rmid_forced", "/sys/class/net/lo/flags")
	f.join(cfg.Dir, "net", "ipc", "uts")
	f.spec.Hostname = ""
	out, _ := f.run()
	for _, want := range []string{`start: 3 "80\n"`, `range: 5 "0\t10\n"`, `forced: 2 "1\n"`, `flags: 4 "0x9\n"`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
}

func TestSandboxInitReapsAndIsConfined(t *testing.T) {
	cfg, pid := newSandbox(t, SandboxConfig{NewNet: true, NewIPC: true, NewUTS: true, NewPID: true})
	if pid <= 0 {
		t.Fatal("no first process")
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Name:\tpause", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("first process has no %q", want)
		}
	}
	if mounts, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/mountinfo"); strings.Count(string(mounts), "\n") != 1 {
		t.Errorf("first process sees\n%s", mounts)
	}
	f := newFixture(t, "wait")
	f.join(cfg.Dir, "net", "ipc", "uts", "pid")
	f.spec.Hostname = ""
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	r := decode(t, f.exec(c, "report"))
	if r.Pid < 3 {
		t.Errorf("pid %d in the shared namespace", r.Pid)
	}
	if own := ownNS(t, "pid"); r.NS["pid"] == own {
		t.Error("in the host's pid namespace")
	}
}

var podMaps = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}

func TestSandboxWithUserNamespace(t *testing.T) {
	cfg, _ := newSandbox(t, SandboxConfig{
		NewNet: true, NewIPC: true, NewUTS: true, Hostname: "pod", UIDMappings: podMaps, GIDMappings: podMaps,
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "81"},
	})
	f := newFixture(t, "report")
	f.join(cfg.Dir, "net", "ipc", "uts")
	f.userNS(filepath.Join(cfg.Dir, "user"))
	f.spec.Hostname = ""
	out, _ := f.run()
	r := decode(t, out)
	if r.UID != 0 || r.Pid != 1 || r.Hostname != "pod" || r.NS["user"] == ownNS(t, "user") {
		t.Errorf("uid %d, pid %d, host name %q, %s", r.UID, r.Pid, r.Hostname, r.NS["user"])
	}
	if r.Status["CapEff"] != "00000000a80425fb" {
		t.Errorf("capabilities %s", r.Status["CapEff"])
	}
	checkNoLeaks(t, r)
}

// userNS moves the fixture into a user namespace, with its layer's ids mapped,
// or its files given to the namespace's root where the kernel maps none.
func (f *fixture) userNS(path string) {
	f.spec.Linux.Namespaces = append(f.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: path})
	f.spec.Linux.UIDMappings, f.spec.Linux.GIDMappings = podMaps, podMaps
	os.Chown(filepath.Join(f.bundle, "upper"), 200000, 200000)
	if hasMountSetattr() {
		f.cfg.Rootfs[0].Options = append(f.cfg.Rootfs[0].Options, "uidmap=0:200000:65536", "gidmap=0:200000:65536")
		return
	}
	err := filepath.WalkDir(f.lower, func(name string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(name, 200000, 200000))
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// mapsNoIDs says whether the kernel maps no ids of mounts, and holds that a
// container which needs it is refused by name then.
func (f *fixture) mapsNoIDs() bool {
	f.t.Helper()
	if hasMountSetattr() {
		return false
	}
	c, err := Create(f.cfg)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, unix.ENOSYS) || !strings.Contains(err.Error(), "id-mapped mounts need mount_setattr") {
		f.t.Errorf("a container with id-mapped mounts: %v", err)
	}
	return true
}

func TestContainerWithUserNamespace(t *testing.T) {
	f := newFixture(t, "wait")
	f.userNS("")
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	r := decode(t, f.exec(c, "report"))
	if r.UID != 0 || r.NS["user"] == ownNS(t, "user") || r.Status["CapEff"] != "00000000a80425fb" {
		t.Errorf("uid %d, %s, capabilities %s", r.UID, r.NS["user"], r.Status["CapEff"])
	}
	out := f.exec(c, "stat", "/etc/passwd", "/dev/null", "/dev/pts", "/dev/shm", "/proc/self")
	if !strings.Contains(out, "/etc/passwd mode=100644 dev=0:0 uid=0 gid=0") || !strings.Contains(out, "/dev/null mode=20666 dev=1:3 uid=0 gid=0") {
		t.Errorf("owners:\n%s", out)
	}
}

// An image's files belong to the pod's users wherever the image is mounted.
func TestImageMountInUserNamespace(t *testing.T) {
	f := newFixture(t, "stat", "/vol/file")
	f.userNS("")
	image, empty := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(image, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: "/vol", Type: "overlay", Source: "overlay",
		Options: []string{"ro", "lowerdir=" + image + ":" + empty, "uidmap=0:200000:65536", "gidmap=0:200000:65536", "noexec"}})
	if f.mapsNoIDs() {
		return
	}
	if out, _ := f.run(); !strings.Contains(out, "/vol/file mode=100644 dev=0:0 uid=0 gid=0") {
		t.Errorf("owners:\n%s", out)
	}
}
