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
// bpf_cgroup_dev_ctx: access<<16 | type, major, minor) in the first.
const (
	regReturn  = 0
	regContext = 1
	regNeed    = 2 // rights asked for that no rule has allowed yet
	regKind    = 3
	regMajor   = 4
	regMinor   = 5
	regScratch = 6
)

// Operation codes, from the kernel's "BPF Instruction Set" document.
const (
	opLoadWord  = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	opMoveImm   = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	opMoveReg   = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	opAndImm    = unix.BPF_ALU64 | unix.BPF_AND | unix.BPF_K
	opShiftImm  = unix.BPF_ALU64 | unix.BPF_RSH | unix.BPF_K
	opJumpEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opJumpNot   = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	opExit      = unix.BPF_JMP | unix.BPF_EXIT
)

// The kernel's BPF_DEVCG_DEV_* numbers.
const (
	bpfBlock = 1
	bpfChar  = 2
)

// deviceProgram assembles the rules, last first, into a cgroup device filter:
// it returns 1 once every right asked for is allowed, 0 as soon as one is
// denied and when the rules end.
func deviceProgram(rules []deviceRule) []insn {
	prog := []insn{
		{code: opLoadWord, regs: regNeed | regContext<<4},
		{code: opMoveReg, regs: regKind | regNeed<<4},
		{code: opAndImm, regs: regKind, imm: 0xffff},
		{code: opShiftImm, regs: regNeed, imm: 16},
		{code: opLoadWord, regs: regMajor | regContext<<4, offset: 4},
		{code: opLoadWord, regs: regMinor | regContext<<4, offset: 8},
	}
	for i := len(rules) - 1; i >= 0; i-- {
		prog = append(prog, ruleProgram(rules[i])...)
	}
	return append(prog, insn{code: opMoveImm, regs: regReturn}, insn{code: opExit})
}

func ruleProgram(r deviceRule) []insn {
	kind := int32(bpfChar)
	if r.kind == 'b' {
		kind = bpfBlock
	}
	p := []insn{{code: opJumpNot, regs: regKind, imm: kind}}
	if r.major != anyNumber {
		p = append(p, insn{code: opJumpNot, regs: regMajor, imm: int32(r.major)})
	}
	if r.minor != anyNumber {
		p = append(p, insn{code: opJumpNot, regs: regMinor, imm: int32(r.minor)})
	}
	if r.allow {
		p = append(p,
			insn{code: opAndImm, regs: regNeed, imm: ^int32(r.access)},
			insn{code: opJumpNot, regs: regNeed},
			insn{code: opMoveImm, regs: regReturn, imm: 1},
			insn{code: opExit})
	} else {
		p = append(p,
			insn{code: opMoveReg, regs: regScratch | regNeed<<4},
			insn{code: opAndImm, regs: regScratch, imm: int32(r.access)},
			insn{code: opJumpEqual, regs: regScratch},
			insn{code: opMoveImm, regs: regReturn},
			insn{code: opExit})
	}
	// Every jump of a rule skips its rest.
	for i := range p {
		if p[i].code == opJumpNot || p[i].code == opJumpEqual {
			p[i].offset = int16(len(p) - i - 1)
		}
	}
	return p
}

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
	if err != nil {
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
