package seccomp

import (
	"encoding/binary"
	"runtime"
)

// Allows says whether the filter lets a system call of this machine's own kind
// through, without anybody else having a say. Arguments that are not given are 0.
func (f *Filter) Allows(number uint32, args ...uint64) bool {
	var data [64]byte // struct seccomp_data
	binary.LittleEndian.PutUint32(data[offsetNumber:], number)
	binary.LittleEndian.PutUint32(data[offsetArch:], machines(runtime.GOARCH)[0].audit)
	for i, a := range args {
		binary.LittleEndian.PutUint64(data[offsetArgs+8*i:], a)
	}
	a, ok := answer(f.Program, data[:])
	return ok && (a == allow || a == log)
}

// answer is that of the kernel's classic BPF machine, as far as filters use it. A
// program that is none of ours has none.
func answer(p program, data []byte) (action, bool) {
	var acc uint32
	for pc := 0; pc < len(p); pc++ {
		i := p[pc]
		var holds bool
		switch i.Code {
		case opLoad:
			if int64(i.K)+4 > int64(len(data)) {
				return 0, false
			}
			acc = binary.LittleEndian.Uint32(data[i.K:])
			continue
		case opAnd:
			acc &= i.K
			continue
		case opJump:
			pc += int(i.K)
			continue
		case opReturn:
			return action(i.K), true
		case opEqual:
			holds = acc == i.K
		case opGreater:
			holds = acc > i.K
		case opGreaterEqual:
			holds = acc >= i.K
		default:
			return 0, false
		}
		if holds {
			pc += int(i.Jt)
		} else {
			pc += int(i.Jf)
		}
	}
	return 0, false
}
