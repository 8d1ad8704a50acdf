package images

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/images/archive"
	"github.com/longshore/longshore/images/registrytest"
)

// needsRoot skips a test that root alone can run, or fails it where the run
// requires root.
func needsRoot(t *testing.T, why string) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if strings.Contains(os.Getenv("REQUIRE"), "root") {
		t.Fatal("needs root: " + why)
	}
	t.Skip("needs root: " + why)
}

// privateMounts runs fn in a thread with a mount namespace of its own, which
// ends, with all that was mounted in it, with the thread.
func privateMounts(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestOverlayShowsTheImage(t *testing.T) {
	needsRoot(t, "mounts overlayfs")
	reg := registrytest.New(t)
	reg.Put(t, "app", "1", archive.Image{Layers: [][]archive.File{
		{text("etc/old", "old"), text("etc/kept", "kept"), text("hidden/a", ""), text("tree/a", ""), {Name: "tmp/", Mode: 0o1777}},
		{text("etc/.wh.old", ""), text("hidden/.wh..wh..opq", ""), text("hidden/b", ""), text(".wh.tree", ""), text("tree/b", "")},
	}})
	s := open(t, t.TempDir())
	dirs, err := s.Rootfs(mustPull(t, s, reg.Host()+"/app:1"))
	if err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	privateMounts(t, func() {
		if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(dirs, ":")); err != nil {
			t.Error(err)
			return
		}
		for name, want := range map[string]bool{"etc/old": false, "etc/kept": true, "hidden/a": false, "hidden/b": true, "tree/a": false, "tree/b": true} {
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(at, name), &st); (err == nil) != want {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
		var st unix.Stat_t
		if err := unix.Stat(at+"/tmp", &st); err != nil || st.Mode&0o7777 != 0o1777 {
			t.Errorf("tmp has mode %o, %v", st.Mode, err)
		}
	})
}

// The store works through descriptors of many threads, so its disk must be
// seen by all of them: a detached tmpfs, reached through its descriptor.
func TestFullDisk(t *testing.T) {
	needsRoot(t, "mounts a small tmpfs")
	noise := make([]byte, 6<<20)
	rand.Read(noise)
	reg := registrytest.New(t)
	reg.Put(t, "big", "1", archive.Image{Layers: [][]archive.File{{text("a", "small")}, {{Name: "b", Mode: 0o644, Data: noise}}}})
	reg.Put(t, "small", "1", two("1"))
	s := open(t, detachedTmpfs(t, "4m"))
	if _, err := s.Pull(context.Background(), reg.Host()+"/big:1", PullOptions{}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("pull: %v", err)
	}
	archived := layoutTar(t, archive.Image{Layers: [][]archive.File{{{Name: "b", Mode: 0o644, Data: noise}}}})
	if _, err := s.Import(context.Background(), bytes.NewReader(archived), "big"); !errors.Is(err, ErrNoSpace) {
		t.Errorf("import: %v", err)
	}
	if left := leavings(t, s); len(left) > 0 {
		t.Errorf("left on the disk: %q", left)
	}
	img := mustPull(t, s, reg.Host()+"/small:1")
	if err := s.Remove(img.ID); err != nil {
		t.Error(err)
	}
	wantEmpty(t, s)
}

// detachedTmpfs gives a path to a tmpfs that is mounted nowhere and ends with
// the test.
func detachedTmpfs(t *testing.T, size string) string {
	t.Helper()
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "size", size); err != nil {
		t.Fatal(err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		t.Fatal(err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(mnt), "tmpfs")
	t.Cleanup(func() { f.Close() })
	return filepath.Join("/proc/self/fd", strconv.Itoa(mnt), "store")
}
