package binview

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

// reportEnv makes the test binary say whether it runs as a view.
const reportEnv = "BINVIEW_TEST_REPORT"

func init() {
	if os.Getenv(reportEnv) != "" {
		fmt.Print(Runs())
		os.Exit(0)
	}
}

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

// TestViewCannotBeWritten fails if the mount is not made read-only, or the copy
// not sealed (CVE-2019-5736).
func TestViewCannotBeWritten(t *testing.T) {
	needRoot(t)
	defer func() { noMountSetattr = false }()
	for _, noMountSetattr = range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "program")
		program, err := os.ReadFile("/proc/self/exe")
		if err == nil {
			err = os.WriteFile(path, program, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		view, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(view)
		again := fmt.Sprint("/proc/self/fd/", view)
		f, err := os.OpenFile(again, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString("x")
			f.Close()
		}
		if !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EPERM) {
			t.Errorf("write, without mount_setattr %v: %v", noMountSetattr, err)
		}
		if err := os.Truncate(again, 0); !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EPERM) {
			t.Errorf("truncate, without mount_setattr %v: %v", noMountSetattr, err)
		}
		for name, want := range map[string]string{path: "false <nil>", again: "true <nil>"} {
			cmd := exec.Command(name)
			cmd.Env = []string{reportEnv + "=1"}
			if out, err := cmd.CombinedOutput(); err != nil || string(out) != want {
				t.Errorf("%s, without mount_setattr %v: says %q, %v; want %q", name, noMountSetattr, out, err, want)
			}
		}
	}
}

func TestOpenNamesWhatIsMissing(t *testing.T) {
	needRoot(t)
	if _, err := Open("/none/such"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/none/such") {
		t.Errorf("Open = %v", err)
	}
}
