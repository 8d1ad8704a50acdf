package launch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var serial atomic.Int32

// fixture is a bundle with a root that holds the probe.
type fixture struct {
	t      testing.TB
	bundle string
	lower  string
	spec   *specs.Spec
	out    *os.File // read end of the process's output
	cfg    Config
	in     *os.File // write end of its input
}

var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

const testCgroup = "/launchtest-%d-%d"

func newFixture(t testing.TB, args ...string) *fixture {
	t.Helper()
	needRoot(t)
	kernel.noWorkshop = mountsOntoDetached() && !kernel.noDetachedTargets
	bundle := t.TempDir()
	f := &fixture{t: t, bundle: bundle, lower: filepath.Join(bundle, "lower")}
	for _, dir := range []string{"lower", "upper", "work", "rootfs", "lower/etc", "lower/tmp", "lower/home"} {
		if err := os.MkdirAll(filepath.Join(bundle, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(bundle, 0o755)
	f.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n", 0o644)
	copyProbe(t, probeBinary(t), filepath.Join(f.lower, "probe"))
	id := fmt.Sprintf("c%d-%d", os.Getpid(), serial.Add(1))
	f.spec = defaultSpec(fmt.Sprintf(testCgroup, os.Getpid(), serial.Load()), append([]string{"/probe"}, args...))
	f.cfg = Config{
		ID: id, Bundle: bundle, Spec: f.spec,
		Rootfs: []Mount{{Type: "overlay", Source: "overlay", Options: []string{
			"lowerdir=" + f.lower, "upperdir=" + bundle + "/upper", "workdir=" + bundle + "/work", "volatile"}}},
	}
	return f
}

// mountsOntoDetached says whether the kernel is 6.15 or newer, where needing a
// workshop is a mistake.
func mountsOntoDetached() bool {
	var u unix.Utsname
	unix.Uname(&u)
	var major, minor int
	fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return major > 6 || major == 6 && minor >= 15
}

// freshLayer gives the next container a writable layer of its own.
func (f *fixture) freshLayer() {
	f.t.Helper()
	n := serial.Add(1)
	upper, work := fmt.Sprintf("%s/upper%d", f.bundle, n), fmt.Sprintf("%s/work%d", f.bundle, n)
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			f.t.Fatal(err)
		}
	}
	f.cfg.Rootfs[0].Options = []string{"lowerdir=" + f.lower, "upperdir=" + upper, "workdir=" + work, "volatile"}
}

func copyProbe(t testing.TB, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) write(name, text string, mode os.FileMode) {
	f.t.Helper()
	path := filepath.Join(f.lower, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		f.t.Fatal(err)
	}
}

func defaultSpec(cgroup string, args []string) *specs.Spec {
	limit, shares, pids := int64(256<<20), uint64(512), int64(200)
	return &specs.Spec{
		Version: "1.2.0",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin:/usr/bin:/"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: defaultCaps, Effective: defaultCaps, Permitted: defaultCaps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 512, Soft: 512}},
		},
		Hostname: "inside",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Resources: &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &limit}, CPU: &specs.LinuxCPU{Shares: &shares}, Pids: &specs.LinuxPids{Limit: &pids},
			},
			Namespaces: []specs.LinuxNamespace{
				{Type: "pid"}, {Type: "network"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "cgroup"},
			},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/proc/acpi", "/proc/timer_list", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// TestManyMountsOfTheChild: what it has open at one time takes the numbers below
// those of the descriptors that it keeps.
func TestManyMountsOfTheChild(t *testing.T) {
	f := newFixture(t, "report")
	for i := range 40 {
		f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: fmt.Sprintf("/tmp/m%d", i), Type: "mqueue", Source: "mqueue"})
	}
	out, _ := f.run()
	r := decode(t, out)
	got := 0
	for _, m := range r.Mounts {
		if strings.Contains(m, " /tmp/m") {
			got++
		}
	}
	if got != 40 {
		t.Errorf("%d of 40 mounts: %q", got, r.Mounts)
	}
}

// pipes gives the container pipes for its streams and keeps our ends.
func (f *fixture) pipes() Stdio {
	f.t.Helper()
	inR, inW, err := os.Pipe()
	if err != nil {
		f.t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		f.t.Fatal(err)
	}
	f.in, f.out = inW, outR
	f.t.Cleanup(func() { inW.Close(); outR.Close() })
	return Stdio{Stdin: inR, Stdout: outW, Stderr: outW}
}

func (s Stdio) closeAll() {
	s.Stdin.Close()
	s.Stdout.Close()
}

// create makes the container and sees to its end.
func (f *fixture) create() *Container {
	f.t.Helper()
	io := f.pipes()
	f.cfg.Stdio = io
	c, err := Create(f.cfg)
	io.closeAll()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		c.Init().Signal(unix.SIGKILL)
		c.Init().Wait()
		if err := c.Close(); err != nil {
			f.t.Error("close:", err)
		}
	})
	return c
}

// run starts the container and gives its output and status.
func (f *fixture) run() (string, unix.WaitStatus) {
	f.t.Helper()
	c := f.create()
	if err := c.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.in.Close()
	out, err := io.ReadAll(f.out)
	if err != nil {
		f.t.Fatal(err)
	}
	status, err := c.Init().Wait()
	if err != nil {
		f.t.Fatal(err)
	}
	return string(out), status
}

func decode(t testing.TB, text string) report {
	t.Helper()
	var r report
	if err := json.NewDecoder(bytes.NewReader([]byte(text))).Decode(&r); err != nil {
		t.Fatalf("decode report: %v\n%s", err, text)
	}
	return r
}
