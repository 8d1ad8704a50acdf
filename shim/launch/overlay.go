package launch

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

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
// kernels mount it by paths first.
func mountOverlay(source string, options []string) (int, error) {
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
	if err == nil || !needsPaths(err) {
		return fd, err
	}
	if len(o.uids) > 0 {
		return overlayMapped(source, &o)
	}
	return overlayByPath(source, options)
}

// needsPaths says whether an overlay may be refused because the kernel takes no
// descriptors. Without the new interface of overlayfs (Linux 6.5) it is EOPNOTSUPP.
func needsPaths(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EBADF)
}

// mapsOwners says whether an overlay's options map the owners in its layers.
func mapsOwners(options []string) bool {
	return slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "uidmap=") || strings.HasPrefix(o, "gidmap=") })
}

func overlayByFD(source string, o *overlay, layers *fdList) (int, error) {
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
		if kernel.noOverlayFD {
			return unix.EINVAL
		}
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
	// mount(2) takes it as a flag, and overlayfs refuses it among its options.
	flags := uintptr(0)
	if slices.Contains(options, "ro") {
		flags = unix.MS_RDONLY
	}
	data := mountData(options)
	if len(data) >= os.Getpagesize() {
		return -1, fmt.Errorf("options of %d bytes: %w", len(data), unix.E2BIG)
	}
	if err := unix.Mount(source, dir, "overlay", flags, data); err != nil {
		return -1, err
	}
	if err := injected(overlayMounted); err != nil {
		return -1, err
	}
	fd, err := cloneHostPath(dir, false)
	return fd, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
}

// mountData gives the options of an overlay as mount(2) takes them. SELinux's
// label may have commas (its categories), and is quoted for that.
func mountData(options []string) string {
	var all []string
	for _, o := range options {
		if o == "ro" {
			continue
		}
		if key, value, ok := strings.Cut(o, "="); ok && key == "context" {
			o = key + `="` + value + `"`
		}
		all = append(all, o)
	}
	return strings.Join(all, ",")
}

// workPlace is where an overlay is mounted by path: a directory of every host,
// in a mount namespace that nobody else sees. A process that is killed meanwhile
// leaves nothing on the host.
const workPlace = "/sys"

// overlayMounted is the moment at which an overlay that was mounted by path is
// attached.
const overlayMounted = "overlay mounted by path"

// overlayByPath mounts an overlay the classic way.
func overlayByPath(source string, options []string) (fd int, err error) {
	fd = -1
	onOwnThread(func() {
		if err = privateMounts(); err == nil {
			fd, err = overlayAt(source, options, workPlace)
		}
	})
	return fd, err
}

// overlayMapped mounts an overlay of id-mapped lower layers the classic way. It
// takes layers by path only, so that they are attached where the thread sits
// among them: their paths are a digit or two.
func overlayMapped(source string, o *overlay) (fd int, err error) {
	fd = -1
	onOwnThread(func() {
		if err = privateMounts(); err != nil {
			return
		}
		if err = unix.Mount("none", workPlace, "tmpfs", 0, "mode=700"); err != nil {
			return
		}
		if err = unix.Chdir(workPlace); err != nil {
			return
		}
		var names []string
		for i, layer := range o.lower {
			name := strconv.Itoa(i)
			names = append(names, name)
			if err = attachLayer(layer, name, o); err != nil {
				err = fmt.Errorf("lower layer %s: %w", layer, err)
				return
			}
		}
		options := append([]string{"lowerdir=" + strings.Join(names, ":")}, o.rest...)
		if o.upper != "" {
			options = append(options, "upperdir="+escapeLayer(o.upper), "workdir="+escapeLayer(o.work))
		}
		if err = unix.Mkdir("root", 0o700); err == nil {
			fd, err = overlayAt(source, options, "root")
		}
	})
	return fd, err
}

// attachLayer mounts an id-mapped copy of a layer at name.
func attachLayer(layer, name string, o *overlay) error {
	if err := unix.Mkdir(name, 0o700); err != nil {
		return err
	}
	mount, err := cloneHostPath(layer, false)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	if err := mapIDs(mount, o.uids, o.gids, false); err != nil {
		return err
	}
	return unix.MoveMount(mount, "", unix.AT_FDCWD, name, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// escapeLayer writes a path as an overlay's option: ":" parts layers, "," options.
func escapeLayer(path string) string {
	return strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace(path)
}
