package images

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/longshore/longshore/images/registry"
)

// PullOptions are the optional parts of a pull.
type PullOptions struct {
	Auth *Auth
	// Platform is what the image must run on; nil means this machine.
	Platform *v1.Platform
	// Progress, if set, is told how the layers come in, from one goroutine at
	// a time. It must return quickly and must not call the store.
	Progress func(Progress)
}

// Pull fetches what ref names, whether or not the store has an image of that
// name: a tag may have moved, and the registry must agree with the credential.
// What the store has is not fetched again. Pulls of the same image with the
// same credential are one; a caller whose context ends leaves it to the others.
//
// Errors are ErrInvalidReference, ErrNotFound, ErrUnauthorized,
// ErrUnavailable, ErrCorrupt and ErrNoSpace, or the context's or this
// machine's own. After an error nothing new is on the disk.
func (s *Store) Pull(ctx context.Context, ref string, opts PullOptions) (Image, error) {
	named, err := parseReference(ref)
	if err != nil {
		return Image{}, err
	}
	key := pullKey(named, opts)
	defer s.watchers.add(key, opts.Progress)()
	img, _, err := s.pulls.do(ctx, key, func(ctx context.Context) (*Image, error) {
		p := pull{store: s, named: named, key: key, opts: opts}
		img, err := p.run(ctx)
		for err != nil && errors.Is(err, errGone) && ctx.Err() == nil {
			img, err = p.run(ctx)
		}
		return img, err
	})
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", named, classify(err))
	}
	return *img, nil
}

// pullKey tells apart pulls that may end differently.
func pullKey(named reference.Named, opts PullOptions) string {
	sum := sha256.New()
	if opts.Auth != nil {
		fmt.Fprintf(sum, "%q", *opts.Auth)
	}
	if opts.Platform != nil {
		fmt.Fprintf(sum, "%q", *opts.Platform)
	}
	return fmt.Sprintf("%s %x", named, sum.Sum(nil))
}

// pull is one run of Pull.
type pull struct {
	store *Store
	named reference.Named
	key   string
	opts  PullOptions
	repo  *registry.Repository
}

func (p *pull) run(ctx context.Context) (*Image, error) {
	var err error
	if p.repo, err = p.store.client.Repository(p.named, p.opts.Auth); err != nil {
		return nil, err
	}
	if img, err := p.unchanged(ctx); img != nil || err != nil {
		return img, err
	}
	doc, err := p.repo.Manifest(ctx, selector(p.named))
	if err != nil {
		return nil, err
	}
	tags, digests, err := p.names(doc.Digest)
	if err != nil {
		return nil, err
	}
	man, err := parseManifest(doc.Data)
	for depth := 0; err == nil && man.config == nil; depth++ {
		if depth == maxDepth {
			return nil, fmt.Errorf("%w: indexes within indexes", ErrCorrupt)
		}
		if doc, err = p.chosen(ctx, man.manifests); err != nil {
			return nil, err
		}
		man, err = parseManifest(doc.Data)
	}
	if err != nil {
		return nil, err
	}
	id := man.config.Digest
	if img, err := p.store.adoptNames(id.String(), tags, digests); !errors.Is(err, errGone) {
		return img, err
	}
	config, err := p.config(ctx, *man.config)
	if err != nil {
		return nil, err
	}
	docs := documents{manifest: doc.Data, mediaType: mediaTypeOf(doc.Data), config: config, id: id}
	return p.store.assemble(ctx, docs, p.layers(man.layers), p.key, tags, digests)
}

// unchanged gives the image that the store has under this name, if the
// registry says that the name still means it. That costs one HEAD request,
// which registries do not count against a limit.
func (p *pull) unchanged(ctx context.Context) (*Image, error) {
	p.store.mu.Lock()
	img := p.store.named(p.named.String())
	p.store.mu.Unlock()
	if img == nil || !runsOn(img, p.platform()) {
		return nil, nil
	}
	now, err := p.repo.Resolve(ctx, selector(p.named))
	if err != nil || now == "" {
		// A registry may not know HEAD; GET gives the answer, or the error.
		return nil, context.Cause(ctx)
	}
	tags, digests, err := p.names(now)
	if err != nil || !slices.Contains(img.Digests, digests[0]) {
		return nil, err
	}
	return p.store.adoptNames(img.ID, tags, digests)
}

func (p *pull) platform() v1.Platform {
	if p.opts.Platform != nil {
		return *p.opts.Platform
	}
	return hostPlatform()
}

func runsOn(img *Image, want v1.Platform) bool {
	return rank(&img.Config.Platform, want) > 0
}

// names gives what an image is known by after this pull.
func (p *pull) names(top digest.Digest) (tags, digests []string, err error) {
	canonical, err := reference.WithDigest(reference.TrimNamed(p.named), top)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if _, ok := p.named.(reference.Tagged); ok {
		tags = []string{p.named.String()}
	}
	return tags, []string{canonical.String()}, nil
}

// chosen fetches the manifest of an index that fits the platform best.
func (p *pull) chosen(ctx context.Context, manifests []v1.Descriptor) (registry.Document, error) {
	want := p.platform()
	fit := choose(manifests, want)
	if len(fit) == 0 {
		return registry.Document{}, fmt.Errorf("%w: image for platform %s/%s", ErrNotFound, want.OS, want.Architecture)
	}
	return p.repo.Manifest(ctx, fit[0].Digest.String())
}

func (p *pull) config(ctx context.Context, desc v1.Descriptor) (config []byte, err error) {
	if desc.Size > maxConfig {
		return nil, fmt.Errorf("%w: configuration of %d bytes", ErrCorrupt, desc.Size)
	}
	err = p.repo.ReadBlob(ctx, desc, func(body io.Reader) (err error) {
		config, err = io.ReadAll(io.LimitReader(body, maxConfig))
		return err
	})
	return config, err
}

func (p *pull) layers(descs []v1.Descriptor) []layerSource {
	sources := make([]layerSource, len(descs))
	for i, desc := range descs {
		sources[i] = layerSource{desc: desc, read: func(ctx context.Context, use func(io.Reader) error) error {
			return p.repo.ReadBlob(ctx, desc, use)
		}}
	}
	return sources
}

// assemble makes an image of verified documents and the sources of its layers:
// layers first, the record last.
func (s *Store) assemble(ctx context.Context, docs documents, sources []layerSource, key string, tags, digests []string) (*Image, error) {
	config, err := parseConfig(docs.config)
	if err != nil {
		return nil, err
	}
	descs := make([]v1.Descriptor, len(sources))
	for i := range sources {
		descs[i] = sources[i].desc
	}
	diffIDs := config.RootFS.DiffIDs
	if err := checkLayers(descs, diffIDs); err != nil {
		return nil, err
	}
	chainIDs := identity.ChainIDs(slices.Clone(diffIDs))
	names := []string{emptyFrame}
	for i := range sources {
		sources[i].diffID = diffIDs[i]
		names = append(names, layerName(diffIDs[i]), framePrefix+chainIDs[i].Encoded())
	}
	owner := s.newName("making")
	s.mu.Lock()
	s.hold(owner, names)
	s.mu.Unlock()
	// On success the record names what it needs; a failure leaves nothing.
	defer func() { s.discard(s.release(owner)) }()
	if err := s.ensureLayers(ctx, sources, key); err != nil {
		return nil, err
	}
	stacked, err := s.stack(ctx, diffIDs, chainIDs)
	if err != nil {
		return nil, err
	}
	return s.insert(docs, stacked, tags, digests)
}

// ensureLayers makes the layers that are missing, the largest first.
func (s *Store) ensureLayers(ctx context.Context, sources []layerSource, key string) error {
	sources = slices.Clone(sources)
	slices.SortStableFunc(sources, func(a, b layerSource) int { return int(min(max(b.desc.Size-a.desc.Size, -1), 1)) })
	var tasks []func(context.Context) error
	seen := map[digest.Digest]bool{}
	for _, src := range sources {
		if seen[src.diffID] {
			continue
		}
		seen[src.diffID] = true
		tasks = append(tasks, func(ctx context.Context) error {
			p := Progress{Blob: src.desc.Digest.String(), Size: src.desc.Size}
			err := s.ensureLayer(ctx, src, func(done int64) {
				p.Done = done
				s.watchers.report(key, p)
			})
			if err == nil {
				p.Done, p.Complete = p.Size, true
				s.watchers.report(key, p)
			}
			return err
		})
	}
	return parallel(ctx, s.config.MaxConcurrentLayers, tasks)
}

// ConfigJSON gives the exact bytes of an image's configuration, with what
// [Image].Config leaves out. id is Image.ID.
func (s *Store) ConfigJSON(id string) ([]byte, error) { return s.document(id, configFile) }

// ManifestJSON gives the exact bytes of an image's manifest.
func (s *Store) ManifestJSON(id string) ([]byte, error) { return s.document(id, manifestFile) }

func (s *Store) document(id, file string) ([]byte, error) {
	s.mu.Lock()
	img := s.images[id]
	s.mu.Unlock()
	if img == nil {
		return nil, fmt.Errorf("%w: image %s", ErrNotFound, id)
	}
	want := digest.Digest(img.ID)
	if file == manifestFile {
		want = digest.Digest(img.ManifestDigest)
	}
	data, err := readVerified(s.imageDir(id)+"/"+file, want)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: image %s", ErrNotFound, id)
	}
	return data, err
}
