package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The tests here run where SELinux is in force with the policy
// test/vm/selinux.cil: on the machine of test-selinux.
const (
	processLabel = "system_u:system_r:container_t:s0:c1,c2"
	mountLabel   = "system_u:object_r:container_file_t:s0:c1,c2"
)

// needSELinux skips a test where that policy is not in force.
func needSELinux(t *testing.T) {
	t.Helper()
	if enforce, _ := os.ReadFile("/sys/fs/selinux/enforce"); string(enforce) != "1" {
		t.Skip("the kernel has no SELinux in force; the machine of test-selinux has it")
	}
	needRoot(t)
}

// labelsInside prints the labels of the process, of its session keyring, and of files.
func labelsInside(files []string) {
	label := func(data []byte, err error) {
		fmt.Print(strings.TrimRight(string(data), "\x00\n"), " ", err, "\n")
	}
	for _, name := range append([]string{"process"}, files...) {
		fmt.Print(name, " ")
		if name == "process" {
			label(os.ReadFile("/proc/thread-self/attr/current"))
			fmt.Print("keyring ")
			buf := make([]byte, 256)
			n, err := unix.KeyctlBuffer(unix.KEYCTL_GET_SECURITY, unix.KEY_SPEC_SESSION_KEYRING, buf, 0)
			label(buf[:max(n, 0)], err)
			continue
		}
		buf := make([]byte, 256)
		n, err := unix.Lgetxattr(name, "security.selinux", buf)
		label(buf[:max(n, 0)], err)
	}
}

// confined gives the fixture's process and its mounts labels.
func (f *fixture) confined() {
	f.spec.Process.SelinuxLabel, f.spec.Linux.MountLabel = processLabel, mountLabel
	f.cfg.Rootfs[0].Options = append(f.cfg.Rootfs[0].Options, "context="+mountLabel)
}

var labelledPlaces = []string{"/", "/probe", "/dev", "/dev/null", "/dev/pts", "/dev/shm", "/dev/mqueue", "/tmp/over", "/etc/passwd"}

// checkLabels holds that all that labelsInside prints has the container's labels.
func checkLabels(t *testing.T, out string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != len(labelledPlaces)+2 {
		t.Errorf("%d lines: %q", len(lines), out)
	}
	for _, line := range lines {
		name, label, _ := strings.Cut(line, " ")
		want := mountLabel
		if name == "process" || name == "keyring" {
			want = processLabel
		}
		if label != want+" <nil>" {
			t.Errorf("%s: %s", name, label)
		}
	}
}

// TestSELinuxLabels: the first process, what is executed beside it and the file
// systems that are the container's alone have the labels of the specification.
func TestSELinuxLabels(t *testing.T) {
	needSELinux(t)
	for name, change := range map[string]func(f *fixture){
		"plain":              func(*fixture) {},
		"gains privileges":   func(f *fixture) { f.spec.Process.NoNewPrivileges = false },
		"user":               func(f *fixture) { f.spec.Process.User.UID = 1000; f.spec.Process.User.GID = 1000 },
		"user namespace":     func(f *fixture) { f.userNS("") },
		"host's namespaces":  func(f *fixture) { f.without("network"); f.without("pid") },
		"born late":          func(f *fixture) { f.mayTrace() },
		"no mount namespace": func(f *fixture) { f.withoutMountNS("", "pid", "ipc") },
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"labels"}, labelledPlaces...)
			f := newFixture(t, args...)
			f.confined()
			lower := filepath.Join(f.bundle, "second")
			if err := os.Mkdir(lower, 0o755); err != nil {
				t.Fatal(err)
			}
			f.mount(specs.Mount{Destination: "/tmp/over", Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + lower + ":" + f.lower}})
			f.mount(specs.Mount{Destination: "/etc", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup"}})
			change(f)
			out, status := f.run()
			if status != 0 {
				t.Errorf("status %#x", status)
			}
			checkLabels(t, out)
			f.spec.Process.Args = []string{"/probe", "wait"}
			f.again()
			c := f.create()
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			checkLabels(t, f.exec(c, args...))
		})
	}
}

// again makes of a fixture whose container has ended another.
func (f *fixture) again() {
	id := fmt.Sprintf("c%d-%d", os.Getpid(), serial.Add(1))
	f.cfg.ID, f.spec.Linux.CgroupsPath = id, fmt.Sprintf(testCgroup, os.Getpid(), serial.Load())
}

// TestSELinuxPassesAFakeProc is TestCVE2023_28642 where the label can be written.
func TestSELinuxPassesAFakeProc(t *testing.T) {
	needSELinux(t)
	f := newFixture(t, "wait")
	f.confined()
	f.fakeProc()
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if label, err := os.ReadFile(fmt.Sprintf("/proc/%d/attr/current", c.Init().Pid())); strings.TrimRight(string(label), "\x00") != processLabel {
		t.Errorf("%q, %v", label, err)
	}
}

// TestSELinuxDenies: the policy's rules hold for the container's process.
func TestSELinuxDenies(t *testing.T) {
	needSELinux(t)
	f := newFixture(t, "wait")
	f.confined()
	f.spec.Linux.MaskedPaths = append(f.spec.Linux.MaskedPaths, "/etc")
	unlabelled, others, own := t.TempDir(), t.TempDir(), t.TempDir()
	for dir, label := range map[string]string{others: strings.Replace(mountLabel, "c1,c2", "c3", 1), own: mountLabel} {
		if err := unix.Lsetxattr(dir, "security.selinux", []byte(label), 0); err != nil {
			t.Fatal(err)
		}
	}
	for at, source := range map[string]string{"/unlabelled": unlabelled, "/others": others, "/own": own} {
		f.mount(specs.Mount{Destination: at, Source: source, Options: []string{"rbind"}})
	}
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	// A queue can be made, and is nothing to write to.
	for at, want := range map[string]string{"/unlabelled": "permission denied", "/others": "permission denied", "/own": "<nil>", "/tmp": "<nil>",
		"/dev/shm": "<nil>", "/dev/mqueue": "invalid argument"} {
		if out := f.exec(c, "write", at+"/file"); !strings.Contains(out, want) {
			t.Errorf("write below %s: %s", at, out)
		}
	}
	// What is hidden is there, and empty.
	for _, name := range []string{"/proc/kcore", "/proc/keys"} {
		if out := f.exec(c, "read", name); !strings.Contains(out, ": 0 \"\" <nil>") {
			t.Errorf("masked %s", out)
		}
	}
	if out := f.exec(c, "read", "/etc"); !strings.Contains(out, "is a directory") {
		t.Errorf("masked %s", out)
	}
}

// TestSELinuxRefuses: a label that the policy does not know, or does not let the
// container have, is told by name.
func TestSELinuxRefuses(t *testing.T) {
	needSELinux(t)
	for label, change := range map[string]func(f *fixture, label string){
		"system_u:system_r:nosuch_t:s0":                 func(f *fixture, label string) { f.spec.Process.SelinuxLabel = label },
		"system_u:system_r:container_t:s0:c4,c1000":     func(f *fixture, label string) { f.spec.Process.SelinuxLabel = label },
		"system_u:system_r:container_init_t:s0":         func(f *fixture, label string) { f.spec.Process.SelinuxLabel = label },
		"system_u:object_r:nosuch_file_t:s0":            func(f *fixture, label string) { f.spec.Linux.MountLabel = label },
		"system_u:object_r:container_file_t:s0:c4,c900": func(f *fixture, label string) { f.spec.Linux.MountLabel = label },
	} {
		f := newFixture(t, "wait")
		f.confined()
		change(f, label)
		c, err := Create(f.cfg)
		if err == nil {
			err = c.Start()
			c.Init().Signal(unix.SIGKILL)
			c.Init().Wait()
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), label) {
			t.Errorf("%s: %v", label, err)
		}
	}
	f := newFixture(t, "wait")
	f.confined()
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	p := *f.spec.Process
	p.SelinuxLabel = "system_u:system_r:nosuch_t:s0"
	if _, err := c.Exec(&p, Stdio{}); err == nil || !strings.Contains(err.Error(), p.SelinuxLabel) || !errors.Is(err, unix.EINVAL) {
		t.Errorf("exec: %v", err)
	}
}

// TestSELinuxTerminal: the container's terminal is its own.
func TestSELinuxTerminal(t *testing.T) {
	needSELinux(t)
	f := newFixture(t, "tty")
	f.confined()
	testTerminal(t, f)
}

// TestSELinuxHostsQueues: a container among the host's message queues leaves them
// their label.
func TestSELinuxHostsQueues(t *testing.T) {
	needSELinux(t)
	f := newFixture(t, "labels", "/dev/mqueue")
	f.confined()
	f.without("ipc")
	if out, _ := f.run(); !strings.Contains(out, "/dev/mqueue  permission denied") {
		t.Errorf("the host's queues: %s", out)
	}
}

// TestSELinuxSandbox: containers of one label share a pod's namespaces and its
// shared memory.
func TestSELinuxSandbox(t *testing.T) {
	needSELinux(t)
	cfg, _ := newSandbox(t, SandboxConfig{NewNet: true, NewIPC: true, NewUTS: true, ShmSize: 1 << 20, MountLabel: mountLabel})
	for range 2 {
		args := append([]string{"labels"}, labelledPlaces[:len(labelledPlaces)-2]...)
		f := newFixture(t, append(args, "/dev/shm/file", "/etc/passwd")...)
		f.confined()
		f.join(cfg.Dir, "net", "ipc", "uts")
		f.dropMount("/dev/shm")
		f.mount(specs.Mount{Destination: "/dev/shm", Source: cfg.Dir + "/shm", Options: []string{"rbind"}})
		if err := os.WriteFile(cfg.Dir+"/shm/file", nil, 0o666); err != nil {
			t.Fatal(err)
		}
		out, _ := f.run()
		// What is neither's is of no category.
		checkLabels(t, strings.Replace(out, "/file "+strings.TrimSuffix(mountLabel, ":c1,c2"), "/file "+mountLabel, 1))
	}
}
