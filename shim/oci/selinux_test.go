package oci

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestSELinux: a container of the command line, and what is executed in it, has
// the labels of its specification, or those that the command names. It runs
// where the policy test/vm/selinux.cil is in force.
func TestSELinux(t *testing.T) {
	if enforce, _ := os.ReadFile("/sys/fs/selinux/enforce"); string(enforce) != "1" {
		t.Skip("the kernel has no SELinux in force; the machine of test-selinux has it")
	}
	const process, files = "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"
	f := newFixture(t, "wait")
	f.spec.Process.SelinuxLabel, f.spec.Linux.MountLabel = process, files
	// The root's files are the caller's to label.
	err := filepath.WalkDir(filepath.Join(f.bundle, "rootfs"), func(name string, _ os.DirEntry, err error) error {
		if err == nil {
			err = unix.Lsetxattr(name, "security.selinux", []byte(files), 0)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, out := f.create()
	f.ok("start", f.id)
	readLine(t, out)
	current, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(f.state().Pid), "attr/current"))
	if strings.TrimRight(string(current), "\x00") != process {
		t.Errorf("the first process has %q", current)
	}
	p := specs.Process{Args: []string{"/probe", "labels", "/dev", "/dev/shm", "/dev/mqueue"}, Cwd: "/"}
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "process.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	const other = "system_u:system_r:container_t:s0:c1,c2,c4"
	for _, tc := range []struct {
		want string
		args []string
	}{
		{process, []string{f.id}},
		{process, []string{"--process", file, f.id}},
		{other, []string{"--process-label", other, f.id}},
	} {
		args := append([]string{"exec"}, tc.args...)
		if tc.args[0] != "--process" {
			args = append(args, p.Args...)
		}
		// The policy lets a container write to a pipe, not to a file of ours.
		var out bytes.Buffer
		cmd := f.command(args...)
		cmd.Stdout = &out
		f.finish(cmd)
		if got := out.String(); got != tc.want+"\n"+strings.Repeat(files+"\n", 3) {
			t.Errorf("%v: %q", args, got)
		}
	}
	const bad = "system_u:system_r:nosuch_t:s0"
	if _, errs, status := f.run("exec", "--process-label", bad, f.id, "/probe", "labels"); status != 255 || !strings.Contains(errs, bad) {
		t.Errorf("status %d, %s", status, errs)
	}
}
