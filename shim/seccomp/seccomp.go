// Package seccomp compiles an OCI seccomp profile into the classic BPF program
// the kernel runs at each system call.
//
// Verdicts are those of libseccomp as runc drives it, so a profile means the
// same here; where libseccomp leaves the choice open, see [Compile]. The shape
// differs: numbers with the same verdict are ranges, and a balanced tree over
// the ranges finds the verdict in a handful of comparisons. Installing a filter
// makes the kernel try every system call number, so a list costs the square of
// its length there, and a tree a tenth of that.
//
// Profiles come from clients. They are only ever compiled: the program is
// bounded, and the tests compare it with a plain evaluation of the rules.
package seccomp

import (
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxProgram is the kernel's BPF_MAXINSNS.
const maxProgram = 4096

// maxRules bounds the rules of a profile, each name and condition counted.
const maxRules = 1 << 16

// Filter is a compiled profile.
type Filter struct {
	// Program is what seccomp(2) takes.
	Program []unix.SockFilter
	// Flags are seccomp(2)'s SECCOMP_FILTER_FLAG_* bits. With Notify,
	// SECCOMP_FILTER_FLAG_NEW_LISTENER is among them and the call gives a
	// listener's file descriptor.
	Flags uint32
	// Notify says that some calls are decided by an agent, which is to get the
	// listener through the unix socket ListenerPath together with ListenerMetadata.
	Notify                         bool
	ListenerPath, ListenerMetadata string
}

// ErrTooLarge says that a profile needs more instructions than the kernel takes.
var ErrTooLarge = errors.New("seccomp program is too large")

// Compile compiles a profile for this machine. A nil or empty profile gives nil:
// no filter.
//
// The rules of libseccomp and runc that are not obvious:
//
//   - Names no table knows are passed over, as are calls an architecture lacks.
//   - The machine's own architecture is always filtered. Calls by one that the
//     profile does not list kill the thread.
//   - The conditions of one rule must all hold; but if two of them are on the
//     same argument, each stands for a rule of its own (runc's old behaviour).
//   - The first rule without conditions for a call hides all others for it.
//   - A rule whose action is the default action is left out.
//   - 32-bit architectures, x32 among them, compare the lower 32 bits only.
//   - On i386 a rule for a socket or System V IPC call also covers socketcall and
//     ipc with that call as first argument, whose other arguments are pointers
//     and hence not what a condition means.
//   - Calls above the highest number the profile names get ENOSYS in place of a
//     denying default, because C libraries probe new calls and take only that
//     answer for "not there"; not if the default is ALLOW, LOG or TRACE, nor for
//     Arm's private calls.
//   - No flags at all means SPEC_ALLOW; TSYNC is dropped: the process that
//     installs the filter has one thread.
//
// Where several rules with conditions match one call, libseccomp's answer
// depends on the shape of its tree; here the strictest action wins, in the
// kernel's order: KILL_PROCESS, KILL_THREAD, TRAP, ERRNO, NOTIFY, TRACE, LOG, ALLOW.
func Compile(p *specs.LinuxSeccomp) (*Filter, error) {
	return compile(p, runtime.GOARCH)
}

func compile(p *specs.LinuxSeccomp, goarch string) (*Filter, error) {
	if p == nil || p.DefaultAction == "" && len(p.Syscalls) == 0 {
		return nil, nil
	}
	if err := checkNotify(p); err != nil {
		return nil, fmt.Errorf("compile seccomp profile: %w", err)
	}
	f := &Filter{ListenerPath: p.ListenerPath, ListenerMetadata: p.ListenerMetadata}
	c, err := newCompiler(p, goarch)
	if err != nil {
		return nil, fmt.Errorf("compile seccomp profile: %w", err)
	}
	if f.Notify = c.notify; f.Notify && f.ListenerPath == "" {
		return nil, fmt.Errorf("compile seccomp profile: SCMP_ACT_NOTIFY without listenerPath: %w", unix.EINVAL)
	}
	if f.Flags, err = flags(p.Flags, f.Notify); err != nil {
		return nil, fmt.Errorf("compile seccomp profile: %w", err)
	}
	f.Program = c.program()
	if len(f.Program) > maxProgram {
		return nil, fmt.Errorf("compile seccomp profile: %d instructions: %w", len(f.Program), ErrTooLarge)
	}
	return f, nil
}

// checkNotify refuses what is meant for an agent that there is none, and an agent's
// say over write(2), with which the process that loads the filter tells that there
// is something to hand to the agent.
func checkNotify(p *specs.LinuxSeccomp) error {
	if p.ListenerMetadata != "" && p.ListenerPath == "" {
		return fmt.Errorf("listenerMetadata without listenerPath: %w", unix.EINVAL)
	}
	if p.DefaultAction == specs.ActNotify {
		return fmt.Errorf("SCMP_ACT_NOTIFY as the default action: %w", unix.EINVAL)
	}
	for i := range p.Syscalls {
		if s := &p.Syscalls[i]; s.Action == specs.ActNotify && slices.Contains(s.Names, "write") {
			return fmt.Errorf("SCMP_ACT_NOTIFY for write: %w", unix.EINVAL)
		}
	}
	return nil
}

func flags(names []specs.LinuxSeccompFlag, notify bool) (uint32, error) {
	if names == nil {
		names = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagSpecAllow}
	}
	var bits uint32
	if notify {
		bits = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	}
	for _, name := range names {
		switch name {
		case "SECCOMP_FILTER_FLAG_TSYNC":
		case specs.LinuxSeccompFlagLog:
			bits |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			bits |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case specs.LinuxSeccompFlagWaitKillableRecv: // Linux 5.19
			if notify { // the kernel takes it with a listener only
				bits |= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
			}
		default:
			return 0, fmt.Errorf("flag %.64q: %w", string(name), unix.EINVAL)
		}
	}
	return bits, nil
}

// action is a filter's return value, the errno or trace code in the low half.
type action uint32

const (
	killThread = action(unix.SECCOMP_RET_KILL_THREAD)
	allow      = action(unix.SECCOMP_RET_ALLOW)
	log        = action(unix.SECCOMP_RET_LOG)
	enosys     = action(unix.SECCOMP_RET_ERRNO) | action(unix.ENOSYS)
	actionFull = 0xffff0000
)

// actionOf translates a profile's action. ret is the errno, or the tracer's code.
func actionOf(name specs.LinuxSeccompAction, ret *uint) (action, error) {
	code := action(unix.EPERM)
	if ret != nil {
		if name != specs.ActErrno && name != specs.ActTrace {
			return 0, fmt.Errorf("action %.64q takes no errnoRet: %w", string(name), unix.EINVAL)
		}
		if *ret > 0xffff {
			return 0, fmt.Errorf("errnoRet %d: %w", *ret, unix.EINVAL)
		}
		code = action(*ret)
	}
	switch name {
	case specs.ActKill, specs.ActKillThread:
		return killThread, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | code, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | code, nil
	case specs.ActAllow:
		return allow, nil
	case specs.ActLog:
		return log, nil
	case specs.ActNotify:
		return unix.SECCOMP_RET_USER_NOTIF, nil
	}
	return 0, fmt.Errorf("action %.64q: %w", string(name), unix.EINVAL)
}

// strictness orders actions as the kernel does between several filters: as
// signed numbers, so that KILL_PROCESS (0x80000000) comes before KILL_THREAD (0).
func (a action) strictness() int32 { return int32(a & actionFull) }

// permissive says that the action lets a call through, or lets a tracer decide.
func (a action) permissive() bool {
	switch a & actionFull {
	case unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_TRACE:
		return true
	}
	return false
}

// condition compares one argument with a value. Only some operators remain:
// the others are these negated.
type condition struct {
	arg    uint8
	op     operator
	negate bool
	mask   uint64 // equal only
	value  uint64
}

type operator uint8

const (
	equal operator = iota // arg & mask == value
	greater
	greaterEqual
)

func conditionOf(a specs.LinuxSeccompArg) (condition, error) {
	if a.Index > 5 {
		return condition{}, fmt.Errorf("argument index %d: %w", a.Index, unix.EINVAL)
	}
	c := condition{arg: uint8(a.Index), mask: ^uint64(0), value: a.Value}
	switch a.Op {
	case specs.OpEqualTo:
	case specs.OpNotEqual:
		c.negate = true
	case specs.OpGreaterThan:
		c.op = greater
	case specs.OpLessEqual:
		c.op, c.negate = greater, true
	case specs.OpGreaterEqual:
		c.op = greaterEqual
	case specs.OpLessThan:
		c.op, c.negate = greaterEqual, true
	case specs.OpMaskedEqual:
		c.mask, c.value = a.Value, a.ValueTwo&a.Value
	default:
		return condition{}, fmt.Errorf("operator %.64q: %w", string(a.Op), unix.EINVAL)
	}
	return c, nil
}

// rule gives its action if all conditions hold.
type rule struct {
	conditions []condition
	action     action
}

// verdict is what is decided about one call: the first rule that holds, else
// the action.
type verdict struct {
	rules  []rule
	action action
	final  bool // set by a rule without conditions, which hides later ones
}

func (v *verdict) add(r rule) {
	switch {
	case v.final:
	case len(r.conditions) == 0:
		*v = verdict{action: r.action, final: true}
	default:
		v.rules = append(v.rules, r)
	}
}

// expand reads one entry of a profile into rules without regard to names.
func expand(s *specs.LinuxSyscall) ([]rule, error) {
	act, err := actionOf(s.Action, s.ErrnoRet)
	if err != nil {
		return nil, err
	}
	conditions := make([]condition, len(s.Args))
	var used [6]bool
	repeated := false
	for i, a := range s.Args {
		if conditions[i], err = conditionOf(a); err != nil {
			return nil, err
		}
		repeated = repeated || used[a.Index]
		used[a.Index] = true
	}
	if !repeated {
		return []rule{{conditions, act}}, nil
	}
	rules := make([]rule, len(conditions))
	for i := range conditions {
		rules[i] = rule{conditions[i : i+1 : i+1], act}
	}
	return rules, nil
}

// sortRules puts the strictest first: the first that holds decides.
func (v *verdict) sortRules() {
	slices.SortStableFunc(v.rules, func(a, b rule) int {
		x, y := a.action.strictness(), b.action.strictness()
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
}
