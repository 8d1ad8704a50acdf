package unpack

import (
	"maps"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// FindDir gives the directory name as it appears through a stack of layers
// made by [DirSink], top-most first, or nil if the stack shows no directory
// there. name is clean and relative.
func FindDir(layers []string, name string) (*Entry, error) {
	for _, layer := range layers {
		e, covered, err := findIn(layer, name)
		if err != nil {
			return nil, &os.PathError{Op: "find " + name + " in", Path: layer, Err: err}
		}
		if e != nil || covered {
			return e, nil
		}
	}
	return nil, nil
}

// findIn looks in one layer. covered says that the layer hides what the ones
// below have at name.
func findIn(layer, name string) (e *Entry, covered bool, err error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Open(layer, flags, 0)
	if err != nil {
		return nil, false, err
	}
	defer func() { unix.Close(fd) }()
	if name == "." {
		e, err := readDir(fd, name)
		return e, true, err
	}
	for part := range strings.SplitSeq(path.Clean(name), "/") {
		covered = covered || isOpaque(fd)
		next, err := unix.Openat(fd, part, flags, 0)
		switch err {
		case nil:
			unix.Close(fd)
			fd = next
		case unix.ENOENT:
			return nil, covered, nil
		case unix.ENOTDIR, unix.ELOOP: // a file, a whiteout or a link hides whatever is below it
			return nil, true, nil
		default:
			return nil, false, err
		}
	}
	e, err = readDir(fd, name)
	return e, true, err
}

func isOpaque(fd int) bool {
	var value [1]byte
	for _, name := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		if n, err := unix.Fgetxattr(fd, name, value[:]); err == nil && n == 1 && value[0] == 'y' {
			return true
		}
	}
	return false
}

func readDir(fd int, name string) (*Entry, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	e := &Entry{Kind: Dir, Path: name, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, ModTime: time.Unix(st.Mtim.Unix())}
	names := make([]byte, maxXattr)
	n, err := unix.Flistxattr(fd, names)
	if err != nil {
		return e, nil //nolint:nilerr // a file system without attributes
	}
	for attr := range strings.SplitSeq(string(names[:n]), "\x00") {
		if !imageMaySet(attr) {
			continue
		}
		value := make([]byte, maxXattr)
		n, err := unix.Fgetxattr(fd, attr, value)
		if err != nil {
			return nil, err
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[attr] = string(value[:n])
	}
	return e, nil
}

// SameLook reports whether two directories have owner, mode and attributes in
// common. Times are left out.
func (e *Entry) SameLook(other *Entry) bool {
	return e.Mode == other.Mode && e.UID == other.UID && e.GID == other.GID && maps.Equal(e.Xattrs, other.Xattrs)
}
