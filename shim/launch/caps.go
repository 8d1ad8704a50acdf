package launch

import (
	"fmt"
	"os"
	"strconv"
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

// ownCaps reads this process's capabilities once.
var ownCaps = sync.OnceValues(func() (hostCaps, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return hostCaps{}, err
	}
	h := hostCaps{last: len(capNames) - 1}
	for line := range strings.SplitSeq(string(status), "\n") {
		key, value, _ := strings.Cut(line, ":\t")
		switch key {
		case "CapPrm":
			h.permitted, err = strconv.ParseUint(value, 16, 64)
		case "CapBnd":
			h.bounding, err = strconv.ParseUint(value, 16, 64)
		}
		if err != nil {
			return h, fmt.Errorf("read own capabilities: %w", err)
		}
	}
	if text, err := os.ReadFile("/proc/sys/kernel/cap_last_cap"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			h.last = min(n, 63)
		}
	}
	return h, nil
})

func capMask(field string, names []string) (uint64, error) {
	var mask uint64
	for _, name := range names {
		bit := -1
		for i, known := range capNames {
			if strings.TrimPrefix(name, "CAP_") == known {
				bit = i
				break
			}
		}
		if bit < 0 {
			return 0, fmt.Errorf("process.capabilities.%s: unknown capability %q: %w", field, name, unix.EINVAL)
		}
		mask |= 1 << bit
	}
	return mask, nil
}

// parseCaps reads the sets of the spec. What available lacks is dropped from
// every set: nobody can grant a capability that he has not got, and a
// container is better off without it than not at all. The permitted set bounds
// the effective one, the bounding set the inheritable one, and permitted and
// inheritable the ambient one.
func parseCaps(spec *specs.LinuxCapabilities, available uint64) (capSets, error) {
	var c capSets
	if spec == nil {
		return c, nil
	}
	for _, set := range []struct {
		field string
		names []string
		mask  *uint64
	}{
		{"bounding", spec.Bounding, &c.bounding},
		{"effective", spec.Effective, &c.effective},
		{"permitted", spec.Permitted, &c.permitted},
		{"inheritable", spec.Inheritable, &c.inheritable},
		{"ambient", spec.Ambient, &c.ambient},
	} {
		mask, err := capMask(set.field, set.names)
		if err != nil {
			return capSets{}, err
		}
		*set.mask = mask & available
	}
	c.effective &= c.permitted
	c.inheritable &= c.bounding
	c.ambient &= c.permitted & c.inheritable
	return c, nil
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
