package launch

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Bounds of tmpcopyup: the image chooses what is copied, and it lands in memory.
const (
	maxCopyFiles = 1 << 16
	maxCopyDepth = 256
)

// copyUp fills the new tmpfs at mount with what the image has at its target.
func (a *assembly) copyUp(target, mount int) error {
	from, err := unix.Openat(target, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	to, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(from)
		return err
	}
	c := copier{left: maxCopyFiles}
	return c.dir(from, to, 0)
}

type copier struct{ left int }

// dir copies one directory, and closes both descriptors. Names come from the
// kernel, and no link is followed.
func (c *copier) dir(from, to, depth int) error {
	source, dest := os.NewFile(uintptr(from), "image"), os.NewFile(uintptr(to), "tmpfs")
	defer source.Close()
	defer dest.Close()
	if depth > maxCopyDepth {
		return unix.ELOOP
	}
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if err := errors.Join(unix.Fchown(to, int(st.Uid), int(st.Gid)), unix.Fchmod(to, st.Mode&0o7777)); err != nil {
		return err
	}
	names, err := source.Readdirnames(c.left + 1)
	if err != nil && err != io.EOF {
		return err
	}
	for _, name := range names {
		if c.left--; c.left < 0 {
			return fmt.Errorf("more than %d files: %w", maxCopyFiles, unix.E2BIG)
		}
		if err := c.entry(from, to, name, depth); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (c *copier) entry(from, to int, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	const open = unix.O_NOFOLLOW | unix.O_CLOEXEC
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(to, name, 0o700); err != nil {
			return err
		}
		source, err := unix.Openat(from, name, open|unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		dest, err := unix.Openat(to, name, open|unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			unix.Close(source)
			return err
		}
		return c.dir(source, dest, depth+1)
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(from, name, buf)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(buf[:n]), to, name); err != nil {
			return err
		}
		return unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	case unix.S_IFREG:
		return copyFile(from, to, name, &st)
	case unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		if err := unix.Mknodat(to, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
		return unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}

func copyFile(from, to int, name string, st *unix.Stat_t) error {
	in, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	source := os.NewFile(uintptr(in), name)
	defer source.Close()
	out, err := unix.Openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dest := os.NewFile(uintptr(out), name)
	defer dest.Close()
	if _, err := io.Copy(dest, source); err != nil {
		return err
	}
	return errors.Join(unix.Fchown(out, int(st.Uid), int(st.Gid)), unix.Fchmod(out, st.Mode&0o7777))
}
