package safepath

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// jail makes outside/secret and a root whose links all point at it.
func jail(t *testing.T) (root int, outside string) {
	t.Helper()
	dir := t.TempDir()
	outside = filepath.Join(dir, "outside")
	inside := filepath.Join(dir, "root")
	for _, d := range []string{outside, inside, filepath.Join(inside, "real")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"absolute": outside, "relative": "../outside", "inner": "real", "dangling": "nowhere", "magic": "/proc/self/root",
	} {
		if err := os.Symlink(target, filepath.Join(inside, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := unix.Open(inside, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(root) })
	return root, outside
}

func TestNothingLeadsOutOfTheRoot(t *testing.T) {
	root, outside := jail(t)
	for _, name := range []string{"absolute/x", "relative/x", "../outside/x", "/../../outside/x", "dangling/x", "real/../../outside/x"} {
		if fd, err := CreateFile(root, name, 0o644); err == nil {
			unix.Close(fd)
		}
		if fd, err := MkdirAll(root, name+"-dir", 0o755); err == nil {
			unix.Close(fd)
		}
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 0 {
		t.Errorf("outside the root now: %v, %v", entries, err)
	}
}

func TestLinksInsideAreFollowed(t *testing.T) {
	root, _ := jail(t)
	fd, err := CreateFile(root, "inner/deep/file", 0o644)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if fd, err = OpenPath(root, "real/deep/file"); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}

func TestDanglingLinkIsAnError(t *testing.T) {
	root, _ := jail(t)
	if fd, err := MkdirAll(root, "dangling/x", 0o755); err == nil {
		unix.Close(fd)
		t.Error("a directory was made through a dangling link")
	}
}
