package launch

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/cgroup"
	"github.com/longshore/longshore/internal/safepath"
)

// maxMounts bounds the mounts of one container; each takes a descriptor while
// the root is assembled.
const maxMounts = 4096

// maxFavours bounds the mounts that the child makes though it need not.
const maxFavours = 16

// source is one mount of the spec on its way into the root.
type source struct {
	spec  *specs.Mount
	opts  mountOptions
	child int // index among the mounts that the child makes, or -1
	fd    int // detached mount; -1 if there is none
	file  bool
	late  bool // changed by the child: see [assembly.lateSources]
	last  bool // changed at the end of the assembly, for want of such a child
}

// assembly puts a container's root together: one detached tree that no process
// sees. Every place inside is found by openat2 below the root, with links
// resolved inside it, and then used by descriptor only.
type assembly struct {
	spec       *specs.Spec
	bundle     string
	uids, gids []specs.LinuxIDMapping
	own        uintptr // CLONE_NEW* of the namespaces that are not the host's
	idle       bool    // the child is done with its namespaces soon
	pidNS      *joined // that of a process that is born late; nil for others
	group      *cgroup.Group
	host       *cgroup.Host
	sources    []source
	root       int
	devpts     int // the container's devpts, -1 without
	devptsAt   string
	ordered    bool // see [Config.Ordered]
	chrooted   bool // see [namespaces]
	fds        fdList
	shop       *workshop
}

// childMade says which filesystems must be made inside the namespaces of the
// container: they show a namespace of their maker. One of the host's namespaces
// must be shown by the parent if the container has a user namespace, since in
// that nobody may mount it.
//
// A child that has no network namespace to make has time for some of what could be
// made by either.
func (a *assembly) childMade(fsType string) bool {
	var shows uintptr
	switch fsType {
	case "proc":
		if a.pidNS != nil {
			return false // the child is not in it yet
		}
		shows = unix.CLONE_NEWPID
	case "mqueue":
		shows = unix.CLONE_NEWIPC
	case "cgroup2":
		shows = unix.CLONE_NEWCGROUP
	case "sysfs":
		shows = unix.CLONE_NEWNET
	case "tmpfs", "devpts":
		return a.idle && len(a.uids) == 0
	default:
		return false
	}
	return a.own&shows != 0 || len(a.uids) == 0
}

// classify reads the mounts of the spec and gives those the child must make.
func (a *assembly) classify() ([]*source, error) {
	if len(a.spec.Mounts) > maxMounts {
		return nil, fmt.Errorf("mounts: more than %d: %w", maxMounts, unix.E2BIG)
	}
	var made []*source
	a.sources = make([]source, len(a.spec.Mounts))
	for i := range a.spec.Mounts {
		m := &a.spec.Mounts[i]
		if m.Destination == "" {
			return nil, fmt.Errorf("mounts[%d].destination: %w", i, errMissing)
		}
		m = a.absolute(m)
		if a.host != nil && a.host.Mode == cgroup.V2 {
			m = a.unifiedMount(m)
		}
		s := &a.sources[i]
		*s = source{spec: m, opts: parseOptions(m.Type, m.Options), child: -1, fd: -1}
		if s.opts.bind && m.Source == "" {
			return nil, fmt.Errorf("mounts[%d].source of a bind: %w", i, errMissing)
		}
		filled := m.Type == "tmpfs" || m.Type == "devpts" // by us, before it is read-only
		mapped := s.opts.idmap || len(m.UIDMappings)+len(m.GIDMappings) > 0
		child := a.childMade(m.Type) && !s.opts.bind && !(filled && (mapped || len(made) >= maxFavours))
		if mapped && !s.opts.bind && (child || m.Type == "cgroup") {
			return nil, fmt.Errorf("mounts[%d].uidMappings and gidMappings of %s: %w", i, m.Type, errUnsupported)
		}
		if s.opts.remount {
			continue
		}
		s.late = s.opts.unbindable() && !a.chrooted
		if s.opts.bind {
			continue
		}
		if filled || !child {
			s.late = m.Type != "cgroup" && (s.late || s.opts.readOnly())
			s.late, s.last = s.late && !a.chrooted, s.late && a.chrooted
		}
		if !child {
			continue
		}
		if err := a.translateIDs(s); err != nil {
			return nil, fmt.Errorf("mount %s at %s: %w", m.Type, m.Destination, err)
		}
		s.child = len(made)
		made = append(made, s)
	}
	return made, nil
}

// absolute gives a mount with whole paths: a relative destination is one of "/",
// the relative source of a bind one of the bundle (config.md, "Mounts").
func (a *assembly) absolute(m *specs.Mount) *specs.Mount {
	bind := m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
	inBundle := bind && m.Source != "" && !path.IsAbs(m.Source)
	if path.IsAbs(m.Destination) && !inBundle {
		return m
	}
	whole := *m
	if whole.Destination = path.Join("/", m.Destination); inBundle {
		whole.Source = path.Join(a.bundle, m.Source)
	}
	return &whole
}

// unifiedMount gives what a mount of cgroups is where there is cgroup2 alone: the
// host's own mount if the container shares the host's cgroup namespace. A new
// one there would set the options of all, and take nsdelegate and
// memory_recursiveprot from the host.
func (a *assembly) unifiedMount(m *specs.Mount) *specs.Mount {
	switch {
	case m.Type != "cgroup" && m.Type != "cgroup2":
		return m
	case a.own&unix.CLONE_NEWCGROUP != 0:
		return &specs.Mount{Destination: m.Destination, Type: "cgroup2", Source: m.Source, Options: m.Options}
	}
	options := append([]string{"bind"}, m.Options...)
	return &specs.Mount{Destination: m.Destination, Type: "bind", Source: a.host.Trees[0].Mount, Options: options}
}

// prepare mounts what the parent can, before the child is awaited: both work
// at the same time.
func (a *assembly) prepare() error {
	for i := range a.sources {
		s := &a.sources[i]
		if s.child >= 0 || s.opts.remount || s.spec.Type == "cgroup" && !s.opts.bind {
			continue
		}
		if err := a.open(s); err != nil {
			return fmt.Errorf("mount %s at %s: %w", s.kind(), s.spec.Destination, err)
		}
	}
	return nil
}

func (s *source) kind() string {
	if s.opts.bind {
		return "bind of " + s.spec.Source
	}
	return s.spec.Type
}

func (a *assembly) open(s *source) (err error) {
	m := s.spec
	if s.opts.bind {
		s.fd, err = openTree(unix.AT_FDCWD, m.Source, s.opts.recursive)
	} else {
		if err := a.translateIDs(s); err != nil {
			return err
		}
		src := m.Source
		if src == "" {
			src = m.Type
		}
		if s.opts.readonlySuperblock {
			s.opts.data = append(s.opts.data, "ro")
		}
		switch {
		case m.Type == "overlay" && mapsOwners(s.opts.data):
			s.fd, err = mountOverlay(src, s.opts.data)
		case m.Type == "proc" && a.pidNS != nil:
			s.fd, err = newProcfs(a.pidNS.fd, s.opts.data)
		default:
			s.fd, err = newFilesystem(m.Type, src, s.opts.data, 0)
		}
	}
	if err != nil {
		return err
	}
	a.fds.add(s.fd)
	if s.opts.bind {
		var st unix.Stat_t
		if err := unix.Fstat(s.fd, &st); err != nil {
			return err
		}
		s.file = st.Mode&unix.S_IFMT != unix.S_IFDIR
	}
	a.noteDevpts(s)
	if len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 || s.opts.idmap {
		if err := a.idmap(s); err != nil {
			return fmt.Errorf("map ids: %w", err)
		}
	}
	return s.opts.applyTo(s.fd, (s.late || s.last) && !s.opts.bind)
}

func (a *assembly) noteDevpts(s *source) {
	if s.spec.Type == "devpts" && !s.opts.bind {
		a.devpts, a.devptsAt = s.fd, s.spec.Destination
	}
}

// lateSources are the mounts that the child changes once they are attached,
// for only a member of a mount namespace may do so inside a tree. It makes those
// read-only in which files are made first, and those unbindable that would be
// left out of a copy of the tree.
func (a *assembly) lateSources() []*source {
	var late []*source
	for i := range a.sources {
		if a.sources[i].late {
			late = append(late, &a.sources[i])
		}
	}
	return late
}

// idmap shows the files of a mount with other owners (Linux 5.12). Without
// mappings of its own a mount takes the container's.
func (a *assembly) idmap(s *source) error {
	uids, gids := s.spec.UIDMappings, s.spec.GIDMappings
	if len(uids) == 0 && len(gids) == 0 {
		uids, gids = a.uids, a.gids
	}
	if len(uids) == 0 || len(gids) == 0 {
		return fmt.Errorf("uidMappings and gidMappings: %w", errMissing)
	}
	return mapIDs(s.fd, uids, gids, s.opts.recIDMap)
}

// labelled adds SELinux's label of the container's own mounts to the options of one.
func (a *assembly) labelled(options []string) []string {
	if a.spec.Linux == nil || a.spec.Linux.MountLabel == "" {
		return options
	}
	return append(options, "context="+a.spec.Linux.MountLabel)
}

// labelQueues gives an mqueue that the child has made the label of the
// container's mounts. It is there as long as its IPC namespace, and takes none
// when it is mounted. The host's is not the container's.
func (a *assembly) labelQueues(s *source) error {
	label := a.spec.Linux.MountLabel
	if s.spec.Type != "mqueue" || label == "" || a.own&unix.CLONE_NEWIPC == 0 {
		return nil
	}
	return setLabel(s.fd, label)
}

// setLabel gives the root of a mount an SELinux label.
func setLabel(mount int, label string) error {
	if err := unix.Setxattr(fdPath(mount), "security.selinux", []byte(label), 0); err != nil {
		return fmt.Errorf("label %s: %w", label, err)
	}
	return nil
}

// translateIDs turns the ids in a filesystem's options, which are the
// container's, into the host's, and makes the container's root the owner of a
// tmpfs. The parent mounts these for a user namespace as well: device nodes
// work only on a filesystem of the first user namespace.
func (a *assembly) translateIDs(s *source) error {
	if s.spec.Type != "tmpfs" && s.spec.Type != "devpts" && s.spec.Type != "overlay" {
		return nil
	}
	s.opts.data = a.labelled(s.opts.data)
	if s.spec.Type == "overlay" {
		return nil
	}
	if s.spec.Type == "devpts" && !slices.Contains(s.opts.data, "newinstance") {
		s.opts.data = append(s.opts.data, "newinstance")
	}
	if len(a.uids) == 0 {
		return nil
	}
	given := map[string]bool{}
	for i, opt := range s.opts.data {
		key, value, _ := cutOption(opt)
		if key != "uid" && key != "gid" {
			continue
		}
		given[key] = true
		id, err := parseMapping(value + ":0:1") // the number alone, with its checks
		if err != nil {
			return fmt.Errorf("option %q: %w", opt, err)
		}
		maps := a.uids
		if key == "gid" {
			maps = a.gids
		}
		host, ok := hostID(maps, id[0].ContainerID)
		if !ok {
			return fmt.Errorf("option %q: id is not mapped: %w", opt, unix.EINVAL)
		}
		s.opts.data[i] = fmt.Sprintf("%s=%d", key, host)
	}
	if s.spec.Type == "tmpfs" {
		uid, _ := hostID(a.uids, 0)
		gid, _ := hostID(a.gids, 0)
		if !given["uid"] {
			s.opts.data = append(s.opts.data, fmt.Sprintf("uid=%d", uid))
		}
		if !given["gid"] {
			s.opts.data = append(s.opts.data, fmt.Sprintf("gid=%d", gid))
		}
	}
	return nil
}

// assemble attaches everything in the order of the spec; made are the mounts
// that came from the child.
func (a *assembly) assemble(made []int) (err error) {
	if a.chrooted && a.shop == nil { // a member of whose namespace changes the mounts
		if a.shop, err = openWorkshop(a.root); err != nil {
			return err
		}
	}
	for i := range a.sources {
		s := &a.sources[i]
		if s.child >= 0 {
			s.fd = made[s.child]
			a.noteDevpts(s)
			if err := errors.Join(a.labelQueues(s), s.opts.applyTo(s.fd, s.late || s.last)); err != nil {
				return fmt.Errorf("mount %s at %s: %w", s.spec.Type, s.spec.Destination, err)
			}
		}
		if err := a.place(s); err != nil {
			return fmt.Errorf("mount %s at %s: %w", s.kind(), s.spec.Destination, err)
		}
	}
	if err := a.devices(); err != nil {
		return err
	}
	if err := a.hide(); err != nil {
		return err
	}
	if err := a.makeCwd(); err != nil {
		return err
	}
	for i := range a.sources {
		if s := &a.sources[i]; s.last {
			err := a.outside(func() error { return changeMount(s.fd, mountChange{set: unix.MOUNT_ATTR_RDONLY}) })
			if err != nil {
				return fmt.Errorf("make %s read-only: %w", s.spec.Destination, err)
			}
		}
	}
	return nil
}

func (a *assembly) place(s *source) error {
	switch {
	case s.opts.remount:
		return a.remount(s)
	case s.spec.Type == "cgroup" && !s.opts.bind:
		return a.cgroups(s)
	}
	target, err := a.target(s)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	if s.opts.copyUp {
		if err := a.copyUp(target, s.fd); err != nil {
			return fmt.Errorf("copy what is there: %w", err)
		}
	}
	return a.attach(s.fd, target)
}

// target opens the place for a mount, made if it is missing. For procfs and
// sysfs no link may lead there: the image chooses links, and the masks go
// where these two are (CVE-2019-19921).
func (a *assembly) target(s *source) (int, error) {
	if s.file {
		return safepath.CreateFile(a.root, s.spec.Destination, 0o755)
	}
	if s.opts.bind || s.spec.Type != "proc" && s.spec.Type != "sysfs" {
		return safepath.MkdirAll(a.root, s.spec.Destination, 0o755)
	}
	fd, err := openPlain(a.root, s.spec.Destination)
	if err == unix.ENOENT {
		if fd, err = safepath.MkdirAll(a.root, s.spec.Destination, 0o755); err != nil {
			return -1, err
		}
		unix.Close(fd)
		fd, err = openPlain(a.root, s.spec.Destination)
	}
	if err == unix.ELOOP {
		return -1, fmt.Errorf("a link leads there: %w", err)
	}
	return fd, err
}

// openPlain opens a path that has no link in it.
func openPlain(root int, name string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_DIRECTORY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	}
	for {
		fd, err := unix.Openat2(root, name, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// attach moves a detached mount to an open place in the root. Before Linux
// 6.15 the root must be attached somewhere for that.
func (a *assembly) attach(mount, target int) error {
	return a.inShop(func() error { return moveOnto(mount, target) })
}

// remount changes the attributes of a mount that is there.
func (a *assembly) remount(s *source) error {
	fd, err := safepath.OpenPath(a.root, s.spec.Destination)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return a.inShop(func() error { return s.opts.applyTo(fd, false) })
}

// makeCwd makes the working directory if the image lacks it. On a read-only
// filesystem it stays missing, and entering it fails with its name.
func (a *assembly) makeCwd() error {
	if a.spec.Process == nil || !strings.HasPrefix(a.spec.Process.Cwd, "/") || a.spec.Process.Cwd == "/" {
		return nil
	}
	fd, err := safepath.OpenPath(a.root, a.spec.Process.Cwd)
	if err == nil {
		return unix.Close(fd)
	}
	if !errors.Is(err, unix.ENOENT) {
		return nil // the container's user will find out
	}
	fd, err = safepath.MkdirAll(a.root, a.spec.Process.Cwd, 0o755)
	if errors.Is(err, unix.EROFS) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process.cwd: %w", err)
	}
	defer unix.Close(fd)
	uid, _ := hostID(a.uids, 0)
	gid, _ := hostID(a.gids, 0)
	if len(a.uids) == 0 {
		return nil
	}
	return os.Lchown(fdPath(fd)+"/.", int(uid), int(gid))
}
