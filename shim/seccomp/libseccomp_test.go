package seccomp

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// libseccomp is the program in testdata, which asks the real one.
type libseccomp struct {
	t   testing.TB
	in  io.WriteCloser
	out *bufio.Reader
}

// newLibseccomp builds and starts it. A machine without a C compiler or the
// library skips the test, but not where everything must be tried.
func newLibseccomp(t testing.TB) *libseccomp {
	t.Helper()
	program := filepath.Join(t.TempDir(), "libseccomp")
	build := exec.Command("gcc", "-O1", "-o", program, filepath.Join("testdata", "libseccomp.c"), "-lseccomp")
	if out, err := build.CombinedOutput(); err != nil {
		if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "root") {
			t.Fatalf("needs gcc and libseccomp-dev: %v\n%s", err, out)
		}
		t.Skipf("needs gcc and libseccomp-dev: %v", err)
	}
	cmd := exec.Command(program)
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	if inErr != nil || outErr != nil {
		t.Fatal(inErr, outErr)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error("libseccomp:", err)
		}
	})
	return &libseccomp{t, in, bufio.NewReader(out)}
}

func (l *libseccomp) number() uint32 {
	l.t.Helper()
	var n uint32
	if err := binary.Read(l.out, binary.LittleEndian, &n); err != nil {
		l.t.Fatal("libseccomp:", err)
	}
	return n
}

func (l *libseccomp) say(format string, args ...any) {
	l.t.Helper()
	if _, err := fmt.Fprintf(l.in, format, args...); err != nil {
		l.t.Fatal("libseccomp:", err)
	}
}

// knows says whether the library, which is older than our table, has a name.
func (l *libseccomp) knows(name string) bool {
	l.say("name %s ", name)
	return l.number() == 1
}

// archTokens are the library's: the audit architecture, but for x32.
var archTokens = map[specs.Arch]uint32{
	specs.ArchX86_64: unix.AUDIT_ARCH_X86_64, specs.ArchX86: unix.AUDIT_ARCH_I386, specs.ArchX32: unix.AUDIT_ARCH_X86_64 &^ 0x80000000,
	specs.ArchAARCH64: unix.AUDIT_ARCH_AARCH64, specs.ArchARM: unix.AUDIT_ARCH_ARM,
}

// operators are enum scmp_compare.
var operators = map[specs.LinuxSeccompOperator]int{
	specs.OpNotEqual: 1, specs.OpLessThan: 2, specs.OpLessEqual: 3, specs.OpEqualTo: 4, specs.OpGreaterEqual: 5, specs.OpGreaterThan: 6, specs.OpMaskedEqual: 7,
}

// compile gives the library's program for a profile, driven as runc drives it,
// or the errno with which it refuses one.
func (l *libseccomp) compile(p *specs.LinuxSeccomp, own specs.Arch) (program, unix.Errno) {
	l.t.Helper()
	fallback, err := actionOf(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		l.t.Fatal(err)
	}
	l.say("filter %d arch %d ", fallback, archTokens[own])
	for _, a := range p.Architectures {
		if token, ok := archTokens[a]; ok {
			l.say("arch %d ", token)
		}
	}
	for _, s := range p.Syscalls {
		act, err := actionOf(s.Action, s.ErrnoRet)
		if err != nil {
			l.t.Fatal(err)
		}
		if act == fallback {
			continue
		}
		for _, name := range s.Names {
			for _, args := range groups(s.Args) {
				l.say("rule %d %s %d ", act, name, len(args))
				for _, a := range args {
					l.say("%d %d %d %d ", a.Index, operators[a.Op], a.Value, a.ValueTwo)
				}
			}
		}
	}
	l.say("end\n")
	size := l.number()
	if size == ^uint32(0) {
		return nil, unix.Errno(l.number())
	}
	out := make(program, size/8)
	if err := binary.Read(l.out, binary.LittleEndian, out); err != nil {
		l.t.Fatal("libseccomp:", err)
	}
	return out, 0
}

// groups gives the conditions of one rule, or of several where an argument is
// named twice.
func groups(args []specs.LinuxSeccompArg) [][]specs.LinuxSeccompArg {
	var used [6]bool
	for _, a := range args {
		if used[a.Index] {
			var apart [][]specs.LinuxSeccompArg
			for _, a := range args {
				apart = append(apart, []specs.LinuxSeccompArg{a})
			}
			return apart
		}
		used[a.Index] = true
	}
	return [][]specs.LinuxSeccompArg{args}
}

// crowdedProfile makes profiles of random names with few numbers and values, so
// that rules meet.
func crowdedProfile(r *rand.Rand, names []string, archs []specs.Arch) *specs.LinuxSeccomp {
	crowd := []string{"read", "write", "open", "socket", "bind", "accept4", "sendto", "semop", "shmat", "ioctl", "clone", "personality"}
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActKillProcess, specs.ActTrap, specs.ActTrace, specs.ActLog}
	ops := []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
	p := &specs.LinuxSeccomp{DefaultAction: actions[r.IntN(len(actions))]}
	for _, a := range archs {
		if r.IntN(3) > 0 {
			p.Architectures = append(p.Architectures, a)
		}
	}
	for range r.IntN(10) {
		s := specs.LinuxSyscall{Action: actions[r.IntN(len(actions))]}
		if (s.Action == specs.ActErrno || s.Action == specs.ActTrace) && r.IntN(3) == 0 {
			s.ErrnoRet = ptr(uint(r.IntN(3)))
		}
		for range 1 + r.IntN(12) {
			from := names
			if r.IntN(3) == 0 {
				from = crowd
			}
			s.Names = append(s.Names, from[r.IntN(len(from))])
		}
		for range max(0, r.IntN(5)-2) {
			s.Args = append(s.Args, arg(uint(r.IntN(3)), ops[r.IntN(len(ops))], randomValue(r), randomValue(r)))
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	return p
}

// world is a machine with its conventions.
type world struct {
	goarch string
	own    specs.Arch
	archs  []specs.Arch
	audits []uint32
}

var worlds = []world{
	{"amd64", specs.ArchX86_64, []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}, []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, 7}},
	{"arm64", specs.ArchAARCH64, []specs.Arch{specs.ArchAARCH64, specs.ArchARM}, []uint32{unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM, unix.AUDIT_ARCH_X86_64}},
}

// compare holds our program against the library's for every call number there
// can be, with arguments around the values that the profile compares with. It
// says no for a profile that the library refuses.
func (l *libseccomp) compare(p *specs.LinuxSeccomp, w world, r *rand.Rand) bool {
	t := l.t
	t.Helper()
	theirs, errno := l.compile(p, w.own)
	if errno != 0 {
		return false
	}
	f, err := compile(p, w.goarch)
	if err != nil {
		t.Fatal(err)
	}
	values := []uint64{0, 1, 1 << 32}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			values = append(values, a.Value, a.Value+1, a.Value-1, a.ValueTwo, a.Value^1<<32)
		}
	}
	var numbers []uint32
	for n := range uint32(600) {
		numbers = append(numbers, n, n|x32Bit)
	}
	for n := range uint32(16) {
		numbers = append(numbers, armPrivate+n-2, x32Bit-1-n, ^n)
	}
	for _, arch := range w.audits {
		for _, n := range numbers {
			c := call{number: n, arch: arch}
			for i := range c.args {
				c.args[i] = values[r.IntN(len(values))]
				if i == 0 && r.IntN(2) == 0 {
					c.args[0] = uint64(r.IntN(26)) // what socketcall and ipc carry
				}
			}
			got, want := run(t, f.Program, c), run(t, theirs, c)
			if got != want && exception(t, p, theirs, w, c, got) == "" {
				t.Errorf("%s: call %+v: %#x, libseccomp says %#x\nprofile %+v", w.goarch, c, got, want, p)
				return true
			}
		}
	}
	return true
}

// exception gives the reason why another verdict than libseccomp's is right. But
// for the first one, ours must be that of the plain evaluation of the rules.
func exception(t testing.TB, p *specs.LinuxSeccomp, theirs program, w world, c call, got action) string {
	t.Helper()
	fallback, err := actionOf(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		t.Fatal(err)
	}
	which, _ := callABI(p, w.goarch, c)
	named := func(of abi) bool { return of < abis && newest(p, of) >= 0 && int64(c.number) > newest(p, of) }
	switch {
	case got == enosys && !fallback.permissive() && (named(which) || which == x32 && named(amd64)):
		return "runc answers calls that are newer than the profile with ENOSYS, in front of libseccomp's program"
	case got != reference(t, p, w.goarch, c):
	case rivals(p, which, c) > 1:
		return "several rules with conditions: libseccomp does not come back from the branch of one whose last condition fails, and which of several that match it takes depends on the shape of its tree"
	case maskless(p, which, c):
		return "a mask of 0 is no condition to libseccomp, so that the rule hides later ones; here it is one that always holds"
	case blind(t, theirs, c):
		return "libseccomp 2.5 forgets to load the number for one architecture, where another has the same rules, and compares the architecture with it"
	}
	return ""
}

// newest is the highest number that a profile names, -1 for none.
func newest(p *specs.LinuxSeccomp, of abi) int64 {
	top := int64(-1)
	for _, s := range p.Syscalls {
		for _, name := range s.Names {
			if e, ok := lookup(name); ok && (of != arm || e[of] < armPrivate) {
				top = max(top, int64(e[of]))
			}
			if via, _, ok := multiplexed(name); ok && of == i386 && s.Action != p.DefaultAction {
				e, _ := lookup(via)
				top = max(top, int64(e[of]))
			}
		}
	}
	return top
}

// rivals counts the rules with conditions that reach a call.
func rivals(p *specs.LinuxSeccomp, which abi, c call) (n int) {
	for _, s := range p.Syscalls {
		for _, name := range s.Names {
			if direct, carried := reaches(name, which, c); direct && len(s.Args) > 0 || carried {
				n += len(groups(s.Args))
			}
		}
	}
	return n
}

// maskless says whether a rule for a call compares nothing of an argument.
func maskless(p *specs.LinuxSeccomp, which abi, c call) bool {
	bits := ^uint64(0)
	if which != amd64 && which != arm64 {
		bits >>= 32
	}
	return slices.ContainsFunc(p.Syscalls, func(s specs.LinuxSyscall) bool {
		return slices.ContainsFunc(s.Names, func(name string) bool {
			direct, carried := reaches(name, which, c)
			return direct || carried
		}) && slices.ContainsFunc(s.Args, func(a specs.LinuxSeccompArg) bool { return a.Op == specs.OpMaskedEqual && a.Value&bits == 0 })
	})
}

// blind says that a program gives every number of an architecture one verdict.
func blind(t testing.TB, theirs program, c call) bool {
	t.Helper()
	verdict := run(t, theirs, c)
	for n := range uint32(600) {
		c.number = n
		if run(t, theirs, c) != verdict {
			return false
		}
	}
	return true
}

// tableNames are the names of our table that the library has, too.
func (l *libseccomp) tableNames() []string {
	var names []string
	for line := range strings.Lines(table) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name != "" && l.knows(name) {
			names = append(names, name)
		}
	}
	return names
}

func TestSameVerdictAsLibseccomp(t *testing.T) {
	l := newLibseccomp(t)
	names := l.tableNames()
	if len(names) < 400 {
		t.Fatalf("libseccomp knows %d of our names", len(names))
	}
	r := rand.New(rand.NewPCG(3, 4))
	compared := 0
	for range 50 {
		for _, w := range worlds {
			if l.compare(crowdedProfile(r, names, w.archs), w, r) {
				compared++
			}
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d profiles compared", compared)
	if compared < 50 {
		t.Errorf("libseccomp refuses all but %d of the profiles", compared)
	}
	for _, w := range worlds {
		p := defaultProfile(t)
		for i := range p.Syscalls {
			p.Syscalls[i].Names = slices.DeleteFunc(p.Syscalls[i].Names, func(n string) bool { return !slices.Contains(names, n) })
		}
		p.Architectures = w.archs
		if !l.compare(p, w, r) {
			t.Errorf("libseccomp refuses the default profile for %s", w.goarch)
		}
	}
}

func FuzzSameVerdict(f *testing.F) {
	l := newLibseccomp(f)
	names := l.tableNames()
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		r := rand.New(rand.NewPCG(a, b))
		w := worlds[r.IntN(len(worlds))]
		at := *l
		at.t = t
		at.compare(crowdedProfile(r, names, w.archs), w, r)
	})
}
