package launch

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// soakRounds is how many launches TestFailuresLeaveNothing makes to fail;
// LONGSHORE_SOAK asks for another number.
const soakRounds = 300

// soak launches with failures.
type soak struct {
	*fixture
	r        *rand.Rand
	template string
	layer    []string       // options of the root, unmapped
	seen     map[string]int // failures by where they were
	reached  int            // containers whose program ran
	null     *os.File
}

// TestFailuresLeaveNothing makes one operation of a launch, any of the child's
// program or of its parent's steps, fail, many times over, and looks for what is
// left: processes, mounts, descriptors, cgroups, namespaces.
func TestFailuresLeaveNothing(t *testing.T) {
	s := newSoak(t)
	rounds := soakRounds
	if n, err := strconv.Atoi(os.Getenv("LONGSHORE_SOAK")); err == nil {
		rounds = n
	}
	s.round(1 << 20) // what is opened once and stays is open then
	before := s.world()
	for i := range rounds {
		// Programs have about 150 operations, an exec's 60.
		s.round(s.r.IntN(260))
		if i%20 != 0 && i != rounds-1 {
			continue
		}
		for what, n := range s.world() {
			if n > before[what] { // fewer are what earlier tests had left to the garbage collector
				t.Fatalf("after %d rounds: %d of %s, %d before", i+1, n, what, before[what])
			}
		}
	}
	t.Logf("%d rounds, %d failures at %d places, %d containers ran", rounds, sum(s.seen), len(s.seen), s.reached)
	if len(s.seen) < min(rounds/10, 50) || s.reached == 0 {
		t.Errorf("failures at %d places only, %d containers ran", len(s.seen), s.reached)
	}
}

func sum(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

func newSoak(t *testing.T) *soak {
	f := newFixture(t, "pause")
	s := &soak{fixture: f, layer: f.cfg.Rootfs[0].Options, r: rand.New(rand.NewPCG(5, 6)), seen: map[string]int{}, template: filepath.Join(t.TempDir(), "template")}
	if err := PinTemplate(s.template); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { RemoveTemplate(s.template) })
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	s.null = null
	f.spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	f.spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"bpf"}, Action: specs.ActErrno}}}
	// Ours stay as they were for the other tests.
	old := kernel
	t.Cleanup(func() { kernel = old })
	return s
}

// round makes the n-th operation fail, which for a big n is none.
func (s *soak) round(n int) {
	s.vary()
	kernel.fault = func(what string) bool {
		if n--; n != -1 {
			return false
		}
		s.seen[what]++
		return true
	}
	defer func() { kernel.fault = nil }()
	if s.r.IntN(5) == 0 {
		s.sandbox()
		return
	}
	c, err := Create(s.cfg)
	if err != nil {
		return
	}
	if c.Start() == nil {
		s.reached++
		s.execute(c)
	}
	kernel.fault = nil
	if console := c.Init().Console(); console != nil {
		console.Close()
	}
	_ = c.Init().Signal(unix.SIGKILL) // it may have ended, and been reaped
	_, _ = c.Init().Wait()
	if err := c.Close(); err != nil {
		s.t.Fatal("close:", err)
	}
}

// vary chooses one of the ways to make a container.
func (s *soak) vary() {
	s.cfg.Template = ""
	if s.r.IntN(2) == 0 {
		s.cfg.Template = s.template
	}
	s.spec.Process.Terminal = s.r.IntN(3) == 0
	s.cfg.Stdio = Stdio{Stdin: s.null, Stdout: s.null, Stderr: s.null}
	s.without(specs.UserNamespace)
	s.cfg.Rootfs[0].Options = slices.Clone(s.layer)
	s.spec.Linux.UIDMappings, s.spec.Linux.GIDMappings = nil, nil
	if s.r.IntN(4) == 0 {
		s.userNS("")
	}
	kernel.noSharedMemory = s.r.IntN(2) == 0
	s.cfg.Eager = s.r.IntN(3) == 0
	s.cfg.Born = func(*Process) error { return injected("born") }
	if mountsOntoDetached() {
		kernel.noDetachedTargets = s.r.IntN(4) == 0
		kernel.noWorkshop = !kernel.noDetachedTargets
	}
}

// execute runs a process in the container.
func (s *soak) execute(c *Container) {
	p := *s.spec.Process
	p.Args = []string{"/probe", "exit", "0"}
	proc, err := c.Exec(&p, s.cfg.Stdio)
	if err != nil {
		return
	}
	if _, err := proc.Wait(); err != nil {
		s.t.Error("wait:", err)
	}
	if proc.Console() != nil {
		proc.Console().Close()
	}
}

// sandbox makes the namespaces of a pod and removes them.
func (s *soak) sandbox() {
	dir, err := os.MkdirTemp(s.bundle, "pod")
	if err != nil {
		s.t.Fatal(err)
	}
	cfg := SandboxConfig{Dir: dir, NewNet: true, NewIPC: true, NewUTS: true, NewPID: s.r.IntN(2) == 0, Hostname: "pod", ShmSize: 1 << 20,
		Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}}
	pid, err := CreateSandbox(cfg)
	if pid > 0 {
		_ = unix.Kill(pid, unix.SIGKILL)
		var status unix.WaitStatus
		_, _ = wait4(pid, &status, 0)
	}
	if err == nil {
		err = RemoveSandbox(dir)
		if err != nil {
			s.t.Error(err)
		}
	}
	if err := os.Remove(dir); err != nil {
		s.t.Error("left of a sandbox:", err)
	}
}

// world counts what a launch could leave behind, by its kind.
func (s *soak) world() map[string]int {
	s.t.Helper()
	all := map[string]int{}
	for _, fd := range openFDs(s.t) {
		_, to, _ := strings.Cut(fd, " ")
		kind, _, _ := strings.Cut(to, ":[") // a socket or pipe has a number of its own
		all["descriptor of "+kind]++
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		s.t.Fatal(err)
	}
	all["mounts"] = strings.Count(string(mounts), "\n")
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil); err != unix.ECHILD {
		all[fmt.Sprintf("process %d, %v", pid, err)]++
	}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} { // of cgroup2 alone, and of each hierarchy
		groups, err := filepath.Glob(root + s.spec.Linux.CgroupsPath)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, g := range groups {
			all["cgroup "+g]++
		}
	}
	return all
}
