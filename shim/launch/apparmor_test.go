package launch

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

const testProfile = `profile longshore-launch-test flags=(attach_disconnected,mediate_deleted) {
  file,
  network,
  capability,
  signal,
  ptrace,
  deny /tmp/denied w,
}
`

// TestAppArmorProfile holds that a container's first process, and what is
// executed in it, are confined. It runs where the kernel has AppArmor and its
// compiler is there: on the machine of test-systemd.
func TestAppArmorProfile(t *testing.T) {
	if enabled, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); !strings.HasPrefix(string(enabled), "Y") {
		t.Skip("the kernel has no AppArmor; the machine of test-systemd has it")
	}
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		t.Skip("apparmor_parser is not here; the machine of test-systemd has it")
	}
	needRoot(t)
	for verb, args := range map[string]string{"load": "--replace", "unload": "--remove"} {
		load := func() {
			cmd := exec.Command("apparmor_parser", args, "--skip-cache")
			cmd.Stdin = strings.NewReader(testProfile)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s profile: %v\n%s", verb, err, out)
			}
		}
		if verb == "load" {
			load()
		} else {
			t.Cleanup(load)
		}
	}
	const want = "longshore-launch-test (enforce)"
	f := newFixture(t, "read", "/proc/self/attr/current")
	f.spec.Process.ApparmorProfile = "longshore-launch-test"
	if out, _ := f.run(); !strings.Contains(out, want) {
		t.Errorf("the first process is %q", out)
	}
	for name, noNewPrivs := range map[string]bool{"may gain privileges": false, "may not": true} {
		f = newFixture(t, "wait")
		f.spec.Process.ApparmorProfile = "longshore-launch-test"
		f.spec.Process.NoNewPrivileges = noNewPrivs
		c := f.create()
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if out := f.exec(c, "read", "/proc/self/attr/current"); !strings.Contains(out, want) {
			t.Errorf("%s: a process executed in it is %q", name, out)
		}
	}
	f = newFixture(t, "wait")
	f.spec.Process.ApparmorProfile = "longshore-launch-none"
	if err := f.try(); err == nil || !strings.Contains(err.Error(), "longshore-launch-none") {
		t.Errorf("a profile that is not loaded: %v", err)
	}
}
