package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mountOf gives the mountinfo line of a place in the container.
func mountOf(r report, at string) string {
	found := ""
	for _, m := range r.Mounts {
		if fields := strings.Fields(m); len(fields) > 5 && fields[4] == at {
			found = m
		}
	}
	return found
}

// TestMountOptions checks what each option makes of a mount, in mountinfo's words.
func TestMountOptions(t *testing.T) {
	needRoot(t)
	host := t.TempDir()
	for _, dir := range []string{"sub", "plain"} {
		if err := os.Mkdir(filepath.Join(host, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(filepath.Join(host, "file"), []byte("host\n"), 0o644)
	if err := unix.Mount("tmpfs", host+"/sub", "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(host+"/sub", unix.MNT_DETACH)
	for _, tt := range []struct {
		name      string
		mount     specs.Mount
		at        string
		want, not string
	}{
		{"bind", specs.Mount{Source: host, Options: []string{"bind"}}, "/m", " rw,", "/sub"},
		{"bind ro", specs.Mount{Source: host, Options: []string{"bind", "ro"}}, "/m", " ro,", ""},
		{"rbind", specs.Mount{Source: host, Options: []string{"rbind", "ro"}}, "/m/sub", " rw,", ""},
		{"rbind rro", specs.Mount{Source: host, Options: []string{"rbind", "rro"}}, "/m/sub", " ro,", ""},
		{"rbind flags", specs.Mount{Source: host, Options: []string{"rbind", "rnosuid", "rnodev", "rnoexec"}}, "/m/sub", "rw,nosuid,nodev,noexec", ""},
		{"bind flags", specs.Mount{Source: host, Options: []string{"bind", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"}}, "/m", "rw,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow", ""},
		{"later option wins", specs.Mount{Source: host, Options: []string{"bind", "ro", "rw", "noexec", "exec"}}, "/m", " rw,", "noexec"},
		{"file", specs.Mount{Source: host + "/file", Options: []string{"bind"}}, "/m", " rw,", ""},
		{"shared", specs.Mount{Source: host, Options: []string{"rbind", "rshared"}}, "/m", " shared:", ""},
		{"private", specs.Mount{Source: host, Options: []string{"rbind", "rprivate"}}, "/m", " rw,", "shared:"},
		{"unbindable", specs.Mount{Source: host, Options: []string{"rbind", "runbindable"}}, "/m", "unbindable", ""},
		{"tmpfs", specs.Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "size=8k", "ro"}}, "/m", " ro,nosuid - tmpfs tmpfs rw,size=8k", ""},
		{"deep place", specs.Mount{Type: "tmpfs", Destination: "/a/b/c"}, "/a/b/c", " - tmpfs", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, "report")
			if tt.mount.Destination == "" {
				tt.mount.Destination = "/m"
			}
			f.spec.Mounts = append(f.spec.Mounts, tt.mount)
			out, _ := f.run()
			line := strings.Replace(mountOf(decode(t, out), tt.at), "seclabel,", "", 1) // with SELinux
			if line == "" || !strings.Contains(line, tt.want) || tt.not != "" && strings.Contains(line, tt.not) {
				t.Errorf("%s: %q, want %q and not %q", tt.at, line, tt.want, tt.not)
			}
		})
	}
}

// TestHostMountsPropagate is mountPropagation: HostToContainer.
func TestHostMountsPropagate(t *testing.T) {
	needRoot(t)
	for _, way := range []struct {
		name              string
		template, oldWays bool
	}{{"host mounts copied", false, false}, {"template", true, false}, {"no mounts onto detached trees", false, true}} {
		t.Run(way.name, func(t *testing.T) {
			host := t.TempDir()
			if err := unix.Mount(host, host, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(host, unix.MNT_DETACH)
			if err := unix.Mount("", host, "", unix.MS_SHARED, ""); err != nil {
				t.Fatal(err)
			}
			os.Mkdir(host+"/late", 0o755)
			f := newFixture(t, "wait")
			old := kernel
			defer func() { kernel = old }()
			if way.oldWays {
				kernel.noDetachedTargets, kernel.noWorkshop = true, false
			}
			if way.template {
				f.cfg.Template = filepath.Join(t.TempDir(), "template")
				if err := PinTemplate(f.cfg.Template); err != nil {
					t.Fatal(err)
				}
				defer RemoveTemplate(f.cfg.Template)
			}
			f.spec.Mounts = append(f.spec.Mounts,
				specs.Mount{Destination: "/slave", Source: host, Options: []string{"rbind", "rslave"}},
				specs.Mount{Destination: "/private", Source: host, Options: []string{"rbind", "rprivate"}})
			c := f.create()
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("tmpfs", host+"/late", "tmpfs", 0, "size=4k"); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(host+"/late", unix.MNT_DETACH)
			r := decode(t, f.exec(c, "report"))
			if mountOf(r, "/slave/late") == "" || mountOf(r, "/private/late") != "" {
				t.Errorf("mounts: %s", strings.Join(r.Mounts, "\n"))
			}
		})
	}
}

func TestImageCannotRedirectMounts(t *testing.T) {
	for _, tt := range []struct {
		name, link, to, want string
	}{
		{"proc", "proc", "etc", "mount proc at /proc: a link leads there"},
		{"sys", "sys", "/etc", "mount sysfs at /sys: a link leads there"},
		{"proc loop", "proc", "proc", "mount proc at /proc"},
		{"volume goes out", "data", "/../../../../../../etc", ""},
		{"dev", "dev", "/etc", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, "wait")
			if err := os.Symlink(tt.to, filepath.Join(f.lower, tt.link)); err != nil {
				t.Fatal(err)
			}
			f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: "/data", Type: "tmpfs"})
			if tt.want != "" {
				if _, err := Create(f.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("create: %v, want %q", err, tt.want)
				}
				return
			}
			c := f.create()
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			// The link is followed inside the root: /etc of the container.
			if r := decode(t, f.exec(c, "report")); mountOf(r, "/etc") == "" {
				t.Errorf("mounts: %s", strings.Join(r.Mounts, "\n"))
			}
		})
	}
}

func TestPathsAreHidden(t *testing.T) {
	f := newFixture(t, "wait")
	f.write("secret/file", "secret\n", 0o644)
	f.write("etc/frozen", "old\n", 0o644)
	f.spec.Linux.MaskedPaths = append(f.spec.Linux.MaskedPaths, "/secret", "/etc/passwd")
	f.spec.Linux.ReadonlyPaths = append(f.spec.Linux.ReadonlyPaths, "/etc/frozen")
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	out := f.exec(c, "read", "/secret/file", "/etc/passwd", "/proc/keys", "/proc/timer_list")
	for _, want := range []string{"/secret/file: 0 \"\" open /secret/file: no such file", `/etc/passwd: 0 ""`, `/proc/keys: 0 ""`, `/proc/timer_list: 0 ""`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for _, file := range []string{"/etc/frozen", "/proc/sys/kernel/hostname", "/secret/new"} {
		if out := f.exec(c, "write", file); !strings.Contains(out, "read-only file system") {
			t.Errorf("write %s: %s", file, out)
		}
	}
}

func TestReadonlyRoot(t *testing.T) {
	f := newFixture(t, "wait")
	f.spec.Root.Readonly = true
	f.spec.Process.Cwd = "/made/for/it"
	f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: "/scratch", Type: "tmpfs"})
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if out := f.exec(c, "write", "/new"); !strings.Contains(out, "read-only") {
		t.Errorf("write to the root: %s", out)
	}
	if out := f.exec(c, "write", "/scratch/new"); !strings.HasPrefix(out, "<nil>\n") {
		t.Errorf("write to a mount: %s", out)
	}
}

func TestUser(t *testing.T) {
	f := newFixture(t, "report")
	umask := uint32(0o027)
	p := f.spec.Process
	p.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 9}, Umask: &umask}
	p.Cwd = "/home/user"
	net := []string{"CAP_NET_BIND_SERVICE"}
	p.Capabilities = &specs.LinuxCapabilities{Bounding: defaultCaps, Permitted: net, Effective: net, Inheritable: net, Ambient: net}
	out, _ := f.run()
	r := decode(t, out)
	if r.UID != 1000 || r.GID != 1001 || fmt.Sprint(r.Groups) != "[7 9]" || r.Umask != 0o027 || r.Cwd != "/home/user" {
		t.Errorf("uid %d, gid %d, groups %v, umask %o, directory %s", r.UID, r.GID, r.Groups, r.Umask, r.Cwd)
	}
	for _, set := range []string{"CapEff", "CapPrm", "CapInh", "CapAmb"} {
		if r.Status[set] != "0000000000000400" {
			t.Errorf("%s is %s", set, r.Status[set])
		}
	}
	if got := strings.Join(r.Env, " "); !strings.Contains(got, "HOME=/home/user") {
		t.Errorf("environment %s", got)
	}
}

func TestProcessAttributes(t *testing.T) {
	f := newFixture(t, "wait")
	score := 321
	p := f.spec.Process
	p.OOMScoreAdj = &score
	p.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}
	p.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
	p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 300, Hard: 400}, {Type: "RLIMIT_CORE", Soft: 1, Hard: 2}, {Type: "RLIMIT_STACK", Soft: unix.RLIM_INFINITY, Hard: unix.RLIM_INFINITY}}
	f.spec.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
	c := f.create()
	read := func(file string) string {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", c.Init().Pid(), file))
		if err != nil {
			t.Error(err)
		}
		return string(data)
	}
	limits := read("limits") // at the gate: Go raises its own soft limit when it runs
	for _, want := range []string{`Max open files +300 +400`, `Max core file size +1 +2`} {
		if !regexp.MustCompile(want).MatchString(limits) {
			t.Errorf("no %s in\n%s", want, limits)
		}
	}
	if got := strings.TrimSpace(read("oom_score_adj")); got != "321" {
		t.Errorf("oom_score_adj %s", got)
	}
	if got := strings.TrimSpace(read("personality")); got != "00000008" {
		t.Errorf("personality %s", got)
	}
	fields := strings.Fields(read("stat")[strings.LastIndex(read("stat"), ")"):])
	if fields[17] != "5" || fields[39] != "3" {
		t.Errorf("nice %s, policy %s", fields[17], fields[39])
	}
	if prio, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, 1, uintptr(c.Init().Pid()), 0); errno != 0 || prio != 2<<13|6 {
		t.Errorf("I/O priority %#x, %v", prio, errno)
	}
}

// TestWaitingChildHoldsNothing: no memory of ours, no privilege, no file.
func TestWaitingChildHoldsNothing(t *testing.T) {
	if dynamicallyLinked() {
		t.Skip("with libc the child keeps the parent's memory")
	}
	f := newFixture(t, "wait")
	c := f.create()
	dir := fmt.Sprintf("/proc/%d/", c.Init().Pid())
	maps, _ := os.ReadFile(dir + "maps")
	for line := range strings.Lines(string(maps)) {
		if !strings.Contains(line, "launch.test") && !strings.Contains(line, "/dev/zero") && !strings.Contains(line, "[vsyscall]") {
			t.Errorf("waiting child has mapping %s", line)
		}
	}
	status, _ := os.ReadFile(dir + "status")
	if !strings.Contains(string(status), "CapPrm:\t00000000a80425fb") || !strings.Contains(string(status), "NoNewPrivs:\t1") {
		t.Errorf("waiting child:\n%s", status)
	}
	fds, _ := os.ReadDir(dir + "fd")
	if len(fds) != 4 {
		t.Errorf("waiting child has %d descriptors", len(fds))
	}
}

// TestGateClosesWithParent: a child whose parent died never runs the program.
func TestGateClosesWithParent(t *testing.T) {
	f := newFixture(t, "write", "/ran")
	c := f.create()
	c.pending.link.close()
	status, err := c.Init().Wait()
	if err != nil || status.ExitStatus() != 125 {
		t.Errorf("status %#x, %v", status, err)
	}
	if _, err := os.Stat(f.bundle + "/upper/ran"); err == nil {
		t.Error("the program ran")
	}
}

func TestSeccomp(t *testing.T) {
	for _, noNewPrivs := range []bool{true, false} {
		t.Run(fmt.Sprintf("no_new_privs %v", noNewPrivs), func(t *testing.T) {
			f := newFixture(t, "report")
			f.spec.Process.NoNewPrivileges = noNewPrivs
			eperm := uint(unix.EPERM)
			f.spec.Linux.Seccomp = &specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchAARCH64},
				Syscalls: []specs.LinuxSyscall{{Names: []string{"umask"}, Action: specs.ActErrno, ErrnoRet: &eperm}},
			}
			out, _ := f.run()
			r := decode(t, out)
			if r.Status["Seccomp"] != "2" || r.Umask != -1 {
				t.Errorf("seccomp mode %s, umask %d", r.Status["Seccomp"], r.Umask)
			}
			if r.Status["CapEff"] != "00000000a80425fb" {
				t.Errorf("capabilities %s", r.Status["CapEff"])
			}
		})
	}
}

func TestDevices(t *testing.T) {
	f := newFixture(t, "wait")
	mode, gid := os.FileMode(0o640), uint32(6)
	f.spec.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &mode, GID: &gid},
		{Path: "/dev/deep/queue", Type: "p"},
		{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
	}
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	out := f.exec(c, "stat", "/dev/fuse", "/dev/deep/queue", "/dev/null", "/dev/tty", "/dev/ptmx", "/dev/stdin")
	for _, want := range []string{
		"/dev/fuse mode=20640 dev=10:229 uid=0 gid=6", "/dev/deep/queue mode=10666", "/dev/null mode=20666 dev=1:3",
		"/dev/tty mode=20666 dev=5:0", "/dev/ptmx mode=120777", "/dev/stdin mode=120777",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestTmpCopyUp(t *testing.T) {
	f := newFixture(t, "wait")
	f.write("etc/deep/file", "kept\n", 0o640)
	os.Symlink("passwd", filepath.Join(f.lower, "etc/link"))
	f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: "/etc", Type: "tmpfs", Options: []string{"tmpcopyup", "ro"}})
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	out := f.exec(c, "read", "/etc/deep/file", "/etc/link") + f.exec(c, "stat", "/etc/deep/file") + f.exec(c, "write", "/etc/new")
	for _, want := range []string{`kept\n`, `root:x:0:0`, "mode=100640", "read-only"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestSysctlsAndTime(t *testing.T) {
	f := newFixture(t, "read", "/proc/sys/net/ipv4/ip_forward", "/proc/uptime")
	f.spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	f.spec.Linux.Namespaces = append(f.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	f.spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1000000000}}
	out, _ := f.run()
	if !strings.Contains(out, `ip_forward: 2 "1\n"`) || !regexp.MustCompile(`uptime: \d+ "10000`).MatchString(out) {
		t.Errorf("sees\n%s", out)
	}
}

// TestRootOfSeveralMounts is what a task's Create may ask for.
func TestRootOfSeveralMounts(t *testing.T) {
	f := newFixture(t, "read", "/volume/kept", "/tmp/kept", "/hidden/kept")
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "kept"), []byte("data\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f.cfg.Rootfs = []Mount{
		{Type: "tmpfs", Source: "tmpfs"},
		{Type: "bind", Source: data, Options: []string{"bind"}, Target: "/hidden"},
		f.cfg.Rootfs[0],
		{Type: "bind", Source: data, Options: []string{"bind", "ro"}, Target: "volume"},
		{Type: "tmpfs", Source: "tmpfs", Target: "/../tmp"},
	}
	out, _ := f.run()
	for _, want := range []string{`volume/kept: 5 "data\n"`, "/tmp/kept: 0", "/hidden/kept: 0"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestErrorsNameTheField(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		change     func(f *fixture)
	}{
		{"unknown rlimit", `unknown type "RLIMIT_ODD"`, func(f *fixture) { f.spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_ODD"}} }},
		{"host sysctl", `"kernel.panic" is not of a namespace`, func(f *fixture) { f.spec.Linux.Sysctl = map[string]string{"kernel.panic": "1"} }},
		{"sysctl path", `net.././kernel/panic`, func(f *fixture) { f.spec.Linux.Sysctl = map[string]string{"net.././kernel/panic": "1"} }},
		{"relative cwd", `process.cwd "x" is not absolute`, func(f *fixture) { f.spec.Process.Cwd = "x" }},
		{"no command", "process.args: missing", func(f *fixture) { f.spec.Process.Args = nil }},
		{"bad proc option", "mount proc at /proc: option odd=1: invalid argument", func(f *fixture) { f.spec.Mounts[0].Options = []string{"odd=1"} }},
		{"bad tmpfs option", `mount tmpfs at /dev: option "size=x"`, func(f *fixture) { f.spec.Mounts[1].Options = []string{"size=x"} }},
		{"no source", "mount bind of /no/such at /m: no such file", func(f *fixture) {
			f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: "/m", Source: "/no/such", Options: []string{"bind"}})
		}},
		{"unknown filesystem", "mount oddfs at /m: no such device", func(f *fixture) {
			f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: "/m", Type: "oddfs"})
		}},
		{"no layer", "/no/layer: no such file", func(f *fixture) { f.cfg.Rootfs[0].Options[0] = "lowerdir=/no/layer" }},
		{"user but no mount namespace", "user namespace without a new mount namespace", func(f *fixture) {
			f.spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: "user"}}
			f.spec.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}}
			f.spec.Linux.GIDMappings = f.spec.Linux.UIDMappings
		}},
		{"not a namespace", "/dev/null is no network namespace", func(f *fixture) { f.spec.Linux.Namespaces[1].Path = "/dev/null" }},
		{"twice", "pid given twice", func(f *fixture) {
			f.spec.Linux.Namespaces = append(f.spec.Linux.Namespaces, specs.LinuxNamespace{Type: "pid"})
		}},
		{"terminal without devpts", "process.terminal", func(f *fixture) {
			f.spec.Process.Terminal = true
			f.spec.Mounts = f.spec.Mounts[:2]
		}},
		{"long arguments", "argument list too long", func(f *fixture) {
			f.spec.Process.Args = append(f.spec.Process.Args, strings.Repeat("x", arenaSize))
		}},
		{"NUL", "NUL byte", func(f *fixture) { f.spec.Process.Env = []string{"A=\x00"} }},
		{"resctrl", "linux.intelRdt", func(f *fixture) { f.spec.Linux.IntelRdt = &specs.LinuxIntelRdt{} }},
		{"apparmor", "set AppArmor profile odd", func(f *fixture) { f.spec.Process.ApparmorProfile = "odd" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, "report")
			tt.change(f)
			before := openFDs(t)
			c, err := Create(f.cfg)
			if err == nil {
				c.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("create: %v, want %q", err, tt.want)
			}
			if after := openFDs(t); len(after) > len(before) {
				t.Errorf("descriptors before %v, after %v", before, after)
			}
			if _, err := os.Stat("/sys/fs/cgroup/memory" + f.spec.Linux.CgroupsPath); err == nil {
				t.Error("cgroup is left")
			}
			var status unix.WaitStatus
			if pid, err := unix.Wait4(-1, &status, unix.WNOHANG|unix.WALL, nil); !errors.Is(err, unix.ECHILD) {
				t.Errorf("child %d is left: %v", pid, err)
			}
		})
	}
}

func TestRootAsDirectory(t *testing.T) {
	f := newFixture(t, "report")
	f.cfg.Rootfs = nil
	f.spec.Root.Path = "lower"
	f.spec.Linux.RootfsPropagation = "rshared"
	out, _ := f.run()
	line := mountOf(decode(t, out), "/")
	if !strings.Contains(line, " shared:") {
		t.Errorf("root %q", line)
	}
	// It is a group of the container's own, not the host's.
	own, _ := os.ReadFile("/proc/self/mountinfo")
	for _, field := range strings.Fields(line) {
		if strings.HasPrefix(field, "shared:") && strings.Contains(string(own), " "+field+" ") {
			t.Errorf("the root is a peer of the host's mount: %s", line)
		}
	}
}

// TestNothingIsMounted: a root that had nothing attached has no need of a
// workshop before its copy is made.
func TestNothingIsMounted(t *testing.T) {
	f := newFixture(t, "exit", "7")
	f.cfg.Rootfs, f.cfg.Ordered = nil, true
	f.spec.Root.Path = "lower"
	f.spec.Mounts, f.spec.Linux.MaskedPaths, f.spec.Linux.ReadonlyPaths = nil, nil, nil
	if _, status := f.run(); status.ExitStatus() != 7 {
		t.Errorf("status %#x", status)
	}
}
