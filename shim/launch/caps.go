package launch

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// capNames are the capabilities in the kernel's order (capabilities(7)).
var capNames = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

// capSets are the five sets of a process as bit masks.
type capSets struct{ bounding, effective, permitted, inheritable, ambient uint64 }

// hostCaps is what this process itself may have and hand on.
type hostCaps struct {
	permitted, bounding uint64
	last                int // the highest capability the kernel knows
}

// ownCaps asks for this process's capabilities once. The kernel knows a
// capability if it answers whether it is in the bounding set (capabilities(7)).
var ownCaps = sync.OnceValues(func() (hostCaps, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return hostCaps{}, fmt.Errorf("read own capabilities: %w", err)
	}
	h := hostCaps{last: -1, permitted: uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)}
	for bit := range 64 {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(bit), 0, 0, 0)
		if err != nil {
			break
		}
		h.bounding |= uint64(has) << bit
		h.last = bit
	}
	return h, nil
})

// capBit gives the number of a capability, -1 for a name that is none.
func capBit(name string) int {
	return slices.Index(capNames[:], strings.TrimPrefix(name, "CAP_"))
}

// parseCaps reads the sets of the spec. What nobody can grant is dropped from
// every set and named in lacking, for a warning: a container is better off without
// it than not at all (config.md, "process.capabilities"). That is a name that is
// none, and what available lacks. The permitted set bounds the effective one, the
// bounding set the inheritable one, and permitted and inheritable the ambient one.
func parseCaps(spec *specs.LinuxCapabilities, available uint64) (c capSets, lacking []string) {
	if spec == nil {
		return c, nil
	}
	for _, set := range []struct {
		names []string
		mask  *uint64
	}{
		{spec.Bounding, &c.bounding}, {spec.Effective, &c.effective}, {spec.Permitted, &c.permitted},
		{spec.Inheritable, &c.inheritable}, {spec.Ambient, &c.ambient},
	} {
		for _, name := range set.names {
			if bit := capBit(name); bit >= 0 && available&(1<<bit) != 0 {
				*set.mask |= 1 << bit
			} else if !slices.Contains(lacking, name) {
				lacking = append(lacking, name)
			}
		}
	}
	c.effective &= c.permitted
	c.inheritable &= c.bounding
	c.ambient &= c.permitted & c.inheritable
	return c, lacking
}

// dropBounding appends the removal of capabilities from the bounding set,
// which comes first: it needs CAP_SETPCAP.
func (b *builder) dropBounding(keep, have uint64, last int) {
	name := opName{"drop bounding capability", ""}
	for i := 0; i <= last; i++ {
		if bit := uint64(1) << i; keep&bit == 0 && have&bit != 0 {
			b.add(name, 0, unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(i), 0, 0, 0)
		}
	}
}

func (b *builder) capset(effective, permitted, inheritable uint64) {
	low := func(m uint64) uint32 { return uint32(m) }
	high := func(m uint64) uint32 { return uint32(m >> 32) }
	header := b.ints(unix.LINUX_CAPABILITY_VERSION_3, 0)
	data := b.ints(low(effective), low(permitted), low(inheritable), high(effective), high(permitted), high(inheritable))
	b.do("set capabilities", unix.SYS_CAPSET, header, data)
}

func (b *builder) raiseAmbient(ambient uint64) {
	b.add(opName{"clear ambient capabilities", ""}, opIgnore, unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for i := range capNames {
		if ambient&(1<<i) != 0 {
			b.add(opName{"raise ambient capability", capNames[i]}, 0, unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(i), 0, 0)
		}
	}
}
