// Package e2e tests what a user sees: a real daemon, real shims, a real
// kernel, driven over the daemon's socket by the scripts in testdata.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/longshore/longshore/engine/criu/criutest"
	"github.com/longshore/longshore/test/node"
	"github.com/longshore/longshore/test/plugin"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// Paths of what is built once for all scripts.
var bin, image string

func TestMain(m *testing.M) {
	plugin.Main()   // this binary is also the plugins of the scripts
	criutest.Main() // and what stands in for criu
	dir, err := os.MkdirTemp("", "longshore-e2e-")
	if err == nil {
		err = build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// build makes the binaries and the image, or takes the binaries that lie in
// LONGSHORE_BIN and the image that LONGSHORE_IMAGE is: a machine that has no Go
// gets them ready.
func build(dir string) error {
	if bin = os.Getenv("LONGSHORE_BIN"); bin == "" {
		bin = dir
		for name, pkg := range map[string]string{"longshore": ".", "longshore-shim": "./shim", "guest": "./hack/demo/guest"} {
			args := []string{"build", "-trimpath", "-tags", "nri_no_wasm"}
			if pkg == "./shim" {
				args = append(args, "-ldflags", "-E main.entry") // as hack/build.sh does
			}
			if err := goRun(append(args, "-o", filepath.Join(bin, name), pkg)...); err != nil {
				return err
			}
		}
	}
	if image = os.Getenv("LONGSHORE_IMAGE"); image != "" {
		return nil
	}
	image = filepath.Join(dir, "image.tar")
	return goRun("run", "./hack/demo/pack", filepath.Join(bin, "guest"), image)
}

func goRun(args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// needRoot skips a test that makes real containers, unless it was promised
// that it can.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if strings.Contains(os.Getenv("REQUIRE"), "root") {
		t.Fatal("this test needs root, and REQUIRE says that it has it")
	}
	t.Skip("makes real containers: needs root")
}

func TestScripts(t *testing.T) {
	needRoot(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		Setup:               func(env *testscript.Env) error { return setup(t, env) },
		Cmds:                commands,
		Condition:           condition,
		RequireExplicitExec: true,
	})
}

// condition tells scripts what the host is: cgroup2 where no hierarchy of
// version 1 is mounted, systemd where it is the first process, criu where it is
// installed and can work, apparmor where the kernel has it, selinux where its
// policy is in force, crictl where it is or can be built, psi where control groups
// tell of pressure.
func condition(name string) (bool, error) {
	switch name {
	case "cgroup2":
		return onCgroup2()
	case "criu":
		return haveCriu(), nil
	case "apparmor":
		data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
		return err == nil && strings.HasPrefix(string(data), "Y"), nil
	case "selinux":
		data, err := os.ReadFile("/sys/fs/selinux/enforce")
		return err == nil && string(data) == "1", nil
	case "crictl":
		_, err := exec.LookPath("go")
		return err == nil || os.Getenv("LONGSHORE_CRICTL") != "", nil
	case "psi":
		_, whole := os.Stat("/sys/fs/cgroup/cpu.pressure")
		_, beside := os.Stat("/sys/fs/cgroup/unified/cpu.pressure")
		return whole == nil || beside == nil, nil
	case "systemd":
		_, err := os.Stat("/run/systemd/system")
		return err == nil, nil
	}
	return false, fmt.Errorf("unknown condition %q", name)
}

var haveCriu = sync.OnceValue(func() bool { return exec.Command("criu", "check").Run() == nil })

func onCgroup2() (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs("/sys/fs/cgroup", &st)
	return st.Type == unix.CGROUP2_SUPER_MAGIC, err
}

// setup gives each script a node of its own. Temporary directories of tests
// have long names, and a unix socket's path is short: the node has its own.
func setup(t *testing.T, env *testscript.Env) error {
	dir, err := os.MkdirTemp("", "ls")
	if err != nil {
		return err
	}
	n, err := node.New(dir, bin)
	if err != nil {
		return err
	}
	s := &session{node: n, ids: map[string]string{}, logs: map[string]string{}}
	env.Values[sessionKey{}] = s
	if err := startRegistry(t, s); err != nil {
		return err
	}
	env.Setenv("NODE", dir)
	env.Setenv("CGROUP", n.Cgroup)
	env.Setenv("IMAGE", image)
	env.Setenv("BIN", bin)
	v2, err := onCgroup2()
	if err != nil {
		return err
	}
	if v2 {
		env.Setenv("MEMORY_LIMIT", "/sys/fs/cgroup/memory.max")
		env.Setenv("CPU_SHARE", "/sys/fs/cgroup/cpu.weight")
		env.Setenv("CPU_QUOTA", "/sys/fs/cgroup/cpu.max")
	} else {
		env.Setenv("MEMORY_LIMIT", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
		env.Setenv("CPU_SHARE", "/sys/fs/cgroup/cpu/cpu.shares")
		env.Setenv("CPU_QUOTA", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
	}
	env.Defer(func() {
		if err := s.end(context.Background()); err != nil {
			t.Errorf("%s: %v", filepath.Base(env.WorkDir), err)
		}
		if err := os.RemoveAll(dir); err != nil {
			env.T().Log(err)
		}
	})
	return nil
}
