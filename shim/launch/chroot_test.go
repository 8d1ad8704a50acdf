package launch

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// withoutMountNS takes namespaces out of the fixture's specification and names
// another mount namespace, "" for the host's.
func (f *fixture) withoutMountNS(path string, kinds ...string) {
	var list []specs.LinuxNamespace
	for _, kind := range kinds {
		list = append(list, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(kind)})
	}
	if path != "" {
		list = append(list, specs.LinuxNamespace{Type: specs.MountNamespace, Path: path})
	}
	f.spec.Linux.Namespaces = list
	f.spec.Hostname = ""
}

// TestForeignMountNamespace: the container sees its root only, and the
// namespace it shares is as it was.
func TestForeignMountNamespace(t *testing.T) {
	other := exec.Command("/proc/self/exe")
	other.Args = []string{"/probe", "wait"}
	other.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	for name, tc := range map[string]struct {
		joined bool
		kinds  []string
	}{
		"host's":          {false, []string{"pid", "ipc"}},
		"none at all":     {false, nil},
		"another process": {true, []string{"pid", "network"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, "report")
			path := ""
			if tc.joined {
				in, err := other.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := other.Start(); err != nil {
					t.Fatal(err)
				}
				defer func() { in.Close(); other.Wait() }()
				path = fmt.Sprintf("/proc/%d/ns/mnt", other.Process.Pid)
			}
			f.withoutMountNS(path, tc.kinds...)
			f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: "/frozen", Type: "tmpfs", Options: []string{"ro"}},
				specs.Mount{Destination: "/frozen/volume", Type: "tmpfs"})
			before, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil {
				t.Fatal(err)
			}
			want := ownNS(t, "mnt")
			if tc.joined {
				if want, err = os.Readlink(path); err != nil {
					t.Fatal(err)
				}
			}
			out, status := f.run()
			if status != 0 {
				t.Fatalf("status %#x", status)
			}
			r := decode(t, out)
			if r.NS["mnt"] != want || r.Cwd != "/" || r.Exe != "/probe" {
				t.Errorf("namespace %s, want %s; directory %s, program %s", r.NS["mnt"], want, r.Cwd, r.Exe)
			}
			after, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil || string(after) != string(before) {
				t.Errorf("the host's mounts have changed: %v\n%s\n%s", err, before, after)
			}
		})
	}
}

func TestForeignMountNamespaceIsNotEnteredByExec(t *testing.T) {
	f := newFixture(t, "wait")
	f.withoutMountNS("", "pid")
	f.spec.Mounts = append(f.spec.Mounts, specs.Mount{Destination: "/frozen", Type: "tmpfs", Options: []string{"ro"}})
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	p := *f.spec.Process
	p.Args = []string{"/probe", "write", "/frozen/x"}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	proc, err := c.Exec(&p, Stdio{Stdout: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil || !strings.Contains(string(out), "read-only file system") {
		t.Errorf("%q, %v", out, err)
	}
	if status, err := proc.Wait(); err != nil || status != 0 {
		t.Errorf("status %#x, %v", status, err)
	}
}
