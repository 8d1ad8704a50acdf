package launch

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// fdPath names an open file for the few calls that take a path only.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// cutOption splits a filesystem's option "key=value".
func cutOption(opt string) (key, value string, isString bool) { return strings.Cut(opt, "=") }

// openTree makes a detached copy of the mount, directory or file at path, which
// is empty for dir itself, with all below it if recursive. The copy of a shared
// mount is its peer: what is mounted on one appears on the other.
func openTree(dir int, path string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.OpenTree(dir, path, flags)
}

// cloneMount makes a detached copy of what is at fd that shares nothing: a
// container that mounts something on its masked files must not thereby mount
// it on the host's null device.
func cloneMount(fd int, recursive bool) (int, error) { return privateTree(fd, "", recursive) }

// cloneHostPath is cloneMount for a path of the host.
func cloneHostPath(path string, recursive bool) (int, error) {
	return privateTree(unix.AT_FDCWD, path, recursive)
}

func privateTree(dir int, path string, recursive bool) (int, error) {
	fd, err := openTree(dir, path, recursive)
	if err != nil {
		return -1, err
	}
	if err := setAttr(fd, 0, 0, unix.MS_PRIVATE, recursive); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// newFilesystem mounts a filesystem detached, by fsopen(2) (Linux 5.2).
func newFilesystem(fsType, source string, options []string, attrs uint64) (int, error) {
	fs, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if source != "" {
		if err := unix.FsconfigSetString(fs, "source", source); err != nil {
			return -1, explain(fs, err)
		}
	}
	for _, opt := range options {
		key, value, isString := cutOption(opt)
		if isString {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, opt)
		}
		if err != nil {
			return -1, fmt.Errorf("option %q: %w", opt, explain(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, explain(fs, err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attrs))
}

// explain adds the message that the filesystem left in its context.
func explain(fs int, err error) error {
	var buf [256]byte
	n, readErr := unix.Read(fs, buf[:])
	if readErr != nil || n < 2 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e ")))
}

// mountRoot makes the container's root, detached. With m nil it is the
// directory dir as it is, else m is mounted and dir, if the kernel needs a
// place for it, lent.
func mountRoot(m *Mount, dir string) (int, error) {
	if m == nil {
		fd, err := cloneHostPath(dir, true)
		if err != nil {
			return -1, &os.PathError{Op: "mount root", Path: dir, Err: err}
		}
		return fd, nil
	}
	o := parseOptions(m.Type, m.Options)
	var fd int
	var err error
	switch {
	case o.bind:
		fd, err = openTree(unix.AT_FDCWD, m.Source, o.recursive)
	case m.Type == "overlay":
		fd, err = mountOverlay(m.Source, o.data, dir)
	default:
		if o.readonlySuperblock {
			o.data = append(o.data, "ro")
		}
		fd, err = newFilesystem(m.Type, m.Source, o.data, 0)
	}
	if err == nil {
		if err = o.applyTo(fd, false); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return -1, fmt.Errorf("mount root: %s from %q: %w", m.Type, m.Source, err)
	}
	return fd, nil
}

// overlay is the options of an overlay, with its layers apart.
type overlay struct {
	lower       []string
	upper, work string
	volatile    bool
	rest        []string
	uids, gids  []specs.LinuxIDMapping // id-map the lower layers
}

// parseOverlay reads options as containerd writes them. In lowerdir ":" parts
// the layers and "\:" is a colon.
func parseOverlay(options []string) (o overlay, err error) {
	for _, opt := range options {
		key, value, _ := cutOption(opt)
		switch key {
		case "lowerdir":
			o.lower = splitLayers(value)
		case "upperdir":
			o.upper = value
		case "workdir":
			o.work = value
		case "uidmap":
			o.uids, err = parseMapping(value)
		case "gidmap":
			o.gids, err = parseMapping(value)
		default:
			o.volatile = o.volatile || opt == "volatile"
			o.rest = append(o.rest, opt)
		}
		if err != nil {
			return o, fmt.Errorf("option %q: %w", opt, err)
		}
	}
	if len(o.lower) == 0 {
		return o, fmt.Errorf("lowerdir: %w", errMissing)
	}
	return o, nil
}

func splitLayers(value string) []string {
	var layers []string
	var at strings.Builder
	for i := 0; i < len(value); i++ {
		switch {
		case value[i] == '\\' && i+1 < len(value):
			i++
			at.WriteByte(value[i])
		case value[i] == ':':
			layers = append(layers, at.String())
			at.Reset()
		default:
			at.WriteByte(value[i])
		}
	}
	return append(layers, at.String())
}

// parseMapping reads "container:host:size[,...]".
func parseMapping(value string) ([]specs.LinuxIDMapping, error) {
	var maps []specs.LinuxIDMapping
	for part := range strings.SplitSeq(value, ",") {
		fields := strings.Split(part, ":")
		if len(fields) != 3 {
			return nil, unix.EINVAL
		}
		var n [3]uint64
		for i, f := range fields {
			v, err := strconv.ParseUint(f, 10, 32)
			if err != nil {
				return nil, unix.EINVAL
			}
			n[i] = v
		}
		maps = append(maps, specs.LinuxIDMapping{ContainerID: uint32(n[0]), HostID: uint32(n[1]), Size: uint32(n[2])})
	}
	return maps, nil
}

// mountOverlay mounts an overlay detached. Layers are given by descriptor
// (Linux 6.13), which no length or character of a path can break. Older
// kernels mount it at dir first.
func mountOverlay(source string, options []string, dir string) (int, error) {
	o, err := parseOverlay(options)
	if err != nil {
		return -1, err
	}
	if o.volatile {
		// A volatile overlay leaves this behind, and refuses to mount again while it is there.
		_ = unix.Unlink(o.work + "/work/incompat/volatile/dirty")
		_ = unix.Rmdir(o.work + "/work/incompat/volatile")
	}
	if source == "" {
		source = "overlay"
	}
	var layers fdList
	defer layers.closeAll()
	fd, err := overlayByFD(source, &o, &layers)
	if err == nil || len(o.uids) > 0 || !(errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBADF)) {
		return fd, err
	}
	return overlayAt(source, options, dir)
}

func overlayByFD(source string, o *overlay, layers *fdList) (int, error) {
	if kernel.noOverlayFD {
		return -1, unix.EINVAL
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	set := func(key, path string) error {
		fd, err := openLayer(key, path, o, layers)
		if err != nil {
			return &os.PathError{Op: "open " + key, Path: path, Err: err}
		}
		layers.add(fd)
		if err := unix.FsconfigSetFd(fs, key, fd); err != nil {
			return fmt.Errorf("%s %s: %w", key, path, explain(fs, err))
		}
		return nil
	}
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return -1, explain(fs, err)
	}
	for _, layer := range o.lower {
		if err := set("lowerdir+", layer); err != nil {
			return -1, err
		}
	}
	if o.upper != "" {
		if err := errors.Join(set("upperdir", o.upper), set("workdir", o.work)); err != nil {
			return -1, err
		}
	}
	for _, opt := range o.rest {
		key, value, isString := cutOption(opt)
		if isString {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, opt)
		}
		if err != nil {
			return -1, fmt.Errorf("option %q: %w", opt, explain(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, explain(fs, err)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}

// openLayer opens a directory of an overlay; a lower one is a detached copy
// with ids mapped if the overlay asks for that. The copy lasts as long as its
// own descriptor, which goes to layers.
func openLayer(key, path string, o *overlay, layers *fdList) (int, error) {
	if key != "lowerdir+" || len(o.uids) == 0 {
		return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	mount, err := cloneHostPath(path, false)
	if err != nil {
		return -1, err
	}
	layers.add(mount)
	if err := mapIDs(mount, o.uids, o.gids, false); err != nil {
		return -1, err
	}
	return unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// overlayAt mounts the classic way at dir and takes the mount off again.
func overlayAt(source string, options []string, dir string) (int, error) {
	data := strings.Join(options, ",")
	if len(data) >= os.Getpagesize() {
		return -1, fmt.Errorf("options of %d bytes: %w", len(data), unix.E2BIG)
	}
	if err := unix.Mount(source, dir, "overlay", 0, data); err != nil {
		return -1, err
	}
	fd, err := cloneHostPath(dir, false)
	return fd, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
}
