package resctrl

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// fake lays a directory out as resctrl does; unlike the kernel it makes no
// files in new ones.
func fake(t *testing.T, classes ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, class := range append(classes, "") {
		dir := filepath.Join(root, class)
		if err := os.MkdirAll(filepath.Join(dir, "mon_groups"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"schemata": "    L3:0=7ff;1=0ff\n    MB:0= 20;1=100\n", "tasks": ""} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestClassThatIsThere(t *testing.T) {
	for name, tc := range map[string]struct {
		rdt  specs.LinuxIntelRdt
		at   string
		want string
	}{
		"named":                {specs.LinuxIntelRdt{ClosID: "gold"}, "gold", ""},
		"root":                 {specs.LinuxIntelRdt{ClosID: "/"}, "", ""},
		"same schemata":        {specs.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:0=7FF;1=ff", MemBwSchema: "MB:1=100"}, "gold", ""},
		"another mask":         {specs.LinuxIntelRdt{ClosID: "gold", Schemata: []string{"L3:0=1;1=ff"}}, "", "not what"},
		"no such resource":     {specs.LinuxIntelRdt{ClosID: "gold", Schemata: []string{"L2:0=1"}}, "", "not what"},
		"no such class":        {specs.LinuxIntelRdt{ClosID: "silver"}, "", "no such file"},
		"way out":              {specs.LinuxIntelRdt{ClosID: "../x"}, "", "closID"},
		"parent":               {specs.LinuxIntelRdt{ClosID: ".."}, "", "closID"},
		"resctrl's own":        {specs.LinuxIntelRdt{ClosID: "info"}, "", "closID"},
		"two lines":            {specs.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:0=1\nMB:0=1"}, "", "schema"},
		"memory bandwidth not": {specs.LinuxIntelRdt{ClosID: "gold", MemBwSchema: "L3:0=1"}, "", "memBwSchema"},
	} {
		t.Run(name, func(t *testing.T) {
			root := fake(t, "gold")
			c, err := New(root, "c1", &tc.rdt)
			if err == nil {
				err = c.Add(7)
			}
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v, want %q", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := read(t, root, tc.at, "tasks"); got != "7" {
				t.Errorf("tasks %q", got)
			}
			if err := c.Remove(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(root, tc.at)); err != nil {
				t.Errorf("the class of another was removed: %v", err)
			}
		})
	}
}

func TestNotMounted(t *testing.T) {
	if _, err := New(t.TempDir(), "c1", &specs.LinuxIntelRdt{}); err == nil || !strings.Contains(err.Error(), "not mounted") {
		t.Error(err)
	}
}

// TestFailureLeavesNothing: in a plain directory a new class has no files, so
// that the first write fails, after the directory was made.
func TestFailureLeavesNothing(t *testing.T) {
	for name, rdt := range map[string]specs.LinuxIntelRdt{
		"own class": {}, "named class": {ClosID: "new", Schemata: []string{"L3:0=1"}}, "monitor": {ClosID: "gold", EnableMonitoring: true},
	} {
		root := fake(t, "gold")
		c, err := New(root, "c1", &rdt)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Add(7); err == nil {
			t.Errorf("%s: added", name)
		}
		for _, dir := range []string{"c1", "new", "gold/mon_groups/c1"} {
			if _, err := os.Stat(filepath.Join(root, dir)); err == nil {
				t.Errorf("%s: %s is left", name, dir)
			}
		}
		if err := c.Remove(); err != nil {
			t.Errorf("%s: remove what is not there: %v", name, err)
		}
	}
}

func TestOwnClassIsRemoved(t *testing.T) {
	root := fake(t)
	c, err := New(root, "c1", &specs.LinuxIntelRdt{EnableMonitoring: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "c1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(root, "c1")); err == nil {
		t.Error("c1 is left")
	}
	if err := c.Add(7); err == nil { // a class of that id is somebody else's
		t.Error("added")
	}
}

// TestSetChangesAClass: that is there, and makes none.
func TestSetChangesAClass(t *testing.T) {
	root := fake(t, "gold")
	for class, want := range map[string]bool{"gold": true, "silver": false} {
		c, err := New(root, "c1", &specs.LinuxIntelRdt{ClosID: class, L3CacheSchema: "L3:0=1"})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Set(); (err == nil) != want {
			t.Errorf("%s: %v", class, err)
		}
	}
	if got := read(t, root, "gold", "schemata"); !strings.HasPrefix(got, "L3:0=1\n") {
		t.Errorf("schemata %q", got)
	}
}
