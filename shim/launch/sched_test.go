package launch

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseList(t *testing.T) {
	for list, want := range map[string][]uint64{"0": {1}, "0-2,4": {0b10111}, "64": {0, 1}, " 1 , 3": {0b1010}} {
		if got, err := parseList(list, 128); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q = %b, %v; want %b", list, got, err, want)
		}
	}
	for _, list := range []string{"", "a", "-1", "3-1", "128", "1-", "0-99999999999"} {
		if got, err := parseList(list, 128); err == nil {
			t.Errorf("%q = %b, want an error", list, got)
		}
	}
}

func TestMemoryPolicyNamesWhatIsWrong(t *testing.T) {
	for field, p := range map[string]specs.LinuxMemoryPolicy{
		"mode":  {Mode: "MPOL_NONSENSE"},
		"flags": {Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{"MPOL_F_NONSENSE"}},
		"nodes": {Mode: specs.MpolBind, Nodes: "0-"},
	} {
		if _, err := parseMemoryPolicy(&p); err == nil || !strings.Contains(err.Error(), "linux.memoryPolicy."+field) {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

// TestMemoryPolicy looks at a container's memory through the kernel's eyes.
func TestMemoryPolicy(t *testing.T) {
	needRoot(t)
	f := newFixture(t, "wait")
	f.cfg.Spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0"}
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/numa_maps", c.Init().Pid()))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), " bind:0 ") {
		t.Errorf("the container's memory is not bound to node 0:\n%.300s", data)
	}
}

// TestAffinityIsOfExecs: the first process has none, and an exec's initial one
// does not last.
func TestAffinityIsOfExecs(t *testing.T) {
	f := newFixture(t, "wait")
	own := ownAllowed(t, "self")
	if own == "0" {
		t.Skip("needs two CPUs")
	}
	f.spec.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "0"}
	c := f.create()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if got := ownAllowed(t, fmt.Sprint(c.Init().Pid())); got != own {
		t.Errorf("the first process may run on CPUs %s, not %s", got, own)
	}
	for _, tt := range []struct {
		in   specs.CPUAffinity
		want string
	}{{specs.CPUAffinity{Final: "0"}, "0"}, {specs.CPUAffinity{Initial: "0"}, own}} {
		f.spec.Process.ExecCPUAffinity = &tt.in
		if got := decode(t, f.exec(c, "report")).Status["Cpus_allowed_list"]; got != tt.want {
			t.Errorf("%+v: may run on CPUs %s, not %s", tt.in, got, tt.want)
		}
	}
}

func ownAllowed(t *testing.T, pid string) string {
	t.Helper()
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "Cpus_allowed_list:\t")
	list, _, _ := strings.Cut(after, "\n")
	return list
}
