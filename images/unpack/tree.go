package unpack

import (
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/images/fault"
)

// resolve keeps look-ups below the layer's root and off its links.
const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

func (d *DirSink) open(name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve}
	for {
		fd, err := unix.Openat2(d.root, name, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// openParent gives the directory that holds name and makes it where the layer
// has not named it. The descriptor is the sink's: it lives until the next call.
func (d *DirSink) openParent(name string) (int, error) {
	dir := path.Dir(name)
	if dir == "." {
		return d.root, nil
	}
	if d.parent >= 0 && d.parentPath == dir {
		return d.parent, nil
	}
	fd, err := d.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		if err = d.makeImplicit(dir); err == nil {
			fd, err = d.open(dir, unix.O_PATH|unix.O_DIRECTORY)
		}
	}
	if err == unix.ELOOP {
		return -1, fmt.Errorf("%w: path leads through a symbolic link", fault.ErrCorrupt)
	}
	if err != nil {
		return -1, fmt.Errorf("open parent %.200q: %w", dir, err)
	}
	d.forgetParent()
	d.parent, d.parentPath = fd, dir
	return fd, nil
}

func (d *DirSink) forgetParent() {
	if d.parent >= 0 {
		unix.Close(d.parent)
	}
	d.parent, d.parentPath = -1, ""
}

// makeImplicit makes dir and its parents where they are missing.
func (d *DirSink) makeImplicit(dir string) error {
	for at := 0; at < len(dir); at++ {
		end := strings.IndexByte(dir[at:], '/')
		if end < 0 {
			end = len(dir) - at
		}
		at += end
		name := dir[:at]
		if _, ok := d.dirs[name]; ok {
			continue
		}
		if err := d.makeDir(name, &directory{mode: implicitMode, modTime: epoch, implicit: true}); err != nil {
			return err
		}
	}
	return nil
}

// makeDir makes the directory name in its parent, which exists.
func (d *DirSink) makeDir(name string, dir *directory) error {
	if err := d.remember(name); err != nil {
		return err
	}
	at, err := d.open(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return d.makeDirAt(name, at, dir)
}

func (d *DirSink) makeDirAt(name string, parent int, dir *directory) error {
	mode := dir.mode & 0o777
	if !d.root0() {
		mode |= 0o700 // or nothing could be put into it
	}
	dir.made = mode &^ d.umask
	base := path.Base(name)
	err := unix.Mkdirat(parent, base, mode)
	if err == unix.EEXIST {
		_, hidden := d.whiteouts[name]
		if !hidden && dir.implicit {
			// A file or a link: writing below it would be writing through it.
			return fmt.Errorf("%w: %.200q is no directory", fault.ErrCorrupt, name)
		}
		if err := d.remove(name, parent); err != nil {
			return err
		}
		// What a whiteout hid stays hidden: it is about the layers below.
		dir.opaque = hidden
		err = unix.Mkdirat(parent, base, mode)
	}
	if err != nil {
		return os.NewSyscallError("mkdirat", err)
	}
	d.dirs[name] = dir
	d.usage.Inodes++
	d.usage.Size += block
	return nil
}

func (d *DirSink) addDir(e *Entry) error {
	dir := d.dirs[e.Path]
	if dir == nil {
		if err := d.remember(e.Path); err != nil {
			return err
		}
		parent, err := d.openParent(e.Path)
		if err != nil {
			return err
		}
		dir = &directory{mode: e.Mode}
		if err := d.makeDirAt(e.Path, parent, dir); err != nil {
			return err
		}
	}
	dir.mode, dir.uid, dir.gid, dir.modTime, dir.xattrs, dir.implicit = e.Mode, e.UID, e.GID, e.ModTime, e.Xattrs, false
	return nil
}

func (d *DirSink) addOpaque(name string) error {
	if d.dirs[name] == nil {
		if err := d.makeImplicit(name); err != nil {
			return err
		}
	}
	d.dirs[name].opaque = true
	return nil
}

// addWhiteout hides name in the layers below. What this layer holds there
// itself stays, wherever in the stream the whiteout is (layer.md: "Whiteout
// files MUST only apply to resources in lower/parent layers").
func (d *DirSink) addWhiteout(name string) error {
	if dir := d.dirs[name]; dir != nil {
		dir.opaque = true
		return nil
	}
	if err := d.remember(name); err != nil {
		return err
	}
	parent, err := d.openParent(name)
	if err != nil {
		return err
	}
	// A character device 0:0 is overlayfs' whiteout; any user may make it (Linux 5.8).
	err = unix.Mknodat(parent, path.Base(name), unix.S_IFCHR, 0)
	if err == unix.EEXIST {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("mknodat", err)
	}
	d.whiteouts[name] = struct{}{}
	d.usage.Inodes++
	return nil
}

// remember bounds what the names kept in memory come to.
func (d *DirSink) remember(name string) error {
	if d.names += len(name) + 1; d.names > d.limits.Names {
		return fmt.Errorf("%w: layer's directory names have more than %d bytes", fault.ErrCorrupt, d.limits.Names)
	}
	return nil
}

// remove takes away what an earlier entry has put at name in parent. The work
// is bounded by what it was to make it.
func (d *DirSink) remove(name string, parent int) error {
	base := path.Base(name)
	if d.dirs[name] == nil {
		var st unix.Stat_t
		if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return os.NewSyscallError("fstatat", err)
		}
		if err := unix.Unlinkat(parent, base, 0); err != nil {
			return os.NewSyscallError("unlinkat", err)
		}
		delete(d.whiteouts, name)
		d.uncount(&st)
		return nil
	}
	return d.removeTree(name, parent, base)
}

func (d *DirSink) removeTree(name string, parent int, base string) error {
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	dir := os.NewFile(uintptr(fd), name)
	children, err := dir.Readdirnames(-1)
	// A second descriptor per level would make the depth of a tree cost descriptors.
	dir.Close()
	if err != nil {
		return err
	}
	for _, child := range children {
		at, err := d.open(name, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		err = d.remove(name+"/"+child, at)
		unix.Close(at)
		if err != nil {
			return err
		}
	}
	if d.parentPath == name {
		d.forgetParent()
	}
	delete(d.dirs, name)
	if err := unix.Unlinkat(parent, base, unix.AT_REMOVEDIR); err != nil {
		return os.NewSyscallError("unlinkat", err)
	}
	d.usage.Inodes--
	d.usage.Size -= block
	return nil
}

func (d *DirSink) uncount(st *unix.Stat_t) {
	if st.Nlink > 1 {
		return
	}
	d.usage.Inodes--
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFREG:
		d.usage.Size -= blocks(st.Size)
	case st.Mode&unix.S_IFMT == unix.S_IFLNK && st.Size >= 60:
		d.usage.Size -= block
	}
}
