package engine

import (
	"os"
	"strings"

	"github.com/longshore/longshore/internal/cgroup"
	"golang.org/x/sys/unix"
)

// hostFacts is what specifications depend on of the machine.
type hostFacts struct {
	hostname     string
	cgroupV2     bool
	capabilities []string // that the daemon itself has, and can give
	appArmor     bool
	seLinux      bool
}

func readHostFacts(host *cgroup.Host) (hostFacts, error) {
	name, err := os.Hostname()
	if err != nil {
		return hostFacts{}, err
	}
	own, err := ownCapabilities()
	if err != nil {
		return hostFacts{}, err
	}
	_, appArmorErr := os.Stat("/sys/kernel/security/apparmor/profiles")
	_, seLinuxErr := os.Stat("/sys/fs/selinux/enforce")
	return hostFacts{hostname: name, cgroupV2: host.Mode == cgroup.V2, capabilities: own,
		appArmor: appArmorErr == nil, seLinux: seLinuxErr == nil}, nil
}

// capabilityNames are Linux's capabilities by number (capabilities(7)).
var capabilityNames = strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID
CAP_SETUID CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK
CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE
CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE CAP_AUDIT_CONTROL CAP_SETFCAP
CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF
CAP_CHECKPOINT_RESTORE`)

// ownCapabilities gives the daemon's permitted capabilities.
func ownCapabilities() ([]string, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil, os.NewSyscallError("capget", err)
	}
	var names []string
	for i, name := range capabilityNames {
		if data[i/32].Permitted&(1<<(i%32)) != 0 {
			names = append(names, name)
		}
	}
	return names, nil
}
