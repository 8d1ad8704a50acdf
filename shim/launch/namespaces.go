package launch

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// cloneNewTime is CLONE_NEWTIME (Linux 5.6).
const cloneNewTime = 0x80

// namespaceFlag gives the CLONE_NEW* flag of a kind, 0 for an unknown one.
func namespaceFlag(kind specs.LinuxNamespaceType) uintptr {
	switch kind {
	case specs.PIDNamespace:
		return unix.CLONE_NEWPID
	case specs.NetworkNamespace:
		return unix.CLONE_NEWNET
	case specs.MountNamespace:
		return unix.CLONE_NEWNS
	case specs.IPCNamespace:
		return unix.CLONE_NEWIPC
	case specs.UTSNamespace:
		return unix.CLONE_NEWUTS
	case specs.UserNamespace:
		return unix.CLONE_NEWUSER
	case specs.CgroupNamespace:
		return unix.CLONE_NEWCGROUP
	case specs.TimeNamespace:
		return cloneNewTime
	}
	return 0
}

// joined is a namespace that the child enters.
type joined struct {
	kind specs.LinuxNamespaceType
	path string
	fd   int
}

// namespaces is what spec.linux.namespaces asks for.
type namespaces struct {
	fresh uintptr // CLONE_NEW* of those to create, the cgroup namespace among them
	later uintptr // those of fresh that no clone makes: the mount namespace, if it comes of a template
	join  []joined
	user  *joined // to join; nil for none
	pid   *joined
	// exposed says that the pid namespace has processes already which may have
	// CAP_SYS_PTRACE in our user namespace: it is joined and belongs to that. They
	// could trace a child that is born there with our capabilities and in our mount
	// namespace, and so become root of the host; that it is not dumpable is no
	// defence against that capability (ptrace(2)). Such a child is born late.
	exposed bool
	// chrooted says that the mount namespace is the host's or another container's:
	// the root is a tree that is attached nowhere, entered by chroot(2).
	chrooted bool
	uids     []specs.LinuxIDMapping // of the user namespace, new or joined
	gids     []specs.LinuxIDMapping

	closed bool
}

// all gives the flags of every namespace that is not the host's.
func (n *namespaces) all() uintptr {
	flags := n.fresh
	for _, j := range n.join {
		flags |= namespaceFlag(j.kind)
	}
	if n.user != nil {
		flags |= unix.CLONE_NEWUSER
	}
	if n.pid != nil {
		flags |= unix.CLONE_NEWPID
	}
	return flags
}

func (n *namespaces) userNS() bool { return n.all()&unix.CLONE_NEWUSER != 0 }

// close closes what [openNamespaces] opened; the flags stay known.
func (n *namespaces) close() {
	if n.closed {
		return
	}
	n.closed = true
	for _, j := range n.join {
		unix.Close(j.fd)
	}
	for _, j := range []*joined{n.user, n.pid} {
		if j != nil {
			unix.Close(j.fd)
		}
	}
}

// openNamespaces reads the list and opens those given by path. Paths are the
// client's on the host; the kernel checks their kind.
func openNamespaces(linux *specs.Linux) (n *namespaces, err error) {
	n = &namespaces{uids: linux.UIDMappings, gids: linux.GIDMappings}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	for _, ns := range linux.Namespaces {
		flag := namespaceFlag(ns.Type)
		if flag == 0 {
			return n, fmt.Errorf("linux.namespaces: type %q: %w", ns.Type, unix.EINVAL)
		}
		if n.all()&flag != 0 {
			return n, fmt.Errorf("linux.namespaces: %s given twice: %w", ns.Type, unix.EINVAL)
		}
		if ns.Path == "" {
			n.fresh |= flag
			continue
		}
		if err := n.open(ns); err != nil {
			return n, err
		}
	}
	n.chrooted = n.fresh&unix.CLONE_NEWNS == 0
	n.exposed = n.pid != nil && ownedByUs(n.pid.fd)
	return n, n.check(linux)
}

func (n *namespaces) open(ns specs.LinuxNamespace) error {
	if !path.IsAbs(ns.Path) {
		return fmt.Errorf("linux.namespaces: path %q of %s is not absolute: %w", ns.Path, ns.Type, unix.EINVAL)
	}
	fd, err := unix.Open(ns.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open " + string(ns.Type) + " namespace", Path: ns.Path, Err: err}
	}
	j := joined{ns.Type, ns.Path, fd}
	kind, err := ioctlValue(fd, unix.NS_GET_NSTYPE, 0)
	if err != nil || uintptr(kind) != namespaceFlag(ns.Type) {
		unix.Close(fd)
		return fmt.Errorf("linux.namespaces: %s is no %s namespace: %w", ns.Path, ns.Type, unix.EINVAL)
	}
	switch ns.Type {
	case specs.UserNamespace:
		if sameFile(fd, "/proc/self/ns/user") { // the kernel refuses to join one's own
			unix.Close(fd)
			return nil
		}
		n.user = &j
	case specs.PIDNamespace:
		n.pid = &j
	default:
		n.join = append(n.join, j)
	}
	return nil
}

func (n *namespaces) check(linux *specs.Linux) error {
	switch {
	// Root of a user namespace has no power over a mount namespace that another
	// owns (user_namespaces(7)): its member could make none of the mounts that
	// show the container's namespaces, procfs among them.
	case n.chrooted && n.userNS():
		return fmt.Errorf("linux.namespaces: a user namespace without a new mount namespace: %w", errUnsupported)
	case n.fresh&unix.CLONE_NEWUSER != 0 && (len(n.uids) == 0 || len(n.gids) == 0):
		return fmt.Errorf("linux.uidMappings and gidMappings of a new user namespace: %w", errMissing)
	case len(linux.TimeOffsets) > 0 && n.fresh&cloneNewTime == 0:
		return fmt.Errorf("linux.timeOffsets without a new time namespace: %w", unix.EINVAL)
	}
	for clock := range linux.TimeOffsets {
		if clock != "monotonic" && clock != "boottime" {
			return fmt.Errorf("linux.timeOffsets: clock %q: %w", clock, unix.EINVAL)
		}
	}
	if !n.userNS() {
		n.uids, n.gids = nil, nil
		return nil
	}
	if n.user != nil && (len(n.uids) == 0 || len(n.gids) == 0) {
		return fmt.Errorf("linux.uidMappings and gidMappings of the joined user namespace: %w", errMissing)
	}
	return nil
}

// ownedByUs says whether our user namespace owns the namespace ns.
func ownedByUs(ns int) bool {
	owner, err := ioctlValue(ns, unix.NS_GET_USERNS, 0) // EPERM: one above ours
	if err != nil {
		return false
	}
	defer unix.Close(owner)
	return sameFile(owner, "/proc/self/ns/user")
}

func sameFile(fd int, path string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(fd, &a) == nil && unix.Stat(path, &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev
}

// hostID translates an id of the container to the host's. Without a user
// namespace they are the same; an id that is not mapped has none.
func hostID(maps []specs.LinuxIDMapping, id uint32) (uint32, bool) {
	if len(maps) == 0 {
		return id, true
	}
	for _, m := range maps {
		if id >= m.ContainerID && uint64(id) < uint64(m.ContainerID)+uint64(m.Size) {
			return m.HostID + (id - m.ContainerID), true
		}
	}
	return 0, false
}

// writeIDMaps fills the maps of a new user namespace; the kernel checks them.
func writeIDMaps(pid int, uids, gids []specs.LinuxIDMapping) error {
	for _, m := range []struct {
		file string
		maps []specs.LinuxIDMapping
	}{{"gid_map", gids}, {"uid_map", uids}} {
		var text []byte
		for _, e := range m.maps {
			text = strconv.AppendUint(text, uint64(e.ContainerID), 10)
			text = append(text, ' ')
			text = strconv.AppendUint(text, uint64(e.HostID), 10)
			text = append(text, ' ')
			text = strconv.AppendUint(text, uint64(e.Size), 10)
			text = append(text, '\n')
		}
		// One write: the kernel takes a map once and whole.
		if err := writeProc(pid, m.file, string(text)); err != nil {
			return err
		}
	}
	return nil
}

// writeProc writes a file of a child in the host's procfs.
func writeProc(pid int, file, text string) error {
	name := "/proc/" + strconv.Itoa(pid) + "/" + file
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(text)); err != nil {
		return &os.PathError{Op: "write", Path: name, Err: err}
	}
	return nil
}

// timeOffset is a line of timens_offsets (time_namespaces(7)).
func timeOffset(clock string, o specs.LinuxTimeOffset) string {
	return clock + " " + strconv.FormatInt(o.Secs, 10) + " " + strconv.FormatUint(uint64(o.Nanosecs), 10)
}

// enter appends joining the namespaces given by path, the closing of all that
// was inherited for that, and the creation of the others where clone3 could not.
// The user namespace is joined or made last: root has power over namespaces
// below the first user namespace, but not the reverse.
func (b *builder) enter(n *namespaces, offsets map[string]specs.LinuxTimeOffset, procfs uintptr) {
	for _, j := range n.join {
		b.add(opName{"join " + string(j.kind) + " namespace", j.path}, 0, unix.SYS_SETNS, uintptr(j.fd), namespaceFlag(j.kind))
	}
	if n.pid != nil && (n.secondClone() || n.exposed) {
		b.add(opName{"join pid namespace", n.pid.path}, 0, unix.SYS_SETNS, uintptr(n.pid.fd), unix.CLONE_NEWPID)
	}
	if n.user != nil {
		b.add(opName{"join user namespace", n.user.path}, 0, unix.SYS_SETNS, uintptr(n.user.fd), unix.CLONE_NEWUSER)
		b.becomeRoot()
	}
	b.closeOthers()
	if n.userLate() {
		b.do("create user namespace", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	}
	if n.fresh&cloneNewTime != 0 {
		b.do("create time namespace", unix.SYS_UNSHARE, cloneNewTime)
	}
	switch {
	case n.writtenByParent():
		b.send()
		b.wait(0)
		if n.userLate() {
			b.becomeRoot()
		}
	case n.fresh&cloneNewTime != 0:
		for clock, o := range offsets {
			b.writeFile(opName{"set offset of clock", clock}, procfs, "self/timens_offsets", timeOffset(clock, o))
		}
	}
	if n.secondClone() && !n.exposed {
		b.secondClone(n.fresh & unix.CLONE_NEWPID)
	}
	if rest := n.fresh & (unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS) &^ n.later; rest != 0 {
		b.do("create namespaces", unix.SYS_UNSHARE, rest)
	}
}

// userLate says that the child makes its user namespace itself: from inside it,
// it could not join namespaces that another user namespace owns, and a clone
// that makes one cannot be born into a joined pid namespace (clone(2)).
func (n *namespaces) userLate() bool {
	return n.fresh&unix.CLONE_NEWUSER != 0 && (len(n.join) > 0 || n.pid != nil || n.fresh&cloneNewTime != 0)
}

// writtenByParent says that the child waits until its parent has written id
// maps or clock offsets: the files in its procfs directory are not those of a
// user namespace's root, since it must not be traced.
func (n *namespaces) writtenByParent() bool {
	return n.userLate() || n.user != nil && n.fresh&cloneNewTime != 0
}

// secondClone says whether the child must clone once more: a new pid namespace
// cannot be entered by its maker, and one that a joined user namespace owns can
// only be made from inside that; a new time namespace is for children only.
func (n *namespaces) secondClone() bool {
	return n.fresh&cloneNewTime != 0 || (n.user != nil || n.userLate()) && n.fresh&unix.CLONE_NEWPID != 0
}

// cloneFlags gives the namespaces that the first clone creates: those that a
// process must be born into. The child makes the others itself, while the
// parent goes on: a network namespace alone takes half a millisecond.
func (n *namespaces) cloneFlags() uintptr {
	if n.secondClone() {
		return 0
	}
	flags := n.fresh & (unix.CLONE_NEWPID | unix.CLONE_NEWUSER)
	if n.userLate() {
		flags &^= unix.CLONE_NEWUSER
	}
	return flags
}

// becomeRoot appends the change to id 0 of the user namespace, with which the
// child then makes and owns things.
func (b *builder) becomeRoot() {
	b.do("become root of the user namespace", unix.SYS_SETRESGID, 0, 0, 0)
	b.add(opName{"leave additional groups", ""}, 0, unix.SYS_SETGROUPS, 0, 0)
	b.do("become root of the user namespace", unix.SYS_SETRESUID, 0, 0, 0)
}

// sysctlNamespace gives the namespace a sysctl belongs to; 0 if it is the
// whole host's, which a container must not change.
func sysctlNamespace(key string) uintptr {
	switch {
	case strings.HasPrefix(key, "net."):
		return unix.CLONE_NEWNET
	case strings.HasPrefix(key, "fs.mqueue."), key == "kernel.shmmax", key == "kernel.shmall", key == "kernel.shmmni",
		key == "kernel.shm_rmid_forced", key == "kernel.msgmax", key == "kernel.msgmnb", key == "kernel.msgmni", key == "kernel.sem":
		return unix.CLONE_NEWIPC
	case key == "kernel.domainname", key == "kernel.hostname":
		return unix.CLONE_NEWUTS
	case strings.HasPrefix(key, "user."):
		return unix.CLONE_NEWUSER
	}
	return 0
}

// sysctls appends the writes. Names are hostile: the path is resolved below
// procfs, and only keys of a namespace of the container are taken.
func (b *builder) sysctls(values map[string]string, own uintptr, procfs uintptr) error {
	for name, value := range values {
		key, file := sysctlPath(name)
		ns := sysctlNamespace(key)
		if ns == 0 {
			return fmt.Errorf("linux.sysctl %q is not of a namespace: %w", name, unix.EPERM)
		}
		if own&ns == 0 {
			return fmt.Errorf("linux.sysctl %q: the container shares that namespace with the host: %w", name, unix.EPERM)
		}
		b.writeFile(opName{"set sysctl", name}, procfs, "sys/"+file, value)
	}
	return nil
}

// sysctlPath reads a name with dots or slashes: the first separator decides,
// and the other one then stands for a dot in a component (sysctl(8)).
func sysctlPath(name string) (key, file string) {
	swapped := strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
		return swapped, name
	}
	return name, swapped
}

// loopback appends bringing the lo device up (netdevice(7)).
func (b *builder) loopback() {
	const ifreqSize = 40
	request := make([]byte, ifreqSize)
	copy(request, "lo")
	request[16] = unix.IFF_UP
	b.do("open network socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	fd := b.opened()
	b.do("bring loopback up", unix.SYS_IOCTL, fd, unix.SIOCSIFFLAGS, b.bytes(request))
	b.close(fd)
}
