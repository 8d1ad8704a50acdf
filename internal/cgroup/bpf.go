package cgroup

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// insn is one eBPF instruction as the kernel lays it out (struct bpf_insn).
type insn struct {
	code   uint8
	regs   uint8 // destination in the low half, source in the high half
	offset int16
	imm    int32
}

// The registers a device program uses. The kernel passes the context (struct
// bpf_cgroup_dev_ctx: access<<16 | type, major, minor) in the second.
const (
	regAllowed = 0 // rights that the rules so far allow; in the end the verdict
	regContext = 1
	regAsked   = 2
	regKind    = 3
	regMajor   = 4
	regMinor   = 5
	regMatch   = 6
	regScratch = 7
)

// Operation codes, from the kernel's "BPF Instruction Set" document.
const (
	opLoadWord = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	opMoveImm  = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	opMoveReg  = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	opAddImm   = unix.BPF_ALU64 | unix.BPF_ADD | unix.BPF_K
	opAndImm   = unix.BPF_ALU64 | unix.BPF_AND | unix.BPF_K
	opAndReg   = unix.BPF_ALU64 | unix.BPF_AND | unix.BPF_X
	opOrReg    = unix.BPF_ALU64 | unix.BPF_OR | unix.BPF_X
	opXorImm   = unix.BPF_ALU64 | unix.BPF_XOR | unix.BPF_K
	opShiftImm = unix.BPF_ALU64 | unix.BPF_RSH | unix.BPF_K
	opMulImm   = unix.BPF_ALU64 | unix.BPF_MUL | unix.BPF_K
	opExit     = unix.BPF_JMP | unix.BPF_EXIT
)

// The kernel's BPF_DEVCG_DEV_* numbers.
const (
	bpfBlock = 1
	bpfChar  = 2
)

// deviceProgram assembles the rules, in their order, into a cgroup device filter:
// it returns 1 if every right asked for is allowed, else 0. It has no jump: the
// kernel's verifier follows both ways of each, which takes it several times as long.
func deviceProgram(rules []deviceRule) []insn {
	const around, most = 12, 13 // instructions beside the rules', and of one
	prog := append(make([]insn, 0, around+most*len(rules)),
		insn{code: opLoadWord, regs: regAsked | regContext<<4},
		insn{code: opMoveReg, regs: regKind | regAsked<<4},
		insn{code: opAndImm, regs: regKind, imm: 0xffff},
		insn{code: opShiftImm, regs: regAsked, imm: 16},
		insn{code: opLoadWord, regs: regMajor | regContext<<4, offset: 4},
		insn{code: opLoadWord, regs: regMinor | regContext<<4, offset: 8},
		insn{code: opMoveImm, regs: regAllowed})
	for len(rules) > 0 && !rules[0].allow { // nothing is allowed yet
		rules = rules[1:]
	}
	for _, r := range rules {
		prog = appendRule(prog, r)
	}
	return append(prog,
		insn{code: opXorImm, regs: regAllowed, imm: -1},
		insn{code: opAndReg, regs: regAllowed | regAsked<<4}, // what is asked for in vain
		insn{code: opAddImm, regs: regAllowed, imm: -1},      // negative if that is nothing
		insn{code: opShiftImm, regs: regAllowed, imm: 63},
		insn{code: opExit})
}

// appendRule gives or takes the rule's rights if the device is one of its.
func appendRule(p []insn, r deviceRule) []insn {
	kind := int32(bpfChar)
	if r.kind == 'b' {
		kind = bpfBlock
	}
	p = append(p, insn{code: opMoveReg, regs: regMatch | regKind<<4}, insn{code: opXorImm, regs: regMatch, imm: kind})
	for _, n := range []struct {
		reg    uint8
		number int64
	}{{regMajor, r.major}, {regMinor, r.minor}} {
		if n.number != anyNumber {
			p = append(p,
				insn{code: opMoveReg, regs: regScratch | n.reg<<4},
				insn{code: opXorImm, regs: regScratch, imm: int32(n.number)},
				insn{code: opOrReg, regs: regMatch | regScratch<<4})
		}
	}
	p = append(p, // 1 of 0, and 0 of another number of 32 bits; then the rights of 1
		insn{code: opAddImm, regs: regMatch, imm: -1},
		insn{code: opShiftImm, regs: regMatch, imm: 63},
		insn{code: opMulImm, regs: regMatch, imm: int32(r.access)})
	if r.allow {
		return append(p, insn{code: opOrReg, regs: regAllowed | regMatch<<4})
	}
	return append(p,
		insn{code: opXorImm, regs: regMatch, imm: -1},
		insn{code: opAndReg, regs: regAllowed | regMatch<<4})
}

// errNoFilter says that devices cannot be filtered by a program here.
var errNoFilter = errors.New("no device filter in cgroup2")

// noFilters makes this kernel look like one without them, for tests.
var noFilters bool

// attachDeviceFilter loads the program and makes it the group's only one. A
// program that was there is replaced in one step (Linux 5.6), so a running
// process is never unfiltered, nor filtered by both.
func attachDeviceFilter(dir string, prog []insn) error {
	group, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(group)
	loaded, err := bpfLoad(prog)
	switch err {
	case nil:
	case unix.ENOSYS, unix.EINVAL, unix.EPERM: // without bpf(2), or without CONFIG_CGROUP_BPF, or without CAP_BPF
		return fmt.Errorf("%w: load: %w", errNoFilter, err)
	default:
		return fmt.Errorf("load device filter: %w", err)
	}
	defer unix.Close(loaded)
	old, err := bpfAttached(group)
	if err != nil {
		return fmt.Errorf("list device filters of %s: %w", dir, err)
	}
	defer func() {
		for _, fd := range old {
			unix.Close(fd)
		}
	}()
	if len(old) == 1 {
		err = bpfAttach(group, loaded, old[0])
		if err == nil || !errors.Is(err, unix.EINVAL) {
			return wrapAttach(dir, err)
		}
	}
	if err := bpfAttach(group, loaded, -1); err != nil {
		return wrapAttach(dir, err)
	}
	for _, fd := range old {
		if err := bpfDetach(group, fd); err != nil {
			return fmt.Errorf("detach old device filter from %s: %w", dir, err)
		}
	}
	return nil
}

func wrapAttach(dir string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("attach device filter to %s: %w", dir, err)
}
