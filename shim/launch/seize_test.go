package launch

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// seize is a program that traces whatever appears in its pid namespace, as soon
// as it appears, prints what it has got, which are the capabilities that it lacks
// itself, and whether the mount namespace is the host's, and ends it.
func seize(hostMounts string) {
	runtime.LockOSThread()
	ownCaps := capsOf("self")
	next, _ := strconv.Atoi(lastPid())
	fmt.Println("ready")
	go func() { // the tests' end of file
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		for pid := next + 1; pid < next+4; pid++ {
			if unix.PtraceSeize(pid) != nil {
				continue
			}
			next = pid
			_ = unix.PtraceInterrupt(pid)
			status := unix.WaitStatus(0)
			if _, err := wait4(pid, &status, 0); err != nil || !status.Stopped() {
				continue // it has ended
			}
			mounts, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
			more := capsOf(strconv.Itoa(pid)) &^ ownCaps
			// That of newProcfs, whose filter allows nothing that a tracer could use.
			root, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid))
			helper := err == nil && len(root) == 0 && more&^(1<<unix.CAP_SYS_ADMIN) == 0 && statusOf(strconv.Itoa(pid), "Seccomp") == "2"
			switch {
			case !strings.HasPrefix(statusOf(strconv.Itoa(pid), "State"), "t"): // its parent has ended it while we looked
			case helper:
				fmt.Println("seized: a helper")
			default:
				fmt.Printf("seized: more capabilities %#x, host's mounts %v\n", more, mounts == hostMounts)
			}
			// Its parent may reap it only when its tracer has.
			unix.Kill(pid, unix.SIGKILL)
			for status.Stopped() {
				if _, err := wait4(pid, &status, 0); err != nil {
					break
				}
			}
		}
		if last, err := strconv.Atoi(lastPid()); err == nil && last > next+4 {
			next = last
		}
	}
}

func lastPid() string {
	load, _ := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(load))
	return fields[len(fields)-1]
}

func statusOf(pid, field string) string {
	status, _ := os.ReadFile("/proc/" + pid + "/status")
	_, after, _ := strings.Cut(string(status), "\n"+field+":\t")
	value, _, _ := strings.Cut(after, "\n")
	return value
}

func capsOf(pid string) uint64 {
	caps, _ := strconv.ParseUint(statusOf(pid, "CapPrm"), 16, 64)
	return caps
}

// mayTrace gives the container's processes CAP_SYS_PTRACE.
func (f *fixture) mayTrace() {
	caps := append([]string{"CAP_SYS_PTRACE"}, defaultCaps...)
	f.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

// tally reads what a seizer has printed.
type tally struct{ seized, helpers, wrong int }

func (n *tally) read(t *testing.T, lines *bufio.Scanner) {
	for lines.Scan() {
		n.seized++
		if lines.Text() == "seized: a helper" {
			n.helpers++
		} else if lines.Text() != "seized: more capabilities 0x0, host's mounts false" {
			if n.wrong++; n.wrong == 1 {
				t.Error(lines.Text())
			}
		}
	}
}

// TestTracerGainsNothing: a process with CAP_SYS_PTRACE that seizes what is run
// in its container finds nothing that it has not got itself. Fails when
// execution.clone takes the child to be born at once.
func TestTracerGainsNothing(t *testing.T) {
	if testing.Short() {
		return // no older kernel makes a difference
	}
	caps := defaultCaps
	for _, tt := range []struct {
		name string
		set  func(p *specs.Process, s *specs.Spec)
	}{
		{"no_new_privs", func(*specs.Process, *specs.Spec) {}},
		{"no filter", func(p *specs.Process, s *specs.Spec) { s.Linux.Seccomp = nil }},
		{"new privileges", func(p *specs.Process, _ *specs.Spec) { p.NoNewPrivileges = false }},
		{"user", func(p *specs.Process, _ *specs.Spec) { p.NoNewPrivileges, p.User.UID = false, 1000 }},
		{"terminal", func(p *specs.Process, _ *specs.Spec) { p.NoNewPrivileges, p.Terminal = false, true }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, "seize", ownNS(t, "mnt"))
			f.mayTrace()
			f.spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
				{Names: []string{"clone3", "swapon"}, Action: specs.ActErrno},
			}}
			p := *f.spec.Process
			p.Args, p.Capabilities = []string{"/probe", "exit", "0"}, &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
			tt.set(&p, f.spec)
			c := f.create()
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(f.out)
			lines.Scan() // ready
			for range 100 {
				proc, err := c.Exec(&p, Stdio{})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := proc.Wait(); err != nil {
					t.Error(err)
				}
				if proc.Console() != nil {
					proc.Console().Close()
				}
			}
			f.in.Close()
			var n tally
			if n.read(t, lines); n.wrong > 0 {
				t.Errorf("seized %d processes, %d of them with more than a process of the container has", n.seized, n.wrong)
			}
		})
	}
}

// TestExecWhereTheFilterRefusesTheClone: such a process is born before its filter.
func TestExecWhereTheFilterRefusesTheClone(t *testing.T) {
	f := newFixture(t, "wait")
	f.mayTrace()
	f.spec.Process.NoNewPrivileges = false
	f.spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{
		Names: []string{"clone"}, Action: specs.ActErrno,
		Args: []specs.LinuxSeccompArg{{Value: unix.CLONE_PARENT, ValueTwo: unix.CLONE_PARENT, Op: specs.OpMaskedEqual}},
	}}}
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if r := decode(t, f.exec(c, "report")); r.Status["Seccomp"] != "2" || r.Status["CapPrm"] != r.Status["CapBnd"] {
		t.Errorf("seccomp %s, capabilities %s of %s", r.Status["Seccomp"], r.Status["CapPrm"], r.Status["CapBnd"])
	}
}

// TestTracerInThePodGainsNothing: nor does one that seizes a container being made
// in the pid namespace that both share. Fails when exposed is never set.
func TestTracerInThePodGainsNothing(t *testing.T) {
	if testing.Short() {
		return
	}
	for _, tt := range []struct {
		name string
		set  func(f *fixture)
	}{
		{"procfs", func(f *fixture) {
			f.mount(specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}})
		}},
		{"no_new_privs", func(*fixture) {}},
		{"new privileges", func(f *fixture) { f.spec.Process.NoNewPrivileges = false }},
		{"terminal", func(f *fixture) { f.spec.Process.Terminal = true }},
		{"time namespace", func(f *fixture) {
			f.spec.Linux.Namespaces = append(f.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		}},
		{"gate of a file", func(f *fixture) { f.cfg.Gate = f.t.TempDir() }},
		{"hooks", func(f *fixture) {
			f.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{f.hook("createRuntime")}, CreateContainer: []specs.Hook{f.hook("createContainer")}}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod, _ := newSandbox(t, SandboxConfig{NewPID: true})
			tracer := newFixture(t, "seize", ownNS(t, "mnt"))
			tracer.mayTrace()
			tracer.join(pod.Dir, "pid")
			if err := tracer.create().Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(tracer.out)
			lines.Scan() // ready
			for range 20 {
				f := newFixture(t, "exit", "0")
				f.join(pod.Dir, "pid")
				f.dropMount("/proc")
				f.spec.Linux.MaskedPaths, f.spec.Linux.ReadonlyPaths = nil, nil
				f.spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
					{Names: []string{"clone3", "swapon"}, Action: specs.ActErrno},
				}}
				tt.set(f)
				_ = f.try() // it is ended by the tracer
			}
			tracer.in.Close()
			var n tally
			if n.read(t, lines); n.wrong > 0 || n.helpers > 0 && tt.name != "procfs" {
				t.Errorf("seized %d processes, %d helpers, %d others with more than a process of the pod has", n.seized, n.helpers, n.wrong)
			}
		})
	}
}

// TestContainerInAPodsPidNamespace: one that is born late is as any other.
func TestContainerInAPodsPidNamespace(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(f *fixture)
	}{
		{"plain", func(*fixture) {}},
		{"eager", func(f *fixture) { f.cfg.Eager = true }},
		{"new privileges", func(f *fixture) {
			f.spec.Process.NoNewPrivileges = false
			f.spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
				{Names: []string{"clone3", "sendmsg", "recvmsg"}, Action: specs.ActErrno},
			}}
		}},
		{"gate of a file", func(f *fixture) { f.cfg.Gate = f.t.TempDir() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod, first := newSandbox(t, SandboxConfig{NewPID: true})
			f := newFixture(t, "report")
			f.join(pod.Dir, "pid")
			tt.set(f)
			born := 0
			f.cfg.Born = func(p *Process) error {
				born = p.Pid()
				return nil
			}
			c := f.create()
			if born != c.Init().Pid() {
				t.Errorf("told of process %d, the container's is %d", born, c.Init().Pid())
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			f.in.Close()
			r := decode(t, readAll(t, f.out))
			ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", first))
			if err != nil || r.NS["pid"] != ns || r.Pid < 2 || r.PPid != 0 {
				t.Errorf("process %d of %d in %s, the pod's is %s, %v", r.Pid, r.PPid, r.NS["pid"], ns, err)
			}
			if r.Status["Pid"] != fmt.Sprint(r.Pid) || !strings.Contains(mountOf(r, "/proc"), "nosuid,nodev,noexec") {
				t.Errorf("/proc/self is %s, mounted as %s", r.Status["Pid"], mountOf(r, "/proc"))
			}
			if mountOf(r, "/proc/keys") == "" || !strings.Contains(mountOf(r, "/proc/sys"), " ro,") {
				t.Error("procfs is not masked")
			}
			checkNoLeaks(t, r)
			if status, err := c.Init().Wait(); err != nil || status != 0 {
				t.Errorf("status %#x, %v", status, err)
			}
		})
	}
}
