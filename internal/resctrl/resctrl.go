// Package resctrl puts containers into classes of Intel's Resource Director
// Technology, by the kernel's resctrl filesystem (Linux's
// Documentation/filesystems/resctrl.rst) and the rules of the OCI runtime
// specification ("IntelRdt" of config-linux.md).
//
// It keeps nothing: what belongs to a container is found again by the
// container's id, from any process. Names from a specification are one element
// of a path, never a way.
package resctrl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/undo"
)

// Mount is where the filesystem is mounted.
const Mount = "/sys/fs/resctrl"

// maxSchemata bounds what is read of a file that the kernel writes.
const maxSchemata = 64 << 10

// Class is where a container belongs.
type Class struct {
	root, id string
	rdt      *specs.LinuxIntelRdt
}

// New checks what a specification says of the container with that id, below a
// mounted resctrl filesystem. Errors name the field.
func New(root, id string, rdt *specs.LinuxIntelRdt) (*Class, error) {
	if unix.Access(filepath.Join(root, "schemata"), unix.F_OK) != nil {
		return nil, fmt.Errorf("linux.intelRdt: resctrl is not mounted: %w", unix.ENODEV)
	}
	if name := rdt.ClosID; name != "" && name != "/" && !isName(name) {
		return nil, fmt.Errorf("linux.intelRdt.closID %q: %w", name, unix.EINVAL)
	}
	if !isName(id) {
		return nil, fmt.Errorf("linux.intelRdt: container id %q is no name of a directory: %w", id, unix.EINVAL)
	}
	if s := rdt.MemBwSchema; s != "" && !strings.HasPrefix(s, "MB:") {
		return nil, fmt.Errorf("linux.intelRdt.memBwSchema %q does not begin with \"MB:\": %w", s, unix.EINVAL)
	}
	c := &Class{root: root, id: id, rdt: rdt}
	for _, line := range c.lines() {
		if strings.Contains(line, "\n") || !strings.Contains(line, ":") {
			return nil, fmt.Errorf("linux.intelRdt: schema %q: %w", line, unix.EINVAL)
		}
	}
	return c, nil
}

// names that resctrl itself has below its root.
var reserved = []string{".", "..", "info", "mon_groups", "mon_data"}

func isName(name string) bool {
	for _, r := range reserved {
		if name == r {
			return false
		}
	}
	return name != "" && !strings.ContainsAny(name, "/\n\x00") && len(name) <= unix.NAME_MAX
}

// lines are the schemata in the order in which they are written.
func (c *Class) lines() []string {
	var all []string
	for _, s := range append([]string{c.rdt.L3CacheSchema, c.rdt.MemBwSchema}, c.rdt.Schemata...) {
		if s != "" {
			all = append(all, s)
		}
	}
	return all
}

// dir is the class's directory.
func (c *Class) dir() string {
	switch c.rdt.ClosID {
	case "":
		return filepath.Join(c.root, c.id)
	case "/":
		return c.root
	}
	return filepath.Join(c.root, c.rdt.ClosID)
}

func (c *Class) monitor() string { return filepath.Join(c.dir(), "mon_groups", c.id) }

// Add puts a process into the class, which is made or checked first. On an
// error nothing is left behind.
func (c *Class) Add(pid int) error {
	var made undo.Stack
	defer made.Run()
	err := c.prepare(&made)
	if err == nil {
		err = write(c.dir(), "tasks", strconv.Itoa(pid))
	}
	if err == nil && c.rdt.EnableMonitoring {
		if err = os.Mkdir(c.monitor(), 0o755); err == nil {
			made.Add(func() { unix.Rmdir(c.monitor()) })
			err = write(c.monitor(), "tasks", strconv.Itoa(pid))
		}
	}
	if err != nil {
		return fmt.Errorf("linux.intelRdt: %w", err)
	}
	made.Keep()
	return nil
}

// Set gives the class, which must be there, the schemata.
func (c *Class) Set() error {
	if err := c.set(); err != nil {
		return fmt.Errorf("linux.intelRdt: %w", err)
	}
	return nil
}

func (c *Class) set() error {
	for _, line := range c.lines() {
		if err := write(c.dir(), "schemata", line+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// Tasks are the files that take another process of the container in: one that
// writes "0" to each.
func (c *Class) Tasks() []string {
	all := []string{filepath.Join(c.dir(), "tasks")}
	if c.rdt.EnableMonitoring {
		all = append(all, filepath.Join(c.monitor(), "tasks"))
	}
	return all
}

func (c *Class) prepare(made *undo.Stack) error {
	lines := c.lines()
	err := error(unix.EEXIST)
	if c.rdt.ClosID == "" || c.rdt.ClosID != "/" && len(lines) > 0 {
		err = unix.Mkdir(c.dir(), 0o755)
	}
	switch {
	case err == nil:
		made.Add(func() { unix.Rmdir(c.dir()) })
		return c.set()
	case err == unix.EEXIST && c.rdt.ClosID != "":
		return c.compare(lines)
	}
	return &os.PathError{Op: "mkdir", Path: c.dir(), Err: err}
}

// compare holds that a class which is there has the schemata that are wanted.
func (c *Class) compare(lines []string) error {
	f, err := os.Open(filepath.Join(c.dir(), "schemata"))
	if err != nil {
		return err
	}
	defer f.Close()
	text := make([]byte, maxSchemata)
	n, err := f.Read(text)
	if err != nil {
		return err
	}
	have := map[string]map[string]string{}
	for line := range strings.Lines(string(text[:n])) {
		resource, domains := parse(line)
		have[resource] = domains
	}
	for _, line := range lines {
		resource, wanted := parse(line)
		for domain, value := range wanted {
			if have[resource][domain] != value {
				return fmt.Errorf("%s has %s:%s=%s, not what %q says: %w", c.dir(), resource, domain, have[resource][domain], line, unix.EEXIST)
			}
		}
	}
	return nil
}

// parse reads "L3:0=7f0;1=1f".
func parse(line string) (resource string, domains map[string]string) {
	resource, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
	domains = map[string]string{}
	for entry := range strings.SplitSeq(rest, ";") {
		domain, value, _ := strings.Cut(strings.TrimSpace(entry), "=")
		domains[domain] = strings.TrimLeft(strings.ToLower(value), "0")
	}
	return strings.TrimSpace(resource), domains
}

// write writes one value, which is one command to the kernel.
func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// Remove removes what was made for the container alone: its monitoring group,
// and its class unless that has a name of its own. What is gone is no error.
func (c *Class) Remove() error {
	var dirs []string
	if c.rdt.EnableMonitoring {
		dirs = append(dirs, c.monitor())
	}
	if c.rdt.ClosID == "" {
		dirs = append(dirs, c.dir())
	}
	for _, dir := range dirs {
		if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
	}
	return nil
}
