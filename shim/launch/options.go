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

// attr gives the bits an option sets and clears. The access time is a field of
// three bits, so setting one of its values clears the field first.
type attr struct{ set, clear uint64 }

// attrOptions are the options of mount(8) that belong to a mount, without the
// prefix "r" that makes them recursive (OCI runtime spec, "Linux mount options").
var attrOptions = map[string]attr{
	"ro":            {set: unix.MOUNT_ATTR_RDONLY},
	"rw":            {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid":        {set: unix.MOUNT_ATTR_NOSUID},
	"suid":          {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev":         {set: unix.MOUNT_ATTR_NODEV},
	"dev":           {clear: unix.MOUNT_ATTR_NODEV},
	"noexec":        {set: unix.MOUNT_ATTR_NOEXEC},
	"exec":          {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime":    {set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":      {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow":   {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":     {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"relatime":      {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"norelatime":    {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"noatime":       {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"atime":         {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"strictatime":   {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"nostrictatime": {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
}

var propagationOptions = map[string]uint64{
	"private":    unix.MS_PRIVATE,
	"shared":     unix.MS_SHARED,
	"slave":      unix.MS_SLAVE,
	"unbindable": unix.MS_UNBINDABLE,
}

// superblockFlags are flags that a filesystem takes by name; a bind has none.
var superblockFlags = []string{"sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand", "iversion", "noiversion", "silent", "loud"}

// pseudo are the filesystems whose read-only state belongs to the mount, since
// their superblock is shared or must stay writable while they are filled.
var pseudo = []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "bind"}

// parseOptions sorts the options of a mount of type fsType. Unknown ones are
// the filesystem's, which refuses what it does not know.
func parseOptions(fsType string, options []string) mountOptions {
	var o mountOptions
	o.bind = fsType == "bind"
	for _, opt := range options {
		o.add(opt)
	}
	if o.set&unix.MOUNT_ATTR_RDONLY != 0 && !o.bind && !slices.Contains(pseudo, fsType) {
		o.readonlySuperblock = true
	}
	return o
}

func (o *mountOptions) add(opt string) {
	switch opt {
	case "", "defaults":
		return
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
	if a, ok := attrOptions[opt]; ok {
		o.set, o.clear = o.set&^(a.clear|a.set)|a.set, o.clear&^a.set|a.clear
		return
	}
	if p, ok := propagationOptions[opt]; ok {
		o.propagation, o.recPropagation = p, false
		return
	}
	if base, ok := strings.CutPrefix(opt, "r"); ok {
		if a, ok := attrOptions[base]; ok {
			o.recSet, o.recClear = o.recSet&^(a.clear|a.set)|a.set, o.recClear&^a.set|a.clear
			return
		}
		if p, ok := propagationOptions[base]; ok {
			o.propagation, o.recPropagation = p, true
			return
		}
	}
	o.data = append(o.data, opt)
}

// setAttr changes an open mount; zero changes are no call.
func setAttr(fd int, set, clear, propagation uint64, recursive bool) error {
	if set == 0 && clear == 0 && propagation == 0 {
		return nil
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &unix.MountAttr{Attr_set: set, Attr_clr: clear, Propagation: propagation})
}

// applyTo gives a mount the attributes asked for; read-only not yet if later.
func (o *mountOptions) applyTo(fd int, later bool) error {
	keep := ^uint64(0)
	if later {
		keep &^= unix.MOUNT_ATTR_RDONLY
	}
	if err := setAttr(fd, o.set&keep, o.clear, 0, false); err != nil {
		return err
	}
	if err := setAttr(fd, o.recSet&keep, o.recClear, 0, true); err != nil {
		return err
	}
	return setAttr(fd, 0, 0, o.propagation, o.recPropagation)
}

// propagationMode reads spec.linux.rootfsPropagation.
func propagationMode(s string) (mode uint64, recursive bool, err error) {
	if s == "" {
		return 0, false, nil
	}
	if mode, ok := propagationOptions[s]; ok {
		return mode, false, nil
	}
	if mode, ok := propagationOptions[strings.TrimPrefix(s, "r")]; ok {
		return mode, true, nil
	}
	return 0, false, fmt.Errorf("linux.rootfsPropagation %q: %w", s, unix.EINVAL)
}
