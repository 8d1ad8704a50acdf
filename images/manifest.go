package images

import (
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/cpu"

	"github.com/longshore/longshore/images/blob"
	"github.com/longshore/longshore/images/registry"
)

const (
	maxConfig    = 8 << 20 // bytes of an image's configuration
	maxLayers    = 250     // overlayfs takes 500, and a layer may need a frame
	maxManifests = 1000    // in one index
	maxDepth     = 3       // of indexes within indexes
)

// manifest is an image's manifest or an index of manifests: exactly one of
// config and manifests is set.
type manifest struct {
	config    *v1.Descriptor
	layers    []v1.Descriptor
	manifests []v1.Descriptor
}

// parseManifest reads a manifest or an index of OCI's or Docker's form. A
// document that could be taken for both is refused (CVE-2021-41190).
func parseManifest(data []byte) (*manifest, error) {
	var doc struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Config        *v1.Descriptor  `json:"config"`
		Layers        []v1.Descriptor `json:"layers"`
		Manifests     []v1.Descriptor `json:"manifests"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrCorrupt, err)
	}
	if doc.SchemaVersion == 1 || doc.FSLayers != nil {
		return nil, fmt.Errorf("%w: manifest of schema 1, which has been obsolete since 2017", ErrCorrupt)
	}
	isIndex := doc.Manifests != nil
	if isIndex && (doc.Config != nil || doc.Layers != nil) || !isIndex && doc.Config == nil {
		return nil, fmt.Errorf("%w: neither a manifest nor an index", ErrCorrupt)
	}
	switch doc.MediaType {
	case v1.MediaTypeImageIndex, registry.MediaTypeDockerList:
		if !isIndex {
			return nil, fmt.Errorf("%w: manifest calls itself an index", ErrCorrupt)
		}
	case v1.MediaTypeImageManifest, registry.MediaTypeDockerManifest:
		if isIndex {
			return nil, fmt.Errorf("%w: index calls itself a manifest", ErrCorrupt)
		}
	}
	if len(doc.Layers) > maxLayers || len(doc.Manifests) > maxManifests {
		return nil, fmt.Errorf("%w: %d layers, %d manifests are too many", ErrCorrupt, len(doc.Layers), len(doc.Manifests))
	}
	all := slices.Concat(doc.Layers, doc.Manifests)
	if doc.Config != nil {
		all = append(all, *doc.Config)
	}
	for _, d := range all {
		if err := blob.CheckDigest(d.Digest); err != nil || d.Size < 0 {
			return nil, fmt.Errorf("%w: descriptor %.80q of %d bytes", ErrCorrupt, d.Digest, d.Size)
		}
	}
	return &manifest{config: doc.Config, layers: doc.Layers, manifests: doc.Manifests}, nil
}

// mediaTypeOf tells the form of a parsed manifest, whatever its label was.
func mediaTypeOf(data []byte) string {
	var doc struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(data, &doc) == nil && doc.MediaType != "" {
		return doc.MediaType
	}
	return v1.MediaTypeImageManifest // where OCI leaves it out
}

// parseConfig reads an image's configuration.
func parseConfig(data []byte) (v1.Image, error) {
	var config v1.Image
	if err := json.Unmarshal(data, &config); err != nil {
		return config, fmt.Errorf("%w: image configuration: %w", ErrCorrupt, err)
	}
	if config.RootFS.Type != "layers" || len(config.RootFS.DiffIDs) > maxLayers {
		return config, fmt.Errorf("%w: configuration of something other than a container image", ErrCorrupt)
	}
	for _, id := range config.RootFS.DiffIDs {
		if err := blob.CheckDigest(id); err != nil {
			return config, fmt.Errorf("%w: diffID %.80q: %w", ErrCorrupt, id, err)
		}
	}
	return config, nil
}

// checkLayers compares what the manifest and the configuration say.
func checkLayers(layers []v1.Descriptor, diffIDs []digest.Digest) error {
	if len(layers) != len(diffIDs) {
		return fmt.Errorf("%w: manifest has %d layers, configuration %d", ErrCorrupt, len(layers), len(diffIDs))
	}
	for _, l := range layers {
		if !strings.Contains(l.MediaType, "tar") || strings.HasSuffix(l.MediaType, "+encrypted") {
			return fmt.Errorf("%w: layer %s is of unknown type %.80q", ErrCorrupt, l.Digest, l.MediaType)
		}
	}
	return nil
}

// hostPlatform is what images are chosen for if nothing else is asked.
func hostPlatform() v1.Platform {
	p := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	switch p.Architecture {
	case "amd64":
		p.Variant = "v1"
		if cpu.X86.HasSSE42 && cpu.X86.HasPOPCNT && cpu.X86.HasSSSE3 {
			p.Variant = "v2"
			if cpu.X86.HasAVX2 && cpu.X86.HasBMI1 && cpu.X86.HasBMI2 && cpu.X86.HasFMA && cpu.X86.HasOSXSAVE {
				p.Variant = "v3"
			}
		}
	case "arm64":
		p.Variant = "v8"
	case "arm":
		p.Variant = "v7"
	}
	return p
}

// choose gives the manifests that run on want, best first.
func choose(manifests []v1.Descriptor, want v1.Platform) []v1.Descriptor {
	var fit []v1.Descriptor
	for _, d := range manifests {
		if rank(d.Platform, want) > 0 {
			fit = append(fit, d)
		}
	}
	slices.SortStableFunc(fit, func(a, b v1.Descriptor) int { return rank(b.Platform, want) - rank(a.Platform, want) })
	return fit
}

// rank is 0 for what does not run on want, and more for what is nearer to it.
// An index that leaves a platform out says that any will do.
func rank(have *v1.Platform, want v1.Platform) int {
	if have == nil || have.OS == "" && have.Architecture == "" {
		return 1
	}
	if have.OS != want.OS || normalArch(have.Architecture) != normalArch(want.Architecture) {
		return 0
	}
	level, most := variant(*have), variant(want)
	if level > most {
		return 0
	}
	// 64-bit ARM is one level; any 32-bit level below the machine's will do.
	return 2 + level
}

// variant gives the number of "v7"; what says nothing is the architecture's lowest
// level in use.
func variant(p v1.Platform) int {
	n := 0
	if _, err := fmt.Sscanf(p.Variant, "v%d", &n); err == nil && n >= 0 && n < 100 {
		return n
	}
	switch normalArch(p.Architecture) {
	case "amd64":
		return 1
	case "arm64":
		return 8
	case "arm":
		return 7
	}
	return 0
}

func normalArch(arch string) string {
	switch arch {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "armhf":
		return "arm"
	}
	return arch
}
