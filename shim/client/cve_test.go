package client

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// needRoot skips a test that needs root, or fails it where that is required.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if slices.Contains(strings.Split(os.Getenv("REQUIRE"), ","), "root") {
		t.Fatal("needs root: makes a mount")
	}
	t.Skip("needs root: makes a mount")
}

// TestCVE2019_5736: a container keeps /proc/PID/exe of the process that was to
// run something in it, and writes to the runtime's binary once that process has
// ended. Fails when mount_setattr is taken out of binview.Open.
func TestCVE2019_5736(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "shim")
	program, err := os.ReadFile("/bin/cat")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	view, err := readOnlyView(path)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", view.Fd()))
	cmd.Args[0] = "cat" // a busybox goes by its name
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Some kernels close files on execve(2) before the process has the new program.
	echo := make([]byte, 1)
	_, writeErr := stdin.Write(echo)
	_, readErr := stdout.Read(echo)
	exe, openErr := unix.Open(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid), unix.O_PATH|unix.O_CLOEXEC, 0)
	stdin.Close() // a running program is busy; the attack waits for its end
	if err := errors.Join(writeErr, readErr, openErr, cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(exe)
	again := fmt.Sprintf("/proc/self/fd/%d", exe)
	if f, err := os.OpenFile(again, os.O_WRONLY, 0); !errors.Is(err, unix.EROFS) {
		f.Close()
		t.Errorf("open the shim's binary for writing: %v, want EROFS", err)
	}
	if err := os.Truncate(again, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("truncate the shim's binary: %v, want EROFS", err)
	}
}
