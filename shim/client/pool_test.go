package client

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"
)

// fewFilesEnv is the directory of a pool that a process makes before it has
// opened any other file.
const fewFilesEnv = "CLIENT_TEST_FEW_FILES"

func init() {
	dir := os.Getenv(fewFilesEnv)
	if dir == "" {
		return
	}
	pool, err := NewPool("/bin/cat", dir, 0, slog.New(slog.DiscardHandler))
	if err == nil {
		var s *Shim
		if s, err = pool.Get(); err == nil {
			s.Close()
		}
		pool.Close()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestPoolOfAProcessWithFewFiles: the binary's descriptor is one of the lowest
// then, where a shim has files of its own.
func TestPoolOfAProcessWithFewFiles(t *testing.T) {
	needRoot(t)
	cmd := exec.Command("/proc/self/exe")
	// Go keeps its control group's CPU limit open otherwise: a file with cgroup
	// v2, two before.
	cmd.Env = append(os.Environ(), fewFilesEnv+"="+t.TempDir(), "GODEBUG=containermaxprocs=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
