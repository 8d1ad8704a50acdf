package seccomp

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// call is what the kernel shows a filter: struct seccomp_data.
type call struct {
	number, arch uint32
	args         [6]uint64
}

// run gives the verdict on a call.
func run(t testing.TB, p program, c call) action {
	t.Helper()
	data := binary.LittleEndian.AppendUint32(nil, c.number)
	data = binary.LittleEndian.AppendUint32(data, c.arch)
	data = binary.LittleEndian.AppendUint64(data, 0x1234) // instruction pointer
	for _, a := range c.args {
		data = binary.LittleEndian.AppendUint64(data, a)
	}
	a, ok := answer(p, data)
	if !ok {
		t.Fatal("the program has no answer")
	}
	return a
}

// holds is the meaning of a profile's condition.
func holds(a specs.LinuxSeccompArg, args [6]uint64, wide bool) bool {
	x, v, two := args[a.Index], a.Value, a.ValueTwo
	if !wide {
		x, v, two = x&0xffffffff, v&0xffffffff, two&0xffffffff
	}
	switch a.Op {
	case specs.OpEqualTo:
		return x == v
	case specs.OpNotEqual:
		return x != v
	case specs.OpLessThan:
		return x < v
	case specs.OpLessEqual:
		return x <= v
	case specs.OpGreaterThan:
		return x > v
	case specs.OpGreaterEqual:
		return x >= v
	}
	return x&v == two&v
}

// reference evaluates a profile for one call, rule by rule, from the text of
// [Compile]'s comment; it shares only the table with the compiler.
func reference(t testing.TB, p *specs.LinuxSeccomp, goarch string, c call) action {
	t.Helper()
	fallback, err := actionOf(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		t.Fatal(err)
	}
	which, listed := callABI(p, goarch, c)
	highest := func(of abi) int64 {
		top := int64(-1)
		for _, s := range p.Syscalls {
			for _, name := range s.Names {
				e, ok := lookup(name)
				if ok && (of != arm || e[of] < armPrivate) {
					top = max(top, int64(e[of]))
				}
				if via, _, ok := multiplexed(name); ok && of == i386 && s.Action != p.DefaultAction {
					e, _ = lookup(via)
					top = max(top, int64(e[of]))
				}
			}
		}
		return top
	}
	private := which == arm && c.number >= armPrivate
	newer := func(of abi) bool {
		return highest(of) >= 0 && int64(c.number) > highest(of) && !fallback.permissive() && !private
	}
	if !listed {
		if which == x32 && newer(amd64) {
			return enosys
		}
		if which == x32 && c.number == ^uint32(0) {
			return fallback
		}
		return killThread
	}
	if newer(which) {
		return enosys
	}
	result, matched, final := decide(t, p, which, c, fallback, false)
	if final {
		return result
	}
	if carried, ok, _ := decide(t, p, which, c, fallback, true); ok && (!matched || carried.strictness() < result.strictness()) {
		return carried
	}
	return result
}

// decide evaluates the rules that reach the call by its number, or (mux) as one
// carried by socketcall or ipc, where conditions on argument 0 are spent. The
// first rule without conditions is final.
func decide(t testing.TB, p *specs.LinuxSeccomp, which abi, c call, fallback action, mux bool) (result action, matched, final bool) {
	result = fallback
	for _, s := range p.Syscalls {
		act, err := actionOf(s.Action, s.ErrnoRet)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range s.Names {
			direct, carried := reaches(name, which, c)
			if act == fallback || mux && !carried || !mux && !direct {
				continue
			}
			match, plain := matchArgs(s.Args, c, which, mux)
			if plain {
				return act, true, true
			}
			if match && (!matched || act.strictness() < result.strictness()) {
				result, matched = act, true
			}
		}
	}
	return result, matched, false
}

// reaches says whether the call is name by its number, or by way of socketcall
// or ipc.
func reaches(name string, which abi, c call) (direct, mux bool) {
	e, ok := lookup(name)
	direct = ok && e[which] >= 0 && uint32(e[which]) == c.number
	if via, argument, ok := multiplexed(name); ok && which == i386 {
		e, _ := lookup(via)
		mux = uint32(e[i386]) == c.number && uint32(c.args[0]) == argument
	}
	return direct, mux
}

// matchArgs evaluates conditions: all of them, or any where an argument is
// named twice. spent passes over those on argument 0. plain says that nothing
// was left to evaluate.
func matchArgs(args []specs.LinuxSeccompArg, c call, which abi, spent bool) (match, plain bool) {
	wide := which == amd64 || which == arm64
	var used [6]bool
	repeated, every, one, left, passed := false, true, false, 0, false
	for _, a := range args {
		repeated = repeated || used[a.Index]
		used[a.Index] = true
		if spent && a.Index == 0 {
			passed = true
			continue
		}
		left++
		match := holds(a, c.args, wide)
		every, one = every && match, one || match
	}
	if repeated {
		return one || passed, passed
	}
	return every, left == 0
}

func callABI(p *specs.LinuxSeccomp, goarch string, c call) (which abi, listed bool) {
	own := map[string]specs.Arch{"amd64": specs.ArchX86_64, "386": specs.ArchX86, "arm64": specs.ArchAARCH64, "arm": specs.ArchARM}[goarch]
	has := func(a specs.Arch) bool { return a == own || slices.Contains(p.Architectures, a) }
	switch c.arch {
	case unix.AUDIT_ARCH_X86_64:
		if c.number >= x32Bit {
			return x32, goarch == "amd64" && has(specs.ArchX32)
		}
		return amd64, has(specs.ArchX86_64)
	case unix.AUDIT_ARCH_I386:
		return i386, has(specs.ArchX86)
	case unix.AUDIT_ARCH_AARCH64:
		return arm64, has(specs.ArchAARCH64)
	case unix.AUDIT_ARCH_ARM:
		return arm, has(specs.ArchARM)
	}
	return abis, false
}

func ptr[T any](v T) *T { return &v }

func arg(index uint, op specs.LinuxSeccompOperator, value, two uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: index, Op: op, Value: value, ValueTwo: two}
}

func TestLookup(t *testing.T) {
	for line := range strings.Lines(table) {
		name, numbers, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		e, ok := lookup(name)
		if !ok || e != parseEntry(numbers) {
			t.Errorf("lookup(%q) = %v, %v", name, e, ok)
		}
		for _, wrong := range []string{name + "~", name[:len(name)-1] + "~", "", name + " ", name + "\n"} {
			if _, ok := lookup(wrong); ok {
				t.Errorf("lookup(%q) found something", wrong)
			}
		}
	}
	for _, tc := range []struct {
		name string
		want entry
	}{
		{"read", entry{0, 3, x32Bit, 63, 3}},
		{"openat2", entry{437, 437, x32Bit | 437, 437, 437}},
		{"rt_sigaction", entry{13, 174, x32Bit | 512, 134, 174}},
		{"socketcall", entry{-1, 102, -1, -1, -1}},
		{"set_tls", entry{-1, -1, -1, -1, 0xf0005}},
		{"uselib", entry{134, 86, -1, -1, 86}},
	} {
		if got, ok := lookup(tc.name); !ok || got != tc.want {
			t.Errorf("lookup(%q) = %v, %v; want %v", tc.name, got, ok, tc.want)
		}
	}
}

func TestMultiplexed(t *testing.T) {
	for name, want := range map[string]struct {
		via      string
		argument uint32
	}{
		"socket": {"socketcall", 1}, "sendmmsg": {"socketcall", 20}, "send": {"socketcall", 9},
		"semop": {"ipc", 1}, "shmctl": {"ipc", 24}, "msgget": {"ipc", 13}, "read": {}, "": {}, "socket bind": {},
	} {
		via, argument, ok := multiplexed(name)
		if via != want.via || argument != want.argument || ok != (want.via != "") {
			t.Errorf("multiplexed(%q) = %q, %d, %v", name, via, argument, ok)
		}
	}
}

// TestVerdicts has cases whose answers libseccomp gives too.
func TestVerdicts(t *testing.T) {
	const x64 = unix.AUDIT_ARCH_X86_64
	allow := func(name string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow, Args: args}
	}
	errno := func(name string, n uint, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: []string{name}, Action: specs.ActErrno, ErrnoRet: &n, Args: args}
	}
	const eperm, allowed = unix.SECCOMP_RET_ERRNO | action(unix.EPERM), action(unix.SECCOMP_RET_ALLOW)
	// highest keeps the ENOSYS for newer calls out of the cases that are not about it.
	highest := allow("rseq_slice_yield")
	for name, tc := range map[string]struct {
		rules []specs.LinuxSyscall
		archs []specs.Arch
		call  call
		want  action
	}{
		"allowed":                     {rules: []specs.LinuxSyscall{allow("read")}, call: call{arch: x64}, want: allowed},
		"denied":                      {rules: []specs.LinuxSyscall{allow("write")}, call: call{arch: x64}, want: eperm},
		"newer than the profile":      {rules: []specs.LinuxSyscall{allow("write")}, call: call{arch: x64, number: 2}, want: enosys},
		"foreign architecture":        {rules: []specs.LinuxSyscall{allow("read")}, call: call{arch: unix.AUDIT_ARCH_I386, number: 3}, want: killThread},
		"x32 not listed, newer":       {rules: []specs.LinuxSyscall{allow("read")}, call: call{arch: x64, number: x32Bit}, want: enosys},
		"x32 listed":                  {rules: []specs.LinuxSyscall{allow("read")}, archs: []specs.Arch{specs.ArchX32}, call: call{arch: x64, number: x32Bit}, want: allowed},
		"i386 listed":                 {rules: []specs.LinuxSyscall{allow("read")}, archs: []specs.Arch{specs.ArchX86}, call: call{arch: unix.AUDIT_ARCH_I386, number: 3}, want: allowed},
		"architecture of others":      {rules: []specs.LinuxSyscall{allow("read")}, archs: []specs.Arch{specs.ArchS390X}, call: call{arch: x64}, want: allowed},
		"upper half counts":           {rules: []specs.LinuxSyscall{allow("read", arg(0, specs.OpEqualTo, 1, 0)), highest}, call: call{arch: x64, args: [6]uint64{1 << 32}}, want: eperm},
		"not on x32":                  {rules: []specs.LinuxSyscall{allow("read", arg(0, specs.OpEqualTo, 1<<32|1, 0)), highest}, archs: []specs.Arch{specs.ArchX32}, call: call{arch: x64, number: x32Bit, args: [6]uint64{7<<32 | 1}}, want: allowed},
		"masked value":                {rules: []specs.LinuxSyscall{allow("read", arg(2, specs.OpMaskedEqual, 0xf0, 0x11)), highest}, call: call{arch: x64, args: [6]uint64{2: 0x1f}}, want: allowed},
		"both conditions":             {rules: []specs.LinuxSyscall{allow("read", arg(0, specs.OpEqualTo, 1, 0), arg(1, specs.OpEqualTo, 2, 0)), highest}, call: call{arch: x64, args: [6]uint64{1, 3}}, want: eperm},
		"same argument twice":         {rules: []specs.LinuxSyscall{allow("read", arg(0, specs.OpEqualTo, 1, 0), arg(0, specs.OpEqualTo, 2, 0)), highest}, call: call{arch: x64, args: [6]uint64{2}}, want: allowed},
		"first without conditions":    {rules: []specs.LinuxSyscall{errno("read", 5, arg(0, specs.OpEqualTo, 2, 0)), allow("read"), errno("read", 4)}, call: call{arch: x64, args: [6]uint64{2}}, want: allowed},
		"strictest of several":        {rules: []specs.LinuxSyscall{allow("read", arg(0, specs.OpGreaterThan, 1, 0)), errno("read", 2, arg(0, specs.OpEqualTo, 2, 0)), highest}, call: call{arch: x64, args: [6]uint64{2}}, want: unix.SECCOMP_RET_ERRNO | 2},
		"default action is no rule":   {rules: []specs.LinuxSyscall{errno("read", 1), allow("read", arg(0, specs.OpEqualTo, 1, 0))}, call: call{arch: x64, args: [6]uint64{1}}, want: allowed},
		"unknown name":                {rules: []specs.LinuxSyscall{allow("no_such_call"), allow("read")}, call: call{arch: x64}, want: allowed},
		"socket by socketcall":        {rules: []specs.LinuxSyscall{allow("socket", arg(0, specs.OpNotEqual, 40, 0)), highest}, archs: []specs.Arch{specs.ArchX86}, call: call{arch: unix.AUDIT_ARCH_I386, number: 102, args: [6]uint64{1}}, want: allowed},
		"bind by socketcall":          {rules: []specs.LinuxSyscall{allow("socket"), highest}, archs: []specs.Arch{specs.ArchX86}, call: call{arch: unix.AUDIT_ARCH_I386, number: 102, args: [6]uint64{2}}, want: eperm},
		"socket by its own number":    {rules: []specs.LinuxSyscall{allow("socket", arg(0, specs.OpNotEqual, 40, 0)), highest}, archs: []specs.Arch{specs.ArchX86}, call: call{arch: unix.AUDIT_ARCH_I386, number: 359, args: [6]uint64{40}}, want: eperm},
		"semget by ipc":               {rules: []specs.LinuxSyscall{allow("semget"), highest}, archs: []specs.Arch{specs.ArchX86}, call: call{arch: unix.AUDIT_ARCH_I386, number: 117, args: [6]uint64{2}}, want: allowed},
		"no call, put by a tracer":    {rules: []specs.LinuxSyscall{highest}, archs: []specs.Arch{specs.ArchX32}, call: call{arch: x64, number: ^uint32(0)}, want: enosys},
		"a tracer's, without x32":     {call: call{arch: x64, number: ^uint32(0)}, want: eperm},
		"x32 not listed, no rules":    {call: call{arch: x64, number: x32Bit}, want: killThread},
		"highest number plus one":     {rules: []specs.LinuxSyscall{highest}, call: call{arch: x64, number: 472}, want: enosys},
		"number of the highest":       {rules: []specs.LinuxSyscall{highest}, call: call{arch: x64, number: 471}, want: allowed},
		"a denied call sets the mark": {rules: []specs.LinuxSyscall{errno("rseq_slice_yield", 1)}, call: call{arch: x64, number: 300}, want: eperm},
	} {
		t.Run(name, func(t *testing.T) {
			p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: tc.archs, Syscalls: tc.rules}
			f, err := compile(p, "amd64")
			if err != nil {
				t.Fatal(err)
			}
			if got := run(t, f.Program, tc.call); got != tc.want {
				t.Errorf("verdict = %#x, want %#x", got, tc.want)
			}
		})
	}
}

func TestPermissiveDefaultsDoNotAnswerENOSYS(t *testing.T) {
	for name, want := range map[specs.LinuxSeccompAction]action{
		specs.ActAllow: unix.SECCOMP_RET_ALLOW, specs.ActLog: unix.SECCOMP_RET_LOG,
		specs.ActTrace: unix.SECCOMP_RET_TRACE | 1, specs.ActKillProcess: enosys, specs.ActTrap: enosys,
	} {
		p := &specs.LinuxSeccomp{DefaultAction: name, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno}}}
		f, err := compile(p, "arm64")
		if err != nil {
			t.Fatal(err)
		}
		if got := run(t, f.Program, call{arch: unix.AUDIT_ARCH_AARCH64, number: 9999}); got != want {
			t.Errorf("%s: %#x, want %#x", name, got, want)
		}
	}
}

func TestArmPrivateCalls(t *testing.T) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read", "set_tls"}, Action: specs.ActAllow}}}
	f, err := compile(p, "arm")
	if err != nil {
		t.Fatal(err)
	}
	for number, want := range map[uint32]action{3: unix.SECCOMP_RET_ALLOW, 4: enosys, 0xf0005: unix.SECCOMP_RET_ALLOW, 0xf0001: unix.SECCOMP_RET_ERRNO | 1} {
		if got := run(t, f.Program, call{arch: unix.AUDIT_ARCH_ARM, number: number}); got != want {
			t.Errorf("%#x: %#x, want %#x", number, got, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	rule := func(s specs.LinuxSyscall) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{s}}
	}
	for name, p := range map[string]*specs.LinuxSeccomp{
		"default":         {DefaultAction: "SCMP_ACT_WHAT"},
		"default notify":  {DefaultAction: specs.ActNotify, ListenerPath: "/x"},
		"architecture":    {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"SCMP_ARCH_Z80"}},
		"flag":            {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"X"}},
		"action":          rule(specs.LinuxSyscall{Names: []string{"read"}, Action: "X"}),
		"no name":         rule(specs.LinuxSyscall{Names: []string{""}, Action: specs.ActAllow}),
		"operator":        rule(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{}}}),
		"argument index":  rule(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(6, specs.OpEqualTo, 0, 0)}}),
		"errno":           rule(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(1 << 16))}),
		"errno of allow":  rule(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow, ErrnoRet: ptr(uint(1))}),
		"default errno":   {DefaultAction: specs.ActKill, DefaultErrnoRet: ptr(uint(1))},
		"no names":        rule(specs.LinuxSyscall{Action: specs.ActAllow}),
		"metadata":        {DefaultAction: specs.ActAllow, ListenerMetadata: "x"},
		"notify write":    {DefaultAction: specs.ActAllow, ListenerPath: "/x", Syscalls: []specs.LinuxSyscall{{Names: []string{"write"}, Action: specs.ActNotify}}},
		"notify, no path": rule(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActNotify}),
	} {
		if _, err := compile(p, "amd64"); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: %v", name, err)
		}
	}
	many := rule(specs.LinuxSyscall{Names: make([]string, maxRules+1), Action: specs.ActAllow})
	if _, err := compile(many, "amd64"); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too many rules: %v", err)
	}
	long := rule(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow, Args: slices.Repeat([]specs.LinuxSeccompArg{arg(0, specs.OpEqualTo, 0, 0)}, 2000)})
	if _, err := compile(long, "amd64"); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too long a program: %v", err)
	}
	if _, err := compile(rule(specs.LinuxSyscall{}), "z80"); !errors.Is(err, unix.ENOTSUP) {
		t.Error("a machine without a table was accepted")
	}
	for _, p := range []*specs.LinuxSeccomp{nil, {}} {
		if f, err := Compile(p); f != nil || err != nil {
			t.Errorf("Compile(%v) = %v, %v", p, f, err)
		}
	}
}

func TestFlags(t *testing.T) {
	notify := []specs.LinuxSyscall{{Names: []string{"mount"}, Action: specs.ActNotify}}
	for name, tc := range map[string]struct {
		flags []specs.LinuxSeccompFlag
		rules []specs.LinuxSyscall
		want  uint32
	}{
		"default":        {want: unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		"none":           {flags: []specs.LinuxSeccompFlag{}},
		"log and tsync":  {flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, "SECCOMP_FILTER_FLAG_TSYNC"}, want: unix.SECCOMP_FILTER_FLAG_LOG},
		"wait, no agent": {flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}},
		"wait":           {flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}, rules: notify, want: unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV},
	} {
		f, err := compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: tc.flags, Syscalls: tc.rules, ListenerPath: "/l", ListenerMetadata: "m"}, "amd64")
		if err != nil {
			t.Fatal(err)
		}
		if f.Flags != tc.want || f.Notify != (tc.rules != nil) || f.ListenerPath != "/l" || f.ListenerMetadata != "m" {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// randomProfile makes profiles that crowd few names, numbers and values.
func randomProfile(r *rand.Rand) *specs.LinuxSeccomp {
	names := []string{"read", "write", "open", "close", "socket", "bind", "socketcall", "semop", "ipc", "ioctl", "clone3", "openat2",
		"rt_sigaction", "set_tls", "breakpoint", "no_such_call", "send", "recvmmsg", "personality", "rseq_slice_yield"}
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActKillProcess, specs.ActTrap, specs.ActTrace, specs.ActLog, specs.ActNotify}
	archs := []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchAARCH64, specs.ArchARM, specs.ArchMIPS}
	ops := []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
	p := &specs.LinuxSeccomp{DefaultAction: actions[r.IntN(8)], ListenerPath: "/l"}
	for _, a := range archs {
		if r.IntN(2) == 0 {
			p.Architectures = append(p.Architectures, a)
		}
	}
	for range r.IntN(8) {
		s := specs.LinuxSyscall{Action: actions[r.IntN(9)]}
		if (s.Action == specs.ActErrno || s.Action == specs.ActTrace) && r.IntN(3) == 0 {
			s.ErrnoRet = ptr(uint(r.IntN(3)))
		}
		for range 1 + r.IntN(5) {
			name := names[r.IntN(len(names))]
			if s.Action == specs.ActNotify && name == "write" {
				continue
			}
			s.Names = append(s.Names, name)
		}
		if len(s.Names) == 0 {
			continue
		}
		for range max(0, r.IntN(5)-2) {
			s.Args = append(s.Args, arg(uint(r.IntN(3)), ops[r.IntN(len(ops))], randomValue(r), randomValue(r)))
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	return p
}

func randomValue(r *rand.Rand) uint64 {
	halves := []uint32{0, 1, 2, 9, 13, 0xffffffff, 0x80000000}
	return uint64(halves[r.IntN(len(halves))])<<32&(uint64(r.IntN(2))*^uint64(0)) | uint64(halves[r.IntN(len(halves))])
}

// checkProfile compares the program with the reference on calls around every
// number that occurs.
func checkProfile(t testing.TB, p *specs.LinuxSeccomp, r *rand.Rand) {
	t.Helper()
	for _, goarch := range []string{"amd64", "386", "arm64", "arm"} {
		f, err := compile(p, goarch)
		if err != nil {
			t.Fatal(err)
		}
		numbers := []uint32{0, 1, 102, 117, x32Bit, x32Bit - 1, armPrivate, armPrivate - 1, armPrivate + 6, ^uint32(0), ^uint32(0) - 1, 500}
		for _, s := range p.Syscalls {
			for _, name := range s.Names {
				if e, ok := lookup(name); ok {
					for _, n := range e {
						if n >= 0 {
							numbers = append(numbers, uint32(n), uint32(n)+1, uint32(n)-1)
						}
					}
				}
			}
		}
		for _, arch := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM, 7} {
			for _, n := range numbers {
				c := call{number: n, arch: arch}
				for i := range c.args {
					c.args[i] = randomValue(r)
				}
				if arch == unix.AUDIT_ARCH_X86_64 && goarch == "arm64" || arch == unix.AUDIT_ARCH_AARCH64 && goarch == "amd64" ||
					goarch == "386" && arch != unix.AUDIT_ARCH_I386 || goarch == "arm" && arch != unix.AUDIT_ARCH_ARM ||
					goarch == "amd64" && arch == unix.AUDIT_ARCH_ARM || goarch == "arm64" && arch == unix.AUDIT_ARCH_I386 {
					if got := run(t, f.Program, c); got != killThread {
						t.Fatalf("%s: foreign %#x: %#x", goarch, arch, got)
					}
					continue
				}
				if got, want := run(t, f.Program, c), reference(t, p, goarch, c); got != want {
					t.Fatalf("%s: call %+v: %#x, want %#x\nprofile %+v", goarch, c, got, want, p)
				}
			}
		}
	}
}

func TestTreeEqualsReference(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		checkProfile(t, randomProfile(r), r)
	}
}

func FuzzTreeEqualsReference(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		r := rand.New(rand.NewPCG(a, b))
		checkProfile(t, randomProfile(r), r)
	})
}

func TestAllows(t *testing.T) {
	f, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"read"}, Action: specs.ActAllow},
		{Names: []string{"write"}, Action: specs.ActLog},
		{Names: []string{"clone"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpMaskedEqual, Value: 0x7e020000}}},
		{Names: []string{"setsid"}, Action: specs.ActTrace},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		number uint32
		arg    uint64
		want   bool
	}{
		{unix.SYS_READ, 0, true}, {unix.SYS_WRITE, 0, true}, {unix.SYS_SETSID, 0, false}, {unix.SYS_EXECVE, 0, false},
		{unix.SYS_CLONE, unix.CLONE_PARENT, true}, {unix.SYS_CLONE, unix.CLONE_NEWUSER, false},
	} {
		if got := f.Allows(tt.number, tt.arg); got != tt.want {
			t.Errorf("call %d(%#x) is allowed: %v", tt.number, tt.arg, got)
		}
	}
	for _, broken := range []program{{}, {load(64)}, {{Code: opJump, K: 9}}, {{Code: 0xff}}} {
		if (&Filter{Program: broken}).Allows(0) {
			t.Errorf("program %v allows", broken)
		}
	}
}

func TestOnlyTheGivenCalls(t *testing.T) {
	f := Only(3, 7, 60)
	for n := range uint32(500) {
		if want := n == 3 || n == 7 || n == 60; f.Allows(n) != want {
			t.Errorf("call %d: allowed %v", n, !want)
		}
	}
	if f.Allows(3 | 0x40000000) { // of x32
		t.Error("a call of another kind is allowed")
	}
	var data [64]byte
	binary.LittleEndian.PutUint32(data[offsetNumber:], 3)
	if a, ok := answer(f.Program, data[:]); !ok || a != action(unix.SECCOMP_RET_KILL_PROCESS) {
		t.Errorf("another architecture: %#x, %v", a, ok)
	}
}
