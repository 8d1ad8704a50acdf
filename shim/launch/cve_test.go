package launch

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The escapes of 2019 to 2026, one test each. Every comment names the defence:
// the test was seen to fail without it. To take RESOLVE_IN_ROOT out of safepath.Open
// is to look the name up below the root without its leading "/": as it is, it would be
// the host's, and nothing would come to be. CVE-2019-5736 is tested with the pool of
// shims.

// outside is a directory of the host with a file that no container may change.
type outside struct {
	t   testing.TB
	dir string
}

func newOutside(t testing.TB) outside {
	t.Helper()
	o := outside{t, t.TempDir()}
	for _, name := range []string{"ptmx", "precious"} {
		if err := os.WriteFile(filepath.Join(o.dir, name), []byte("host\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// untouched checks that the host's directory is as it was, without mounts.
func (o outside) untouched() {
	o.t.Helper()
	entries, err := os.ReadDir(o.dir)
	if err != nil {
		o.t.Fatal(err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			o.t.Errorf("outside the container now: %s %v", e.Name(), e.Type())
		} else if data, err := os.ReadFile(filepath.Join(o.dir, e.Name())); string(data) != "host\n" || err != nil {
			o.t.Errorf("outside the container now: %s holds %q, %v", e.Name(), data, err)
		}
	}
	if len(entries) != 2 {
		o.t.Errorf("outside the container now: %d entries", len(entries))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), o.dir) {
		o.t.Errorf("mounted outside the container: %v", err)
	}
}

// volume gives a directory that another container can write to, bound at /vol.
func (f *fixture) volume() string {
	f.t.Helper()
	dir := f.t.TempDir()
	f.spec.Mounts = slices.Insert(f.spec.Mounts, 0, specs.Mount{Destination: "/vol", Source: dir, Options: []string{"rbind"}})
	return dir
}

func (f *fixture) mount(m specs.Mount) { f.spec.Mounts = append(f.spec.Mounts, m) }

// dropMount leaves out what the spec mounts at a place and below it.
func (f *fixture) dropMount(at string) {
	var kept []specs.Mount
	for _, m := range f.spec.Mounts {
		if m.Destination != at && !strings.HasPrefix(m.Destination, at+"/") {
			kept = append(kept, m)
		}
	}
	f.spec.Mounts = kept
}

func (f *fixture) link(to, at string) {
	f.t.Helper()
	if err := os.Symlink(to, at); err != nil {
		f.t.Fatal(err)
	}
}

// try creates and ends a container, whether it comes to be or not.
func (f *fixture) try() error {
	f.t.Helper()
	f.freshLayer()
	n := serial.Add(1)
	f.cfg.ID = fmt.Sprintf("c%d-%d", os.Getpid(), n)
	f.spec.Linux.CgroupsPath = fmt.Sprintf(testCgroup, os.Getpid(), n)
	c, err := Create(f.cfg)
	if err != nil {
		return err
	}
	if err := c.Init().Signal(unix.SIGKILL); err != nil {
		f.t.Error(err)
	}
	if _, err := c.Init().Wait(); err != nil {
		f.t.Error(err)
	}
	return c.Close()
}

// swapper exchanges two names for as long as it is not stopped, as a container
// that shares a volume would.
func swapper(t testing.TB, a, b string) (stop func()) {
	t.Helper()
	if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
			}
		}
	})
	return func() { close(done); swapping.Wait() }
}

// TestCVE2019_19921: /proc of the image is a link into a volume, so that the
// masks of procfs, and writes to /proc/self/attr, land in files of the attacker.
// Fails when the look-up without links (openPlain) is taken out of
// assembly.target.
func TestCVE2019_19921(t *testing.T) {
	for _, at := range []string{"proc", "sys"} {
		f := newFixture(t, "report")
		f.volume()
		f.link("/vol", filepath.Join(f.lower, at))
		if err := f.try(); err == nil || !strings.Contains(err.Error(), "at /"+at+": a link leads there") {
			t.Errorf("create with /%s as a link: %v", at, err)
		}
	}
}

// TestCVE2021_30465: the place of a mount lies in a volume, and another
// container exchanges it for a link to the host while it is mounted on. Fails
// when RESOLVE_IN_ROOT is taken out of safepath.Open, or when assembly.attach mounts
// by the place's name instead of its descriptor.
func TestCVE2021_30465(t *testing.T) {
	f := newFixture(t, "report")
	out := newOutside(t)
	vol := f.volume()
	f.mount(specs.Mount{Destination: "/vol/place", Type: "tmpfs", Options: []string{"size=4k"}})
	if err := os.Mkdir(filepath.Join(vol, "place"), 0o755); err != nil {
		t.Fatal(err)
	}
	f.link(out.dir, filepath.Join(vol, "link"))
	stop := swapper(t, filepath.Join(vol, "place"), filepath.Join(vol, "link"))
	defer stop()
	for range 20 {
		_ = f.try() // an error is an answer to this, too
		out.untouched()
	}

	t.Run("exchanged after the look-up", testExchangedTarget)
}

// testExchangedTarget does at one moment what the race above does at any.
func testExchangedTarget(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"place", "other"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := cloneHostPath(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	a := assembly{spec: &specs.Spec{}, root: root, devpts: -1}
	defer a.close()
	s := &source{spec: &specs.Mount{Destination: "/place", Type: "tmpfs"}, child: -1}
	if err := a.open(s); err != nil {
		t.Fatal(err)
	}
	target, err := a.target(s)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(target)
	from, to := filepath.Join(dir, "place"), filepath.Join(dir, "other")
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
	if err := a.attach(s.fd, target); err != nil {
		t.Fatal(err)
	}
	var st unix.Statx_t
	for name, want := range map[string]bool{"other": true, "place": false} {
		if err := unix.Statx(a.root, name, unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &st); err != nil {
			t.Fatal(err)
		}
		if mounted := st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0; mounted != want {
			t.Errorf("%s is a mount: %v, want %v", name, mounted, want)
		}
	}
}

// TestCVE2022_29162: processes started with inheritable capabilities, which a
// file with such capabilities turns into permitted ones for a user who should
// have none. Fails when finish gives capset anything but the spec's inheritable
// set, such as the permitted one.
func TestCVE2022_29162(t *testing.T) {
	needRoot(t)
	// The shim itself may have some; capabilities are a thread's, and the child
	// is cloned from this one. It ends with the goroutine.
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[0].Inheritable = data[0].Permitted & (1<<unix.CAP_CHOWN | 1<<unix.CAP_NET_RAW)
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, "wait")
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Init().Pid()))
	if err != nil || !strings.Contains(string(first), "CapInh:\t0000000000000000\n") {
		t.Errorf("inheritable capabilities in the container: %v\n%s", err, first)
	}
	if inh := decode(t, f.exec(c, "report")).Status["CapInh"]; inh != "0000000000000000" {
		t.Errorf("inheritable capabilities %s in an exec", inh)
	}
}

// TestCVE2023_27561: CVE-2019-19921 again, by a link on the way to /proc, or by
// another spelling of its name. Fails when RESOLVE_NO_SYMLINKS is taken out of
// openPlain.
func TestCVE2023_27561(t *testing.T) {
	for _, tt := range []struct{ link, at string }{
		{"proc", "//proc"}, {"proc", "/proc/"}, {"proc", "/./proc"}, {"proc", "/tmp/../proc"},
		{"deep", "/deep/proc"}, {"proc", "/proc/."},
	} {
		f := newFixture(t, "report")
		vol := f.volume()
		if err := os.MkdirAll(filepath.Join(vol, "proc", "self"), 0o755); err != nil {
			t.Fatal(err)
		}
		f.link("vol", filepath.Join(f.lower, tt.link))
		f.dropMount("/proc")
		f.mount(specs.Mount{Destination: tt.at, Type: "proc", Source: "proc"})
		if err := f.try(); err == nil || !strings.Contains(err.Error(), "mount proc at "+tt.at) {
			t.Errorf("create with procfs at %s, where %s is a link: %v", tt.at, tt.link, err)
		}
	}
}

// TestCVE2023_28642: something of the attacker's is mounted at /proc, so that
// the security label is written to a file there and the process runs without
// one. Fails when labels writes below the container's /proc, and not below the
// private procfs: on a kernel without these security modules the write must
// come out as an error, not as a success.
func TestCVE2023_28642(t *testing.T) {
	if enabled, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); strings.HasPrefix(string(enabled), "Y") {
		t.Skip("with AppArmor in the kernel the write is no error")
	}
	for _, label := range []string{"AppArmor", "SELinux"} {
		if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil && label == "SELinux" {
			continue // nor here: see TestSELinuxPassesAFakeProc
		}
		f := newFixture(t, "report")
		f.fakeProc()
		if label == "AppArmor" {
			f.spec.Process.ApparmorProfile = "confined"
		} else {
			f.spec.Process.SelinuxLabel = "system_u:system_r:container_t:s0"
		}
		if err := f.try(); err == nil || !strings.Contains(err.Error(), label) {
			t.Errorf("create with a label where the kernel has none: %v", err)
		}
	}
}

// fakeProc mounts a directory with the files of security labels at /proc.
func (f *fixture) fakeProc() {
	f.t.Helper()
	fake := f.t.TempDir()
	for _, file := range []string{"self/attr/exec", "thread-self/attr/exec", "thread-self/attr/keycreate", "thread-self/attr/apparmor/exec"} {
		path := filepath.Join(fake, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			f.t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o666); err != nil {
			f.t.Fatal(err)
		}
	}
	f.dropMount("/proc")
	f.spec.Linux.MaskedPaths, f.spec.Linux.ReadonlyPaths = nil, nil
	f.mount(specs.Mount{Destination: "/proc", Type: "bind", Source: fake, Options: []string{"rbind"}})
}

// TestCVE2024_21626: a working directory that leads out, by a descriptor that
// the child still has, or by a magic link of a process that is not in the
// container. Fails when closeOthers closes nothing, and, where the container
// sees the host's processes, without opRooted at the getcwd in finish.
func TestCVE2024_21626(t *testing.T) {
	f := newFixture(t, "wait")
	dir, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for fd := 3; fd < 64; fd++ {
		for _, cwd := range []string{fmt.Sprintf("/proc/self/fd/%d", fd), fmt.Sprintf("/proc/self/fd/%d/..", fd)} {
			p := *f.spec.Process
			p.Args, p.Cwd = []string{"/probe", "report"}, cwd
			if proc, err := c.Exec(&p, Stdio{}); err == nil {
				proc.Wait()
				t.Fatalf("exec in %s worked", cwd)
			}
		}
	}
	f.spec.Process.Cwd = fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	if err := f.try(); err == nil {
		t.Errorf("create in %s worked", f.spec.Process.Cwd)
	}

	g := newFixture(t, "report")
	g.without(specs.PIDNamespace)
	g.spec.Process.Cwd = fmt.Sprintf("/proc/%d/cwd", os.Getpid())
	if err := g.try(); err == nil || !strings.Contains(err.Error(), "check that the working directory is inside") {
		t.Errorf("create in the directory of a process of the host: %v", err)
	}
}

// TestCVE2024_45310: directories and files for mounts are made on the host, by
// exchanging a directory of a shared volume for a link during the look-up.
// Fails when RESOLVE_IN_ROOT is taken out of safepath.Open.
func TestCVE2024_45310(t *testing.T) {
	f := newFixture(t, "report")
	out := newOutside(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	vol := f.volume()
	f.mount(specs.Mount{Destination: "/vol/place/new/dir", Type: "tmpfs", Options: []string{"size=4k"}})
	f.mount(specs.Mount{Destination: "/vol/place/new/file", Source: file, Options: []string{"bind"}})
	if err := os.Mkdir(filepath.Join(vol, "place"), 0o755); err != nil {
		t.Fatal(err)
	}
	f.link(out.dir, filepath.Join(vol, "link"))
	stop := swapper(t, filepath.Join(vol, "place"), filepath.Join(vol, "link"))
	defer stop()
	for range 20 {
		_ = f.try() // an error is an answer to this, too
		out.untouched()
		os.RemoveAll(filepath.Join(vol, "place", "new"))
	}
}

// TestCVE2025_31133: /dev/null of the container is a link when masks are made
// of it, so that what the link names is bound over, and is writable. Fails when
// hide takes the null device from the container's root instead of openNull.
func TestCVE2025_31133(t *testing.T) {
	f := newFixture(t, "wait")
	f.write("secret", "secret\n", 0o644)
	f.write("target", "target\n", 0o644)
	dev := t.TempDir()
	f.link("/target", filepath.Join(dev, "null"))
	f.dropMount("/dev")
	f.mount(specs.Mount{Destination: "/dev", Source: dev, Options: []string{"rbind"}})
	f.spec.Linux.MaskedPaths = append(f.spec.Linux.MaskedPaths, "/secret")
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	stat := f.exec(c, "stat", "/secret", "/proc/keys", "/target")
	for _, want := range []string{"/secret mode=20666 dev=1:3", "/proc/keys mode=20666 dev=1:3", "/target mode=100644"} {
		if !strings.Contains(stat, want) {
			t.Errorf("no %q in\n%s", want, stat)
		}
	}
}

// TestCVE2025_52565: the terminal is bound at /dev/console by way of names,
// /dev/pts/N and /dev/console, which the container's mounts can make links of.
// Fails when bindConsole opens the place with its links followed, or takes the
// terminal from /dev/pts by name instead of by openConsole's descriptor.
func TestCVE2025_52565(t *testing.T) {
	f := newFixture(t, "tty")
	f.write("target", "target\n", 0o644)
	dev, pts := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(dev, "pts"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"null", "tty", "ptmx"} {
		if err := os.WriteFile(filepath.Join(dev, n), nil, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	f.link("/target", filepath.Join(dev, "console"))
	f.link("/target", filepath.Join(pts, "0"))
	f.dropMount("/dev")
	f.mount(specs.Mount{Destination: "/dev", Source: dev, Options: []string{"rbind"}})
	f.mount(specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}})
	f.mount(specs.Mount{Destination: "/dev/pts", Source: pts, Options: []string{"rbind"}})
	f.spec.Process.Terminal = true
	f.spec.Process.Args = []string{"/probe", "stat", "/dev/console", "/target"}
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(c.Init().Console()) // ends with EIO when the last peer is closed
	text := string(out)
	if !strings.Contains(text, "/dev/console mode=20") || !strings.Contains(text, "dev=136:0") {
		t.Errorf("console: %s", text)
	}
	if !strings.Contains(text, "/target mode=100644") {
		t.Errorf("what the links name: %s", text)
	}
}

// TestCVE2025_52881: a write to procfs is redirected, by something mounted in it
// or by a link, to a harmless file, so that a label is never set, or to a
// dangerous one such as sysrq-trigger. Fails when RESOLVE_NO_XDEV,
// RESOLVE_NO_MAGICLINKS or RESOLVE_BENEATH is taken out of builder.writeFile.
func TestCVE2025_52881(t *testing.T) {
	needRoot(t)
	fake := t.TempDir()
	victim := filepath.Join(fake, "ip_forward")
	if err := os.WriteFile(victim, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	procfs, at := attachedProcfs(t)
	if err := unix.Mount(fake, filepath.Join(at, "sys/net/ipv4"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(victim, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, tt := range []struct {
		path string
		want string
	}{
		{"sys/net/ipv4/ip_forward", "invalid cross-device link"},
		{fmt.Sprintf("%d/fd/%d", os.Getpid(), file.Fd()), "too many levels of symbolic links"},
		{fmt.Sprintf("%d/root%s", os.Getpid(), victim), "too many levels of symbolic links"},
		{"../" + filepath.Base(fake) + "/ip_forward", "invalid cross-device link"},
		{victim, "invalid cross-device link"},
	} {
		l := inChild(t, false, func(b *builder) {
			b.writeFile(opName{"write", tt.path}, uintptr(procfs), tt.path, "redirected")
		})
		if _, err := l.await(0); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("write to %s: %v, want %q", tt.path, err, tt.want)
		}
	}
	if data, err := os.ReadFile(victim); err != nil || len(data) > 0 {
		t.Errorf("written: %q, %v", data, err)
	}
}

// attachedProcfs mounts a procfs where more can be mounted into it.
func attachedProcfs(t *testing.T) (fd int, at string) {
	t.Helper()
	at = t.TempDir()
	if err := unix.Mount("proc", at, "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	fd, err := unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd, at
}

// TestCVE2026_41579: /dev of the image is a link to the host, where ptmx is
// deleted and the links of /dev are made. Fails when assembly.devices opens
// /dev by openat(2), or when RESOLVE_IN_ROOT is taken out of safepath.Open.
func TestCVE2026_41579(t *testing.T) {
	for _, way := range []string{"absolute", "relative"} {
		t.Run(way, func(t *testing.T) {
			f := newFixture(t, "report")
			out := newOutside(t)
			to := out.dir
			if way == "relative" {
				to = strings.Repeat("../", 40) + out.dir[1:]
			}
			f.link(to, filepath.Join(f.lower, "dev"))
			f.dropMount("/dev")
			_ = f.try() // the link leads nowhere inside, which is an error
			out.untouched()
			// The same place exists inside: there is where the links go.
			if err := os.MkdirAll(filepath.Join(f.lower, out.dir), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := f.try(); err != nil {
				t.Error(err)
			}
			out.untouched()
		})
	}
}

// TestCVE2026_55686: the working directory of an image lies behind a link, and
// is made on the host. Fails when RESOLVE_IN_ROOT is taken out of
// safepath.Open.
func TestCVE2026_55686(t *testing.T) {
	f := newFixture(t, "report")
	out := newOutside(t)
	f.link(out.dir, filepath.Join(f.lower, "work"))
	f.spec.Process.Cwd = "/work/made/here"
	_ = f.try()
	out.untouched()
}
