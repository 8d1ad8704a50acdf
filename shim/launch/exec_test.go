package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stop is a program that stops whatever appears in its pid namespace.
func stop() {
	first, _ := strconv.Atoi(lastPid())
	fmt.Println("ready")
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for next := first + 50; ; next = max(next, 0) { // beyond the threads of this one
		for pid := next; pid < next+300; pid++ {
			unix.Kill(pid, unix.SIGSTOP)
		}
	}
}

// TestExecOfAStoppedChild: root of the container stops the child of an exec, which
// ends with an error and leaves nothing. Without launchTimeout it hangs.
func TestExecOfAStoppedChild(t *testing.T) {
	f := newFixture(t, "stop")
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	old := launchTimeout
	defer func() { launchTimeout = old }()
	launchTimeout = 300 * time.Millisecond
	p := *f.spec.Process
	p.Args = []string{"/probe", "exit", "0"}
	for range 500 {
		proc, err := c.Exec(&p, Stdio{})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		proc.kill()
	}
	t.Error("no child was stopped before its execve")
}
