package launch

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// hook writes what it sees to a file of the bundle.
func (f *fixture) hook(name string) specs.Hook {
	script := filepath.Join(f.bundle, name+".sh")
	text := "#!/bin/sh\ncat > " + f.bundle + "/" + name + ".state\nreadlink /proc/self/ns/pid > " + f.bundle + "/" + name +
		".pidns\nls -d /sys/fs/cgroup" + f.spec.Linux.CgroupsPath + " /sys/fs/cgroup/*" + f.spec.Linux.CgroupsPath + " | grep -q . || echo yes > " + f.bundle + "/" + name + ".gone\nreadlink /proc/self/ns/mnt > " + f.bundle + "/" + name +
		".ns\ntest -x " + f.bundle + "/rootfs/probe && echo yes > " + f.bundle + "/" + name + ".root\nexit 0\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		f.t.Fatal(err)
	}
	return specs.Hook{Path: script, Env: []string{"PATH=/bin:/usr/bin"}}
}

func (f *fixture) hookState(name string) (specs.State, string, bool) {
	f.t.Helper()
	var state specs.State
	data, err := os.ReadFile(filepath.Join(f.bundle, name+".state"))
	if err != nil {
		f.t.Fatal(err)
	}
	if err := json.Unmarshal(data, &state); err != nil {
		f.t.Fatal(err)
	}
	ns, _ := os.ReadFile(filepath.Join(f.bundle, name+".ns"))
	_, err = os.Stat(filepath.Join(f.bundle, name+".root"))
	return state, strings.TrimSpace(string(ns)), err == nil
}

func TestHooksRunInOrderAndPlace(t *testing.T) {
	f := newFixture(t, "report")
	names := []string{"prestart", "createRuntime", "createContainer", "poststart", "poststop"}
	hooks := map[string]specs.Hook{}
	for _, name := range names {
		hooks[name] = f.hook(name)
	}
	f.spec.Annotations = map[string]string{"a": "b"}
	f.spec.Hooks = &specs.Hooks{
		Prestart:        []specs.Hook{hooks["prestart"]}, //nolint:staticcheck // still in use
		CreateRuntime:   []specs.Hook{hooks["createRuntime"]},
		CreateContainer: []specs.Hook{hooks["createContainer"]},
		StartContainer:  []specs.Hook{{Path: "/probe", Args: []string{"/probe", "write", "/tmp/started"}}},
		Poststart:       []specs.Hook{hooks["poststart"]},
		Poststop:        []specs.Hook{hooks["poststop"]},
	}
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	f.in.Close()
	checkDefaults(t, decode(t, readAll(t, f.out)))
	if _, err := os.Stat(filepath.Join(f.bundle, "upper/tmp/started")); err != nil {
		t.Error("startContainer hook:", err)
	}
	if _, err := c.Init().Wait(); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	want := map[string]specs.ContainerState{
		"prestart": specs.StateCreated, "createRuntime": specs.StateCreating, "createContainer": specs.StateCreating,
		"poststart": specs.StateRunning, "poststop": specs.StateStopped,
	}
	for _, name := range names {
		state, ns, root := f.hookState(name)
		if state.ID != f.cfg.ID || state.Status != want[name] || state.Bundle != f.bundle || state.Annotations["a"] != "b" {
			t.Errorf("%s: state %+v", name, state)
		}
		inside := name == "createContainer"
		if pid := state.Pid; name != "poststop" && inside != (pid == 1) {
			t.Errorf("%s: pid %d", name, pid)
		}
		if ns, _ := os.ReadFile(filepath.Join(f.bundle, name+".pidns")); inside == (strings.TrimSpace(string(ns)) == ownNS(t, "pid")) {
			t.Errorf("%s: pid namespace %s", name, ns)
		}
		if _, err := os.Stat(filepath.Join(f.bundle, name+".gone")); (err == nil) != (name == "poststop") {
			t.Errorf("%s: the control group is gone: %v", name, err == nil)
		}
		if inside == (ns == ownNS(t, "mnt")) || inside != root {
			t.Errorf("%s: mount namespace %s, sees the root: %v", name, ns, root)
		}
	}
}

func TestFailingHookFailsCreate(t *testing.T) {
	second := 1
	for _, tt := range []struct {
		name, script, want string
		hook               specs.Hook
	}{
		{"status", "echo broken; exit 3", "exit status 3: broken", specs.Hook{}},
		{"timeout", "exec tail -f /dev/null", "timeout", specs.Hook{Timeout: &second}},
		{"signal", "kill -9 $$", "killed by SIGKILL", specs.Hook{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, "report")
			tt.hook.Path = filepath.Join(f.bundle, "hook.sh")
			tt.hook.Env = []string{"PATH=/bin:/usr/bin"}
			if err := os.WriteFile(tt.hook.Path, []byte("#!/bin/sh\n"+tt.script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			f.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{tt.hook}, Poststop: []specs.Hook{f.hook("poststop")}}
			_, err := Create(f.cfg)
			if state, _, _ := f.hookState("poststop"); state.Status != specs.StateStopped {
				t.Errorf("poststop: state %+v", state)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("create: %v, want %q", err, tt.want)
			}
			if tt.name == "timeout" && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("create: %v", err)
			}
		})
	}
}

// TestFailingHookFailsStart: the process has ended then, and the hooks of its end
// run when the container is closed.
func TestFailingHookFailsStart(t *testing.T) {
	for _, name := range []string{"startContainer", "poststart"} {
		for _, gate := range []bool{false, true} {
			f := newFixture(t, "pause")
			if gate {
				f.cfg.Gate = t.TempDir()
			}
			f.spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{f.hook("poststop")}}
			if name == "poststart" {
				f.spec.Hooks.Poststart = []specs.Hook{{Path: "/bin/false"}}
			} else {
				f.spec.Hooks.StartContainer = []specs.Hook{{Path: "/probe", Args: []string{"/probe", "exit", "1"}}}
			}
			c := f.create()
			err := c.Start()
			if hook, ok := errors.AsType[*HookError](err); !ok || hook.Name != name {
				t.Errorf("%s: start: %v", name, err)
			}
			if !c.Init().exited() {
				t.Errorf("%s: the process lives", name)
			}
			c.Init().Wait()
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if state, _, _ := f.hookState("poststop"); state.Status != specs.StateStopped {
				t.Errorf("poststop: state %+v", state)
			}
		}
	}
}
