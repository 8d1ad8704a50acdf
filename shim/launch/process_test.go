package launch

import (
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWaitWithoutAWatch: a blocking pidfd is none that Go's poller watches, as is
// one for which the kernel gives no watch.
func TestWaitWithoutAWatch(t *testing.T) {
	start := func(args ...string) *Process {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		return newProcess(cmd.Process.Pid, fd)
	}
	if status, err := start("sh", "-c", "exit 3").Wait(); err != nil || status.ExitStatus() != 3 {
		t.Errorf("Wait = %#x, %v", status, err)
	}
	p := start("sleep", "60")
	if _, err := p.waitFor(time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("waitFor = %v", err)
	}
	if status, err := p.Wait(); err != nil || status.Signal() != unix.SIGKILL {
		t.Errorf("Wait of one that overstayed = %#x, %v", status, err)
	}
}
