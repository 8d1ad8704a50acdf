package launch

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestClassOfRDT: a directory stands for the resctrl filesystem, which few
// machines have. The first process is put into its class, an executed one puts
// itself there.
func TestClassOfRDT(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{root, filepath.Join(root, "gold")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"schemata": "L3:0=7ff\n", "tasks": ""} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	kernel.resctrl = root
	defer func() { kernel.resctrl = "" }()
	f := newFixture(t, "wait")
	f.spec.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:0=7ff"}
	c := f.create()
	tasks := filepath.Join(root, "gold", "tasks")
	if got, err := os.ReadFile(tasks); err != nil || string(got) != strconv.Itoa(c.Init().Pid()) {
		t.Errorf("tasks %q, %v; the first process is %d", got, err, c.Init().Pid())
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tasks, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f.exec(c, "report")
	if got, err := os.ReadFile(tasks); err != nil || string(got) != "0" {
		t.Errorf("after exec: tasks %q, %v", got, err)
	}
	f = newFixture(t, "wait")
	f.spec.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:0=1"}
	if err := f.try(); err == nil || !strings.Contains(err.Error(), "not what") {
		t.Errorf("another schema than the class has: %v", err)
	}
}
