package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
)

// bundle is the OCI bundle that every contender runs.
type bundle struct {
	dir, clock string
}

// object is any JSON object; this module has no types for the OCI spec.
type object = map[string]any

// write makes the root and the specification: what an engine asks for by
// default, with limits and a seccomp profile that allows all but a few calls.
func (b *bundle) write(unistd []string) error {
	root := filepath.Join(b.dir, "rootfs")
	for _, sub := range []string{"proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, sub), 0o755); err != nil {
			return err
		}
	}
	if err := copyFile(b.clock, filepath.Join(root, "clock")); err != nil {
		return err
	}
	names := callNames(unistd)
	if len(names) < 200 {
		return fmt.Errorf("%v name %d system calls: is libc6-dev there?", unistd, len(names))
	}
	if err := writeConfig(b.dir, spec(names, root, "/clock", "wait")); err != nil {
		return err
	}
	return writeConfig(b.ending(), spec(names, root, "/clock"))
}

// ending is the same bundle with a program that ends by itself.
func (b *bundle) ending() string { return filepath.Join(b.dir, "ending") }

func writeConfig(dir string, spec object) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

var defined = regexp.MustCompile(`(?m)^#define __NR3?2?6?4?_?([a-z0-9_]+)`)

// callNames reads the names of system calls from C headers.
func callNames(headers []string) []string {
	var names []string
	for _, header := range headers {
		data, _ := os.ReadFile(header) // of several, those of this machine are there
		for _, m := range defined.FindAllSubmatch(data, -1) {
			names = append(names, string(m[1]))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// refused are calls that no engine allows by default.
var refused = []string{"add_key", "bpf", "delete_module", "finit_module", "init_module", "kexec_load", "keyctl", "mount", "move_mount",
	"perf_event_open", "pivot_root", "reboot", "request_key", "setns", "swapoff", "swapon", "umount2", "unshare", "userfaultfd"}

func spec(calls []string, root string, args ...string) object {
	calls = slices.DeleteFunc(slices.Clone(calls), func(n string) bool { return slices.Contains(refused, n) || n == "clone" })
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}
	mount := func(at, kind string, options ...string) object {
		return object{"destination": at, "type": kind, "source": kind, "options": options}
	}
	var namespaces []object
	for _, kind := range []string{"pid", "network", "ipc", "uts", "mount"} {
		namespaces = append(namespaces, object{"type": kind})
	}
	return object{
		"ociVersion": "1.0.2", "hostname": "bench",
		"root": object{"path": root},
		"process": object{
			"args": args, "cwd": "/", "env": []string{"PATH=/"}, "noNewPrivileges": true, "user": object{"uid": 0, "gid": 0},
			"capabilities": object{"bounding": caps, "effective": caps, "permitted": caps},
			"rlimits":      []object{{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}},
		},
		"mounts": []object{
			mount("/proc", "proc", "nosuid", "noexec", "nodev"), mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
			mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
			mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
			mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"), mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
		},
		"linux": object{
			"namespaces": namespaces,
			"resources":  object{"memory": object{"limit": 256 << 20}, "cpu": object{"shares": 512}, "pids": object{"limit": 100}},
			"maskedPaths": []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"},
			"readonlyPaths": []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			"seccomp": object{
				"defaultAction": "SCMP_ACT_ERRNO", "architectures": []string{"SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"},
				"syscalls": []object{
					{"names": calls, "action": "SCMP_ACT_ALLOW"},
					{"names": []string{"clone"}, "action": "SCMP_ACT_ALLOW", "args": []object{{"index": 0, "value": 0x7e020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}}},
				},
			},
		},
	}
}
