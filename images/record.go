package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/longshore/longshore/internal/atomicfile"
)

// record is record.json: what an image's own documents do not say.
type record struct {
	Version           int           `json:"version"`
	ID                digest.Digest `json:"id"`
	ManifestDigest    digest.Digest `json:"manifestDigest"`
	ManifestMediaType string        `json:"manifestMediaType"`
	Tags              []string      `json:"tags"`
	Digests           []string      `json:"digests"`
	Layers            []string      `json:"layers"` // names of directories, bottom first
	Pulled            time.Time     `json:"pulled"`
}

const (
	recordVersion  = 1
	recordFile     = "record.json"
	manifestFile   = "manifest.json"
	configFile     = "config.json"
	inodesPerImage = 4 // three files and their directory
)

func (s *Store) imageDir(id string) string {
	return filepath.Join(s.root, imagesDir, strings.TrimPrefix(id, "sha256:"))
}

// load reads every record. It runs before anyone else knows of the store.
func (s *Store) load() error {
	entries, err := os.ReadDir(filepath.Join(s.root, imagesDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(s.root, imagesDir, e.Name())
		img, layers, err := s.loadImage(dir)
		if err != nil {
			s.quarantine(dir, err)
			continue
		}
		s.images[img.ID] = img
		for name, l := range layers {
			s.layers[name] = l
		}
	}
	s.settleNames()
	return nil
}

// loadImage verifies an image's documents and finds its layers. The trees
// themselves are not read: that is a check's work, not a start's.
func (s *Store) loadImage(dir string) (*Image, map[string]layer, error) {
	var rec record
	if err := atomicfile.ReadJSON(filepath.Join(dir, recordFile), &rec); err != nil {
		return nil, nil, err
	}
	if rec.Version != recordVersion || rec.ID.Validate() != nil || rec.ID.Encoded() != filepath.Base(dir) {
		return nil, nil, fmt.Errorf("record of version %d for %q", rec.Version, rec.ID)
	}
	manifest, err := readVerified(filepath.Join(dir, manifestFile), rec.ManifestDigest)
	if err != nil {
		return nil, nil, err
	}
	config, err := readVerified(filepath.Join(dir, configFile), rec.ID)
	if err != nil {
		return nil, nil, err
	}
	layers := map[string]layer{}
	for _, name := range rec.Layers {
		l, ok := s.layers[name]
		if !ok {
			if !isLayerName(name) {
				return nil, nil, fmt.Errorf("%q is not a layer's name", name)
			}
			if l, err = s.readLayer(name); err != nil {
				return nil, nil, err
			}
		}
		layers[name] = l
	}
	img, err := s.describe(rec, manifest, config, layers)
	return img, layers, err
}

// readVerified reads a small file that must have the digest want.
func readVerified(path string, want digest.Digest) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if digest.FromBytes(data) != want {
		return nil, fmt.Errorf("%s does not have digest %s", path, want)
	}
	return data, nil
}

// checkpointNotes are the annotations of a manifest by which an image is a
// checkpoint of a container: CRI-O's, and CRIU's for all runtimes.
var checkpointNotes = []string{"org.criu.checkpoint.container.name", "io.kubernetes.cri-o.annotations.checkpoint.name"}

// checkpointName gives the name of the container whose checkpoint an image is.
func checkpointName(manifest []byte) (string, error) {
	if !bytes.Contains(manifest, []byte("checkpoint")) {
		return "", nil
	}
	var parsed struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(manifest, &parsed); err != nil {
		return "", fmt.Errorf("%w: manifest: %w", ErrCorrupt, err)
	}
	for _, key := range checkpointNotes {
		if name := parsed.Annotations[key]; name != "" {
			return name, nil
		}
	}
	return "", nil
}

// describe makes the image that a record and its documents describe.
func (s *Store) describe(rec record, manifest, config []byte, layers map[string]layer) (*Image, error) {
	parsed, err := parseConfig(config)
	if err != nil {
		return nil, err
	}
	parsed.History = nil // read again by the few who ask
	img := &Image{
		ID: rec.ID.String(), Tags: rec.Tags, Digests: rec.Digests, Layers: rec.Layers, Config: parsed, Pulled: rec.Pulled,
		ManifestDigest: rec.ManifestDigest.String(), ManifestMediaType: rec.ManifestMediaType,
		content: 2*diskBlock + blocksOf(len(manifest)) + blocksOf(len(config)),
	}
	if img.Checkpoint, err = checkpointName(manifest); err != nil {
		return nil, err
	}
	if parsed.Created != nil {
		img.Created = *parsed.Created
	}
	for _, id := range identity.ChainIDs(slices.Clone(parsed.RootFS.DiffIDs)) {
		img.ChainIDs = append(img.ChainIDs, id.String())
	}
	for _, name := range rec.Layers {
		img.Size += layers[name].size
	}
	// An image without layers takes room too, and 0 means "unknown" to a kubelet.
	img.Size = max(img.Size, img.content)
	img.Pinned = slices.ContainsFunc(slices.Concat(rec.Tags, rec.Digests), func(name string) bool { return s.pinned[name] })
	return img, nil
}

const diskBlock = 4096

func blocksOf(size int) int64 { return int64(size+diskBlock-1) / diskBlock * diskBlock }

// quarantine moves a damaged or foreign thing out of the way and says so.
func (s *Store) quarantine(path string, cause error) {
	ctx := context.Background()
	to := filepath.Join(s.root, quarantineDir, time.Now().UTC().Format("20060102T150405.000000000-")+filepath.Base(path))
	if err := os.Rename(path, to); err != nil {
		s.log.ErrorContext(ctx, "damaged part of the image store is ignored", "path", path, "cause", cause, "err", err)
		return
	}
	s.log.WarnContext(ctx, "damaged part of the image store is set aside", "path", path, "to", to, "cause", cause)
}

// settleNames gives a name that two records have to the one pulled last: a
// daemon that died while it moved the name had written that one first.
func (s *Store) settleNames() {
	owner := map[string]*Image{}
	for _, img := range s.images {
		for _, name := range slices.Concat(img.Tags, img.Digests) {
			if other := owner[name]; other == nil || img.Pulled.After(other.Pulled) || img.Pulled.Equal(other.Pulled) && img.ID > other.ID {
				owner[name] = img
			}
		}
	}
	for id, img := range s.images {
		lost := func(name string) bool { return owner[name] != img }
		if slices.ContainsFunc(slices.Concat(img.Tags, img.Digests), lost) {
			s.images[id] = s.renamed(img, slices.DeleteFunc(slices.Clone(img.Tags), lost), slices.DeleteFunc(slices.Clone(img.Digests), lost), img.Pulled)
		}
	}
}

// renamed gives a copy of an image with other names.
func (s *Store) renamed(img *Image, tags, digests []string, pulled time.Time) *Image {
	changed := *img
	changed.Tags, changed.Digests, changed.Pulled = tags, digests, pulled
	changed.Pinned = slices.ContainsFunc(slices.Concat(tags, digests), func(name string) bool { return s.pinned[name] })
	return &changed
}

func (s *Store) recordOf(img *Image) record {
	return record{
		Version: recordVersion, ID: digest.Digest(img.ID), Tags: img.Tags, Digests: img.Digests, Layers: img.Layers, Pulled: img.Pulled,
		ManifestDigest: digest.Digest(img.ManifestDigest), ManifestMediaType: img.ManifestMediaType,
	}
}

// documents are the verified bytes that make an image.
type documents struct {
	manifest  []byte
	mediaType string
	config    []byte
	id        digest.Digest // of config
}

// insert records a new image whose layers are all there. Until the last step
// nothing of it is to be seen.
func (s *Store) insert(docs documents, layers, tags, digests []string) (*Image, error) {
	rec := record{
		Version: recordVersion, ID: docs.id, ManifestDigest: digest.FromBytes(docs.manifest), ManifestMediaType: docs.mediaType,
		Tags: tags, Digests: digests, Layers: layers, Pulled: time.Now().UTC(),
	}
	staging := filepath.Join(s.root, tempDir, s.newName("image"))
	defer os.RemoveAll(staging)
	if err := os.Mkdir(staging, 0o700); err != nil {
		return nil, err
	}
	for name, data := range map[string][]byte{manifestFile: docs.manifest, configFile: docs.config} {
		if err := atomicfile.Write(filepath.Join(staging, name), data, 0o600, atomicfile.Volatile); err != nil {
			return nil, err
		}
	}
	if err := atomicfile.WriteJSON(filepath.Join(staging, recordFile), rec, atomicfile.Volatile); err != nil {
		return nil, err
	}
	if err := s.syncAll(); err != nil {
		return nil, err
	}
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.Lock()
	present := s.images[rec.ID.String()]
	infos := map[string]layer{}
	for _, name := range layers {
		infos[name] = s.layers[name]
	}
	s.mu.Unlock()
	if present != nil { // another reference brought it meanwhile
		return s.addNames(present, tags, digests)
	}
	img, err := s.describe(rec, docs.manifest, docs.config, infos)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(staging, s.imageDir(img.ID)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.images[img.ID] = img
	s.mu.Unlock()
	if err := syncDir(filepath.Join(s.root, imagesDir)); err != nil {
		return nil, err
	}
	s.takeNames(img)
	return img, nil
}

// adoptNames gives an image that is there more names.
func (s *Store) adoptNames(id string, tags, digests []string) (*Image, error) {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.Lock()
	img := s.images[id]
	s.mu.Unlock()
	if img == nil {
		return nil, errGone
	}
	return s.addNames(img, tags, digests)
}

// errGone says that an image was removed while a pull looked at it.
var errGone = errors.New("image was removed meanwhile")

// addNames is adoptNames for those who hold change.
func (s *Store) addNames(img *Image, tags, digests []string) (*Image, error) {
	allTags, allDigests := union(img.Tags, tags), union(img.Digests, digests)
	if len(allTags) == len(img.Tags) && len(allDigests) == len(img.Digests) {
		return img, nil
	}
	changed := s.renamed(img, allTags, allDigests, time.Now().UTC())
	if err := s.writeRecord(changed); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.images[changed.ID] = changed
	s.mu.Unlock()
	s.takeNames(changed)
	return changed, nil
}

// takeNames takes img's names away from whoever had them before. If that
// cannot be written down, the next start settles it the same way.
func (s *Store) takeNames(img *Image) {
	taken := func(name string) bool { return slices.Contains(img.Tags, name) || slices.Contains(img.Digests, name) }
	s.mu.Lock()
	var losers []*Image
	for id, other := range s.images {
		if id != img.ID && slices.ContainsFunc(slices.Concat(other.Tags, other.Digests), taken) {
			tags := slices.DeleteFunc(slices.Clone(other.Tags), taken)
			digests := slices.DeleteFunc(slices.Clone(other.Digests), taken)
			s.images[id] = s.renamed(other, tags, digests, other.Pulled)
			losers = append(losers, s.images[id])
		}
	}
	s.mu.Unlock()
	for _, other := range losers {
		if err := s.writeRecord(other); err != nil {
			s.log.WarnContext(context.Background(), "image's old name is still in its record", "image", other.ID, "err", err)
		}
	}
}

// writeRecord replaces an image's record. The caller holds change.
func (s *Store) writeRecord(img *Image) error {
	return atomicfile.WriteJSON(filepath.Join(s.imageDir(img.ID), recordFile), s.recordOf(img), atomicfile.Durable)
}

// union gives the sorted names of both.
func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

func syncDir(dir string) error { return atomicfile.SyncDir(dir) }
