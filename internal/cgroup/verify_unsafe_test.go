package cgroup

import (
	"testing"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestTheVerifierLooksOnce: what a device filter costs is how many instructions the
// kernel's verifier looks at, over all the ways that it finds through the program.
func TestTheVerifierLooksOnce(t *testing.T) {
	needsRoot(t)
	var in []specs.LinuxDeviceCgroup
	for i := range int64(40) {
		in = append(in, specs.LinuxDeviceCgroup{Allow: i%3 > 0, Type: []string{"a", "b", "c"}[i%3], Major: &i, Access: []string{"rw", "m"}[i%2]})
	}
	rules, err := deviceRules(in)
	if err != nil {
		t.Fatal(err)
	}
	prog := deviceProgram(rules)
	fd, err := bpfLoad(prog)
	if err == unix.ENOSYS || err == unix.EINVAL {
		t.Skipf("this kernel has no cgroup device programs: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const getInfoByFD, verified = 15, 216 // BPF_OBJ_GET_INFO_BY_FD; bpf_prog_info.verified_insns, Linux 5.16
	var info [256]byte
	attr := struct {
		fd, size uint32
		info     uint64
	}{uint32(fd), uint32(len(info)), uint64(uintptr(unsafe.Pointer(&info[0])))}
	if _, err := bpf(getInfoByFD, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		t.Fatal(err)
	}
	if looked := *(*uint32)(unsafe.Pointer(&info[verified])); looked == 0 {
		t.Skip("this kernel does not tell")
	} else if int(looked) != len(prog) {
		t.Errorf("the verifier looked at %d instructions of %d", looked, len(prog))
	}
}
