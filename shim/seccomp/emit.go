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

// assembler writes a program from its end, so that the distance of each jump is
// known when it is written, and what is there already can be jumped to: one
// return serves for all that are within reach. The kernel translates a program
// at each start of a process, so that half as long is half the time.
type assembler struct {
	reversed program
	returns  map[action]int // the return last written, as an index of reversed
}

// target is where a jump goes: an instruction, as an index of reversed, or an
// action, whose return may be yet to be written.
type target struct {
	at     int
	action action
	ends   bool // with action
}

// write puts instructions, in their order, in front of what is there.
func (a *assembler) write(p ...unix.SockFilter) target {
	for _, in := range slices.Backward(p) {
		a.reversed = append(a.reversed, in)
	}
	return target{at: len(a.reversed) - 1}
}

// distance is how many instructions the next one would jump over.
func (a *assembler) distance(at int) int { return len(a.reversed) - 1 - at }

// within gives a place that does what t does and that can be jumped to from one
// of the next more+1 instructions.
func (a *assembler) within(t target, more int) int {
	if t.ends {
		at, ok := a.returns[t.action]
		if !ok || a.distance(at)+more > farthest {
			at = a.write(ret(t.action)).at
			a.returns[t.action] = at
		}
		return at
	}
	if d := a.distance(t.at); d+more > farthest {
		return a.write(unix.SockFilter{Code: opJump, K: uint32(d)}).at
	}
	return t.at
}

// branch goes to yes if the accumulator compares with k, else to no.
func (a *assembler) branch(code uint16, k uint32, yes, no target) target {
	// Either may write an instruction first.
	y := a.within(yes, 1)
	n := a.within(no, 0)
	return a.write(unix.SockFilter{Code: code, K: k, Jt: uint8(a.distance(y)), Jf: uint8(a.distance(n))})
}

// program dispatches on the architecture, then on the number.
func (c *compiler) program() program {
	a := assembler{returns: map[action]int{}}
	next := target{action: killThread, ends: true}
	for _, m := range slices.Backward(c.machines) {
		if !c.filtered(m) {
			continue
		}
		tree := a.tree(c.segments(m), m.abis[0])
		if tree.ends {
			a.write(ret(tree.action))
		}
		next = a.branch(opEqual, m.audit, a.write(load(offsetNumber)), next)
	}
	if next.ends {
		a.write(ret(next.action))
	}
	a.write(load(offsetArch))
	slices.Reverse(a.reversed)
	return a.reversed
}

func (c *compiler) filtered(m machine) bool {
	for _, which := range m.abis {
		if c.listed[which] {
			return true
		}
	}
	return false
}

// tree finds the segment of the number in the accumulator by halving. Unless it
// ends at once, it begins with the instruction written last.
func (a *assembler) tree(segments partition, which abi) target {
	if len(segments) == 1 {
		s := &segments[0]
		return a.body(&s.verdict, s.wide(which))
	}
	middle := len(segments) / 2
	upper := a.tree(segments[middle:], which)
	lower := a.tree(segments[:middle], which)
	return a.branch(opGreaterEqual, segments[middle].start, upper, lower)
}

// wide says that arguments are compared in all 64 bits.
func (s *segment) wide(which abi) bool {
	return which == arm64 || which == amd64 && s.start < x32Bit
}

// body tries the rules of one call.
func (a *assembler) body(v *verdict, wide bool) target {
	if len(v.rules) == 0 {
		return target{action: v.action, ends: true}
	}
	var p program
	for _, r := range v.rules {
		p = append(p, ruleBody(r, wide)...)
	}
	return a.write(append(p, ret(v.action))...)
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
