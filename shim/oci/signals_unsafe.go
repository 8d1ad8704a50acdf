package oci

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// caught is where the handler writes.
var caught int32

// onSignal is called by the kernel, on any thread, and is no Go function.
func onSignal()

// handlerAddresses gives those of onSignal and of what it returns to, 0 where the
// kernel has that.
func handlerAddresses() (handler, restorer uintptr)

// action is the kernel's struct sigaction on amd64 and arm64.
type action struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// Flags of an action (sigaction(2)); saRestorer is the kernel's own, which wants it
// on amd64.
const (
	saRestorer = 0x04000000
	saOnStack  = 0x08000000
	saRestart  = 0x10000000
)

// setHandler has the kernel call onSignal for a signal, in place of Go's runtime.
func setHandler(sig unix.Signal) error {
	a := action{flags: saOnStack | saRestart, mask: ^uint64(0)}
	if a.handler, a.restorer = handlerAddresses(); a.restorer != 0 {
		a.flags |= saRestorer
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&a)), 0, 8, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
