package engine

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxDescriptors bounds how many open files of a container are looked at:
// their number is the container's to choose.
const maxDescriptors = 1 << 16

// countProcesses counts processes and what they have open. One that ends
// meanwhile does not count.
func (d *Details) countProcesses(pids []int) {
	for _, pid := range pids {
		dir, err := os.Open("/proc/" + strconv.Itoa(pid) + "/fd")
		if err != nil {
			continue
		}
		d.Processes++
		for d.FileDescriptors < maxDescriptors {
			names, err := dir.Readdirnames(256)
			if err != nil {
				break
			}
			d.FileDescriptors += uint64(len(names))
			d.Sockets += sockets(dir, names)
		}
		dir.Close()
	}
}

func sockets(dir *os.File, names []string) (n uint64) {
	var target [16]byte
	for _, name := range names {
		if got, err := unix.Readlinkat(int(dir.Fd()), name, target[:]); err == nil && strings.HasPrefix(string(target[:got]), "socket:") {
			n++
		}
	}
	return n
}

// maxOpenFiles reads the soft limit of a process, 0 if it has ended.
func maxOpenFiles(pid int) uint64 {
	if pid <= 0 {
		return 0
	}
	var limit unix.Rlimit
	if unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit) != nil {
		return 0
	}
	return limit.Cur
}

func filesystemOf(dir string) (Filesystem, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Filesystem{}, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return Filesystem{Bytes: st.Blocks * uint64(st.Bsize), Inodes: st.Files, FreeInodes: st.Ffree}, nil
}
