package launch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOverlayByPathIsSeenByNobody: a shim that is killed while it mounts the
// root would leave on the host what the host can see.
func TestOverlayByPathIsSeenByNobody(t *testing.T) {
	for name, options := range map[string][]string{
		"plain":      nil,
		"ids mapped": {"uidmap=0:100000:65536", "gidmap=0:100000:65536"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, "exit", "0")
			old := kernel
			defer func() { kernel = old }()
			kernel.noOverlayFD = true
			if options != nil && !hasMountSetattr() {
				return // refused
			}
			reached := false
			kernel.fault = func(what string) bool {
				if what != overlayMounted {
					return false
				}
				reached = true
				mounts, err := os.ReadFile("/proc/self/mountinfo")
				if err != nil || strings.Contains(string(mounts), f.bundle) {
					t.Errorf("mounts of the host while the root is mounted: %s, %v", mounts, err)
				}
				if entries, err := os.ReadDir(filepath.Join(f.bundle, "rootfs")); err != nil || len(entries) > 0 {
					t.Errorf("the bundle's root: %v, %v", entries, err)
				}
				return false
			}
			m := f.cfg.Rootfs[0]
			m.Options = append(m.Options, options...)
			fd, err := mountRoot(&m, filepath.Join(f.bundle, "rootfs"), false)
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
			if !reached {
				t.Error("the overlay was not mounted by path")
			}
		})
	}
}

func TestMountData(t *testing.T) {
	const label = "system_u:object_r:container_file_t:s0:c4,c7"
	got := mountData([]string{"ro", "lowerdir=/a:/b", "context=" + label, "volatile"})
	if want := `lowerdir=/a:/b,context="` + label + `",volatile`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
