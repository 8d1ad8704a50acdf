package launch

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/internal/safepath"
)

// mountChange is what mount_setattr(2) changes of a mount, and of all below it
// if recursive. Its zero value changes nothing.
type mountChange struct {
	set, clear  uint64 // MOUNT_ATTR_*
	propagation uint64 // MS_PRIVATE and so on, 0 for none
	recursive   bool
}

func (c *mountChange) nothing() bool { return c.set == 0 && c.clear == 0 && c.propagation == 0 }

// changeMount changes an open mount, detached or in this thread's mount
// namespace. Before Linux 5.12 the mount that fd stands for is another one
// afterwards if it was detached, so that what was opened in it before must not
// be used to mount upon.
func changeMount(fd int, changes ...mountChange) error {
	for i := range changes {
		if changes[i].nothing() {
			continue
		}
		err := mountSetattr(fd, &changes[i])
		if err == unix.ENOSYS {
			return remountTree(fd, changes[i:])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func mountSetattr(fd int, c *mountChange) error {
	if kernel.noMountSetattr {
		return unix.ENOSYS
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if c.recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &unix.MountAttr{Attr_set: c.set, Attr_clr: c.clear, Propagation: c.propagation})
}

// hasMountSetattr says whether the kernel has mount_setattr(2), Linux 5.12. One
// that has it says EBADF.
func hasMountSetattr() bool {
	return mountSetattr(-1, &mountChange{set: unix.MOUNT_ATTR_RDONLY}) != unix.ENOSYS
}

// filePlace is a file of every host on which one can be mounted, see [workPlace].
const filePlace = "/proc/version"

// remountTree changes a mount by mount(2), which takes only one that is
// attached in the caller's namespace. A detached one is attached for that in a
// private namespace, and fd becomes a copy of it.
func remountTree(fd int, changes []mountChange) error {
	err := remountAll(fd, changes)
	if err != unix.EINVAL {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	place := workPlace
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		place = filePlace
	}
	onOwnThread(func() {
		if err = privateMounts(); err != nil {
			return
		}
		if err = unix.MoveMount(fd, "", unix.AT_FDCWD, place, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return
		}
		if err = remountAll(fd, changes); err != nil {
			return
		}
		var changed int
		if changed, err = openTree(fd, "", true); err != nil {
			return
		}
		err = unix.Dup3(changed, fd, unix.O_CLOEXEC)
		unix.Close(changed)
	})
	return err
}

func remountAll(fd int, changes []mountChange) error {
	for i := range changes {
		c := &changes[i]
		if c.nothing() {
			continue
		}
		if c.propagation != 0 {
			flags := uintptr(c.propagation)
			if c.recursive {
				flags |= unix.MS_REC
			}
			if err := unix.Mount("", fdPath(fd), "", flags, ""); err != nil {
				return err
			}
		}
		if err := remountOne(fd, c.set, c.clear); err != nil {
			return err
		}
		if c.recursive && c.set|c.clear != 0 {
			if err := remountBelow(fd, c.set, c.clear); err != nil {
				return err
			}
		}
	}
	return nil
}

// remountOne changes the attributes of a single mount. mount(2) sets them all at
// once, and passes over those that it does not know.
func remountOne(fd int, set, clear uint64) error {
	if set|clear == 0 {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	flags := remountFlags(uint64(fs.Flags), set, clear)
	if err := unix.Mount("", fdPath(fd), "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
		return err
	}
	if set&unix.MOUNT_ATTR_NOSYMFOLLOW == 0 {
		return nil
	}
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if fs.Flags&stNoSymfollow == 0 {
		return fmt.Errorf("nosymfollow: %w", unix.EOPNOTSUPP)
	}
	return nil
}

// stNoSymfollow is ST_NOSYMFOLLOW of statfs(2), Linux 5.10.
const stNoSymfollow = 0x2000

// plainAttrs are the attributes of one bit: how statfs(2), mount(2) and
// mount_setattr(2) call them.
var plainAttrs = [...]struct{ st, ms, attr uint64 }{
	{unix.ST_RDONLY, unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY},
	{unix.ST_NOSUID, unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID},
	{unix.ST_NODEV, unix.MS_NODEV, unix.MOUNT_ATTR_NODEV},
	{unix.ST_NOEXEC, unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
	{unix.ST_NODIRATIME, unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME},
	{stNoSymfollow, unix.MS_NOSYMFOLLOW, unix.MOUNT_ATTR_NOSYMFOLLOW},
}

// remountFlags gives mount(2)'s flags of a mount that has the flags st of
// statfs(2), with a change.
func remountFlags(st, set, clear uint64) uintptr {
	var flags uint64
	for i := range plainAttrs {
		p := &plainAttrs[i]
		if set&p.attr != 0 || st&p.st != 0 && clear&p.attr == 0 {
			flags |= p.ms
		}
	}
	switch {
	case set&unix.MOUNT_ATTR_NOATIME != 0:
		return uintptr(flags | unix.MS_NOATIME)
	case set&unix.MOUNT_ATTR_STRICTATIME != 0:
		return uintptr(flags | unix.MS_STRICTATIME)
	case clear&unix.MOUNT_ATTR__ATIME != 0 || st&unix.ST_RELATIME != 0:
		return uintptr(flags | unix.MS_RELATIME)
	case st&unix.ST_NOATIME != 0:
		return uintptr(flags | unix.MS_NOATIME)
	}
	return uintptr(flags | unix.MS_STRICTATIME)
}

// remountBelow changes every mount below an attached one. Whoever writes to what
// is mounted there can have moved a directory meanwhile, or hidden a mount by
// another: what is found at a place must be the mount that was listed.
func remountBelow(fd int, set, clear uint64) error {
	id, err := mountID(fd)
	if err != nil {
		return err
	}
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	for _, m := range mountsBelow(string(data), id) {
		if err := remountAt(fd, &m, set, clear); err != nil {
			return fmt.Errorf("mount below, at %s: %w", m.at, err)
		}
	}
	return nil
}

func remountAt(root int, m *mountBelow, set, clear uint64) error {
	fd, err := safepath.OpenPath(root, m.at)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if id, err := mountID(fd); err != nil || id != m.id {
		return errors.Join(err, fmt.Errorf("another is mounted over it: %w", unix.EBUSY))
	}
	return remountOne(fd, set, clear)
}

// mountBelow is a mount somewhere below another.
type mountBelow struct {
	id int
	at string // below the other's root
}

// mountsBelow gives the mounts below the one with an id, by the text of a
// mountinfo (proc_pid_mountinfo(5)).
func mountsBelow(mountinfo string, root int) []mountBelow {
	type mount struct {
		parent int
		at     string
	}
	mounts := map[int]mount{}
	var order []int
	for line := range strings.SplitSeq(mountinfo, "\n") {
		fields := strings.SplitN(line, " ", 6)
		if len(fields) < 6 {
			continue
		}
		id, idErr := strconv.Atoi(fields[0])
		parent, parentErr := strconv.Atoi(fields[1])
		if idErr != nil || parentErr != nil {
			continue
		}
		mounts[id] = mount{parent, unescapeMount.Replace(fields[4])}
		order = append(order, id)
	}
	var below []mountBelow
	prefix := strings.TrimSuffix(mounts[root].at, "/")
	inside := map[int]bool{root: true}
	for more := true; more; { // a child may be listed before its parent
		more = false
		for _, id := range order {
			if m := mounts[id]; !inside[id] && inside[m.parent] {
				inside[id], more = true, true
				below = append(below, mountBelow{id, strings.TrimPrefix(m.at, prefix)})
			}
		}
	}
	return below
}

// unescapeMount undoes what the kernel does to a path in mountinfo.
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// mountID gives the id in mountinfo of the mount that an open file is on.
func mountID(fd int) (int, error) {
	data, err := os.ReadFile("/proc/thread-self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(data), "mnt_id:")
	fields := strings.Fields(after)
	if len(fields) == 0 {
		return 0, fmt.Errorf("mnt_id of descriptor %d: %w", fd, errMissing)
	}
	return strconv.Atoi(fields[0])
}
