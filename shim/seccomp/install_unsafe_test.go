package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// childProfile carries the profile to the child of [TestKernelTakesFilters].
const childProfile = "LONGSHORE_TEST_SECCOMP"

func TestMain(m *testing.M) {
	if p := os.Getenv(childProfile); p != "" {
		child(p)
	}
	os.Exit(m.Run())
}

// child puts itself under the profile and prints what some calls answer.
func child(profile string) {
	runtime.LockOSThread() // no_new_privs is a property of the thread
	fail := func(err error) {
		if err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
	}
	var p specs.LinuxSeccomp
	fail(json.Unmarshal([]byte(profile), &p))
	f, err := Compile(&p)
	fail(err)
	fail(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	prog := unix.SockFprog{Len: uint16(len(f.Program)), Filter: unsafe.SliceData(f.Program)}
	// The Go runtime has threads already.
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		uintptr(f.Flags|unix.SECCOMP_FILTER_FLAG_TSYNC), uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		fail(errno)
	}
	answers := map[string]string{}
	ask := func(name string, number uintptr, args ...uintptr) {
		var a [3]uintptr
		copy(a[:], args)
		_, _, errno := unix.Syscall(number, a[0], a[1], a[2])
		answers[name] = ""
		if errno != 0 {
			answers[name] = unix.ErrnoName(errno)
		}
	}
	ask("getpid", unix.SYS_GETPID)
	ask("mount", unix.SYS_MOUNT)
	ask("kexec_load", unix.SYS_KEXEC_LOAD)
	ask("newer", 100000)
	ask("personality 0xffffffff", unix.SYS_PERSONALITY, 0xffffffff)
	ask("personality 1", unix.SYS_PERSONALITY, 1)
	ask("unshare user", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	ask("socket vsock", unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM)
	ask("socket unix", unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM)
	ask("clone3", unix.SYS_CLONE3)
	fail(json.NewEncoder(os.Stdout).Encode(answers))
	os.Exit(0)
}

func ask(t *testing.T, p *specs.LinuxSeccomp) map[string]string {
	t.Helper()
	profile, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childProfile+"="+string(profile))
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &errs)
	}
	answers := map[string]string{}
	if err := json.Unmarshal(out, &answers); err != nil {
		t.Fatal(err)
	}
	return answers
}

// defaultProfile is the profile Docker and Kubernetes give a container.
func defaultProfile(t testing.TB) *specs.LinuxSeccomp {
	t.Helper()
	p, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestKernelTakesFilters needs no privilege: no_new_privs is enough.
func TestKernelTakesFilters(t *testing.T) {
	got := ask(t, defaultProfile(t))
	for name, want := range map[string]string{
		"getpid": "", "mount": "EPERM", "kexec_load": "EPERM", "newer": "ENOSYS",
		"personality 0xffffffff": "", "personality 1": "EPERM", "unshare user": "EPERM", "socket vsock": "EPERM",
		"socket unix": "", "clone3": "ENOSYS",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
	got = ask(t, &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"getpid"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(unix.EXDEV))}}})
	if got["getpid"] != "EXDEV" || got["socket unix"] != "" {
		t.Errorf("a profile that denies one call: %v", got)
	}
}

func TestDefaultProfileIsATree(t *testing.T) {
	p := defaultProfile(t)
	f, err := compile(p, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	deepest := 0
	for number := range uint32(500) {
		if n := steps(f.Program, number); n > deepest {
			deepest = n
		}
	}
	t.Logf("%d instructions, at most %d steps to a verdict without conditions", len(f.Program), deepest)
	if deepest > 24 {
		t.Errorf("a verdict takes %d steps", deepest)
	}
	// The kernel translates the program at each start of a process.
	returns := 0
	for _, i := range f.Program {
		if i.Code == opReturn {
			returns++
		}
	}
	if returns > len(f.Program)/6 { // an architecture's own profile may be short
		t.Errorf("%d of %d instructions are returns", returns, len(f.Program))
	}
}

// steps counts the instructions until the first argument is loaded or a verdict
// is reached.
func steps(p program, number uint32) int {
	acc, n := uint32(unix.AUDIT_ARCH_X86_64), 0
	for pc := 0; ; pc++ {
		n++
		i := p[pc]
		holds := false
		switch i.Code {
		case opLoad:
			if i.K >= offsetArgs {
				return n
			}
			if i.K == offsetNumber {
				acc = number
			}
			continue
		case opJump:
			pc += int(i.K)
			continue
		case opReturn:
			return n
		case opEqual:
			holds = acc == i.K
		case opGreater:
			holds = acc > i.K
		case opGreaterEqual:
			holds = acc >= i.K
		}
		if holds {
			pc += int(i.Jt)
		} else {
			pc += int(i.Jf)
		}
	}
}

// FuzzProfileJSON feeds whole documents, as a client's localhost profile is.
func FuzzProfileJSON(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_GT"}]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var p specs.LinuxSeccomp
		if json.Unmarshal(data, &p) != nil {
			return
		}
		filter, err := compile(&p, "amd64")
		if filter == nil {
			if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, ErrTooLarge) || err != nil && strings.ContainsRune(err.Error(), 0) {
				t.Errorf("error %q", err)
			}
			return
		}
		for _, number := range []uint32{0, 1, 400, x32Bit, ^uint32(0)} {
			run(t, filter.Program, call{number: number, arch: unix.AUDIT_ARCH_X86_64})
		}
	})
}

func BenchmarkCompileDefaultProfile(b *testing.B) {
	p := defaultProfile(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
