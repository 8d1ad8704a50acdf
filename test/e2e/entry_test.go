package e2e

import (
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
