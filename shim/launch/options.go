package launch

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountOptions is a mount's options, sorted by who takes them.
type mountOptions struct {
	set, clear         uint64 // MOUNT_ATTR_* of the mount itself
	recSet, recClear   uint64 // of the mount and all below it (rro, ...)
	propagation        uint64 // MS_PRIVATE and so on, 0 for none
	recPropagation     bool
	bind, recursive    bool
	remount            bool
	copyUp             bool // tmpcopyup: fill a tmpfs with what its target held
	idmap, recIDMap    bool
	readonlySuperblock bool
	data               []string // for the filesystem: "key" or "key=value"
}

// attrOptions are the options of mount(8) that belong to a mount, without the
// prefix "r" that makes them recursive (OCI runtime spec, "Linux mount options").
// The access time is a field of three bits: setting one value clears the field.
//
// The tables of this package are arrays and not maps: they are read-only pages
// of the binary, where a map would be memory of every shim.
var attrOptions = [...]struct {
	name       string
	set, clear uint64
}{
	{"ro", unix.MOUNT_ATTR_RDONLY, 0},
	{"rw", 0, unix.MOUNT_ATTR_RDONLY},
	{"nosuid", unix.MOUNT_ATTR_NOSUID, 0},
	{"suid", 0, unix.MOUNT_ATTR_NOSUID},
	{"nodev", unix.MOUNT_ATTR_NODEV, 0},
	{"dev", 0, unix.MOUNT_ATTR_NODEV},
	{"noexec", unix.MOUNT_ATTR_NOEXEC, 0},
	{"exec", 0, unix.MOUNT_ATTR_NOEXEC},
	{"nodiratime", unix.MOUNT_ATTR_NODIRATIME, 0},
	{"diratime", 0, unix.MOUNT_ATTR_NODIRATIME},
	{"nosymfollow", unix.MOUNT_ATTR_NOSYMFOLLOW, 0},
	{"symfollow", 0, unix.MOUNT_ATTR_NOSYMFOLLOW},
	{"relatime", unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	{"norelatime", unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME},
	{"noatime", unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME},
	{"atime", unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	{"strictatime", unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME},
	{"nostrictatime", unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
}

// attrOption gives the bits that an option sets and clears.
func attrOption(name string) (set, clear uint64, ok bool) {
	for i := range attrOptions {
		if o := &attrOptions[i]; o.name == name {
			return o.set, o.clear, true
		}
	}
	return 0, 0, false
}

// propagationOption gives the propagation type that an option names, 0 for none.
func propagationOption(name string) uint64 {
	switch name {
	case "private":
		return unix.MS_PRIVATE
	case "shared":
		return unix.MS_SHARED
	case "slave":
		return unix.MS_SLAVE
	case "unbindable":
		return unix.MS_UNBINDABLE
	}
	return 0
}

// pseudo are the filesystems whose read-only state belongs to the mount, since
// their superblock is shared or must stay writable while they are filled.
var pseudo = [...]string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "bind"}

// parseOptions sorts the options of a mount of type fsType. Unknown ones are
// the filesystem's, which refuses what it does not know.
func parseOptions(fsType string, options []string) mountOptions {
	var o mountOptions
	o.bind = fsType == "bind"
	for _, opt := range options {
		o.add(opt)
	}
	if o.bind && o.propagation == 0 {
		// A copy of a shared mount would hand the container's mounts to the host.
		o.propagation, o.recPropagation = unix.MS_PRIVATE, true
	}
	if o.set&unix.MOUNT_ATTR_RDONLY != 0 && !o.bind && !slices.Contains(pseudo[:], fsType) {
		o.readonlySuperblock = true
	}
	return o
}

func (o *mountOptions) add(opt string) {
	switch opt {
	case "", "defaults":
		return
	case "silent", "loud", "iversion", "noiversion":
		return // flags of mount(2) that fsconfig(2) has no word for; they change nothing that is seen
	case "bind":
		o.bind = true
		return
	case "rbind":
		o.bind, o.recursive = true, true
		return
	case "remount":
		o.remount = true
		return
	case "tmpcopyup":
		o.copyUp = true
		return
	case "idmap":
		o.idmap = true
		return
	case "ridmap":
		o.idmap, o.recIDMap = true, true
		return
	}
	if set, clear, ok := attrOption(opt); ok {
		o.set, o.clear = o.set&^(clear|set)|set, o.clear&^set|clear
		return
	}
	if p := propagationOption(opt); p != 0 {
		o.propagation, o.recPropagation = p, false
		return
	}
	if base, ok := strings.CutPrefix(opt, "r"); ok {
		if set, clear, ok := attrOption(base); ok {
			o.recSet, o.recClear = o.recSet&^(clear|set)|set, o.recClear&^set|clear
			return
		}
		if p := propagationOption(base); p != 0 {
			o.propagation, o.recPropagation = p, true
			return
		}
	}
	o.data = append(o.data, opt)
}

// superOptions are the options of mount(8) for a filesystem as a whole. fsconfig(2)
// takes those that have an effect; a bind has none.
var superOptions = [...]string{
	"async", "sync", "dirsync", "lazytime", "nolazytime", "mand", "nomand", "silent", "loud", "iversion", "noiversion",
}

func (o *mountOptions) readOnly() bool { return (o.set|o.recSet)&unix.MOUNT_ATTR_RDONLY != 0 }

func (o *mountOptions) unbindable() bool { return o.propagation == unix.MS_UNBINDABLE }

// applyTo gives a mount the attributes asked for; read-only not yet if later,
// and unbindable never: see [assembly.lateSources].
func (o *mountOptions) applyTo(fd int, later bool) error {
	keep := ^uint64(0)
	if later {
		keep &^= unix.MOUNT_ATTR_RDONLY
	}
	propagation := o.propagation
	if o.unbindable() {
		propagation = unix.MS_PRIVATE
	}
	return changeMount(fd,
		mountChange{set: o.set & keep, clear: o.clear},
		mountChange{set: o.recSet & keep, clear: o.recClear, recursive: true},
		mountChange{propagation: propagation, recursive: o.recPropagation})
}

// propagationMode reads spec.linux.rootfsPropagation.
func propagationMode(s string) (mode uint64, recursive bool, err error) {
	if s == "" {
		return 0, false, nil
	}
	if mode := propagationOption(s); mode != 0 {
		return mode, false, nil
	}
	if mode := propagationOption(strings.TrimPrefix(s, "r")); mode != 0 {
		return mode, true, nil
	}
	return 0, false, fmt.Errorf("linux.rootfsPropagation %q: %w", s, unix.EINVAL)
}
