package launch

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kernel switches newer ways off; tests use it to walk the older ones.
var kernel struct {
	noDetachedTargets bool   // move_mount onto detached mounts, Linux 6.15
	noWorkshop        bool   // an error instead of assembling as for kernels before 6.15
	noMountSetattr    bool   // mount_setattr, Linux 5.12
	noIntoCgroup      bool   // CLONE_INTO_CGROUP, Linux 5.7
	noOverlayFD       bool   // overlay layers by descriptor, Linux 6.13
	noSharedMemory    bool   // exec by a copy of the address space
	resctrl           string // in place of /sys/fs/resctrl, if not empty

	// fault, if set, says whether an operation of a program, or a step of its
	// parent, is to fail: tests walk the ways back with it.
	fault func(what string) bool
}

// attached says whether what is open lies in this thread's mount namespace.
func attached(fd int) bool {
	id, err := mountID(fd)
	if err != nil {
		return false
	}
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	return err == nil && strings.Contains("\n"+string(data), "\n"+strconv.Itoa(id)+" ")
}

// injected gives an error in place of a step that tests want to fail.
func injected(what string) error {
	if kernel.fault == nil || !kernel.fault(what) {
		return nil
	}
	return fmt.Errorf("%s: %w", what, unix.ENOTRECOVERABLE)
}
