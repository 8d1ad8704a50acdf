package unpack

import (
	"os"
	"strings"
	"testing"
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
