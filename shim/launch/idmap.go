package launch

import (
	"fmt"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mapIDs shows the files of a detached mount with mapped owners: what belongs
// to a container id on disk belongs to its host id there (Linux 5.12; overlay
// layers 5.19, tmpfs 6.3).
func mapIDs(mount int, uids, gids []specs.LinuxIDMapping, recursive bool) error {
	if !hasMountSetattr() {
		return fmt.Errorf("id-mapped mounts need mount_setattr of Linux 5.12: %w", unix.ENOSYS)
	}
	ns, err := mappingNamespace(uids, gids)
	if err != nil {
		return fmt.Errorf("make user namespace for id mapping: %w", err)
	}
	defer unix.Close(ns)
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(mount, "", flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns)})
}

// mappingNamespace makes a user namespace that serves as a mapping only: its
// one process waits at a gate until the namespace is open, and then ends.
func mappingNamespace(uids, gids []specs.LinuxIDMapping) (int, error) {
	p, err := newProgram(false)
	if err != nil {
		return -1, err
	}
	defer p.free()
	parent, childEnd, err := newLink()
	if err != nil {
		return -1, err
	}
	defer parent.close()
	b := newBuilder(p, childEnd, nil)
	b.do("forbid tracing", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	b.closeOthers()
	b.wait(0)
	pid, pidfd, err := p.clone(unix.CLONE_NEWUSER, -1, -1)
	unix.Close(childEnd)
	if err != nil {
		return -1, err
	}
	proc := newProcess(pid, pidfd)
	defer proc.kill()
	if err := writeIDMaps(pid, uids, gids); err != nil {
		return -1, err
	}
	return unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
}
