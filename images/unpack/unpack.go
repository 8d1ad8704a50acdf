// Package unpack turns the tar stream of one image layer into a file tree.
//
// A stream flows through in one pass: [Layer] decompresses and hashes it, [Tar]
// parses and judges each entry, and a [Sink] stores it. The stream is hostile:
// Tar hands a sink only clean relative paths and bounded amounts, and the sink
// resolves them below its own directory without following a link. One call
// belongs to one goroutine and holds no state between calls but pooled buffers.
package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
	"time"

	"github.com/longshore/longshore/images/fault"
)

// Kind tells what an [Entry] makes.
type Kind uint8

// The kinds of entries. A Whiteout hides its path in the layers below, an
// Opaque directory hides what the layers below have in it (OCI image
// specification, layer.md, "Whiteouts").
const (
	Dir Kind = iota + 1
	File
	Symlink
	Link
	Char
	Block
	Fifo
	Whiteout
	Opaque
)

// Entry is one member of a layer, judged and cleaned.
type Entry struct {
	Kind         Kind
	Path         string // relative, clean, without ".."; "." is the layer's root
	Target       string // of a Symlink: any text; of a Link: a path like Path
	Mode         uint32 // permissions, set-id and sticky bits: 07777 at most
	UID, GID     uint32
	ModTime      time.Time
	Size         int64 // of a File, in bytes
	Major, Minor uint32
	Xattrs       map[string]string
}

// Sink stores the entries of one layer.
type Sink interface {
	// Add stores one entry; body holds e.Size bytes if it is a File. e is
	// only valid during the call.
	Add(e *Entry, body io.Reader) error
	// Finish completes the layer after its last entry.
	Finish() (Result, error)
	// Close frees what the sink holds open. It does not remove what was stored.
	Close() error
}

// Result says what a layer came to.
type Result struct {
	Size   int64 // bytes on disk, in whole blocks
	Inodes int64
	// Implicit are the directories the layer did not name but needed, parents
	// first. What they look like is for the layers below to say.
	Implicit []string
	// Opaque is set if the layer hides every layer below it.
	Opaque bool
}

// Limits bound what one layer may cost. A zero field takes its default.
type Limits struct {
	Bytes   int64 // of tar stream and of files; default 256 GiB
	Entries int   // default 4 million
	Names   int   // bytes of directory names that are kept in memory; default 64 MiB
}

func (l Limits) withDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = 256 << 30
	}
	if l.Entries == 0 {
		l.Entries = 4 << 20
	}
	if l.Names == 0 {
		l.Names = 64 << 20
	}
	return l
}

const (
	maxPath      = 4095 // PATH_MAX without its end
	maxComponent = 255  // NAME_MAX
	maxXattr     = 64 << 10
)

// Tar hands the members of the tar stream r to sink and reads r to its end.
// Whatever is wrong with the stream or an entry is [fault.ErrCorrupt].
func Tar(ctx context.Context, r io.Reader, sink Sink, limits Limits) error {
	limits = limits.withDefaults()
	stream := &bounded{src: r, left: limits.Bytes}
	members := tar.NewReader(stream)
	content := int64(0)
	for n := 0; ; n++ {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		hdr, err := members.Next()
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // paths are judged below
			return corrupt("tar stream", err)
		}
		if n >= limits.Entries {
			return fmt.Errorf("%w: layer has more than %d entries", fault.ErrCorrupt, limits.Entries)
		}
		e, err := judge(hdr)
		if err != nil {
			return fmt.Errorf("%w: entry %.200q: %w", fault.ErrCorrupt, hdr.Name, err)
		}
		if e == nil {
			continue
		}
		// A sparse file is larger than its part of the stream.
		if content += e.Size; content > limits.Bytes {
			return fmt.Errorf("%w: layer's files have more than %d bytes", fault.ErrCorrupt, limits.Bytes)
		}
		if err := sink.Add(e, members); err != nil {
			return fmt.Errorf("unpack %.200q: %w", e.Path, err)
		}
	}
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return corrupt("end of tar stream", err)
	}
	return nil
}

func corrupt(what string, err error) error {
	if fault.Known(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %s: %w", fault.ErrCorrupt, what, err)
}

// bounded ends a stream that expands beyond all reason.
type bounded struct {
	src  io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.src.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("%w: layer expands beyond its limit", fault.ErrCorrupt)
	}
	return n, err
}

// judge makes an entry of a header: nil for one that means nothing here, an
// error for one that no honest tool writes.
func judge(hdr *tar.Header) (*Entry, error) {
	e := &Entry{Mode: uint32(hdr.Mode) & 0o7777, ModTime: hdr.ModTime}
	switch hdr.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil, nil
	case tar.TypeDir:
		e.Kind = Dir
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse: //nolint:staticcheck // old archives carry the old flag
		e.Kind, e.Size = File, hdr.Size
	case tar.TypeSymlink:
		e.Kind, e.Target = Symlink, hdr.Linkname
	case tar.TypeLink:
		e.Kind, e.Target = Link, hdr.Linkname
	case tar.TypeChar:
		e.Kind = Char
	case tar.TypeBlock:
		e.Kind = Block
	case tar.TypeFifo:
		e.Kind = Fifo
	default:
		return nil, fmt.Errorf("unknown type %q", hdr.Typeflag)
	}
	var err error
	if e.Path, err = cleanPath(hdr.Name); err != nil {
		return nil, err
	}
	if err := e.takeNumbers(hdr); err != nil {
		return nil, err
	}
	if err := e.takeTarget(); err != nil {
		return nil, err
	}
	if e.Path == "." && e.Kind != Dir {
		return nil, errors.New("the layer's root is not a directory")
	}
	if strings.Contains(e.Path, whiteoutPrefix) {
		return e.whiteout()
	}
	e.Xattrs, err = xattrs(hdr.PAXRecords)
	return e, err
}

// takeNumbers refuses ids and device numbers that the kernel has no room for;
// the highest id means "leave as it is" to chown(2).
func (e *Entry) takeNumbers(hdr *tar.Header) error {
	if hdr.Uid < 0 || hdr.Uid >= math.MaxUint32 || hdr.Gid < 0 || hdr.Gid >= math.MaxUint32 {
		return fmt.Errorf("owner %d:%d does not exist", hdr.Uid, hdr.Gid)
	}
	e.UID, e.GID = uint32(hdr.Uid), uint32(hdr.Gid)
	if e.Kind != Char && e.Kind != Block {
		return nil
	}
	if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
		return fmt.Errorf("device %d:%d does not exist", hdr.Devmajor, hdr.Devminor)
	}
	e.Major, e.Minor = uint32(hdr.Devmajor), uint32(hdr.Devminor)
	return nil
}

func (e *Entry) takeTarget() (err error) {
	switch e.Kind {
	case Symlink:
		if e.Target == "" || len(e.Target) > maxPath || strings.IndexByte(e.Target, 0) >= 0 {
			return errors.New("symbolic link to nothing, or to too long a name")
		}
	case Link:
		if e.Target, err = cleanPath(e.Target); err != nil {
			return fmt.Errorf("hard link: %w", err)
		}
	}
	return nil
}

// cleanPath makes name relative to the layer's root. ".." is refused rather
// than resolved: no honest tool writes it.
func cleanPath(name string) (string, error) {
	if name == "" || len(name) > maxPath || strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("name is empty, too long or has a zero byte")
	}
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if strings.Contains(name, "..") {
		for part := range strings.SplitSeq(name, "/") {
			if part == ".." {
				return "", errors.New("name leads upwards")
			}
		}
	}
	if len(clean) > maxComponent {
		for part := range strings.SplitSeq(clean, "/") {
			if len(part) > maxComponent {
				return "", fmt.Errorf("name has a part of %d bytes", len(part))
			}
		}
	}
	return clean, nil
}

const whiteoutPrefix = ".wh."

// whiteout makes of an entry whose path contains ".wh." what it stands for.
func (e *Entry) whiteout() (*Entry, error) {
	dir, base := path.Split(e.Path)
	if strings.HasPrefix(dir, whiteoutPrefix) || strings.Contains(dir, "/"+whiteoutPrefix) {
		if strings.Contains("/"+dir, "/"+whiteoutPrefix+whiteoutPrefix) {
			return nil, nil // AUFS kept its own books under such names
		}
		return nil, errors.New("something below a whiteout")
	}
	hidden, ok := strings.CutPrefix(base, whiteoutPrefix)
	switch {
	case !ok:
		return e, nil
	case base == whiteoutPrefix+whiteoutPrefix+".opq":
		return &Entry{Kind: Opaque, Path: path.Clean(dir)}, nil
	case strings.HasPrefix(hidden, whiteoutPrefix):
		return nil, nil
	case hidden == "" || hidden == "." || hidden == "..":
		return nil, errors.New("whiteout of nothing")
	}
	return &Entry{Kind: Whiteout, Path: dir + hidden}, nil
}

const paxXattr = "SCHILY.xattr."

// xattrs takes the attributes an image may set. What speaks to overlayfs
// (trusted.overlay.*, user.overlay.*) or to the host's security modules is the
// host's alone; such attributes are left out, as other tools do.
func xattrs(records map[string]string) (map[string]string, error) {
	var taken map[string]string
	for key, value := range records {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !imageMaySet(name) {
			continue
		}
		if len(name) > maxComponent || strings.IndexByte(name, 0) >= 0 || len(value) > maxXattr {
			return nil, fmt.Errorf("attribute %.40q is too large", name)
		}
		if taken == nil {
			taken = map[string]string{}
		}
		taken[name] = value
	}
	return taken, nil
}

func imageMaySet(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.") && len(name) > len("user.")
}
