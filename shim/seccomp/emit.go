package seccomp

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Offsets in the kernel's struct seccomp_data; both kinds of machine here are
// little-endian, so an argument's lower half comes first.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

// Instruction codes.
const (
	opLoad         = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	opAnd          = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	opJump         = unix.BPF_JMP | unix.BPF_JA
	opEqual        = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opGreater      = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	opGreaterEqual = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	opReturn       = unix.BPF_RET | unix.BPF_K
)

// farthest is the longest jump of a conditional instruction.
const farthest = 255

type program = []unix.SockFilter

func load(offset uint32) unix.SockFilter { return unix.SockFilter{Code: opLoad, K: offset} }

func ret(a action) unix.SockFilter { return unix.SockFilter{Code: opReturn, K: uint32(a)} }

// program dispatches on the architecture, then on the number.
func (c *compiler) program() program {
	p := program{load(offsetArch)}
	for _, m := range c.machines {
		if !c.filtered(m) {
			continue
		}
		start := len(p)
		p = append(p, load(offsetNumber))
		p = appendTree(p, c.segments(m), m.abis[0])
		p = slices.Insert(p, start, skip(opEqual, m.audit, len(p)-start, false)...)
	}
	return append(p, ret(killThread))
}

func (c *compiler) filtered(m machine) bool {
	for _, which := range m.abis {
		if c.listed[which] {
			return true
		}
	}
	return false
}

// skip jumps over n instructions if the accumulator compares with k as when says.
func skip(code uint16, k uint32, n int, when bool) program {
	near := unix.SockFilter{Code: code, K: k}
	if n <= farthest && when {
		near.Jt = uint8(n)
	} else if n <= farthest {
		near.Jf = uint8(n)
	} else if when {
		near.Jf = 1
	} else {
		near.Jt = 1
	}
	if n <= farthest {
		return program{near}
	}
	return program{near, {Code: opJump, K: uint32(n)}}
}

// appendTree finds the segment of the number in the accumulator by halving.
func appendTree(p program, segments partition, which abi) program {
	if len(segments) == 1 {
		s := &segments[0]
		return appendBody(p, &s.verdict, s.wide(which))
	}
	middle, start := len(segments)/2, len(p)
	p = appendTree(p, segments[:middle], which)
	p = slices.Insert(p, start, skip(opGreaterEqual, segments[middle].start, len(p)-start, true)...)
	return appendTree(p, segments[middle:], which)
}

// wide says that arguments are compared in all 64 bits.
func (s *segment) wide(which abi) bool {
	return which == arm64 || which == amd64 && s.start < x32Bit
}

// appendBody tries the rules of one call.
func appendBody(p program, v *verdict, wide bool) program {
	for _, r := range v.rules {
		p = append(p, ruleBody(r, wide)...)
	}
	return append(p, ret(v.action))
}

// Marks of jumps whose distance is not known yet, in the longest distances,
// which no rule reaches: it has at most 37 instructions.
const (
	toNext = 254 // this condition holds: on to the next
	toFail = 255 // the rule does not hold
)

// ruleBody gives the action if every condition holds, else ends behind itself.
func ruleBody(r rule, wide bool) program {
	var p program
	for _, c := range r.conditions {
		start := len(p)
		p = append(p, compare(c, wide)...)
		for i := start; i < len(p); i++ {
			if p[i].Jt == toNext {
				p[i].Jt = uint8(len(p) - i - 1)
			}
			if p[i].Jf == toNext {
				p[i].Jf = uint8(len(p) - i - 1)
			}
		}
	}
	p = append(p, ret(r.action))
	for i := range p {
		if p[i].Jt == toFail {
			p[i].Jt = uint8(len(p) - i - 1)
		}
		if p[i].Jf == toFail {
			p[i].Jf = uint8(len(p) - i - 1)
		}
	}
	return p
}

// compare tests one argument; the classic machine has 32 bits, so the upper
// half goes first and the lower decides if the upper is equal.
func compare(c condition, wide bool) program {
	yes, no := uint8(toNext), uint8(toFail)
	if c.negate {
		yes, no = no, yes
	}
	low := offsetArgs + 8*uint32(c.arg)
	code := uint16(opEqual)
	var p program
	if wide {
		high := uint32(c.value >> 32)
		p = append(p, load(low+4))
		switch c.op {
		case equal:
			p = append(p, masked(uint32(c.mask>>32))...)
		default:
			p = append(p, unix.SockFilter{Code: opGreater, Jt: yes, K: high})
		}
		p = append(p, unix.SockFilter{Code: opEqual, Jf: no, K: high})
	}
	p = append(p, load(low))
	switch c.op {
	case equal:
		p = append(p, masked(uint32(c.mask))...)
	case greater:
		code = opGreater
	case greaterEqual:
		code = opGreaterEqual
	}
	return append(p, unix.SockFilter{Code: code, Jt: yes, Jf: no, K: uint32(c.value)})
}

func masked(mask uint32) program {
	if mask == ^uint32(0) {
		return nil
	}
	return program{{Code: opAnd, K: mask}}
}
