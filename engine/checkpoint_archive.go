package engine

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/longshore/longshore/internal/atomicfile"
	"golang.org/x/sys/unix"
)

// archive packs a checkpoint's directory into a new file at to. Nothing of it
// is shaped by the container but the content of files.
func archive(ctx context.Context, dir, to string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return writeTar(to, func(w *tar.Writer) error {
		t := &tree{ctx: ctx, root: root, w: w, linked: map[[2]uint64]string{}}
		return fs.WalkDir(root.FS(), ".", t.visit)
	})
}

// writeTar makes a file that root alone may read, since it holds the memory of
// processes, and syncs it.
func writeTar(to string, fill func(*tar.Writer) error) error {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	buf := bufio.NewWriterSize(f, 1<<20)
	w := tar.NewWriter(buf)
	err = fill(w)
	for _, step := range []func() error{w.Close, buf.Flush, f.Sync} {
		if err == nil {
			err = step()
		}
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error { return atomicfile.SyncDir(dir) }

// writeDiff packs what a container has changed of its root file system: what it
// made or changed as an archive, what it removed as a list of paths. The
// container stands still.
func writeDiff(ctx context.Context, upper string, lower []string, to, deleted string) error {
	root, err := os.OpenRoot(upper)
	if err != nil {
		return err
	}
	defer root.Close()
	t := &tree{ctx: ctx, root: root, linked: map[[2]uint64]string{}, overlay: true, lower: lower}
	err = writeTar(to, func(w *tar.Writer) error {
		t.w = w
		return fs.WalkDir(root.FS(), ".", t.visit)
	})
	if err != nil {
		return fmt.Errorf("save root file system: %w", err)
	}
	if len(t.removed) == 0 {
		return nil
	}
	slices.Sort(t.removed)
	data, err := json.Marshal(slices.Compact(t.removed))
	if err != nil {
		return err
	}
	return os.WriteFile(deleted, data, 0o600)
}

// tree writes a directory into an archive. Names are taken below root and no
// link is followed.
type tree struct {
	ctx    context.Context
	root   *os.Root
	w      *tar.Writer
	linked map[[2]uint64]string // device and inode of a file with several names -> the first

	overlay bool     // root is the upper layer of an overlay
	lower   []string // with overlay: the layers below, topmost first
	removed []string // with overlay: what is hidden of them
}

func (t *tree) visit(name string, entry fs.DirEntry, err error) error {
	if err == nil {
		err = context.Cause(t.ctx)
	}
	if err != nil || name == "." {
		return err
	}
	info, err := t.root.Lstat(name)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("stat %q: %w", name, unix.EBADMSG)
	}
	if t.overlay && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		t.removed = append(t.removed, name)
		return nil
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil // who listens makes it again; an archive has no word for it
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = t.root.Readlink(name); err != nil {
			return err
		}
	}
	hdr, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	hdr.Name, hdr.Uname, hdr.Gname, hdr.Format = name, "", "", tar.FormatPAX
	if info.IsDir() {
		hdr.Name += "/"
	} else if st.Nlink > 1 {
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := t.linked[id]; ok {
			hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, first, 0
			return t.w.WriteHeader(hdr)
		}
		t.linked[id] = name
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return t.w.WriteHeader(hdr)
	}
	return t.content(name, hdr, info)
}

// content writes a file or directory with its extended attributes.
func (t *tree) content(name string, hdr *tar.Header, info fs.FileInfo) error {
	// Nonblocking, in case the name should be another file's by now.
	f, err := t.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if now, err := f.Stat(); err != nil || !os.SameFile(now, info) {
		return fmt.Errorf("read %q: it was replaced: %w", name, errors.Join(err, unix.ESTALE))
	}
	attrs, err := readXattrs(f)
	if err != nil {
		return err
	}
	if t.overlay {
		if err := t.hides(name, attrs); err != nil {
			return err
		}
	}
	for key, value := range attrs {
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = map[string]string{}
		}
		hdr.PAXRecords["SCHILY.xattr."+key] = value
	}
	if err := t.w.WriteHeader(hdr); err != nil || info.IsDir() {
		return err
	}
	n, err := io.CopyN(t.w, contextReader{t.ctx, f}, hdr.Size)
	if err == nil && n != hdr.Size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// contextReader ends a long copy with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

const overlayAttr = "trusted.overlay."

// hides takes overlayfs' own attributes out of attrs: an opaque directory hides
// all that the layers below have in it.
func (t *tree) hides(name string, attrs map[string]string) error {
	for key, value := range attrs {
		kind, ours := strings.CutPrefix(key, overlayAttr)
		if !ours {
			continue
		}
		delete(attrs, key)
		switch {
		case kind == "opaque" && value == "y":
			if err := t.hidesAll(name); err != nil {
				return err
			}
		case kind == "redirect" || kind == "metacopy":
			return fmt.Errorf("%q is a redirect of overlayfs, which an archive cannot express: %w", name, unix.EOPNOTSUPP)
		}
	}
	return nil
}

// hidesAll notes what the layers below have in a directory and the container
// has not made anew.
func (t *tree) hidesAll(name string) error {
	for _, layer := range t.lower {
		below, err := os.OpenRoot(layer)
		if err != nil {
			return err
		}
		entries, err := fs.ReadDir(below.FS(), name)
		below.Close()
		if err != nil {
			continue // it is not there, or no directory
		}
		for _, entry := range entries {
			child := path.Join(name, entry.Name())
			if _, err := t.root.Lstat(child); errors.Is(err, fs.ErrNotExist) {
				t.removed = append(t.removed, child)
			}
		}
	}
	return nil
}

// maxXattrs bounds the names and each value of a file's attributes; the kernel
// has the same bound (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const maxXattrs = 64 << 10

func readXattrs(f *os.File) (map[string]string, error) {
	list := make([]byte, maxXattrs)
	n, err := unix.Flistxattr(int(f.Fd()), list)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "list attributes", Path: f.Name(), Err: err}
	}
	attrs := map[string]string{}
	value := make([]byte, maxXattrs)
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		n, err := unix.Fgetxattr(int(f.Fd()), key, value)
		if err != nil {
			return nil, &os.PathError{Op: "read attribute " + key, Path: filepath.Base(f.Name()), Err: err}
		}
		attrs[key] = string(value[:n])
	}
	return attrs, nil
}
