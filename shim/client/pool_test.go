package client

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
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

// TestLifelineNeverBlocks: its description is shared with all shims, and one
// that is started changes nothing for the others.
func TestLifelineNeverBlocks(t *testing.T) {
	ends, err := newLifeline(0)
	if err != nil {
		t.Fatal(err)
	}
	defer ends[1].Close()
	defer ends[0].Close()
	for range 2 {
		proc, err := os.StartProcess("/bin/cat", []string{"cat"}, &os.ProcAttr{Files: []*os.File{nil, nil, nil, ends[0]}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := proc.Wait(); err != nil {
			t.Fatal(err)
		}
		flags, err := unix.FcntlInt(ends[0].Fd(), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("flags %#x, %v: it blocks", flags, err)
		}
	}
}
