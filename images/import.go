package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/longshore/longshore/images/registry"
)

const (
	dockerManifestFile = "manifest.json"
	// Docker's names for parts of an image that were never in a registry.
	dockerConfigType = "application/vnd.docker.container.image.v1+json"
	dockerLayerType  = "application/vnd.docker.image.rootfs.diff.tar"
	// containerdNameAnnotation carries a full reference; OCI's own may be a tag only.
	containerdNameAnnotation = "io.containerd.image.name"
)

// Import takes the images of an archive: an OCI image layout or what "docker
// save" writes, as a tar stream (plain, gzip or zstd) or, if r is an open
// directory, as files. Images get the names the archive gives them; name, if
// not empty, is for those it gives none, and completes those it gives only a
// tag. Of an index the image for this machine is taken.
//
// After an error, images that had been imported whole stay and are returned.
func (s *Store) Import(ctx context.Context, r io.Reader, name string) ([]Image, error) {
	if name != "" {
		if _, err := parseReference(name); err != nil {
			return nil, err
		}
	}
	images, err := s.importAll(ctx, r, name)
	if err != nil {
		err = fmt.Errorf("import images: %w", classify(err))
	}
	return images, err
}

func (s *Store) importAll(ctx context.Context, r io.Reader, name string) ([]Image, error) {
	b, done, err := s.openBundle(ctx, r)
	if err != nil {
		return nil, err
	}
	defer done()
	var found []candidate
	switch {
	case b.has(v1.ImageIndexFile):
		found, err = b.layoutImages(name)
	case b.has(dockerManifestFile):
		found, err = b.dockerImages(name)
	default:
		err = fmt.Errorf("%w: neither an OCI layout nor a docker archive", ErrCorrupt)
	}
	if err != nil {
		return nil, err
	}
	var images []Image
	for _, c := range found {
		img, err := s.importOne(ctx, c)
		if err != nil {
			return images, err
		}
		images = append(images, *img)
	}
	return images, nil
}

// candidate is one image of an archive.
type candidate struct {
	docs          documents
	layers        []layerSource
	tags, digests []string
}

func (s *Store) importOne(ctx context.Context, c candidate) (*Image, error) {
	img, err := s.adoptNames(c.docs.id.String(), c.tags, c.digests)
	if !errors.Is(err, errGone) {
		return img, err
	}
	return s.assemble(ctx, c.docs, c.layers, "", c.tags, c.digests)
}

// addName gives the candidate a name, and one by digest if it has one.
func (c *candidate) addName(named reference.Named, top digest.Digest) error {
	if _, ok := named.(reference.Tagged); ok {
		c.tags = union(c.tags, []string{named.String()})
	}
	if top == "" {
		return nil
	}
	canonical, err := reference.WithDigest(reference.TrimNamed(named), top)
	if err != nil {
		return err
	}
	c.digests = union(c.digests, []string{canonical.String()})
	return nil
}

// layoutImages reads an OCI image layout's index.
func (b *bundle) layoutImages(name string) ([]candidate, error) {
	data, err := b.document(v1.ImageIndexFile, v1.Descriptor{Size: -1}, registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	index, err := parseManifest(data)
	if err != nil {
		return nil, err
	}
	if index.config != nil {
		return nil, fmt.Errorf("%w: index.json is a manifest", ErrCorrupt)
	}
	// Descriptors with the same name are one image for several platforms.
	var names []string
	byName := map[string][]v1.Descriptor{}
	for _, d := range index.manifests {
		n := nameOf(d, name)
		if _, ok := byName[n]; !ok {
			names = append(names, n)
		}
		byName[n] = append(byName[n], d)
	}
	var found []candidate
	for _, n := range names {
		c, err := b.layoutImage(n, byName[n])
		if errors.Is(err, ErrNotFound) && len(names) > 1 {
			continue // for another platform
		}
		if err != nil {
			return nil, err
		}
		found = append(found, c)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: archive has no image for this platform", ErrNotFound)
	}
	return found, nil
}

// nameOf gives the reference an index entry is to have, or "".
func nameOf(d v1.Descriptor, name string) string {
	if n := d.Annotations[containerdNameAnnotation]; n != "" {
		if _, err := parseReference(n); err == nil {
			return n
		}
	}
	ref := d.Annotations[v1.AnnotationRefName]
	if strings.ContainsAny(ref, "/:") {
		if _, err := parseReference(ref); err == nil {
			return ref
		}
	}
	if named, err := parseReference(name); err == nil && ref != "" {
		if tagged, err := reference.WithTag(reference.TrimNamed(named), ref); err == nil {
			return tagged.String()
		}
	}
	return name
}

func (b *bundle) layoutImage(name string, descs []v1.Descriptor) (c candidate, err error) {
	var top digest.Digest
	for depth := 0; ; depth++ {
		fit := choose(descs, hostPlatform())
		if len(fit) == 0 {
			return c, fmt.Errorf("%w: image %s for this platform", ErrNotFound, name)
		}
		if depth > maxDepth {
			return c, fmt.Errorf("%w: indexes within indexes", ErrCorrupt)
		}
		if top == "" {
			top = fit[0].Digest
		}
		data, err := b.document(blobName(fit[0].Digest), fit[0], registry.MaxManifest)
		if err != nil {
			return c, err
		}
		man, err := parseManifest(data)
		if err != nil {
			return c, err
		}
		if man.config == nil {
			descs = man.manifests
			continue
		}
		c.docs = documents{manifest: data, mediaType: mediaTypeOf(data), id: man.config.Digest}
		if c.docs.config, err = b.document(blobName(c.docs.id), *man.config, maxConfig); err != nil {
			return c, err
		}
		for _, d := range man.layers {
			c.layers = append(c.layers, b.source(blobName(d.Digest), d))
		}
		break
	}
	if name == "" {
		return c, nil
	}
	named, err := parseReference(name)
	if err != nil {
		return c, err
	}
	return c, c.addName(named, top)
}

// dockerImages reads what "docker save" writes.
func (b *bundle) dockerImages(name string) ([]candidate, error) {
	data, err := b.document(dockerManifestFile, v1.Descriptor{Size: -1}, registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	var saved []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(data, &saved); err != nil {
		return nil, fmt.Errorf("%w: archive's manifest.json: %w", ErrCorrupt, err)
	}
	if len(saved) == 0 || len(saved) > maxManifests {
		return nil, fmt.Errorf("%w: archive with %d images", ErrCorrupt, len(saved))
	}
	var found []candidate
	for _, image := range saved {
		c, err := b.dockerImage(image.Config, image.Layers)
		if err != nil {
			return nil, err
		}
		names := image.RepoTags
		if len(names) == 0 && name != "" && len(saved) == 1 {
			names = []string{name}
		}
		for _, n := range names {
			named, err := parseReference(n)
			if err != nil {
				return nil, err
			}
			if err := c.addName(named, ""); err != nil {
				return nil, err
			}
		}
		found = append(found, c)
	}
	return found, nil
}

// dockerImage makes the manifest that such an archive does not have.
func (b *bundle) dockerImage(config string, layers []string) (c candidate, err error) {
	if len(layers) > maxLayers {
		return c, fmt.Errorf("%w: image with %d layers", ErrCorrupt, len(layers))
	}
	if c.docs.config, err = b.document(config, v1.Descriptor{Size: -1}, maxConfig); err != nil {
		return c, err
	}
	c.docs.id = digest.FromBytes(c.docs.config)
	c.docs.mediaType = registry.MediaTypeDockerManifest
	man := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: c.docs.mediaType,
		Config: v1.Descriptor{MediaType: dockerConfigType, Digest: c.docs.id, Size: int64(len(c.docs.config))},
		Layers: []v1.Descriptor{},
	}
	for _, name := range layers {
		desc, err := b.describe(name)
		if err != nil {
			return c, err
		}
		man.Layers = append(man.Layers, desc)
		c.layers = append(c.layers, b.source(name, desc))
	}
	c.docs.manifest, err = json.Marshal(man)
	return c, err
}

// describe digests a layer's file, which such an archive does not do.
func (b *bundle) describe(name string) (v1.Descriptor, error) {
	f, size, err := b.open(name)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer f.Close()
	d, err := digest.SHA256.FromReader(f)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("digest %s: %w", path.Base(name), err)
	}
	return v1.Descriptor{MediaType: dockerLayerType, Digest: d, Size: size}, nil
}
