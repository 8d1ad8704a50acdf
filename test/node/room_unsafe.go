// Package node runs a private daemon for tests and benchmarks: in a mount and a
// network namespace of its own, with every path below one directory, so that
// several may run side by side and nothing of the machine is touched.
package node

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Room is a mount and a network namespace, kept by a thread.
type Room struct {
	calls chan func()
}

// NewRoom makes the namespaces; loopback is up, mounts are private.
func NewRoom() (*Room, error) {
	r := &Room{calls: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the room
		made <- enter()
		for f := range r.calls {
			f()
		}
	}()
	return r, <-made
}

func enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return loopbackUp()
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(ifr))); errno != 0 {
		return fmt.Errorf("bring loopback up: %w", errno)
	}
	return nil
}

// Do runs f inside the room. Processes that f starts are inside too.
func (r *Room) Do(f func()) {
	done := make(chan struct{})
	r.calls <- func() {
		defer close(done)
		f()
	}
	<-done
}

// Close lets the namespaces go, once no process is left in them.
func (r *Room) Close() { close(r.calls) }
