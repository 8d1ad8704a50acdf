package launch

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// mountedVolume makes a directory with mounts below it, one at a name that mountinfo
// escapes, and gives it.
func mountedVolume(t *testing.T) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	for _, at := range []string{"", "with space\tand \\", "deep/er", "deep/er/still"} {
		place := filepath.Join(dir, at)
		if err := errors.Join(os.MkdirAll(place, 0o755), unix.Mount("tmpfs", place, "tmpfs", 0, "size=16k")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(place, unix.MNT_DETACH) })
	}
	return dir
}

// flagsOf gives the mount flags of a tree at its root and below.
func flagsOf(t *testing.T, fd int) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	for _, at := range []string{".", "with space\tand \\", "deep/er", "deep/er/still"} {
		sub, err := unix.Openat(fd, at, unix.O_PATH|unix.O_CLOEXEC, 0)
		var fs unix.Statfs_t
		if err == nil {
			err = unix.Fstatfs(sub, &fs)
			unix.Close(sub)
		}
		if err != nil {
			t.Fatal(at, err)
		}
		all[at] = int64(fs.Flags)
	}
	return all
}

// TestBothWaysChangeMountsAlike compares mount_setattr(2) with what is done
// without it, on mounts that have been changed before.
func TestBothWaysChangeMountsAlike(t *testing.T) {
	needRoot(t)
	old := kernel
	defer func() { kernel = old }()
	if kernel.noMountSetattr = false; !hasMountSetattr() {
		t.Skip("the kernel knows one way only")
	}
	const atime = unix.MOUNT_ATTR__ATIME
	for _, changes := range [][]mountChange{
		{{set: unix.MOUNT_ATTR_RDONLY}},
		{{set: unix.MOUNT_ATTR_RDONLY, recursive: true}, {clear: unix.MOUNT_ATTR_RDONLY}},
		{{set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}, {set: unix.MOUNT_ATTR_NOEXEC, clear: unix.MOUNT_ATTR_NODEV}},
		{{set: unix.MOUNT_ATTR_NOATIME, clear: atime}, {set: unix.MOUNT_ATTR_NODIRATIME}},
		{{set: unix.MOUNT_ATTR_NOATIME, clear: atime}, {set: unix.MOUNT_ATTR_RELATIME, clear: atime}},
		{{set: unix.MOUNT_ATTR_STRICTATIME, clear: atime, recursive: true}, {set: unix.MOUNT_ATTR_RDONLY}},
		{{set: unix.MOUNT_ATTR_NOSYMFOLLOW, recursive: true}, {set: unix.MOUNT_ATTR_RDONLY}},
		{{propagation: unix.MS_SHARED, recursive: true}, {set: unix.MOUNT_ATTR_RDONLY, recursive: true}, {propagation: unix.MS_SLAVE}},
		{{}, {set: unix.MOUNT_ATTR_NODEV, propagation: unix.MS_PRIVATE, recursive: true}},
	} {
		var got [2]map[string]int64
		for i, without := range []bool{false, true} {
			dir := mountedVolume(t)
			kernel.noMountSetattr = without
			fd, err := cloneHostPath(dir, true)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(changeMount(fd, changes[0]), changeMount(fd, changes[1:]...)); err != nil {
				t.Errorf("%+v, without: %v: %v", changes, without, err)
			}
			got[i] = flagsOf(t, fd)
			unix.Close(fd)
		}
		if !reflect.DeepEqual(got[0], got[1]) {
			t.Errorf("%+v:\nmount_setattr gives %#x,\nmount           %#x", changes, got[0], got[1])
		}
	}
}

// TestHiddenMountIsNotPassedOver: who unmounts what hides it would find it as it was.
func TestHiddenMountIsNotPassedOver(t *testing.T) {
	dir := mountedVolume(t)
	if err := unix.Mount("tmpfs", dir+"/deep", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir+"/deep", unix.MNT_DETACH)
	old := kernel
	defer func() { kernel = old }()
	kernel.noMountSetattr = true
	fd, err := cloneHostPath(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := changeMount(fd, mountChange{set: unix.MOUNT_ATTR_RDONLY, recursive: true}); err == nil {
		t.Error("read-only with all below, though one is hidden")
	}
}

func TestMountsBelow(t *testing.T) {
	const mountinfo = `22 1 8:1 / / rw - ext4 /dev/sda rw
31 30 0:9 / /sys/a\040b/c rw - tmpfs tmpfs rw
30 29 0:8 / /sys/a\040b rw shared:1 - tmpfs tmpfs rw
29 22 0:7 / /sys rw - tmpfs tmpfs rw
damaged line
x 29 0:7 / /sys/none rw - tmpfs tmpfs rw
40 22 0:7 / /system rw - tmpfs tmpfs rw
41 29 0:7 / /sys rw - tmpfs tmpfs rw
`
	want := []mountBelow{{30, "/a b"}, {41, ""}, {31, "/a b/c"}}
	if got := mountsBelow(mountinfo, 29); !slices.Equal(got, want) {
		t.Errorf("below 29: %+v, want %+v", got, want)
	}
	if got := mountsBelow(mountinfo, 22); len(got) != 5 || !slices.Contains(got, mountBelow{40, "/system"}) {
		t.Errorf("below the root: %+v", got)
	}
	if got := mountsBelow(mountinfo, 31); len(got) != 0 {
		t.Errorf("below the last: %+v", got)
	}
}
