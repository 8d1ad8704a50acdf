package criutest

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func TestItServesItsProtocolAlone(t *testing.T) {
	path, err := Install(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"dump"}, {"swrk", "none"}, {"swrk", "0"}} {
		if out, err := exec.Command(path, args...).CombinedOutput(); err == nil || strings.Contains(string(out), "PASS") {
			t.Errorf("%v: %v, %s", args, err, out)
		}
	}
}
