package launch

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/shim/seccomp"
)

// newProcfs mounts the procfs of a pid namespace, detached. A procfs shows the
// namespace of who opened its context, and a process that is born late is there
// only when all is mounted. So a helper is born into the namespace that does
// nothing but open one and hand it over. Others there may trace it: it has an
// empty root, no file but its link to us, and a filter that allows no other call.
func newProcfs(pidNS int, options []string) (int, error) {
	fs, err := openProcfs(pidNS)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	mount, err := mountContext(fs, "proc", options, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(mount, &st); err != nil || st.Type != unix.PROC_SUPER_MAGIC {
		unix.Close(mount)
		return -1, fmt.Errorf("the helper has opened something else: %w", unix.EBADMSG)
	}
	return mount, nil
}

func openProcfs(pidNS int) (int, error) {
	filter := seccomp.Only(unix.SYS_CLONE, unix.SYS_FSOPEN, unix.SYS_SENDMSG, unix.SYS_EXIT_GROUP)
	var fds fdList
	defer fds.closeAll()
	std, err := streams(Stdio{}, 0, &fds)
	if err != nil {
		return -1, err
	}
	root, err := newFilesystem("tmpfs", "none", emptyOptions, emptyAttrs)
	if err != nil {
		return -1, err
	}
	fds.add(root)
	l, childEnd, err := newLaunching(false, append(std[:], pidNS, root))
	if err != nil {
		return -1, err
	}
	defer l.abort()
	l.plan = &plan{}
	l.stdio(std)
	l.do("join pid namespace", unix.SYS_SETNS, uintptr(pidNS), unix.CLONE_NEWPID)
	l.do("create mount namespace", unix.SYS_UNSHARE, unix.CLONE_NEWNS)
	l.emptyRoot(uintptr(root))
	l.closeOthers()
	l.raiseAmbient(0)
	const only = 1 << unix.CAP_SYS_ADMIN // for the filter and fsopen(2)
	l.capset(only, only, 0)
	l.placeTid()
	l.do("load seccomp filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(filter.Flags), l.filter(filter.Program))
	l.secondClone(0)
	l.do("open procfs", unix.SYS_FSOPEN, l.str("proc"), unix.FSOPEN_CLOEXEC)
	l.send(l.opened())
	err = l.clone(0, -1, -1, true)
	unix.Close(childEnd)
	if err != nil {
		return -1, err
	}
	got, err := l.await(1)
	if err != nil {
		return -1, err
	}
	return got[0], nil
}
