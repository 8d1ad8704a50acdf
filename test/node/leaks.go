package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// settle is how long what is torn down in the background may take.
const settle = 10 * time.Second

// Leaks names everything that pods should have taken with them: processes,
// mounts, links, rules, cgroups, files. Call it when no pod is left; what goes
// in the background is given some time. A shim that is left is ended, and what
// its goroutines did is told.
func (n *Node) Leaks() ([]string, error) {
	return n.settled(n.processes, n.mounts, n.links, n.rules, n.cgroups, n.files)
}

// nobodyLeft is for when the daemon is gone, and idle shims with it.
func (n *Node) nobodyLeft() error {
	found, err := n.settled(n.processes)
	if err != nil || len(found) == 0 {
		return err
	}
	for _, line := range found {
		var pid int
		if _, err := fmt.Sscanf(line, "process %d:", &pid); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL) // a shim has ended of the signal before
		}
	}
	return fmt.Errorf("left behind by the daemon:\n%s", strings.Join(found, "\n"))
}

// settled looks until nothing is found, or the time for that is over.
func (n *Node) settled(looks ...func() ([]string, error)) ([]string, error) {
	deadline := time.Now().Add(settle)
	for {
		found, err := n.look(looks)
		if err != nil || len(found) == 0 {
			return found, err
		}
		if time.Now().After(deadline) {
			return append(found, n.stacks(found)...), nil
		}
		time.Sleep(20 * time.Millisecond) // a test's patience, not the product's
	}
}

// stacks has the shims among what is left behind write the stacks of their
// goroutines and end, and gives the end of the shims' log.
func (n *Node) stacks(found []string) []string {
	for _, line := range found {
		var pid int
		if _, err := fmt.Sscanf(line, "process %d: longshore-shim", &pid); err == nil {
			_ = unix.Kill(pid, unix.SIGQUIT)
		}
	}
	time.Sleep(stacksTime)
	log, err := os.ReadFile(n.Path("run", "shims", "shim.log"))
	if err != nil {
		return []string{err.Error()}
	}
	return []string{"shim.log:\n" + string(log[max(0, len(log)-maxStacks):])}
}

// stacksTime is how long a shim may take to write its stacks, maxStacks how much
// of them is told, in bytes.
const (
	stacksTime = time.Second
	maxStacks  = 16 << 10
)

func (n *Node) look(looks []func() ([]string, error)) ([]string, error) {
	var all []string
	for _, look := range looks {
		var found []string
		var err error
		n.Room.Do(func() { found, err = look() })
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// idleShims is how many shims a daemon may keep that hold nothing: those ahead
// and those that make sandboxes.
const idleShims = 4

// processes finds those in the room's network namespace, or of the node's
// cgroup, beside the daemon and its idle shims.
func (n *Node) processes() ([]string, error) {
	var found []string
	shims := 0
	self, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		ns, _ := os.Readlink(dir + "/ns/net") // "" once it has gone
		groups, _ := os.ReadFile(dir + "/cgroup")
		inCgroup := strings.Contains(string(groups), "/"+n.Cgroup)
		if ns != self && !inCgroup || filepath.Base(dir) == fmt.Sprint(os.Getpid()) {
			continue
		}
		data, _ := os.ReadFile(dir + "/cmdline")
		cmd := strings.ReplaceAll(strings.TrimRight(string(data), "\x00"), "\x00", " ")
		switch {
		case filepath.Base(dir) == fmt.Sprint(n.Pid()):
		case cmd == "longshore-shim serve" && !inCgroup && n.Pid() != 0 && shims < idleShims:
			shims++
		case cmd == "" && !inCgroup: // ended, not yet reaped
		default:
			found = append(found, fmt.Sprintf("process %s: %s", filepath.Base(dir), cmd))
		}
	}
	return found, nil
}

func (n *Node) mounts() ([]string, error) {
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], n.Dir+"/") && fields[4] != n.Path("lib") && !strings.Contains(fields[4], "/shims/template") {
			found = append(found, "mount "+fields[4])
		}
	}
	return found, nil
}

// links finds what is left beside loopback and the bridge, which stays.
func (n *Node) links() ([]string, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, l := range all {
		if l.Type() == "veth" {
			found = append(found, "link "+l.Attrs().Name)
		}
	}
	return found, nil
}

// rules finds firewall rules and set elements that name a pod: those of ports
// and masquerading end with it.
func (n *Node) rules() ([]string, error) {
	c := &nftables.Conn{}
	tables, err := c.ListTables()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, t := range tables {
		chains, err := c.ListChainsOfTableFamily(t.Family)
		if err != nil {
			return nil, err
		}
		for _, chain := range chains {
			if chain.Table.Name != t.Name {
				continue
			}
			rules, err := c.GetRules(t, chain)
			if err != nil {
				return nil, err
			}
			for _, r := range rules {
				if len(r.UserData) > 0 {
					found = append(found, fmt.Sprintf("rule in %s %s: %q", t.Name, chain.Name, r.UserData))
				}
			}
		}
	}
	return found, nil
}

func (n *Node) cgroups() ([]string, error) {
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + n.Cgroup + "/*", "/sys/fs/cgroup/" + n.Cgroup + "/*"} {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, dir := range dirs {
			var st unix.Stat_t
			if unix.Stat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				found = append(found, "cgroup "+dir)
			}
		}
	}
	return found, nil
}

// files finds records, layers and addresses of pods.
func (n *Node) files() ([]string, error) {
	var found []string
	for _, pattern := range []string{"run/pods/*", "run/containers/*", "run/quarantine/*", "lib/containers/*", "lib/trash/*", "lib/cni/networks/*/[0-9a-f]*[.:]*", "lib/cni/results/*"} {
		names, err := filepath.Glob(n.Path(pattern))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if !strings.HasPrefix(filepath.Base(name), "last_reserved_ip") {
				found = append(found, "file "+name)
			}
		}
	}
	return found, nil
}
