package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/longshore/longshore/images/blob"
	"github.com/longshore/longshore/images/unpack"
)

// bundle is an archive of images whose members can be read in any order.
type bundle struct {
	root  *os.Root
	files map[string]string // member -> file in root; nil: members are files in root
	links map[string]string // member -> member
}

const (
	maxMembers = 100_000
	maxArchive = 1 << 40 // bytes of all members
	maxLinks   = 8       // followed for one member
)

// openBundle reads a tar archive, which it spools to tmp because its index may
// come last, or takes a directory as it is.
func (s *Store) openBundle(ctx context.Context, r io.Reader) (b *bundle, done func(), err error) {
	if f, ok := r.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.IsDir() {
			root, err := os.OpenRoot(f.Name())
			if err != nil {
				return nil, nil, err
			}
			return &bundle{root: root}, func() { root.Close() }, nil
		}
	}
	dir := filepath.Join(s.root, tempDir, s.newName("import"))
	done = func() { os.RemoveAll(dir) }
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		done()
		return nil, nil, err
	}
	b = &bundle{root: root, files: map[string]string{}, links: map[string]string{}}
	done = func() { root.Close(); os.RemoveAll(dir) }
	if err := b.spool(ctx, r); err != nil {
		done()
		return nil, nil, err
	}
	return b, done, nil
}

func (b *bundle) spool(ctx context.Context, r io.Reader) error {
	plain, err := unpack.Decompress(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	members := tar.NewReader(io.LimitReader(plain, maxArchive))
	total := int64(0)
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		hdr, err := members.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // names are never used as paths
			return corruptArchive(err)
		}
		// A sparse member is larger than its part of the stream.
		if total += hdr.Size; n == maxMembers || total > maxArchive {
			return fmt.Errorf("%w: archive has more than %d members or %d bytes", ErrCorrupt, maxMembers, int64(maxArchive))
		}
		name := memberName(hdr.Name)
		switch hdr.Typeflag {
		case tar.TypeReg:
			file := strconv.Itoa(n)
			if err := b.store(file, members); err != nil {
				return err
			}
			b.files[name] = file
			delete(b.links, name)
		case tar.TypeSymlink: // older archives share equal layers in this way
			b.links[name] = memberName(path.Join(path.Dir(name), hdr.Linkname))
		case tar.TypeLink:
			b.links[name] = memberName(hdr.Linkname)
		}
	}
}

func (b *bundle) store(file string, src io.Reader) error {
	f, err := b.root.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, &sourceErrors{src})
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// sourceErrors marks what is the archive's fault, not the disk's.
type sourceErrors struct{ src io.Reader }

func (s *sourceErrors) Read(p []byte) (int, error) {
	n, err := s.src.Read(p)
	if err != nil && err != io.EOF {
		err = corruptArchive(err)
	}
	return n, err
}

func corruptArchive(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%w: archive: %w", ErrCorrupt, err)
}

func memberName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// open opens a member. In a directory, os.Root keeps links inside it.
func (b *bundle) open(name string) (*os.File, int64, error) {
	name = memberName(name)
	file := name
	if b.files != nil {
		for range maxLinks {
			target, ok := b.links[name]
			if !ok {
				break
			}
			name = target
		}
		var ok bool
		if file, ok = b.files[name]; !ok {
			return nil, 0, fmt.Errorf("%w: archive has no %.200q", ErrCorrupt, name)
		}
	}
	// Not every name in a directory is a file, and opening a fifo would wait.
	info, err := b.root.Stat(file)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a file")
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%w: archive member %.200q: %w", ErrCorrupt, name, err)
	}
	f, err := b.root.Open(file)
	if err != nil {
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func (b *bundle) has(name string) bool {
	f, _, err := b.open(name)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// document reads a small member that must be want; a want without a digest
// takes any.
func (b *bundle) document(name string, want v1.Descriptor, limit int64) ([]byte, error) {
	f, _, err := b.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := blob.ReadAll(f, want, limit)
	if err != nil {
		return nil, fmt.Errorf("archive member %.200q: %w", name, err)
	}
	return data, nil
}

// blobName gives the name of a blob in an OCI layout.
func blobName(d digest.Digest) string {
	return v1.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// source gives a member as a layer's source.
func (b *bundle) source(name string, desc v1.Descriptor) layerSource {
	return layerSource{desc: desc, read: func(_ context.Context, use func(io.Reader) error) error {
		f, _, err := b.open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		body := blob.NewReader(f, desc)
		if err := use(body); err != nil {
			return err
		}
		return body.Verify()
	}}
}
