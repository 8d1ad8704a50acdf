package launch

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// fdList holds descriptors that live as long as one operation.
type fdList []int

// add takes a descriptor over and hands it back.
func (l *fdList) add(fd int) int {
	*l = append(*l, fd)
	return fd
}

// closeAll closes every descriptor of the list, once.
func (l *fdList) closeAll() {
	for _, fd := range *l {
		unix.Close(fd)
	}
	*l = nil
}

// forget takes fd out of the list: its owner is somebody else now.
func (l *fdList) forget(fd int) int {
	*l = slices.DeleteFunc(*l, func(have int) bool { return have == fd })
	return fd
}

// openNull opens the host's /dev/null and checks that it is that: a container
// whose "null" was something else could read or hide what it must not
// (CVE-2025-31133). It is the check that counts: O_NOFOLLOW would stay with the
// program's stdio for good, and CRIU, which opens it again by a link of procfs,
// could not restore it.
func openNull(flags int) (int, error) {
	fd, err := unix.Open("/dev/null", flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		unix.Close(fd)
		return -1, fmt.Errorf("/dev/null of the host is no null device: %w", errors.Join(err, unix.ENODEV))
	}
	return fd, nil
}

// streams opens what a process without a terminal gets as 0, 1 and 2, all above
// these numbers: placing one must not close another. Pipes are given to the container's user, who may open them again
// by the names /dev/stdin, /dev/stdout and /dev/stderr.
func streams(io Stdio, uid uint32, l *fdList) (fds [3]int, err error) {
	null := -1
	for i, f := range [...]*os.File{io.Stdin, io.Stdout, io.Stderr} {
		if f != nil {
			if fds[i], err = stream(f, uid); err != nil {
				return fds, fmt.Errorf("standard stream %d: %w", i, err)
			}
			l.add(fds[i])
			continue
		}
		if null < 0 {
			if null, err = openNull(unix.O_RDWR); err != nil {
				return fds, err
			}
			l.add(null)
		}
		fds[i] = null
	}
	return fds, nil
}

// files are descriptors of this process for a child to have from 3 on.
type files []int

// moreFiles duplicates the caller's files.
func moreFiles(from []*os.File, l *fdList) (files, error) {
	var out files
	for i, f := range from {
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, fmt.Errorf("descriptor %d: %w", firstFree+i, err)
		}
		dup, dupErr := -1, error(nil)
		err = raw.Control(func(fd uintptr) { dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, firstFree) })
		if err = errors.Join(err, dupErr); err != nil {
			return nil, fmt.Errorf("descriptor %d: %w", firstFree+i, err)
		}
		out = append(out, l.add(dup))
	}
	return out, nil
}

// inherited gives the descriptors, and the first number above their last
// places: what the child keeps must lie higher than both.
func (f files) inherited() []int {
	if len(f) == 0 {
		return nil
	}
	return append(f[:len(f):len(f)], firstFree+len(f))
}

// keepFiles makes the child keep the files.
func (b *builder) keepFiles(f files) {
	for _, fd := range f {
		b.files = append(b.files, b.keep(fd))
	}
}

// placeFiles puts the files where the program has them. It comes when the low
// numbers are free and no filter is loaded yet.
func (b *builder) placeFiles() {
	for i, fd := range b.files {
		b.do("place descriptor", unix.SYS_DUP3, uintptr(fd), uintptr(firstFree+i), 0)
	}
}

// stream duplicates one of the caller's files. The poller of the Go runtime
// made it nonblocking, which no program expects of its standard streams.
func stream(f *os.File, uid uint32) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	dup, dupErr := -1, error(nil)
	err = raw.Control(func(fd uintptr) { dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3) })
	if err = errors.Join(err, dupErr); err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(dup, false); err != nil {
		unix.Close(dup)
		return -1, err
	}
	var st unix.Stat_t
	if unix.Fstat(dup, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO && st.Uid != uid {
		_ = unix.Fchown(dup, int(uid), int(st.Gid)) // a pipe of a read-only filesystem is no harm
	}
	return dup, nil
}

// readSmall reads a file of procfs that is shorter than buf, in three system
// calls and without memory of its own.
func readSmall(name string, buf []byte) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: name, Err: err}
	}
	return buf[:n], nil
}
