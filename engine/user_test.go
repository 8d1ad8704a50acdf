package engine

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// FuzzNumericUserIsNeverAName: kubelet enforces runAsNonRoot by the number that
// an image's status tells, or that it gives itself. An image whose accounts give
// such a number as a name, with another id, must not get the other one (the
// enforcement of CVE-2026-46680), nor may a number wrap around (CVE-2024-40635).
func FuzzNumericUserIsNeverAName(f *testing.F) {
	for _, s := range []string{"1000", "1000:0", "+1000", "-1", "0", "00", "4294967296", "4294967295", "2147483648", "18446744073709551616", "1e3", "0x0", " 0", "root", "evil", ":", "1000:evil", "1_000"} {
		f.Add(s)
	}
	image := []string{f.TempDir()}
	f.Fuzz(func(t *testing.T, name string) {
		number, _, _ := strings.Cut(name, ":")
		if strings.ContainsAny(name, "\n\x00") {
			return
		}
		writeAccounts(t, image[0], number)
		told, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return // the status tells a name, and kubelet refuses that
		}
		if u, err := resolveUser(&Security{}, name, image); err == nil && int64(u.UID) != told {
			t.Errorf("user %q of an image: uid %d", name, u.UID)
		}
		if u, err := resolveUser(&Security{RunAsUser: &told}, "root", image); err == nil && int64(u.UID) != told {
			t.Errorf("user %d of a client: uid %d", told, u.UID)
		}
	})
}

// writeAccounts makes accounts in which a name has root's ids.
func writeAccounts(t *testing.T, layer, name string) {
	t.Helper()
	dir := filepath.Join(layer, "etc")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, data := range map[string]string{"passwd": name + ":x:0:0::/:/\nroot:x:0:0::/:/\n", "group": name + ":x:0:\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
