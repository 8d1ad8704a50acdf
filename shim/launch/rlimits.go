package launch

import (
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// rlimit is one resource limit to set.
type rlimit struct {
	name       string
	resource   int
	soft, hard uint64
}

var rlimitNames = [...]struct {
	name     string
	resource int
}{
	{"AS", unix.RLIMIT_AS}, {"CORE", unix.RLIMIT_CORE}, {"CPU", unix.RLIMIT_CPU}, {"DATA", unix.RLIMIT_DATA},
	{"FSIZE", unix.RLIMIT_FSIZE}, {"LOCKS", unix.RLIMIT_LOCKS}, {"MEMLOCK", unix.RLIMIT_MEMLOCK},
	{"MSGQUEUE", unix.RLIMIT_MSGQUEUE}, {"NICE", unix.RLIMIT_NICE}, {"NOFILE", unix.RLIMIT_NOFILE},
	{"NPROC", unix.RLIMIT_NPROC}, {"RSS", unix.RLIMIT_RSS}, {"RTPRIO", unix.RLIMIT_RTPRIO},
	{"RTTIME", unix.RLIMIT_RTTIME}, {"SIGPENDING", unix.RLIMIT_SIGPENDING}, {"STACK", unix.RLIMIT_STACK},
}

func rlimitNumber(name string) (int, bool) {
	for i := range rlimitNames {
		if rlimitNames[i].name == strings.TrimPrefix(name, "RLIMIT_") {
			return rlimitNames[i].resource, true
		}
	}
	return 0, false
}

// defaultNoFile is the soft limit without one in the spec: what a program that
// uses select(2) can live with.
const defaultNoFile = 1024

// parseRlimits reads the limits. RLIMIT_NOFILE is always among them: the Go
// runtime raises its own soft limit, which a raw clone would hand on. A hard
// limit above ours is lowered to it, and named in lowered, where we may not raise it.
func parseRlimits(limits []specs.POSIXRlimit, mayRaise bool) (out []rlimit, lowered []string, err error) {
	var seen uint64 // by number
	for _, l := range limits {
		resource, ok := rlimitNumber(l.Type)
		if !ok {
			return nil, nil, fmt.Errorf("process.rlimits: unknown type %q: %w", l.Type, unix.EINVAL)
		}
		if seen&(1<<resource) != 0 {
			return nil, nil, fmt.Errorf("process.rlimits: %s given twice: %w", l.Type, unix.EINVAL)
		}
		if l.Soft > l.Hard {
			return nil, nil, fmt.Errorf("process.rlimits: %s: soft limit %d above hard limit %d: %w", l.Type, l.Soft, l.Hard, unix.EINVAL)
		}
		seen |= 1 << resource
		out = append(out, rlimit{l.Type, resource, l.Soft, l.Hard})
	}
	if seen&(1<<unix.RLIMIT_NOFILE) == 0 {
		var own unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
			return nil, nil, fmt.Errorf("read RLIMIT_NOFILE: %w", err)
		}
		out = append(out, rlimit{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE, min(defaultNoFile, own.Max), own.Max})
	}
	if mayRaise {
		return out, nil, nil
	}
	for i := range out {
		var own unix.Rlimit
		if unix.Getrlimit(out[i].resource, &own) == nil && out[i].hard > own.Max {
			out[i].hard = own.Max
			out[i].soft = min(out[i].soft, own.Max)
			lowered = append(lowered, out[i].name)
		}
	}
	return out, lowered, nil
}

// raised lists the limits whose hard value is above ours: only a process with
// CAP_SYS_RESOURCE in the first user namespace may raise it.
func raised(limits []rlimit) []rlimit {
	var out []rlimit
	for _, l := range limits {
		var own unix.Rlimit
		if unix.Getrlimit(l.resource, &own) == nil && l.hard > own.Max {
			l.soft = own.Cur
			out = append(out, l)
		}
	}
	return out
}

func (b *builder) setRlimits(limits []rlimit) {
	for _, l := range limits {
		b.add(opName{"set", l.name}, 0, unix.SYS_PRLIMIT64, 0, uintptr(l.resource), b.words(uintptr(l.soft), uintptr(l.hard)), 0)
	}
}
