package launch

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/safepath"
)

// device is a node to make.
type device struct {
	path     string
	kind     uint32 // S_IFCHR, S_IFBLK or S_IFIFO
	dev      uint64
	mode     uint32
	uid, gid uint32 // of the container
}

// defaultDevices are those of the OCI runtime spec, "Default Devices", but for
// console and ptmx, which come with the terminal and with devpts.
var defaultDevices = [...]device{
	{"/dev/null", unix.S_IFCHR, unix.Mkdev(1, 3), 0o666, 0, 0},
	{"/dev/zero", unix.S_IFCHR, unix.Mkdev(1, 5), 0o666, 0, 0},
	{"/dev/full", unix.S_IFCHR, unix.Mkdev(1, 7), 0o666, 0, 0},
	{"/dev/random", unix.S_IFCHR, unix.Mkdev(1, 8), 0o666, 0, 0},
	{"/dev/urandom", unix.S_IFCHR, unix.Mkdev(1, 9), 0o666, 0, 0},
	{"/dev/tty", unix.S_IFCHR, unix.Mkdev(5, 0), 0o666, 0, 0},
}

// defaultLinks are the symbolic links of the OCI runtime spec, "/dev symbolic links".
var defaultLinks = [...]struct{ name, to string }{
	{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
	{"ptmx", "pts/ptmx"},
}

// withDefaultDevices is the resources with the right to what every container has
// (config-linux.md, "Default Devices"), its terminals, and mknod(2) of anything,
// behind the spec's own rules. A spec that denies all devices and allows none of
// these is what runc and crun take so, and what "spec" writes. One without rules
// leaves the devices as they are.
func withDefaultDevices(res *specs.LinuxResources) *specs.LinuxResources {
	if res == nil || len(res.Devices) == 0 {
		return res
	}
	char := func(major, minor int64) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rwm"}
	}
	const anyNumber = -1
	more := *res
	more.Devices = append(res.Devices[:len(res.Devices):len(res.Devices)],
		specs.LinuxDeviceCgroup{Allow: true, Type: "c", Access: "m"}, specs.LinuxDeviceCgroup{Allow: true, Type: "b", Access: "m"},
		char(5, 1), char(5, 2), char(136, anyNumber)) // console, ptmx, pts
	for _, d := range defaultDevices {
		more.Devices = append(more.Devices, char(int64(unix.Major(d.dev)), int64(unix.Minor(d.dev))))
	}
	return &more
}

func parseDevice(d *specs.LinuxDevice) (device, error) {
	out := device{path: d.Path, mode: 0o666}
	switch d.Type {
	case "c", "u":
		out.kind = unix.S_IFCHR
	case "b":
		out.kind = unix.S_IFBLK
	case "p":
		out.kind = unix.S_IFIFO
	default:
		return out, fmt.Errorf("linux.devices: %s: type %q: %w", d.Path, d.Type, unix.EINVAL)
	}
	if !path.IsAbs(d.Path) || path.Clean(d.Path) == "/" {
		return out, fmt.Errorf("linux.devices: path %q is not absolute: %w", d.Path, unix.EINVAL)
	}
	if d.Major < 0 || d.Minor < 0 || d.Major > 0xfff || d.Minor > 0xfffff {
		if out.kind != unix.S_IFIFO {
			return out, fmt.Errorf("linux.devices: %s: number %d:%d: %w", d.Path, d.Major, d.Minor, unix.EINVAL)
		}
	} else if out.kind != unix.S_IFIFO {
		out.dev = unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	}
	if d.FileMode != nil {
		out.mode = uint32(*d.FileMode) & 0o7777
	}
	if d.UID != nil {
		out.uid = *d.UID
	}
	if d.GID != nil {
		out.gid = *d.GID
	}
	return out, nil
}

// devices makes the nodes of the spec, and the nodes and links of /dev that every
// container has. Where /dev is the host's, or another directory bound there,
// nothing is made below it.
func (a *assembly) devices() error {
	bound := a.bindsDev()
	given := map[string]bool{}
	for i := range a.spec.Linux.Devices {
		d, err := parseDevice(&a.spec.Linux.Devices[i])
		if err != nil {
			return err
		}
		given[path.Clean(d.path)] = true
		if bound && strings.HasPrefix(path.Clean(d.path), "/dev/") {
			continue
		}
		if err := a.makeDevice(&d); err != nil {
			return fmt.Errorf("make device %s: %w", d.path, err)
		}
	}
	if bound {
		return nil
	}
	dev, err := safepath.MkdirAll(a.root, "/dev", 0o755)
	if err != nil {
		return fmt.Errorf("open /dev: %w", err)
	}
	defer unix.Close(dev)
	for i := range defaultDevices {
		d := &defaultDevices[i]
		if given[d.path] {
			continue
		}
		if err := a.makeDefault(dev, path.Base(d.path), d); err != nil {
			return fmt.Errorf("make device %s: %w", d.path, err)
		}
	}
	for _, l := range defaultLinks {
		if l.name == "ptmx" {
			_ = unix.Unlinkat(dev, l.name, 0) // an image's own node would be the host's terminal
		}
		if err := unix.Symlinkat(l.to, dev, l.name); err != nil && err != unix.EEXIST {
			return fmt.Errorf("make link /dev/%s: %w", l.name, err)
		}
	}
	return nil
}

// bindsDev says whether the spec binds a directory to /dev.
func (a *assembly) bindsDev() bool {
	return slices.ContainsFunc(a.sources, func(s source) bool { return s.opts.bind && path.Clean(s.spec.Destination) == "/dev" })
}

func (a *assembly) makeDevice(d *device) error {
	dir, err := safepath.MkdirAll(a.root, path.Dir(d.path), 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return a.makeNode(dir, path.Base(d.path), d)
}

// makeDefault makes a node that every container has, in place of what else is
// there: an image must not choose what /dev/null is.
func (a *assembly) makeDefault(dir int, name string, d *device) error {
	err := a.makeNode(dir, name, d)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := unix.Unlinkat(dir, name, 0); err != nil {
		return err
	}
	return a.makeNode(dir, name, d)
}

// is says whether a file is the device.
func (d *device) is(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == d.kind && st.Rdev == d.dev }

// makeNode makes one node in an open directory. One of the same kind and
// number that is there stays; another file is an error (config-linux.md, "Devices").
func (a *assembly) makeNode(dir int, name string, d *device) error {
	err := unix.Mknodat(dir, name, d.kind|d.mode, int(d.dev))
	var st unix.Stat_t
	if err != nil && unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		if d.is(&st) {
			return nil
		}
		return fmt.Errorf("another file is there: %w", unix.EEXIST)
	}
	if err == unix.EPERM && d.kind != unix.S_IFIFO {
		return a.bindNode(dir, name, d) // we are in a user namespace ourselves
	}
	if err != nil {
		return err
	}
	if err := injected("own device"); err != nil {
		return err
	}
	return a.ownNode(dir, name, d)
}

// ownNode gives a new node its owner, and its mode, which our umask has cut. The
// directory may be of a volume whose other users have put something else in its
// place meanwhile, a link to a file of the host say: only the node is changed.
func (a *assembly) ownNode(dir int, name string, d *device) error {
	uid, uidOK := hostID(a.uids, d.uid)
	gid, gidOK := hostID(a.gids, d.gid)
	if !uidOK || !gidOK {
		return fmt.Errorf("owner %d:%d is not mapped: %w", d.uid, d.gid, unix.EINVAL)
	}
	node, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(node)
	var st unix.Stat_t
	if err := unix.Fstat(node, &st); err != nil || !d.is(&st) {
		return fmt.Errorf("another file has taken its place: %w", errors.Join(err, unix.EEXIST))
	}
	if uid != 0 || gid != 0 {
		if err := unix.Fchownat(node, "", int(uid), int(gid), unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if err := unix.Fchmodat(node, "", d.mode, unix.AT_EMPTY_PATH); err != unix.EOPNOTSUPP {
		return err
	}
	return unix.Chmod(fdPath(node), d.mode) // before Linux 6.6
}

// bindNode puts the host's node in place where none may be made.
func (a *assembly) bindNode(dir int, name string, d *device) error {
	mount, err := cloneHostPath(d.path, false)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	var st unix.Stat_t
	if err := unix.Fstat(mount, &st); err != nil || !d.is(&st) {
		return fmt.Errorf("the host's %s is another device: %w", d.path, errors.Join(err, unix.ENODEV))
	}
	file, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	return a.attach(mount, file)
}

// hide places the masks and makes read-only what the spec lists. Paths that
// the container does not have are passed over.
func (a *assembly) hide() error {
	masks := masks{label: a.labelled(nil), null: -1, empty: -1}
	defer masks.close()
	for _, name := range a.spec.Linux.MaskedPaths {
		if err := a.mask(name, &masks); err != nil {
			return fmt.Errorf("mask %s: %w", name, err)
		}
	}
	for _, name := range a.spec.Linux.ReadonlyPaths {
		if err := a.readonly(name); err != nil {
			return fmt.Errorf("make %s read-only: %w", name, err)
		}
	}
	return nil
}

func absent(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) }

// masks are what covers a file, the host's null device, and a directory, an empty
// read-only tmpfs: the first of each kind, -1 before. The others are copies of it.
type masks struct {
	label       []string // option of a mount, for SELinux
	null, empty int
}

func (m *masks) close() {
	for _, fd := range []int{m.null, m.empty} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (m *masks) newEmpty() (int, error) {
	return newFilesystem("tmpfs", "tmpfs", append([]string{"size=4k", "nr_inodes=2", "mode=755"}, m.label...),
		unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

func nullMask() (int, error) {
	null, err := openNull(unix.O_PATH)
	if err != nil {
		return -1, err
	}
	defer unix.Close(null)
	return cloneMount(null, false)
}

// mask covers what is at a path, if there is something.
func (a *assembly) mask(name string, masks *masks) error {
	target, err := safepath.OpenPath(a.root, name)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	var st unix.Stat_t
	if err := unix.Fstat(target, &st); err != nil {
		return err
	}
	first, newMask := &masks.null, nullMask
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		first, newMask = &masks.empty, masks.newEmpty
	}
	if *first < 0 {
		if *first, err = newMask(); err != nil {
			return err
		}
		return a.attach(*first, target)
	}
	mount, err := cloneDetached(*first)
	if err == unix.EINVAL { // before Linux 6.15
		mount, err = newMask()
	}
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	return a.attach(mount, target)
}

// readonly binds a path onto itself, read-only with all below it.
func (a *assembly) readonly(name string) error {
	target, err := safepath.OpenPath(a.root, name)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return a.inShop(func() error {
		mount, err := changedTree(target, "", mountChange{set: unix.MOUNT_ATTR_RDONLY, propagation: unix.MS_PRIVATE, recursive: true})
		if err != nil {
			return err
		}
		defer unix.Close(mount)
		return moveOnto(mount, target)
	})
}

// openConsole makes a terminal in the container's devpts: the master for us, the
// peer for the container. No path leads from one to the other (CVE-2025-52565).
func openConsole(devpts int, size *specs.Box, uid uint32) (master *os.File, slave int, err error) {
	fd, err := unix.Openat(devpts, "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("open terminal master: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		unix.Close(fd)
		return nil, -1, fmt.Errorf("unlock terminal: %w", err)
	}
	slave, err = ioctlValue(fd, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC) // Linux 4.13
	if err != nil {
		unix.Close(fd)
		return nil, -1, fmt.Errorf("open terminal: %w", err)
	}
	if size != nil {
		ws := unix.Winsize{Row: uint16(min(size.Height, 0xffff)), Col: uint16(min(size.Width, 0xffff))}
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &ws)
	}
	if err == nil {
		err = unix.Fchown(slave, int(uid), -1)
	}
	if err != nil {
		unix.Close(fd)
		unix.Close(slave)
		return nil, -1, fmt.Errorf("set terminal up: %w", err)
	}
	return os.NewFile(uintptr(fd), "console"), slave, nil
}

// reopenConsole opens the peer of a terminal by its name in devpts, which is the
// container's own and has no other names yet.
func reopenConsole(devpts int, master *os.File) (int, error) {
	raw, err := master.SyscallConn()
	if err != nil {
		return -1, err
	}
	var n int
	if ctlErr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN) }); ctlErr != nil {
		err = ctlErr
	}
	if err != nil {
		return -1, fmt.Errorf("get the terminal's number: %w", err)
	}
	fd, err := unix.Openat(devpts, strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, fmt.Errorf("open terminal %d: %w", n, err)
	}
	return fd, nil
}

// bindConsole shows the terminal as /dev/console, by descriptor.
func (a *assembly) bindConsole(slave int) error {
	dev, err := safepath.OpenPath(a.root, "/dev")
	if err != nil {
		return fmt.Errorf("open /dev: %w", err)
	}
	defer unix.Close(dev)
	_ = unix.Unlinkat(dev, "console", 0)
	file, err := unix.Openat(dev, "console", unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDONLY, 0o620)
	if err != nil {
		return fmt.Errorf("make /dev/console: %w", err)
	}
	defer unix.Close(file)
	err = a.inShop(func() error {
		mount, err := cloneMount(slave, false)
		if err != nil {
			return err
		}
		defer unix.Close(mount)
		return moveOnto(mount, file)
	})
	if err != nil {
		return fmt.Errorf("mount /dev/console: %w", err)
	}
	return nil
}
