package launch

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestDeviceIsSwapped: another user of a volume puts a link to a file of the host
// in the place of a new node. Fails when ownNode goes by the name.
func TestDeviceIsSwapped(t *testing.T) {
	f := newFixture(t, "report")
	out := newOutside(t)
	precious := filepath.Join(out.dir, "precious")
	if err := os.Chmod(precious, 0o600); err != nil {
		t.Fatal(err)
	}
	node := filepath.Join(f.volume(), "node")
	f.spec.Linux.Devices = []specs.LinuxDevice{{Path: "/vol/node", Type: "c", Major: 1, Minor: 3}}
	old := kernel
	defer func() { kernel = old }()
	kernel.fault = func(what string) bool {
		if what == "own device" && os.Remove(node) == nil {
			f.link(precious, node)
		}
		return false
	}
	if err := f.try(); !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "/vol/node") {
		t.Errorf("create: %v", err)
	}
	if st, err := os.Stat(precious); err != nil || st.Mode() != 0o600 {
		t.Errorf("the host's file: %v, %v", st.Mode(), err)
	}
}

// TestDeviceWhereAnotherFileIs: what the spec asks for is an error then, and
// the file stays; what every container has takes the place of an image's file.
func TestDeviceWhereAnotherFileIs(t *testing.T) {
	f := newFixture(t, "stat", "/dev/null", "/dev/zero")
	f.dropMount("/dev")
	file := filepath.Join(f.volume(), "file")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.write("dev/null", "the image's", 0o600)
	mode := os.FileMode(0o600)
	f.spec.Linux.Devices = []specs.LinuxDevice{{Path: "/vol/file", Type: "c", Major: 1, Minor: 3}}
	if err := f.try(); !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "/vol/file") {
		t.Errorf("create: %v", err)
	}
	if data, err := os.ReadFile(file); string(data) != "kept" || err != nil {
		t.Errorf("the file holds %q, %v", data, err)
	}
	f.spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5, FileMode: &mode}}
	if out, _ := f.run(); !strings.Contains(out, "/dev/null mode=20666 dev=1:3") || !strings.Contains(out, "/dev/zero mode=20600 dev=1:5") {
		t.Errorf("sees %s", out)
	}
}

// TestDevicesBesideABoundDev: a directory bound to /dev is left alone, and what
// is elsewhere is made.
func TestDevicesBesideABoundDev(t *testing.T) {
	f := newFixture(t, "stat", "/dev/null", "/dev/mine", "/nodes/null")
	f.dropMount("/dev")
	dev := t.TempDir()
	f.mount(specs.Mount{Destination: "/dev", Source: dev, Options: []string{"bind"}})
	f.spec.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/mine", Type: "c", Major: 1, Minor: 3},
		{Path: "/nodes/null", Type: "c", Major: 1, Minor: 3},
	}
	out, _ := f.run()
	if strings.Count(out, "no such file") != 2 || !strings.Contains(out, "/nodes/null mode=20666 dev=1:3") {
		t.Errorf("sees %s", out)
	}
	if entries, err := os.ReadDir(dev); len(entries) != 0 || err != nil {
		t.Errorf("the host's directory: %v, %v", entries, err)
	}
}

// TestDefaultDevicesAreAllowed: rules that deny all leave what every container has.
func TestDefaultDevicesAreAllowed(t *testing.T) {
	f := newFixture(t, "open", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/ptmx", "/dev/console", "/dev/fuse")
	f.spec.Process.Terminal = true
	f.spec.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	f.spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	io.Copy(&out, c.Init().Console()) // ends with EIO
	if strings.Count(out.String(), ": <nil>") != 7 || !strings.Contains(out.String(), "/dev/fuse: open /dev/fuse: operation not permitted") {
		t.Errorf("opens %s", out.String())
	}
}
