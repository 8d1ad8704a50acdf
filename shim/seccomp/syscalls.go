package seccomp

import (
	"strconv"
	"strings"
)

//go:generate go run gen.go

// abi is one calling convention: a column of the table.
type abi uint8

const (
	amd64 abi = iota
	i386
	x32
	arm64
	arm
	abis
)

const (
	// x32Bit marks x32 calls: they share x86-64's audit architecture.
	x32Bit = 0x40000000
	// armPrivate begins Arm's private calls, far above the others.
	armPrivate = 0xf0000
)

// entry is one line of the table; a negative number is no call.
type entry [abis]int32

// lookup finds a call by name. The table is text in the binary's read-only
// part: it costs neither start-up time nor private memory, and a search of nine
// steps per name does not show.
func lookup(name string) (entry, bool) {
	low, high := 0, len(table)
	for low < high {
		start := low
		middle := (low + high) / 2
		if i := strings.LastIndexByte(table[low:middle], '\n'); i >= 0 {
			start = low + i + 1
		}
		end := len(table)
		if i := strings.IndexByte(table[start:], '\n'); i >= 0 {
			end = start + i
		}
		line := table[start:end]
		key, numbers, _ := strings.Cut(line, " ")
		switch {
		case key == name:
			return parseEntry(numbers), true
		case key < name:
			low = end + 1
		default:
			high = start
		}
	}
	return entry{}, false
}

func parseEntry(numbers string) entry {
	var e entry
	for i := range e {
		var field string
		field, numbers, _ = strings.Cut(numbers, " ")
		n, err := strconv.ParseInt(field, 10, 32)
		if err != nil {
			n = -1
		}
		e[i] = int32(n)
	}
	if e[x32] >= 0 {
		e[x32] |= x32Bit
	}
	return e
}

// A 32-bit x86 program can reach sockets and System V IPC by calls of their own
// (Linux 4.3 and 5.1) and, as it always could, by socketcall and ipc, whose
// first argument says which call is meant. These are those arguments.
const (
	socketcalls = " socket bind connect listen accept getsockname getpeername socketpair send recv sendto recvfrom" +
		" shutdown setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg "
	ipcCalls = "1semop 2semget 3semctl 4semtimedop 11msgsnd 12msgrcv 13msgget 14msgctl 21shmat 22shmdt 23shmget 24shmctl"
)

// multiplexed gives the call and first argument by which i386 reaches name.
func multiplexed(name string) (via string, argument uint32, ok bool) {
	if name == "" || strings.Contains(name, " ") {
		return "", 0, false
	}
	if i := strings.Index(socketcalls, " "+name+" "); i >= 0 {
		return "socketcall", uint32(strings.Count(socketcalls[:i+1], " ")), true
	}
	for field := range strings.SplitSeq(ipcCalls, " ") {
		digits := strings.TrimRight(field, "abcdefghijklmnopqrstuvwxyz")
		if field[len(digits):] == name {
			n, err := strconv.ParseUint(digits, 10, 8)
			return "ipc", uint32(n), err == nil
		}
	}
	return "", 0, false
}
