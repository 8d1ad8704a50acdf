package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/longshore/longshore/images/fault"
	"github.com/longshore/longshore/images/unpack"
	"github.com/longshore/longshore/internal/atomicfile"
)

// layer is what is known of a complete layer.
type layer struct {
	size, inodes int64
	opaque       bool // hides what is below
}

// layerRecord is layer.json.
type layerRecord struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	Inodes int64  `json:"inodes"`
	Opaque bool   `json:"opaque,omitempty"`
	// Implicit are the directories the layer needs but does not name.
	Implicit []string `json:"implicit,omitempty"`
}

const (
	layerFS     = "fs"
	layerFile   = "layer.json"
	framePrefix = "frame-"
)

// layerName gives the name of the directory of a layer.
func layerName(diffID digest.Digest) string { return diffID.Encoded() }

func isLayerName(name string) bool {
	hex := strings.TrimPrefix(name, framePrefix)
	return len(hex) == idLength && isHex(hex)
}

func (s *Store) layerDir(name string) string { return filepath.Join(s.root, layersDir, name) }

// Rootfs gives the directories to mount as the image's root file system,
// top-most first, as overlayfs takes them. Hold img.Layers before. The root
// directory's own owner and mode are those of the first one's.
func (s *Store) Rootfs(img Image) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dirs := make([]string, 0, len(img.Layers))
	for _, name := range slices.Backward(img.Layers) {
		if _, ok := s.layers[name]; !ok {
			return nil, fmt.Errorf("%w: layer %s of image %s", ErrNotFound, name, img.ID)
		}
		dirs = append(dirs, filepath.Join(s.layerDir(name), layerFS))
	}
	return dirs, nil
}

// Hold keeps layers, as [Image].Layers names them, from being removed until
// owner releases them. Holds add up, are kept in memory and do not need the
// image: a daemon declares again, after its start, what its containers use. If
// a layer is not there nothing is held and the error is [ErrNotFound].
func (s *Store) Hold(owner string, layers ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range layers {
		if _, ok := s.layers[name]; ok {
			continue
		}
		// No record names it: its image was removed while the owner used it.
		if err := s.adopt(name); err != nil {
			return fmt.Errorf("hold layer %s for %s: %w", name, owner, err)
		}
	}
	s.hold(owner, layers)
	return nil
}

// hold is Hold for those who hold mu; the layers need not be there yet.
func (s *Store) hold(owner string, layers []string) {
	if s.holds[owner] == nil {
		s.holds[owner] = map[string]struct{}{}
	}
	for _, name := range layers {
		s.holds[owner][name] = struct{}{}
	}
}

// adopt takes up a layer that lies on the disk.
func (s *Store) adopt(name string) error {
	if !isLayerName(name) {
		return fmt.Errorf("%w: not a layer's name", ErrInvalidReference)
	}
	l, err := s.readLayer(name)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	s.layers[name] = l
	return nil
}

// Release ends every hold of owner. Layers that nothing else uses are removed
// in the background.
func (s *Store) Release(owner string) {
	s.discardLater(s.release(owner))
}

func (s *Store) release(owner string) (unused []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.holds[owner]
	delete(s.holds, owner)
	names := make([]string, 0, len(held))
	for name := range held {
		names = append(names, name)
	}
	return s.sweep(names)
}

// sweep moves away those of the named layers that nothing uses and returns
// where they are now. The caller holds mu.
func (s *Store) sweep(names []string) (unused []string) {
	for _, name := range names {
		if _, ok := s.layers[name]; !ok || s.inUse(name) {
			continue
		}
		delete(s.layers, name)
		unused = append(unused, s.moveAway(name))
	}
	return unused
}

// moveAway frees a layer's place for a new one. The caller holds mu.
func (s *Store) moveAway(name string) string {
	s.serial++
	trash := filepath.Join(s.root, tempDir, fmt.Sprintf("trash-%d", s.serial))
	if err := os.Rename(s.layerDir(name), trash); err != nil {
		return s.layerDir(name) // removed where it is: no room for a name
	}
	return trash
}

func (s *Store) inUse(name string) bool {
	for _, held := range s.holds {
		if _, ok := held[name]; ok {
			return true
		}
	}
	for _, img := range s.images {
		if slices.Contains(img.Layers, name) {
			return true
		}
	}
	return false
}

func (s *Store) hasLayer(name string) (layer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.layers[name]
	return l, ok
}

// GC removes layers that no image names and nobody holds. They are there only
// if a daemon died while pulling, or while a container used a removed image:
// call it once after a start, when every hold is declared again.
func (s *Store) GC() error {
	entries, err := os.ReadDir(filepath.Join(s.root, layersDir))
	if err != nil {
		return fmt.Errorf("collect layers: %w", err)
	}
	var unused []string
	for _, e := range entries {
		if !isLayerName(e.Name()) {
			s.quarantine(filepath.Join(s.root, layersDir, e.Name()), errors.New("not a layer's name"))
			continue
		}
		s.mu.Lock()
		if _, ok := s.layers[e.Name()]; !ok {
			unused = append(unused, s.moveAway(e.Name()))
		} else {
			unused = append(unused, s.sweep([]string{e.Name()})...)
		}
		s.mu.Unlock()
	}
	if len(unused) > 0 {
		s.log.InfoContext(context.Background(), "unused layers removed", "layers", len(unused))
	}
	s.discardLater(unused)
	return nil
}

// layerSource is where a layer's bytes can be had.
type layerSource struct {
	diffID digest.Digest
	desc   v1.Descriptor // of the compressed form; for progress and order
	// read hands the bytes, verified by the time it returns, to use; it may
	// call use again from the beginning.
	read func(ctx context.Context, use func(io.Reader) error) error
}

// ensureLayer makes the layer if it is not there. Whoever calls it holds the
// layer already.
func (s *Store) ensureLayer(ctx context.Context, src layerSource, report func(int64)) error {
	name := layerName(src.diffID)
	for {
		if _, ok := s.hasLayer(name); ok {
			return nil
		}
		_, joined, err := s.unpacks.do(ctx, name, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, s.makeLayer(ctx, src, report)
		})
		// Another pull's source may have failed where this one's does not.
		if err != nil && (!joined || ctx.Err() != nil) {
			return err
		}
	}
}

// makeLayer reads, verifies and unpacks a layer in tmp and moves it into place.
func (s *Store) makeLayer(ctx context.Context, src layerSource, report func(int64)) error {
	name := layerName(src.diffID)
	staging := filepath.Join(s.root, tempDir, s.newName("layer"))
	defer os.RemoveAll(staging)
	var made unpack.Result
	err := src.read(ctx, func(body io.Reader) (err error) {
		made, err = s.unpackInto(ctx, staging, &reporter{src: body, report: report}, src.diffID)
		return err
	})
	if err != nil {
		return fmt.Errorf("layer %s: %w", src.diffID, err)
	}
	return s.commitLayer(staging, name, made)
}

func (s *Store) unpackInto(ctx context.Context, staging string, body io.Reader, diffID digest.Digest) (unpack.Result, error) {
	if err := os.RemoveAll(staging); err != nil { // what an earlier attempt left
		return unpack.Result{}, err
	}
	sink, err := newSink(staging, s.config.Limits)
	if err != nil {
		return unpack.Result{}, err
	}
	defer sink.Close()
	got, err := unpack.Layer(ctx, body, sink, s.config.Limits)
	if err != nil {
		return unpack.Result{}, err
	}
	if got != diffID {
		return unpack.Result{}, fmt.Errorf("%w: unpacked layer is %s, the image's configuration says %s", ErrCorrupt, got, diffID)
	}
	return sink.Finish()
}

// newSink makes the directory of a new layer.
func newSink(staging string, limits unpack.Limits) (unpack.Sink, error) {
	fs := filepath.Join(staging, layerFS)
	if err := os.Mkdir(staging, 0o700); err != nil {
		return nil, err
	}
	if err := os.Mkdir(fs, 0o755); err != nil {
		return nil, err
	}
	return unpack.NewDirSink(fs, limits)
}

// commitLayer moves a layer from staging into place, unless nobody wants it
// any more. It is synced with the image, not alone: see the package's
// invariants.
func (s *Store) commitLayer(staging, name string, made unpack.Result) error {
	rec := layerRecord{Name: name, Size: made.Size, Inodes: made.Inodes, Opaque: made.Opaque, Implicit: made.Implicit}
	if err := atomicfile.WriteJSON(filepath.Join(staging, layerFile), rec, atomicfile.Volatile); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.layers[name]; ok || !s.inUse(name) {
		return nil
	}
	if _, err := os.Lstat(s.layerDir(name)); err == nil {
		// Left by a daemon that died before it was synced: not to be trusted.
		defer s.log.WarnContext(context.Background(), "untrusted layer replaced", "layer", name)
		stale := s.moveAway(name)
		s.work.Go(func() { s.discard([]string{stale}) })
	}
	if err := os.Rename(staging, s.layerDir(name)); err != nil {
		return err
	}
	s.layers[name] = layer{size: rec.Size, inodes: rec.Inodes, opaque: rec.Opaque}
	return nil
}

// readLayer reads what is on the disk of a layer.
func (s *Store) readLayer(name string) (layer, error) {
	rec, err := s.readLayerRecord(name)
	if err != nil {
		return layer{}, err
	}
	info, err := os.Lstat(filepath.Join(s.layerDir(name), layerFS))
	if err != nil {
		return layer{}, err
	}
	if !info.IsDir() || rec.Name != name || rec.Size <= 0 || rec.Inodes <= 0 {
		return layer{}, fmt.Errorf("layer %s: record does not fit", name)
	}
	return layer{size: rec.Size, inodes: rec.Inodes, opaque: rec.Opaque}, nil
}

func (s *Store) readLayerRecord(name string) (rec layerRecord, err error) {
	err = atomicfile.ReadJSON(filepath.Join(s.layerDir(name), layerFile), &rec)
	return rec, err
}

// syncAll makes everything written to the store's file system durable. One
// call for an image: a sync per file would cost more than the unpacking.
func (s *Store) syncAll() error {
	dir, err := os.Open(s.root)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return &os.PathError{Op: "sync", Path: s.root, Err: err}
	}
	return nil
}

// classify gives a full disk its own error, wherever it was met.
func classify(err error) error {
	if err != nil && !fault.Known(err) && fault.IsFull(err) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
