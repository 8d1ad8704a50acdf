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
// itself, and whether the mount namespace is its own, and ends it.
func seize() {
	runtime.LockOSThread()
	ownMounts, _ := os.Readlink("/proc/self/ns/mnt")
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
			mounts, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
			more := capsOf(strconv.Itoa(pid)) &^ ownCaps
			if mounts != "" { // it lives
				fmt.Printf("seized: more capabilities %#x, own mounts %v\n", more, mounts == ownMounts)
			}
			// Its parent may reap it only when its tracer has.
			unix.Kill(pid, unix.SIGKILL)
			for status := unix.WaitStatus(0x7f); status.Stopped(); {
				if _, err := wait4(pid, &status, 0); err != nil {
					break
				}
			}
			next = pid
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

func capsOf(pid string) uint64 {
	status, _ := os.ReadFile("/proc/" + pid + "/status")
	_, after, _ := strings.Cut(string(status), "CapPrm:\t")
	caps, _ := strconv.ParseUint(strings.SplitN(after, "\n", 2)[0], 16, 64)
	return caps
}

// mayTrace gives the container's processes CAP_SYS_PTRACE.
func (f *fixture) mayTrace() {
	caps := append([]string{"CAP_SYS_PTRACE"}, defaultCaps...)
	f.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

// tally reads what a seizer has printed.
type tally struct{ seized, wrong int }

func (n *tally) read(t *testing.T, lines *bufio.Scanner) {
	for lines.Scan() {
		n.seized++
		if lines.Text() != "seized: more capabilities 0x0, own mounts true" {
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
			f := newFixture(t, "seize")
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
			if n.read(t, lines); n.seized == 0 || n.wrong > 0 {
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
