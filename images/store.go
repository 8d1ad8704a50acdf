// Package images turns a reference into a root file system: it resolves the
// name, verifies what a registry or an archive delivers, unpacks each layer
// once and tells which directories to stack.
//
// A [Store] owns its directory; there is one per daemon.
//
//	images/<id>/            record.json, manifest.json, config.json (exact bytes)
//	layers/<diffID>/        fs (what overlayfs takes), layer.json
//	layers/frame-<chainID>/ the same, see below
//	tmp/                    what is being made or removed; emptied by Open
//	quarantine/             what was damaged, for a person to look at
//
// A layer is keyed by its diffID, the digest of its tar stream: its directory
// depends on nothing else, so images share it whatever they stack it on, and
// all layers of an image unpack at once. One thing does depend on what is
// below: a directory that a layer needs but does not name has the owner and
// mode it has there. If they are not the default, a frame, which holds only
// such directories and is keyed by the chainID, is stacked on the layer.
//
// The invariants:
//
//   - A record is renamed into place last, after one syncfs(2) for the whole
//     image. A layer that no record names and nobody holds is not trusted after
//     a start, and [Store.GC] removes it.
//   - What an image names, or an owner holds ([Store.Hold]), is not removed. A
//     pull holds its layers before they exist, so no other pull's failure takes
//     them away.
//   - A failed operation leaves nothing.
//
// Locks: Store.change, then Store.mu, then those of flights and watchers; files
// are written under change, never under mu.
package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/longshore/longshore/images/fault"
	"github.com/longshore/longshore/images/registry"
	"github.com/longshore/longshore/images/unpack"
)

// The ways in which an operation on images can fail; any other error is this
// machine's own.
var (
	// ErrNotFound says that no such image, manifest or blob exists there.
	ErrNotFound = fault.ErrNotFound
	// ErrInvalidReference says that the name can never name an image.
	ErrInvalidReference = fault.ErrInvalidReference
	// ErrUnauthorized says that the registry refused the credentials, or their absence.
	ErrUnauthorized = fault.ErrUnauthorized
	// ErrUnavailable says that the registry was not reached or cannot serve now.
	ErrUnavailable = fault.ErrUnavailable
	// ErrCorrupt says that what arrived is not what was promised.
	ErrCorrupt = fault.ErrCorrupt
	// ErrNoSpace says that the disk, or the quota on it, is full.
	ErrNoSpace = fault.ErrNoSpace
)

// Registry says how to reach one registry host.
type Registry = registry.Host

// Auth is a credential for a registry, as the kubelet hands it over.
type Auth = registry.Auth

// Config is what an operator may set. The zero value is good.
type Config struct {
	// Registries maps the host of a reference ("docker.io") to how it is
	// reached; "*" is for hosts not listed.
	Registries map[string]Registry
	// MaxConcurrentLayers is how many layers one pull reads at once; default 3.
	MaxConcurrentLayers int
	// Pinned are references of images that garbage collection must keep.
	Pinned []string
	// Limits bound what one layer may cost.
	Limits unpack.Limits
}

// Image describes an image of the store. It is a copy, but what its fields
// refer to is shared and must not be changed.
type Image struct {
	ID      string   // sha256:<digest of the configuration>
	Tags    []string // normalised "host/path:tag", sorted
	Digests []string // normalised "host/path@sha256:...", sorted
	Size    int64    // bytes on disk of its layers, unpacked; more than 0
	// Layers name the directories of the image, bottom first, for
	// [Store.Hold] and [Store.Rootfs].
	Layers []string
	// ChainIDs identify the layers up to each one (image specification,
	// config.md), bottom first.
	ChainIDs          []string
	ManifestDigest    string
	ManifestMediaType string
	Config            v1.Image // without its history
	Checkpoint        string   // name of the container whose checkpoint the image is; "" for none
	Created           time.Time
	Pulled            time.Time
	Pinned            bool

	content int64 // bytes of its record, manifest and configuration
}

// Store holds the images of a node. Its methods may be called from any
// goroutine.
type Store struct {
	root   string
	config Config
	pinned map[string]bool
	log    *slog.Logger
	client *registry.Client

	pulls    flights[*Image]
	unpacks  flights[struct{}]
	watchers watchers

	change sync.Mutex // taken by whoever changes records

	mu      sync.Mutex
	images  map[string]*Image // by ID; an *Image never changes once it is here
	layers  map[string]layer  // complete ones, by name
	holds   map[string]map[string]struct{}
	serial  int
	closing bool
	work    sync.WaitGroup // flights and removals
}

const (
	imagesDir     = "images"
	layersDir     = "layers"
	tempDir       = "tmp"
	quarantineDir = "quarantine"

	defaultConcurrency = 3
)

// SetRegistries replaces how registries are reached, for pulls to come. Files
// with authorities are read anew.
func (s *Store) SetRegistries(registries map[string]Registry) { s.client.SetConfig(registries) }

// Open reads the store at root, which it makes if it is not there. What is
// damaged is set aside and logged; only a directory that cannot be used at all
// is an error.
//
// A daemon that finds containers then calls [Store.Hold] for each, [Store.GC],
// and only then pulls.
func Open(root string, config Config, log *slog.Logger) (*Store, error) {
	if config.MaxConcurrentLayers <= 0 {
		config.MaxConcurrentLayers = defaultConcurrency
	}
	s := &Store{
		root: root, config: config, pinned: map[string]bool{}, log: log, client: registry.New(config.Registries, log),
		images: map[string]*Image{}, layers: map[string]layer{}, holds: map[string]map[string]struct{}{},
	}
	s.pulls.spawn, s.unpacks.spawn = s.spawn, s.spawn
	for _, ref := range config.Pinned {
		named, err := parseReference(ref)
		if err != nil {
			return nil, fmt.Errorf("pinned image: %w", err)
		}
		s.pinned[named.String()] = true
	}
	if err := s.makeDirs(); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", root, err)
	}
	if err := s.emptyTemp(); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", root, err)
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", root, err)
	}
	return s, nil
}

func (s *Store) makeDirs() error {
	if err := os.MkdirAll(s.root, 0o700); err != nil {
		return err
	}
	// Closed to others, because old set-uid programs lie in layers, and without
	// a set-group-id bit from above, which every directory would inherit.
	if err := os.Chmod(s.root, 0o700); err != nil {
		return err
	}
	for _, dir := range []string{imagesDir, layersDir, tempDir, quarantineDir} {
		if err := os.Mkdir(filepath.Join(s.root, dir), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// emptyTemp removes what a daemon that died was making, in the background: it
// can be gigabytes.
func (s *Store) emptyTemp() error {
	entries, err := os.ReadDir(filepath.Join(s.root, tempDir))
	if err != nil {
		return err
	}
	var left []string
	for _, e := range entries {
		// Renamed, so that no new name can meet an old one.
		s.serial++
		path := filepath.Join(s.root, tempDir, e.Name())
		if old := filepath.Join(s.root, tempDir, fmt.Sprintf("left-%d-%d", time.Now().UnixNano(), s.serial)); os.Rename(path, old) == nil {
			path = old
		}
		left = append(left, path)
	}
	s.discardLater(left)
	return nil
}

// Close ends what is running, waits for it, and drops connections.
func (s *Store) Close() {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.pulls.cancelAll()
	s.unpacks.cancelAll()
	s.work.Wait()
	s.client.Close()
}

var errClosed = errors.New("image store is closed")

// spawn runs fn in a goroutine that Close waits for.
func (s *Store) spawn(fn func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errClosed
	}
	s.work.Go(fn)
	return nil
}

// Dir gives the store's directory.
func (s *Store) Dir() string { return s.root }

// List gives all images, sorted by ID.
func (s *Store) List() []Image {
	s.mu.Lock()
	list := make([]Image, 0, len(s.images))
	for _, img := range s.images {
		list = append(list, *img)
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// Get finds an image by ID (whole, or a unique beginning of at least 12 hex
// digits, with or without "sha256:"), by tag, by digest, or by both, in which
// case the digest decides. It returns [ErrNotFound] or [ErrInvalidReference].
func (s *Store) Get(ref string) (Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img, err := s.find(ref)
	if err != nil {
		return Image{}, err
	}
	return *img, nil
}

// find is Get for those who hold mu.
func (s *Store) find(ref string) (*Image, error) {
	hex, prefixed := strings.CutPrefix(ref, "sha256:")
	isID := isHex(hex) && len(hex) >= minIDPrefix && len(hex) <= idLength
	if isID && len(hex) == idLength {
		if img := s.images["sha256:"+hex]; img != nil {
			return img, nil
		}
		return nil, fmt.Errorf("%w: image %s", ErrNotFound, ref)
	}
	if isID && prefixed {
		if img, err := s.findPrefix(hex); img != nil || err != nil {
			return img, err
		}
	}
	named, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	if img := s.named(named.String()); img != nil {
		return img, nil
	}
	if isID {
		if img, err := s.findPrefix(hex); img != nil || err != nil {
			return img, err
		}
	}
	return nil, fmt.Errorf("%w: image %s", ErrNotFound, named)
}

func (s *Store) findPrefix(hex string) (*Image, error) {
	var found *Image
	for id, img := range s.images {
		if strings.HasPrefix(id, "sha256:"+hex) {
			if found != nil {
				return nil, fmt.Errorf("%w: %s begins more than one image ID", ErrInvalidReference, hex)
			}
			found = img
		}
	}
	return found, nil
}

// named finds the image with a normalised tag or digest.
func (s *Store) named(name string) *Image {
	for _, img := range s.images {
		if slices.Contains(img.Tags, name) || slices.Contains(img.Digests, name) {
			return img
		}
	}
	return nil
}

// Remove forgets the image that ref names, with every tag it has; that there
// is none is not an error. Layers that nothing else uses are removed in the
// background, held ones once they are released.
func (s *Store) Remove(ref string) error {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.Lock()
	img, err := s.find(ref)
	s.mu.Unlock()
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	trash, err := s.setAside(s.imageDir(img.ID))
	if err != nil {
		return fmt.Errorf("remove image %s: %w", img.ID, err)
	}
	s.mu.Lock()
	delete(s.images, img.ID)
	unused := s.sweep(img.Layers)
	s.mu.Unlock()
	s.discardLater(append(unused, trash))
	return syncDir(filepath.Join(s.root, imagesDir))
}

// Usage gives what images and layers take on the disk: bytes in whole blocks,
// and inodes.
func (s *Store) Usage() (bytes, inodes uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.layers {
		bytes += uint64(l.size)
		inodes += uint64(l.inodes)
	}
	for _, img := range s.images {
		bytes += uint64(img.content)
		inodes += inodesPerImage
	}
	return bytes, inodes, nil
}

// newName gives a name for tmp that no other operation of this daemon has.
func (s *Store) newName(kind string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	return fmt.Sprintf("%s-%d", kind, s.serial)
}

// setAside moves path into tmp, where it can be removed at leisure, and
// returns its new place; path need not be there. It takes mu.
func (s *Store) setAside(path string) (string, error) {
	trash := filepath.Join(s.root, tempDir, s.newName("trash"))
	err := os.Rename(path, trash)
	if fault.IsFull(err) {
		err = os.RemoveAll(path) // a full disk has no room for a name either
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	return trash, nil
}

// discardLater removes paths in the background.
func (s *Store) discardLater(paths []string) {
	if len(paths) == 0 {
		return
	}
	if s.spawn(func() { s.discard(paths) }) != nil {
		s.discard(paths) // closing: nobody else will
	}
}

func (s *Store) discard(paths []string) {
	for _, path := range paths {
		if err := os.RemoveAll(path); err != nil {
			s.log.WarnContext(context.Background(), "leftover stays until the next start", "path", path, "err", err)
		}
	}
}
