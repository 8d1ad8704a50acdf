package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
)

// running gives a container whose program waits.
func running(t *testing.T) *fixture {
	t.Helper()
	f := newFixture(t, "wait")
	_, out := f.create()
	f.ok("start", f.id)
	readLine(t, out)
	return f
}

func TestExec(t *testing.T) {
	f := running(t)
	file := filepath.Join(t.TempDir(), "process.json")
	p := specs.Process{Args: []string{"/probe", "who"}, Cwd: "/tmp", Env: []string{"WHO=file"}, User: specs.User{UID: 5, GID: 6}}
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args   []string
		out    string // without the pid
		errs   string
		status int
	}{
		"of the container": {[]string{f.id, "/probe", "who"}, "0 0 \n/ <nil>\n", "", 0},
		"flags":            {[]string{"--user", "7:8", "-e", "WHO=flag", "--cwd", "/tmp", f.id, "/probe", "who"}, "7 8 flag\n/tmp <nil>\n", "", 0},
		"file":             {[]string{"--process", file, f.id}, "5 6 file\n/tmp <nil>\n", "", 0},
		"status":           {[]string{f.id, "/probe", "exit", "9"}, "", "", 9},
		"not found":        {[]string{f.id, "nowhere"}, "", "executable file not found in $PATH", 255},
		"nothing to run":   {[]string{f.id}, "", "want a container and a command", 255},
		"no container":     {[]string{"other", "/probe"}, "", "does not exist", 255},
		"bad user":         {[]string{"--user", "x", f.id, "/probe"}, "", "--user", 255},
	} {
		t.Run(name, func(t *testing.T) {
			out, errs, status := f.run(append([]string{"exec"}, tc.args...)...)
			if _, rest, ok := strings.Cut(out, " "); ok {
				out = rest
			}
			if out != tc.out || status != tc.status || !strings.Contains(errs, tc.errs) {
				t.Errorf("%q, %q, status %d", out, errs, status)
			}
		})
	}
}

func TestExecLeftAlone(t *testing.T) {
	f := running(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	f.ok("exec", "--detach", "--pid-file", pidFile, f.id, "/probe", "exit", "3")
	if status := reap(t, readPid(t, pidFile)); status.ExitStatus() != 3 {
		t.Errorf("status %#x", status)
	}
}

// TestExecBeforeStart: the namespaces are there, the program is not.
func TestExecBeforeStart(t *testing.T) {
	f := newFixture(t, "wait")
	f.create()
	if out := f.ok("exec", f.id, "/probe", "say", "early"); out != "early\n" {
		t.Errorf("%q", out)
	}
	f.wantStatus(specs.StateCreated)
}

// listen makes a console socket, from which terminal reads one descriptor.
func listen(t *testing.T) (path string, terminal func() *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "console")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return path, func() *os.File {
		t.Helper()
		conn, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		name, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
		n, oob, _, _, err := conn.ReadMsgUnix(name, control)
		if err != nil || n == 0 {
			t.Fatalf("name of %d bytes, %v", n, err)
		}
		messages, err := unix.ParseSocketControlMessage(control[:oob])
		if err != nil || len(messages) != 1 {
			t.Fatalf("%d messages, %v", len(messages), err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			t.Fatalf("descriptors %v, %v", fds, err)
		}
		return os.NewFile(uintptr(fds[0]), string(name[:n]))
	}
}

// shown reads a terminal until its last user has let go.
func shown(t *testing.T, master *os.File) string {
	t.Helper()
	defer master.Close()
	text, err := io.ReadAll(master)
	if err != nil && !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	return string(text)
}

const onTerminal = "0 true <nil>\r\n1 true <nil>\r\n2 true <nil>\r\n"

func TestConsoleSocket(t *testing.T) {
	f := newFixture(t, "tty")
	f.spec.Process.Terminal = true
	f.write()
	f.fails("--console-socket", "create", "--bundle", f.bundle, f.id)
	path, terminal := listen(t)
	f.ok("create", "--bundle", f.bundle, "--console-socket", path, f.id)
	master := terminal()
	f.ok("start", f.id)
	if text := shown(t, master); text != onTerminal {
		t.Errorf("%q", text)
	}
}

func TestConsoleSocketOfExec(t *testing.T) {
	f := running(t)
	path, terminal := listen(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	f.ok("exec", "--tty", "--detach", "--pid-file", pidFile, "--console-socket", path, f.id, "/probe", "tty")
	if text := shown(t, terminal()); text != onTerminal {
		t.Errorf("%q", text)
	}
	// A pid namespace ends only once everyone in it is reaped.
	reap(t, readPid(t, pidFile))
}

// TestExecShowsATerminal: without a console socket the command itself stands
// between the process's terminal and its own streams.
func TestExecShowsATerminal(t *testing.T) {
	f := running(t)
	out := f.ok("exec", "--tty", f.id, "/probe", "tty")
	if out != onTerminal {
		t.Errorf("%q", out)
	}
}

func TestPauseAndResume(t *testing.T) {
	f := running(t)
	f.ok("pause", f.id)
	f.wantStatus(statePaused)
	f.fails("it is paused", "pause", f.id)
	if _, errs, status := f.run("exec", f.id, "/probe", "say", "x"); status != 255 || !strings.Contains(errs, "paused") {
		t.Errorf("exec: status %d, %s", status, errs)
	}
	f.ok("resume", f.id)
	f.wantStatus(specs.StateRunning)
	f.fails("it is running", "resume", f.id)
	f.ok("pause", f.id)
	pid := f.state().Pid
	f.ok("kill", f.id, "KILL") // reaches a frozen one too
	reap(t, pid)
	f.wantStatus(specs.StateStopped)
}

func TestProcessesOfAContainer(t *testing.T) {
	f := running(t)
	var pids []int
	if err := json.Unmarshal([]byte(f.ok("ps", "--format", "json", f.id)), &pids); err != nil {
		t.Fatal(err)
	}
	if len(pids) != 1 || pids[0] != f.state().Pid {
		t.Errorf("processes %v", pids)
	}
}

func TestUpdateFromStandardInput(t *testing.T) {
	f := running(t)
	cmd := f.command("update", "--resources", "-", f.id)
	cmd.Stdin = bytes.NewReader([]byte(`{"pids":{"limit":77}}`))
	if _, errs, status := f.finish(cmd); status != 0 {
		t.Fatalf("status %d: %s", status, errs)
	}
	f.ok("update", "--memory", "64m", f.id)
	_, group, err := (&container{record: record{Cgroup: f.group}}).group()
	if err != nil {
		t.Fatal(err)
	}
	stats, err := group.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if stats.Pids.Limit != 77 || stats.Memory.Limit != 64<<20 {
		t.Errorf("limits: %d processes, %d bytes", stats.Pids.Limit, stats.Memory.Limit)
	}
}

// TestPreservedDescriptors: they keep their numbers, and no other is there.
func TestPreservedDescriptors(t *testing.T) {
	f := newFixture(t, "fds")
	f.write()
	extra := filepath.Join(t.TempDir(), "extra")
	if err := os.WriteFile(extra, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func() *os.File {
		file, err := os.Open(extra)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		return file
	}
	check := func(out string, env string) {
		t.Helper()
		if !strings.Contains(out, "\n3 "+extra+"\n") || !strings.Contains(out, "\n4 "+extra+"\n") ||
			!strings.Contains(out, "read text\n") || !strings.HasSuffix(out, env+"\n") {
			t.Errorf("%q", out)
		}
		for line := range strings.Lines(out) {
			if fd, to, ok := strings.Cut(line, " "); ok && fd > "4" && fd < "9" && !strings.HasPrefix(to, "/proc/") && !strings.HasPrefix(to, "anon_inode:[event") && !strings.HasPrefix(to, "/sys/fs/cgroup/cpu") {
				t.Errorf("descriptor %s is open: %s", fd, to)
			}
		}
	}
	cmd := f.command("run", "--preserve-fds", "2", "--bundle", f.bundle, f.id)
	cmd.ExtraFiles = []*os.File{open(), open(), open()}
	out, errs, status := f.finish(cmd)
	if status != 0 {
		t.Fatalf("status %d: %s", status, errs)
	}
	check(out, " ")
	f.fails("is not open", "run", "--preserve-fds", "40", "--bundle", f.bundle, f.id)

	// With numbers beyond those the launch keeps things at.
	cmd = f.command("run", "--preserve-fds", "30", "--bundle", f.bundle, f.id)
	for range 30 {
		cmd.ExtraFiles = append(cmd.ExtraFiles, open())
	}
	if out, errs, status := f.finish(cmd); status != 0 || !strings.Contains(out, "\n32 "+extra+"\n") {
		t.Errorf("status %d: %s%s", status, out, errs)
	}

	f = running(t)
	cmd = f.command("exec", "--preserve-fds", "1", f.id, "/probe", "fds")
	cmd.ExtraFiles = []*os.File{open(), open()}
	cmd.Env = append(cmd.Env, "LISTEN_FDS=1")
	out, errs, status = f.finish(cmd)
	if status != 0 {
		t.Fatalf("status %d: %s", status, errs)
	}
	check(out, "1 1")
}

// TestUserNamespace: the gate and exec reach into one, which has no power here.
func TestUserNamespace(t *testing.T) {
	f := newFixture(t, "wait")
	f.spec.Linux.Namespaces = append(f.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	f.spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	f.spec.Linux.GIDMappings = f.spec.Linux.UIDMappings
	// Its root must get to the root directory.
	for dir := f.bundle; dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, out := f.create()
	f.wantStatus(specs.StateCreated)
	f.ok("start", f.id)
	readLine(t, out)
	r := f.wantStatus(specs.StateRunning)
	var st unix.Stat_t
	if err := unix.Stat("/proc/"+strconv.Itoa(r.Pid), &st); err != nil || st.Uid != 100000 {
		t.Errorf("runs as %d of the host, %v", st.Uid, err)
	}
	if out := f.ok("exec", "--user", "5:6", f.id, "/probe", "who"); !strings.HasSuffix(out, " 5 6 \n/ <nil>\n") {
		t.Errorf("%q", out)
	}
}

// TestExecWhereTheContainerManagesItsGroup: a group that hands a controller down
// takes no process, so one that is run in it follows the first.
func TestExecWhereTheContainerManagesItsGroup(t *testing.T) {
	f := running(t)
	dir, controller := domainController(t)
	dir += f.group
	pid := strconv.Itoa(f.state().Pid)
	init := filepath.Join(dir, "init")
	if err := os.Mkdir(init, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(init, "cgroup.procs"), pid)
	write(filepath.Join(dir, "cgroup.subtree_control"), "+"+controller)
	if out := f.ok("exec", f.id, "/probe", "cgroup"); out != "/init\n" {
		t.Errorf("the process is in %q, not in /init", out)
	}
	// Who is elsewhere shows no way.
	elsewhere := dir + "-elsewhere"
	if err := os.Mkdir(elsewhere, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(elsewhere)
	write(filepath.Join(elsewhere, "cgroup.procs"), pid)
	out, errs, status := f.run("exec", f.id, "/probe", "cgroup")
	if status != 255 || !strings.Contains(errs, "not below "+f.group) {
		t.Errorf("exec beside a process that has left: status %d, %q, %q", status, out, errs)
	}
	write(filepath.Join(init, "cgroup.procs"), pid)
}

// domainController gives where the cgroup2 tree is mounted and a controller there
// that groups with processes cannot hand down.
func domainController(t *testing.T) (mount, controller string) {
	t.Helper()
	host, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	for _, tree := range host.Trees {
		for _, name := range []string{"memory", "hugetlb", "io"} {
			if tree.Unified && slices.Contains(tree.Controllers, name) {
				return tree.Mount, name
			}
		}
	}
	t.Skip("needs a controller in cgroup2")
	return "", ""
}

// TestExecInAGroupBelow: the group must be there, and below the container's.
func TestExecInAGroupBelow(t *testing.T) {
	f := running(t)
	mount := cgroup2(t)
	sub := filepath.Join(mount, f.group, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sub", "/sub"} {
		// The container's cgroup namespace begins at its group.
		if out := f.ok("exec", "--cgroup", name, f.id, "/probe", "cgroup"); out != "/sub\n" {
			t.Errorf("--cgroup %s: the process is in %q", name, out)
		}
	}
	if out := f.ok("exec", "--cgroup", "/", f.id, "/probe", "cgroup"); out != "/\n" {
		t.Errorf("--cgroup /: the process is in %q", out)
	}
	for name, want := range map[string]string{"other": "no such file", "..": "invalid argument", "sub/../../x": "invalid argument"} {
		if _, errs, status := f.run("exec", "--cgroup", name, f.id, "/probe", "cgroup"); status != 255 || !strings.Contains(errs, want) {
			t.Errorf("--cgroup %s: status %d, %q", name, status, errs)
		}
	}
}

// cgroup2 is where the cgroup2 tree is mounted.
func cgroup2(t *testing.T) string {
	t.Helper()
	host, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	for _, tree := range host.Trees {
		if tree.Unified {
			return tree.Mount
		}
	}
	t.Skip("needs cgroup2")
	return ""
}

func TestUpdateFlagsOfRunc(t *testing.T) {
	f := running(t)
	_, errs, status := f.run("update", "--kernel-memory", "1g", "--kernel-memory-tcp", "1g", "--pids-limit", "50", f.id)
	if status != 0 || !strings.Contains(errs, "--kernel-memory is ignored") || !strings.Contains(errs, "--kernel-memory-tcp is ignored") {
		t.Errorf("kernel memory: status %d, %q", status, errs)
	}
	f.fails("no class", "update", "--l3-cache-schema", "L3:0=f", f.id)
	f.fails("no class", "update", "--mem-bw-schema", "MB:0=70", f.id)
}

// TestEventsPrintsStatistics by the names that runc gives them.
func TestEventsPrintsStatistics(t *testing.T) {
	f := running(t)
	f.ok("update", "--pids-limit", "50", "--memory", "64m", f.id)
	var got struct {
		Type, ID string
		Data     struct {
			CPU    struct{ Usage struct{ Total uint64 } }
			Memory struct{ Usage struct{ Limit, Usage uint64 } }
			Pids   struct{ Current, Limit uint64 }
		}
	}
	text := f.ok("events", "--stats", f.id)
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	d := &got.Data
	if got.Type != "stats" || got.ID != f.id || d.CPU.Usage.Total == 0 || d.Memory.Usage.Limit != 64<<20 || d.Memory.Usage.Usage == 0 ||
		d.Pids.Current == 0 || d.Pids.Limit != 50 {
		t.Error(text)
	}
	f.fails("without --stats", "events", f.id)
}
