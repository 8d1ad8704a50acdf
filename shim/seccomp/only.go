package seccomp

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Only makes a filter that lets some system calls of this machine's own kind
// through, by their numbers, and ends the process at any other. Unlike [Compile] it
// needs no profile, and next to no memory.
func Only(numbers ...uint32) *Filter {
	const killProcess = action(unix.SECCOMP_RET_KILL_PROCESS)
	p := program{
		load(offsetArch),
		{Code: opEqual, Jt: 1, K: machines(runtime.GOARCH)[0].audit},
		ret(killProcess),
		load(offsetNumber),
	}
	for i, n := range numbers {
		p = append(p, unix.SockFilter{Code: opEqual, Jt: uint8(len(numbers) - i), K: n})
	}
	return &Filter{Program: append(p, ret(killProcess), ret(allow))}
}
