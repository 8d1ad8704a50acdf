package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// needRoot skips a test that needs root, unless it was promised that it has it.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if strings.Contains(os.Getenv("REQUIRE"), "root") {
		t.Fatal("this test needs root, and REQUIRE says that it has it")
	}
	t.Skip("needs root: labels files")
}

func TestRelabelStaysBelow(t *testing.T) {
	needRoot(t)
	outside, volume := filepath.Join(t.TempDir(), "secret"), t.TempDir()
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(volume, "a/b/file")
	if err := os.MkdirAll(filepath.Dir(inside), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(inside, nil, 0o600), os.Symlink(outside, filepath.Join(volume, "a/link")),
		os.Symlink(filepath.Dir(outside), filepath.Join(volume, "dir"))); err != nil {
		t.Fatal(err)
	}
	label := fileLabel(&SELinux{Level: "s0:c1,c2"})
	if err := relabel(volume, label); err != nil {
		t.Fatal(err)
	}
	labelOf := func(path string) string {
		buf := make([]byte, 256)
		n, err := unix.Lgetxattr(path, "security.selinux", buf)
		if err != nil {
			return ""
		}
		return strings.TrimRight(string(buf[:n]), "\x00") // SELinux itself ends it so
	}
	if labelOf(volume) == "" {
		t.Skip("this file system has no labels")
	}
	for _, path := range []string{volume, filepath.Join(volume, "a"), inside} {
		if got := labelOf(path); got != "system_u:object_r:container_file_t:s0:c1,c2" {
			t.Errorf("%s has label %q", path, got)
		}
	}
	if labelOf(outside) == label || labelOf(filepath.Dir(outside)) == label {
		t.Error("a link led out of the volume")
	}
	for _, path := range []string{"/", "/etc", "/usr/../etc"} {
		if err := relabel(path, label); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
