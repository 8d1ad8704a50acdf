package oci

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/internal/cgroup"
)

// walked is a command to walk.
type walked struct {
	name   string
	before []string // what precedes it
	args   string
	ends   bool // the container's program does by itself
	makes  bool // the container: if it fails, nothing is left
}

const (
	create = "create --bundle BUNDLE CONSOLE --pid-file BUNDLE/pid c1"
	run    = "run -d --bundle BUNDLE CONSOLE c1"
)

var walks = []walked{
	{name: "create", args: create, makes: true},
	{name: "start", before: []string{create}, args: "start c1"},
	{name: "run", args: "run --bundle BUNDLE c1", ends: true},
	{name: "run detached", args: run, makes: true},
	{name: "exec", before: []string{run}, args: "exec TTY c1 /probe exit 0"},
	{name: "kill", before: []string{run}, args: "kill c1 KILL"},
	{name: "delete", before: []string{"run --keep --bundle BUNDLE c1"}, args: "delete c1", ends: true},
	{name: "delete by force", before: []string{run}, args: "delete --force c1"},
}

// variant is a container to walk with.
type variant struct {
	name string
	set  func(f *fixture)
}

var containers = []variant{
	{"plain", func(*fixture) {}},
	{"hooks, filter, limits", func(f *fixture) {
		f.spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"bpf"}, Action: specs.ActErrno}}}
		f.spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
		memory, pids := int64(64<<20), int64(50)
		f.spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}, Pids: &specs.LinuxPids{Limit: &pids}}
		f.spec.Root.Readonly = true
		f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup"}},
			specs.Mount{Destination: "/made/here", Type: "bind", Source: "/proc/self/status", Options: []string{"rbind", "rro"}})
		hook := []specs.Hook{{Path: "/bin/true"}}
		f.spec.Hooks = &specs.Hooks{CreateRuntime: hook, CreateContainer: hook, StartContainer: []specs.Hook{{Path: "/probe", Args: []string{"probe", "exit", "0"}}}, Poststart: hook, Poststop: hook}
	}},
	{"user namespace", func(f *fixture) {
		f.spec.Linux.Namespaces = append(f.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
		f.spec.Linux.UIDMappings, f.spec.Linux.GIDMappings = ids, ids
	}},
	{"terminal", func(f *fixture) {
		f.spec.Process.Terminal = true
		f.console = keepTerminals(f.t)
	}},
	{"host's process ids", func(f *fixture) {
		f.spec.Linux.Namespaces = slices.DeleteFunc(f.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.PIDNamespace })
	}},
}

// walkedSample is how many points of each walk are tried; LONGSHORE_INJECT asks for all.
const walkedSample = 2

// TestInjectedAnywhere has each system call of a command fail, and kills the command,
// or its child, at each. The command fails with an error that says why, or succeeds;
// those that follow find what is there, and clear it away.
func TestInjectedAnywhere(t *testing.T) {
	for _, c := range containers {
		for _, w := range walks {
			t.Run(c.name+"/"+w.name, func(t *testing.T) {
				f := newWalk(t, c, w)
				points(t, ways, func(in *injector) { f.walk(w, in) })
			})
		}
	}
}

// newWalk gives the bundle of a container to walk with.
func newWalk(t *testing.T, c variant, w walked) *fixture {
	f := newFixture(t, "trap")
	if w.ends {
		f.spec.Process.Args = []string{"/probe", "exit", "0"}
	}
	c.set(f)
	f.write()
	return f
}

// seed is that of the points which are tried.
var seed = uint64(time.Now().UnixNano())

// points has a command carried out with nothing, then with something at each of its
// calls, in each way, or at some.
func points(t *testing.T, ways []way, walk func(in *injector)) {
	nothing := &injector{}
	walk(nothing)
	var all []*injector
	for _, how := range ways {
		for i := range nothing.seen[how.child] {
			all = append(all, &injector{way: how, at: i + 1})
		}
	}
	some := all
	if os.Getenv("LONGSHORE_INJECT") == "" {
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		some = all[:min(len(all), walkedSample)]
	}
	for _, in := range some {
		walk(in)
	}
	t.Logf("%d of %d points; seed %d", len(some), len(all), seed)
}

// TestInjectedWhereItWasWrong: what walks have found.
func TestInjectedWhereItWasWrong(t *testing.T) {
	for _, tc := range []struct{ container, command, way, about string }{
		{"plain", "start", "fail", "/stat)"},    // was: it is stopped
		{"plain", "exec", "fail", "/stat)"},     // likewise
		{"plain", "kill", "fail", "/stat)"},     // likewise
		{"plain", "start", "fail", "gate.json"}, // was: it is running
		{"plain", "exec", "fail", "/root)"},     // was: it has ended
		{"plain", "exec", "fail", "ns/user)"},   // was: of the same user namespace
		// Was: the end of a process, or of all in a group, could not be waited for.
		{"plain", "run", "fail", "epoll_ctl"}, {"plain", "exec", "fail", "epoll_ctl"}, {"plain", "delete by force", "fail", "epoll_ctl"},
		{"plain", "delete", "kill", "/c1)"},       // was: what is left had no name, which could not be given again
		{"terminal", "exec", "fail", "/dev/pts)"}, // was: the container has no devpts
		// Was: a hook could not join it.
		{"hooks, filter, limits", "run detached", "fail in the child", "recvmsg"},
	} {
		t.Run(tc.command+" "+tc.about, func(t *testing.T) {
			c := containers[slices.IndexFunc(containers, func(c variant) bool { return c.name == tc.container })]
			w := walks[slices.IndexFunc(walks, func(w walked) bool { return w.name == tc.command })]
			how := ways[slices.IndexFunc(ways, func(w way) bool { return w.name == tc.way })]
			in := &injector{way: how, about: tc.about}
			newWalk(t, c, w).walk(w, in)
			if in.hit == nil {
				t.Errorf("no call is about %q", tc.about)
			}
		})
	}
}

// TestKilledCreateSparesNeighbours: what a create that is refused a control group leaves behind
// when it is killed does not have the group's processes ended.
func TestKilledCreateSparesNeighbours(t *testing.T) {
	f := newFixture(t, "trap")
	f.write()
	f.ok("run", "-d", "--bundle", f.bundle, f.id)
	kill := func(in *injector) {
		if _, err := f.inject(in, "create", "--bundle", f.bundle, "other"); err != nil {
			t.Fatal(err)
		}
		f.ok("delete", "--force", "other")
		if !f.is(specs.StateRunning) {
			t.Fatalf("killed at call %d, %s: the neighbour is gone", in.at, in.what)
		}
	}
	how := way{name: "kill", victim: "command"}
	kill(&injector{way: how, about: f.group + "/cgroup.procs"})
	points(t, []way{how}, kill)
}

// keepTerminals takes terminals over a socket, and keeps the last.
func keepTerminals(t *testing.T) (path string) {
	path = filepath.Join(t.TempDir(), "console")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		var last net.Conn
		for {
			conn, err := l.Accept()
			if last != nil {
				last.Close()
			}
			if err != nil {
				return
			}
			last = conn
		}
	}()
	return path
}

func (f *fixture) arguments(line string) []string {
	console, tty := "", ""
	if f.console != "" {
		console, tty = "--console-socket="+f.console, "--tty"
	}
	return strings.Fields(strings.NewReplacer("BUNDLE", f.bundle, "CONSOLE", console, "TTY", tty).Replace(line))
}

// inject carries out one command, and gives its errors.
func (f *fixture) inject(in *injector, args ...string) (said string, err error) {
	errs, err := os.CreateTemp(f.t.TempDir(), "errors")
	if err != nil {
		return "", err
	}
	defer os.Remove(errs.Name())
	defer errs.Close()
	if err := in.start(errs, released(f.t), append([]string{"--root", f.root}, args...)...); err != nil {
		return "", err
	}
	in.wait()
	text, err := os.ReadFile(errs.Name())
	return string(text), err
}

// walk carries out one command, clears away, and looks for what is left.
func (f *fixture) walk(w walked, in *injector) {
	f.t.Helper()
	for _, line := range w.before {
		f.ok(f.arguments(line)...)
	}
	said, err := f.inject(in, f.arguments(w.args)...)
	if err != nil {
		f.t.Fatal(err)
	}
	status := in.status
	complain := func(format string, args ...any) {
		f.t.Helper()
		f.t.Errorf("%s: call %d, %s: %s\nthe command: status %#x: %s", in.name, in.at, in.what, fmt.Sprintf(format, args...), uint32(status), said)
	}
	if in.hangs {
		complain("hangs")
	}
	killed := in.hit != nil && in.victim == "command"
	if !killed {
		f.judge(w, in, status, said, complain)
	}
	f.follow(complain)
	f.leaks(in, complain)
}

// judge looks at how a command has ended that was not killed.
func (f *fixture) judge(w walked, in *injector, status unix.WaitStatus, said string, complain func(string, ...any)) {
	switch {
	case status.Signaled() || strings.Contains(said, "goroutine ") || strings.Contains(said, "fatal error"):
		complain("broke down")
	case status == 0, status.ExitStatus() == 128+int(unix.SIGKILL) && in.victim == "child": // in its last steps it counts as the program
	case in.hit == nil:
		complain("failed")
	case said == "" || in.fails && !in.lasts && !strings.Contains(said, in.hit.errno.Error()):
		complain("does not say why")
	case w.makes && !in.hit.removes() && !in.lasts && f.exists():
		complain("failed and left the container")
	case w.makes && !in.hit.removes() && !in.lasts && len(f.groups()) > 0:
		complain("failed and left %v", f.groups())
	case w.name == "run" && f.is("running"), w.name == "exec" && !f.is("running"):
		complain("the container is running: %v", f.is("running"))
	}
}

// is says whether the container has a state.
func (f *fixture) is(status specs.ContainerState) bool {
	f.t.Helper()
	out, _, _ := f.run("state", f.id)
	return strings.Contains(out, fmt.Sprintf(`"status": %q`, status))
}

// follow has later commands look at what is there and clear it away.
func (f *fixture) follow(complain func(string, ...any)) {
	f.t.Helper()
	list, text, status := f.run("list", "-q")
	if status != 0 || text != "" {
		complain("list: status %d: %s", status, text)
	}
	_, text, status = f.run("state", f.id)
	if found := status == 0; !found && !strings.Contains(text, "does not exist") || found != strings.Contains(list, f.id) {
		complain("list: %s, state: status %d: %s", list, status, text)
	}
	if _, text, status := f.run("delete", "--force", f.id); status != 0 || text != "" {
		complain("delete --force: status %d: %s", status, text)
	}
}

// groups lists the control groups of the container.
func (f *fixture) groups() (found []string) {
	host, err := cgroup.Detect()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, tree := range host.Trees {
		if _, err := os.Stat(tree.Mount + f.group); err == nil {
			found = append(found, tree.Mount+f.group)
		}
	}
	return found
}

// leaks looks for what a command has left: processes, control groups, mounts,
// files of state. Namespaces are held by a process, a descriptor of one, or a mount.
func (f *fixture) leaks(in *injector, complain func(string, ...any)) {
	f.t.Helper()
	select {
	case <-in.ended:
	case <-time.After(commandTimeout):
		complain("processes are left")
		f.t.FailNow()
	}
	for { // processes of containers that other commands have made
		if pid, _ := unix.Wait4(-1, nil, unix.WALL|unix.WNOHANG, nil); pid <= 0 {
			break
		}
	}
	if g := f.groups(); len(g) > 0 {
		complain("left %v", g)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		f.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, f.bundle) || strings.Contains(line, f.root) {
			complain("mounted: %s", line)
		}
	}
	temps, _ := filepath.Glob(filepath.Join(f.bundle, ".tmp-*"))
	if len(temps) > 0 {
		complain("left %v", temps)
	}
	os.Remove(filepath.Join(f.bundle, "pid"))
	_ = filepath.WalkDir(f.root, func(path string, d os.DirEntry, err error) error {
		if err == nil && path != f.root && path != filepath.Join(f.root, filters) &&
			(filepath.Dir(path) != filepath.Join(f.root, filters) || atomicfile.IsTemp(path)) {
			complain("left %s", path)
		}
		return nil
	})
	os.RemoveAll(filepath.Join(f.root, filters)) // for the next to compile
}
