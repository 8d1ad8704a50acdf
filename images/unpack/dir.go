package unpack

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/images/fault"
)

// block is what a file's size is rounded up to when disk usage is told: the
// block of the file systems a node has, or near enough.
const block = 4096

// DirSink stores a layer as a directory that overlayfs can take as a lower
// one. It is the tree's only writer until it is finished.
//
// The tree's files are made one by one below the descriptor of their parent,
// and a parent is looked up with RESOLVE_NO_SYMLINKS: a path that leads
// through a link of the layer's own is refused, wherever the link points.
// Without root, owners and devices are left out and "opaque" is marked with
// user.overlay.opaque, which overlayfs reads when mounted in a user namespace.
type DirSink struct {
	root   int // O_PATH
	euid   int
	egid   int
	umask  uint32
	limits Limits

	parent     int // the directory of the entry before, kept open
	parentPath string

	dirs      map[string]*directory // all that were made
	whiteouts map[string]struct{}
	names     int
	usage     Result
}

// directory is what Finish gives a directory: last, because entries made in it
// change its times, and because set-group-id or a default ACL would be
// inherited by them.
type directory struct {
	mode     uint32
	made     uint32 // the mode it has now
	uid, gid uint32
	modTime  time.Time
	xattrs   map[string]string
	implicit bool
	opaque   bool
}

const implicitMode = 0o755

// epoch is the time of what no layer names, so that the same layer gives the
// same tree.
var epoch = time.Unix(0, 0)

var _ Sink = (*DirSink)(nil)

// NewDirSink stores into the empty directory dir.
func NewDirSink(dir string, limits Limits) (*DirSink, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	umask, err := processUmask()
	if err != nil {
		unix.Close(root)
		return nil, err
	}
	d := &DirSink{
		root: root, euid: os.Geteuid(), egid: os.Getegid(), umask: umask, limits: limits.withDefaults(),
		parent: -1, dirs: map[string]*directory{}, whiteouts: map[string]struct{}{},
	}
	d.dirs["."] = &directory{mode: implicitMode, made: ^uint32(0), modTime: epoch, implicit: true}
	d.usage = Result{Size: block, Inodes: 1}
	return d, nil
}

// Close implements [Sink].
func (d *DirSink) Close() error {
	d.forgetParent()
	return unix.Close(d.root)
}

// Add implements [Sink].
func (d *DirSink) Add(e *Entry, body io.Reader) error {
	err := d.add(e, body)
	switch {
	case err == nil || fault.Known(err):
		return err
	case fault.IsFull(err):
		return fmt.Errorf("%w: %w", fault.ErrNoSpace, err)
	}
	// Errors that only the layer's own shape can cause.
	for _, errno := range []unix.Errno{unix.ENAMETOOLONG, unix.ENOTDIR, unix.ELOOP, unix.EISDIR, unix.EINVAL, unix.EMLINK, unix.E2BIG} {
		if errors.Is(err, errno) {
			return fmt.Errorf("%w: %w", fault.ErrCorrupt, err)
		}
	}
	return err
}

func (d *DirSink) add(e *Entry, body io.Reader) error {
	switch e.Kind {
	case Dir:
		return d.addDir(e)
	case Opaque:
		return d.addOpaque(e.Path)
	case Whiteout:
		return d.addWhiteout(e.Path)
	}
	parent, err := d.openParent(e.Path)
	if err != nil {
		return err
	}
	base := path.Base(e.Path)
	switch e.Kind {
	case File:
		return d.addFile(e, parent, base, body)
	case Link:
		return d.addLink(e, base)
	case Symlink:
		err = d.create(e.Path, parent, func() error { return unix.Symlinkat(e.Target, parent, base) })
	case Char, Block:
		if !d.root0() {
			return nil
		}
		kind := uint32(unix.S_IFCHR)
		if e.Kind == Block {
			kind = unix.S_IFBLK
		}
		dev := int(unix.Mkdev(e.Major, e.Minor))
		err = d.create(e.Path, parent, func() error { return unix.Mknodat(parent, base, kind|e.Mode&0o777, dev) })
	case Fifo:
		err = d.create(e.Path, parent, func() error { return unix.Mknodat(parent, base, unix.S_IFIFO|e.Mode&0o777, 0) })
	default:
		return fmt.Errorf("%w: unknown kind %d", fault.ErrCorrupt, e.Kind)
	}
	if err != nil {
		return err
	}
	return d.finishNode(e, parent, base)
}

// root0 reports whether owners and devices can be set.
func (d *DirSink) root0() bool { return d.euid == 0 }

// create makes one inode and, where the layer has put something else before,
// replaces it: the last entry of a path wins.
func (d *DirSink) create(name string, parent int, make func() error) error {
	err := make()
	if err == unix.EEXIST {
		if err = d.remove(name, parent); err != nil {
			return err
		}
		err = make()
	}
	if err != nil {
		return os.NewSyscallError("create", err)
	}
	d.usage.Inodes++
	return nil
}

func (d *DirSink) addFile(e *Entry, parent int, base string, body io.Reader) error {
	fd := -1
	err := d.create(e.Path, parent, func() (err error) {
		fd, err = unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, e.Mode&0o777)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := copyBody(fd, body, e.Size); err != nil {
		return err
	}
	d.usage.Size += blocks(e.Size)
	if d.root0() && (int(e.UID) != d.euid || int(e.GID) != d.egid) {
		if err := unix.Fchown(fd, int(e.UID), int(e.GID)); err != nil {
			return os.NewSyscallError("fchown", err)
		}
	}
	// After the owner: chown(2) clears set-id bits and capabilities.
	if e.Mode&(0o7000|d.umask) != 0 {
		if err := unix.Fchmod(fd, e.Mode); err != nil {
			return os.NewSyscallError("fchmod", err)
		}
	}
	if err := d.setXattrs(fd, e.Xattrs); err != nil {
		return err
	}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(fd, "", times(e.ModTime), unix.AT_EMPTY_PATH))
}

func copyBody(fd int, body io.Reader, size int64) error {
	if size == 0 {
		return nil
	}
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for left := size; left > 0; {
		n, err := io.ReadFull(body, buf[:min(left, bufferSize)])
		if err != nil {
			return corrupt("file body", err)
		}
		for done := 0; done < n; {
			w, err := unix.Write(fd, buf[done:n])
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return os.NewSyscallError("write", err)
			}
			done += w
		}
		left -= int64(n)
	}
	return nil
}

// addLink links to a file of the same layer, never through a symbolic link.
func (d *DirSink) addLink(e *Entry, base string) error {
	if e.Target == e.Path {
		return fmt.Errorf("%w: hard link to itself", fault.ErrCorrupt)
	}
	if _, ok := d.dirs[e.Target]; ok {
		return fmt.Errorf("%w: hard link to directory %.200q", fault.ErrCorrupt, e.Target)
	}
	from, err := d.open(path.Dir(e.Target), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("%w: hard link to %.200q: %w", fault.ErrCorrupt, e.Target, err)
	}
	defer unix.Close(from)
	// Two tries: the path may be taken, and what it holds may be the target's directory.
	parent, err := d.openParent(e.Path)
	if err != nil {
		return err
	}
	err = d.create(e.Path, parent, func() error { return unix.Linkat(from, path.Base(e.Target), parent, base, 0) })
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: hard link to %.200q, which this layer does not hold", fault.ErrCorrupt, e.Target)
	}
	if err == nil {
		d.usage.Inodes-- // create counted it
	}
	return err
}

// finishNode gives owner, mode and time to what is never opened for writing.
func (d *DirSink) finishNode(e *Entry, parent int, base string) error {
	if d.root0() && (int(e.UID) != d.euid || int(e.GID) != d.egid) {
		if err := unix.Fchownat(parent, base, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return os.NewSyscallError("fchownat", err)
		}
	}
	if e.Kind == Symlink {
		if len(e.Target) >= 60 { // shorter ones live in the inode
			d.usage.Size += block
		}
	} else if e.Mode&(0o7000|d.umask) != 0 {
		// Just made by us, and not a link: there is nothing to follow.
		if err := unix.Fchmodat(parent, base, e.Mode, 0); err != nil {
			return os.NewSyscallError("fchmodat", err)
		}
	}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(parent, base, times(e.ModTime), unix.AT_SYMLINK_NOFOLLOW))
}

func (d *DirSink) setXattrs(fd int, xattrs map[string]string) error {
	for name, value := range xattrs {
		err := unix.Fsetxattr(fd, name, []byte(value), 0)
		switch {
		case err == nil:
		case err == unix.ENOTSUP && name != "security.capability":
			// A file system without user attributes or ACLs: the file is whole without.
		case err == unix.EPERM && !d.root0():
		case err == unix.ENOSPC && len(value) > block/2:
			// ext4 says so of a value that no block holds.
			return fmt.Errorf("%w: attribute %.40q of %d bytes is too large for the file system", fault.ErrCorrupt, name, len(value))
		default:
			return fmt.Errorf("set attribute %.40q: %w", name, err)
		}
	}
	return nil
}

// Finish implements [Sink]: children before parents, because a directory's
// mode may take away the right to enter it.
func (d *DirSink) Finish() (Result, error) {
	names := slices.Sorted(maps.Keys(d.dirs))
	for _, name := range slices.Backward(names) {
		if err := d.finishDir(name, d.dirs[name]); err != nil {
			if fault.IsFull(err) {
				err = fmt.Errorf("%w: %w", fault.ErrNoSpace, err)
			}
			return Result{}, fmt.Errorf("finish directory %.200q: %w", name, err)
		}
	}
	for _, name := range names {
		if d.dirs[name].implicit {
			d.usage.Implicit = append(d.usage.Implicit, name)
		}
	}
	d.usage.Opaque = d.dirs["."].opaque
	return d.usage, nil
}

func (d *DirSink) finishDir(name string, dir *directory) error {
	parent, base := d.root, "."
	if name != "." {
		var err error
		if parent, err = d.openParent(name); err != nil {
			return err
		}
		base = path.Base(name)
	}
	if d.root0() && (int(dir.uid) != d.euid || int(dir.gid) != d.egid) {
		if err := unix.Fchownat(parent, base, int(dir.uid), int(dir.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return os.NewSyscallError("fchownat", err)
		}
	}
	if dir.mode != dir.made || len(dir.xattrs) > 0 || dir.opaque {
		if err := d.dressDir(parent, base, dir); err != nil {
			return err
		}
	}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(parent, base, times(dir.modTime), unix.AT_SYMLINK_NOFOLLOW))
}

func (d *DirSink) dressDir(parent int, base string, dir *directory) error {
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	defer unix.Close(fd)
	if err := d.setXattrs(fd, dir.xattrs); err != nil {
		return err
	}
	if dir.opaque {
		name := "trusted.overlay.opaque"
		if !d.root0() {
			name = "user.overlay.opaque"
		}
		if err := unix.Fsetxattr(fd, name, []byte("y"), 0); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return os.NewSyscallError("fchmod", unix.Fchmod(fd, dir.mode))
}

func blocks(size int64) int64 { return (size + block - 1) / block * block }

func times(modTime time.Time) []unix.Timespec {
	t := unix.Timespec{Sec: modTime.Unix(), Nsec: int64(modTime.Nanosecond())}
	return []unix.Timespec{t, t}
}

// processUmask reads the umask, which umask(2) tells only by changing it.
func processUmask() (uint32, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "Umask:"); ok {
			var umask uint32
			if _, err := fmt.Sscanf(value, "%o", &umask); err != nil {
				return 0, fmt.Errorf("read umask %q: %w", value, err)
			}
			return umask, nil
		}
	}
	return 0, errors.New("/proc/self/status has no umask")
}
