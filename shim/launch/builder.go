package launch

import (
	"slices"

	"golang.org/x/sys/unix"
)

// firstFree is the lowest descriptor of the child that is free once it has
// closed what it does not need: 0 to 2 are its standard streams. From then on
// the child's descriptors are known in advance, since the kernel always gives
// the lowest free number.
const firstFree = 3

// noFD is a descriptor argument of -1, which means none.
const noFD = ^uintptr(0)

// atCWD is AT_FDCWD as an argument.
const atCWD = ^uintptr(99)

// builder writes a launch program and keeps account of the child's descriptors.
type builder struct {
	*program
	base int // descriptors that the child keeps are moved to here and above
	kept int
	next int // the descriptor that the child's next open will return
	sock int // the child's number for its socket

	files []int // the child's numbers of what becomes descriptors 3 and up

	late bool // the second clone comes at the end: see [builder.finish]

	listener  int // index of the operation that gives the seccomp listener
	execFirst int // index of the first execve, -1 before there is one
}

// newBuilder begins a program for a child that inherits the descriptors in
// inherited, and sock as its link to the parent. What it keeps gets numbers above
// all of these.
func newBuilder(p *program, sock int, inherited []int) *builder {
	// 16 leaves room for what the child has open at one time.
	base := max(16, slices.Max(append(inherited, sock))+1)
	b := &builder{program: p, base: base, next: firstFree, execFirst: -1}
	b.sock = b.keep(sock)
	return b
}

// keep moves an inherited descriptor out of the way of [builder.closeOthers].
func (b *builder) keep(fd int) int {
	to := b.base + b.kept
	b.kept++
	b.do("keep descriptor", unix.SYS_DUP3, uintptr(fd), uintptr(to), unix.O_CLOEXEC)
	return to
}

// stdio puts the three streams in place. None of them may be 0, 1 or 2.
func (b *builder) stdio(fds [3]int) {
	for i, fd := range fds {
		b.do("place standard stream", unix.SYS_DUP3, uintptr(fd), uintptr(i), 0)
	}
}

// closeOthers closes all that was inherited but standard streams and kept
// descriptors. Close-on-exec would be too late: until execve a path below
// /proc/self/fd could lead out of the container (CVE-2024-21626).
func (b *builder) closeOthers() {
	b.do("close descriptors", unix.SYS_CLOSE_RANGE, firstFree, uintptr(b.base-1), 0)
	b.do("close descriptors", unix.SYS_CLOSE_RANGE, uintptr(b.base+b.kept), ^uintptr(0)>>32, 0)
}

// opened accounts for one more descriptor and gives its number.
func (b *builder) opened() uintptr {
	b.next++
	return uintptr(b.next - 1)
}

// close closes the youngest descriptor of the child.
func (b *builder) close(fd uintptr) {
	b.do("close", unix.SYS_CLOSE, fd)
	b.next--
}

// how lays out struct open_how.
func (b *builder) how(flags, resolve uintptr) uintptr { return b.words(flags, 0, resolve) }

// writeFile writes data to a file below the directory dir, a procfs that
// nobody else can mount over. Magic links and other mounts are refused
// (CVE-2025-52881: redirected writes).
func (b *builder) writeFile(name opName, dir uintptr, path, data string) {
	resolve := uintptr(unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV)
	b.add(name, 0, unix.SYS_OPENAT2, dir, b.str(path), b.how(unix.O_WRONLY|unix.O_CLOEXEC, resolve), 24)
	fd := b.opened()
	b.add(name, opRetry, unix.SYS_WRITE, fd, b.str(data), uintptr(len(data)))
	b.close(fd)
}

// join writes "0" to a v1 tasks file: this process joins the group.
func (b *builder) join(fd uintptr, path string) {
	b.add(opName{"join cgroup", path}, opRetry, unix.SYS_WRITE, fd, b.str("0"), 1)
}

// newMount makes a filesystem inside the child's namespaces and leaves it as a
// detached mount.
func (b *builder) newMount(fsType, source, at string, data []string, attrs uint64) uintptr {
	name := opName{"mount " + fsType + " at", at}
	b.add(name, 0, unix.SYS_FSOPEN, b.str(fsType), unix.FSOPEN_CLOEXEC)
	fs := b.opened()
	if source != "" {
		b.add(name, 0, unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, b.str("source"), b.str(source), 0)
	}
	for _, opt := range data {
		key, value, isString := cutOption(opt)
		option := opName{name.String() + ": option", opt}
		if isString {
			b.add(option, 0, unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, b.str(key), b.str(value), 0)
		} else {
			b.add(option, 0, unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_FLAG, b.str(key), 0, 0)
		}
	}
	b.add(name, 0, unix.SYS_FSCONFIG, fs, unix.FSCONFIG_CMD_CREATE, 0, 0, 0)
	b.add(name, 0, unix.SYS_FSMOUNT, fs, unix.FSMOUNT_CLOEXEC, uintptr(attrs))
	mount := b.opened()
	// The mount takes the lower number, so that descriptors stay dense.
	b.add(name, 0, unix.SYS_DUP3, mount, fs, unix.O_CLOEXEC)
	b.close(mount)
	return fs
}

// msghdr lays out struct msghdr for one byte of data and room for n
// descriptors; for sending, fds are their numbers.
func (b *builder) msghdr(n int, fds []uintptr) uintptr {
	const header = 16 // struct cmsghdr
	iov := b.words(b.str("."), 1)
	if n == 0 {
		return b.words(0, 0, iov, 1, 0, 0, 0)
	}
	length := header + 4*n
	control := make([]uint32, (length+7)/8*2)
	if fds != nil {
		control[0] = uint32(length)
		control[2], control[3] = unix.SOL_SOCKET, unix.SCM_RIGHTS
		for i, fd := range fds {
			control[4+i] = uint32(fd)
		}
	}
	return b.words(0, 0, iov, 1, b.ints(control...), uintptr(len(control)*4), 0)
}

// send tells the parent how far the child is, and hands it descriptors.
func (b *builder) send(fds ...uintptr) {
	b.add(opName{"report to the shim", ""}, opRetry, unix.SYS_SENDMSG, uintptr(b.sock), b.msghdr(len(fds), fds), unix.MSG_NOSIGNAL)
}

// wait is a gate: the child goes on when the parent sends a byte, with which
// come n descriptors. It ends when the parent has died.
func (b *builder) wait(n int) {
	b.add(opName{"wait for the shim", ""}, opRetry|opNotZero, unix.SYS_RECVMSG, uintptr(b.sock), b.msghdr(n, nil), unix.MSG_CMSG_CLOEXEC)
	b.next += n
}
