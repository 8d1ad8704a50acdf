package cgroup

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands and constants of bpf(2) that a device filter needs.
const (
	bpfProgLoad        = 5
	bpfProgAttach      = 8
	bpfProgDetach      = 9
	bpfProgGetFDByID   = 13
	bpfProgQuery       = 16
	progTypeDevice     = 15 // BPF_PROG_TYPE_CGROUP_DEVICE, Linux 4.15
	attachTypeDevice   = 6  // BPF_CGROUP_DEVICE
	attachAllowMulti   = 1 << 1
	attachReplace      = 1 << 2 // Linux 5.6
	maxAttached        = 64     // the kernel's BPF_CGROUP_MAX_PROGS
	progNameLen        = 16
	bpfLoadMaxAttempts = 5
)

// loadAttr is the part of union bpf_attr that BPF_PROG_LOAD reads. Its pointers are
// the kernel's numbers of 64 bits here.
type loadAttr struct {
	progType    uint32
	insnCount   uint32
	insns       *insn
	license     *byte
	logLevel    uint32
	logSize     uint32
	log         uint64
	kernVersion uint32
	flags       uint32
	name        [progNameLen]byte
}

// attachAttr is the part that BPF_PROG_ATTACH and BPF_PROG_DETACH read.
type attachAttr struct {
	target  uint32
	prog    uint32
	kind    uint32
	flags   uint32
	replace uint32
}

// queryAttr is the part that BPF_PROG_QUERY reads and writes.
type queryAttr struct {
	target      uint32
	kind        uint32
	queryFlags  uint32
	attachFlags uint32
	ids         *uint32
	count       uint32
	_           uint32
}

type idAttr struct{ id, next, openFlags uint32 }

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// license is told to the kernel; a device filter calls nothing that wants the GPL.
var license = []byte("Apache-2.0\x00")

// bpfLoad gives a file descriptor of the verified program.
func bpfLoad(prog []insn) (int, error) {
	if noFilters {
		return -1, unix.EINVAL
	}
	attr := loadAttr{
		progType:  progTypeDevice,
		insnCount: uint32(len(prog)),
		insns:     unsafe.SliceData(prog),
		license:   unsafe.SliceData(license),
	}
	copy(attr.name[:], "longshore_dev")
	// The verifier gives EAGAIN when a signal interrupts it.
	for attempt := 1; ; attempt++ {
		fd, err := bpf(bpfProgLoad, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		if err != unix.EAGAIN || attempt == bpfLoadMaxAttempts {
			return fd, err
		}
	}
}

// bpfAttach attaches a program to a cgroup directory; replace, if not
// negative, is the attached program it takes the place of.
func bpfAttach(group, prog, replace int) error {
	attr := attachAttr{target: uint32(group), prog: uint32(prog), kind: attachTypeDevice, flags: attachAllowMulti}
	if replace >= 0 {
		attr.flags |= attachReplace
		attr.replace = uint32(replace)
	}
	_, err := bpf(bpfProgAttach, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

func bpfDetach(group, prog int) error {
	attr := attachAttr{target: uint32(group), prog: uint32(prog), kind: attachTypeDevice}
	_, err := bpf(bpfProgDetach, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// bpfAttached opens the device programs attached to a cgroup directory.
func bpfAttached(group int) ([]int, error) {
	var ids [maxAttached]uint32
	attr := queryAttr{
		target: uint32(group), kind: attachTypeDevice,
		ids: &ids[0], count: maxAttached,
	}
	if _, err := bpf(bpfProgQuery, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return nil, err
	}
	var fds []int
	for _, id := range ids[:min(attr.count, maxAttached)] {
		by := idAttr{id: id}
		fd, err := bpf(bpfProgGetFDByID, unsafe.Pointer(&by), unsafe.Sizeof(by))
		if err == unix.ENOENT { // detached meanwhile
			continue
		}
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			return nil, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}
