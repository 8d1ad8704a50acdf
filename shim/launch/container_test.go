package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func ownNS(t *testing.T, kind string) string {
	t.Helper()
	ns, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func checkDefaults(t *testing.T, r report) {
	t.Helper()
	if r.Pid != 1 || r.Hostname != "inside" || r.Cwd != "/" || r.Exe != "/probe" {
		t.Errorf("pid %d, host name %q, directory %q, program %q", r.Pid, r.Hostname, r.Cwd, r.Exe)
	}
	for _, kind := range []string{"pid", "net", "ipc", "uts", "mnt", "cgroup"} {
		if r.NS[kind] == ownNS(t, kind) {
			t.Errorf("shares the %s namespace with the host", kind)
		}
	}
	for key, want := range map[string]string{
		"CapEff": "00000000a80425fb", "CapPrm": "00000000a80425fb", "CapBnd": "00000000a80425fb",
		"CapInh": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1",
		"SigBlk": "0000000000000000", "SigIgn": "0000000000000000",
	} {
		if r.Status[key] != want {
			t.Errorf("%s is %s, want %s", key, r.Status[key], want)
		}
	}
	if got := r.Limits["Max open files"]; got != "512 512 files" {
		t.Errorf("RLIMIT_NOFILE is %q", got)
	}
	checkNoLeaks(t, r)
	if len(r.Nonblocking) > 0 {
		t.Errorf("streams %v are nonblocking", r.Nonblocking)
	}
	if r.Umask != 0o022 {
		t.Errorf("umask %o", r.Umask)
	}
	for line := range strings.SplitSeq(r.Cgroup, "\n") {
		if line != "" && !strings.HasSuffix(line, ":/") {
			t.Errorf("sees cgroup %q, not the root of its namespace", line)
		}
	}
	for _, m := range r.Mounts {
		if strings.Contains(m, " ext4 ") || strings.Contains(m, " shared:") || strings.Contains(m, " master:") {
			t.Errorf("sees mount %q", m)
		}
	}
}

// checkNoLeaks: nothing is open but the streams, and what Go's runtime opens.
func checkNoLeaks(t *testing.T, r report) {
	t.Helper()
	for fd, to := range r.FDs {
		if fd > "2" && !strings.HasPrefix(to, "/sys/fs/cgroup/cpu") && !strings.HasPrefix(to, "/proc/") {
			t.Errorf("descriptor %s is open: %s", fd, to)
		}
	}
}

// TestContainerSeesItsOwnWorld runs the same container in each way of making one.
func TestContainerSeesItsOwnWorld(t *testing.T) {
	for _, way := range []struct {
		name     string
		set      func()
		template bool
	}{
		{"host mounts copied", func() {}, false},
		{"template", func() {}, true},
		{"no mounts onto detached trees", func() { kernel.noDetachedTargets, kernel.noWorkshop = true, false }, false},
		{"no CLONE_INTO_CGROUP", func() { kernel.noIntoCgroup = true }, true},
		{"no overlay layers by descriptor", func() { kernel.noOverlayFD, kernel.noDetachedTargets, kernel.noWorkshop = true, true, false }, false},
	} {
		t.Run(way.name, func(t *testing.T) {
			f := newFixture(t, "report")
			old := kernel
			defer func() { kernel = old }()
			way.set()
			if way.template {
				f.cfg.Template = filepath.Join(t.TempDir(), "template")
				if err := PinTemplate(f.cfg.Template); err != nil {
					t.Fatal(err)
				}
				defer RemoveTemplate(f.cfg.Template)
			}
			f.spec.Mounts = append(f.spec.Mounts,
				specs.Mount{Destination: "/frozen", Type: "tmpfs", Options: []string{"ro"}},
				specs.Mount{Destination: "/frozen/volume", Type: "tmpfs"})
			out, status := f.run()
			if status != 0 {
				t.Errorf("status %#x", status)
			}
			r := decode(t, out)
			checkDefaults(t, r)
			for at, want := range map[string]string{"/frozen": " ro,", "/frozen/volume": " rw,", "/sys": " ro,", "/proc/keys": " /null ", "/proc/sys": " ro,"} {
				if line := mountOf(r, at); !strings.Contains(line, want) {
					t.Errorf("mount at %s is %q, want %q", at, line, want)
				}
			}
		})
	}
}

func TestStatusIsReported(t *testing.T) {
	f := newFixture(t, "exit", "7")
	if _, status := f.run(); !status.Exited() || status.ExitStatus() != 7 {
		t.Errorf("status %#x, want exit 7", status)
	}
}

// TestVolatileRootIsMountedAgain: a container started again has the same layer.
func TestVolatileRootIsMountedAgain(t *testing.T) {
	f := newFixture(t, "write", "/tmp/kept")
	f.run()
	f.cfg.ID += "-again"
	f.spec.Linux.CgroupsPath += "-again"
	f.spec.Process.Args = []string{"/probe", "read", "/tmp/kept"}
	if out, _ := f.run(); !strings.Contains(out, `2 "x\n"`) {
		t.Errorf("reads %s", out)
	}
}

func TestWaitReportsSignal(t *testing.T) {
	f := newFixture(t, "pause")
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Init().Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	status, err := c.Init().Wait()
	if err != nil || !status.Signaled() || status.Signal() != unix.SIGKILL {
		t.Errorf("status %#x, %v", status, err)
	}
	if !c.init.exited() {
		t.Error("looks alive")
	}
	if err := c.Init().Signal(0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("signal after the end: %v", err)
	}
	if _, err := c.Exec(c.spec.Process, Stdio{}); !errors.Is(err, unix.ESRCH) {
		t.Errorf("exec after the end: %v", err)
	}
}

func TestStartNamesMissingCommand(t *testing.T) {
	for _, tt := range []struct {
		name, command string
		mode          os.FileMode
		want          unix.Errno
		text          string
	}{
		{"in PATH", "nothing", 0, unix.ENOENT, `exec "nothing": executable file not found in $PATH`},
		{"by path", "/no/such", 0, unix.ENOENT, `exec "/no/such": no such file`},
		{"not executable", "/etc/passwd", 0, unix.EACCES, `exec "/etc/passwd": permission denied`},
		{"not executable in PATH", "plain", 0o644, unix.EACCES, `exec "plain": permission denied`},
		{"no format", "odd", 0o755, unix.ENOEXEC, `exec "odd": exec format error`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			if tt.mode != 0 {
				f.write("bin/"+tt.command, "no program", tt.mode)
			}
			f.spec.Process.Args = []string{tt.command}
			c := f.create()
			err := c.Start()
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("start: %v", err)
			}
		})
	}
}

func TestExec(t *testing.T) {
	for _, way := range []struct {
		name string
		set  func(f *fixture)
	}{
		{"shared memory", func(*fixture) {}},
		{"memory of its own", func(*fixture) { kernel.noSharedMemory = true }},
		{"container may trace", func(f *fixture) {
			caps := f.spec.Process.Capabilities
			caps.Bounding = append([]string{"CAP_SYS_PTRACE"}, caps.Bounding...)
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			f := newFixture(t, "wait")
			old := kernel
			defer func() { kernel = old }()
			way.set(f)
			c := f.create()
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			r := decode(t, f.exec(c, "report"))
			if r.Pid == 1 || r.PPid != 0 || r.Hostname != "inside" {
				t.Errorf("pid %d of %d on %q", r.Pid, r.PPid, r.Hostname)
			}
			if r.Status["CapEff"] != "00000000a80425fb" || r.Limits["Max open files"] != "512 512 files" {
				t.Errorf("capabilities %s, files %s", r.Status["CapEff"], r.Limits["Max open files"])
			}
			checkNoLeaks(t, r)
			for _, kind := range []string{"pid", "net", "ipc", "uts", "mnt", "cgroup"} {
				inner, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c.Init().Pid(), kind))
				if err != nil || r.NS[kind] != inner {
					t.Errorf("%s namespace %s, want %s, %v", kind, r.NS[kind], inner, err)
				}
			}
			for line := range strings.SplitSeq(r.Cgroup, "\n") {
				if line != "" && !strings.HasSuffix(line, ":/") {
					t.Errorf("is in cgroup %q", line)
				}
			}
		})
	}
}

// exec runs a probe in the container and gives its output.
func (f *fixture) exec(c *Container, args ...string) string {
	f.t.Helper()
	p := *f.spec.Process
	p.Args = append([]string{"/probe"}, args...)
	r, w, err := os.Pipe()
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Close()
	proc, err := c.Exec(&p, Stdio{Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		f.t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		f.t.Fatal(err)
	}
	if status, err := proc.Wait(); err != nil || status != 0 {
		f.t.Errorf("exec: status %#x, %v", status, err)
	}
	return string(out)
}

func TestExecNamesMissingCommand(t *testing.T) {
	f := newFixture(t, "wait")
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	p := *f.spec.Process
	p.Args = []string{"nothing"}
	if _, err := c.Exec(&p, Stdio{}); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), `"nothing"`) {
		t.Errorf("exec: %v", err)
	}
	p.Args, p.Cwd = []string{"/probe"}, "/missing"
	if _, err := c.Exec(&p, Stdio{}); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "/missing") {
		t.Errorf("exec: %v", err)
	}
}

func TestTerminal(t *testing.T) {
	t.Run("detached", func(t *testing.T) { testTerminal(t, newFixture(t, "tty")) })
	t.Run("attached", func(t *testing.T) {
		f := newFixture(t, "tty")
		old := kernel
		defer func() { kernel = old }()
		kernel.noDetachedTargets, kernel.noWorkshop = true, false
		testTerminal(t, f)
	})
	t.Run("user namespace", func(t *testing.T) {
		f := newFixture(t, "tty")
		f.userNS("")
		testTerminal(t, f)
	})
}

func testTerminal(t *testing.T, f *fixture) {
	f.spec.Process.Terminal = true
	f.spec.Process.ConsoleSize = &specs.Box{Height: 33, Width: 77}
	c := f.create()
	console := c.Init().Console()
	if console == nil {
		t.Fatal("no console")
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(console) // ends with EIO when the last peer is closed
	if want := "&{33 77 0 0} <nil> true true <nil> <nil> /dev/pts/0 <nil> <nil>"; !strings.Contains(string(out), want) {
		t.Errorf("terminal: %q, want %q", out, want)
	}
}

func TestExecTerminal(t *testing.T) {
	f := newFixture(t, "wait")
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	p := *f.spec.Process
	p.Args, p.Terminal = []string{"/probe", "tty"}, true
	p.ConsoleSize = &specs.Box{Height: 5, Width: 6}
	proc, err := c.Exec(&p, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(proc.Console())
	if !strings.Contains(string(out), "&{5 6 0 0} <nil> true true <nil>") {
		t.Errorf("terminal: %q", out)
	}
	proc.Wait()
	proc.Console().Close()
}

// TestCloseEndsUnstartedContainer: no process, cgroup or descriptor is left.
func TestCloseEndsUnstartedContainer(t *testing.T) {
	f := newFixture(t, "pause")
	before := openFDs(t)
	io := f.pipes()
	f.cfg.Stdio = io
	c, err := Create(f.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	io.closeAll()
	f.in.Close()
	f.out.Close()
	if err := unix.Kill(c.Init().Pid(), 0); err != unix.ESRCH {
		t.Errorf("process is left: %v", err)
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory" + f.spec.Linux.CgroupsPath); err == nil {
		t.Error("cgroup is left")
	}
	if after := openFDs(t); len(after) > len(before) {
		t.Errorf("descriptors before %v, after %v", before, after)
	}
}

func openFDs(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var fds []string
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(to, "/proc/") {
			fds = append(fds, e.Name()+" "+to)
		}
	}
	return fds
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestExecAfterEndBeforeWait: the pid namespace is dead and nobody reaped its
// first process.
func TestExecAfterEndBeforeWait(t *testing.T) {
	f := newFixture(t, "exit", "0")
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	readAll(t, f.out)
	for !c.init.exited() {
		fds := []unix.PollFd{{Fd: int32(c.init.pidfd.Fd()), Events: unix.POLLIN}}
		unix.Poll(fds, -1)
	}
	if _, err := c.Exec(c.spec.Process, Stdio{}); !errors.Is(err, unix.ESRCH) {
		t.Errorf("exec: %v", err)
	}
}
