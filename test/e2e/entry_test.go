package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCommandsStartOnce: the shim's commands of an OCI runtime run from a
// read-only view of their binary, and Go's runtime starts but once for it.
func TestCommandsStartOnce(t *testing.T) {
	needRoot(t)
	for _, args := range [][]string{{"run"}, {"--root", "/nowhere", "exec", "none", "true"}, {"create"}, {"start", "none"}, {"state", "none"}} {
		cmd := exec.Command(filepath.Join(bin, "longshore-shim"), args...)
		cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
		out, err := cmd.CombinedOutput()
		if _, ended := err.(*exec.ExitError); !ended {
			t.Errorf("%v: %v", args, err)
		}
		if starts := strings.Count(string(out), "init runtime @"); starts != 1 {
			t.Errorf("%v: %d starts of the runtime", args, starts)
		}
	}
}

// TestHooksSeeTheCallersEnvironment: what the entry adds to it stays the runtime's.
func TestHooksSeeTheCallersEnvironment(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	seen := filepath.Join(dir, "seen")
	spec := fmt.Sprintf(`{"ociVersion":"1.0.2","root":{"path":%q},"process":{"args":["/none"],"cwd":"/"},
		"linux":{"namespaces":[{"type":"mount"},{"type":"pid"}]},
		"hooks":{"createRuntime":[{"path":"/bin/sh","args":["sh","-c","env >%s; exit 3"]}]}}`, dir, seen)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "longshore-shim"), "--root", filepath.Join(dir, "root"), "run", "--bundle", dir, "hooked")
	cmd.Env = append(os.Environ(), "CALLER=me")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "exit status 3") {
		t.Errorf("run: %v, %s", err, out)
	}
	env, err := os.ReadFile(seen)
	if err != nil || !strings.Contains(string(env), "CALLER=me\n") || strings.Contains(string(env), "GOMAXPROCS") {
		t.Errorf("the hook has seen %q, %v", env, err)
	}
}
