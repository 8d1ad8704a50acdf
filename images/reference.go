package images

import (
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/longshore/longshore/images/blob"
)

const (
	maxReference = 1024 // bytes; a path may have 255, a tag 128, a digest 71
	idLength     = 64
	minIDPrefix  = 12
)

// parseReference normalises a name: "busybox" is
// "docker.io/library/busybox:latest". Where there are a tag and a digest, the
// digest decides and the tag is dropped, as other CRI runtimes do.
func parseReference(ref string) (reference.Named, error) {
	if len(ref) > maxReference {
		return nil, fmt.Errorf("%w: %.40q... is too long", ErrInvalidReference, ref)
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrInvalidReference, ref, err)
	}
	digested, ok := named.(reference.Digested)
	if !ok {
		return reference.TagNameOnly(named), nil
	}
	if err := blob.CheckDigest(digested.Digest()); err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrInvalidReference, ref, err)
	}
	return reference.WithDigest(reference.TrimNamed(named), digested.Digest())
}

// selector gives what a registry is asked for: the tag or the digest.
func selector(named reference.Named) string {
	switch named := named.(type) {
	case reference.Digested:
		return named.Digest().String()
	case reference.Tagged:
		return named.Tag()
	}
	return ""
}

func isHex(s string) bool {
	return strings.Trim(s, "0123456789abcdef") == ""
}

// Digested gives the digested reference to the image that name, a reference as
// a person or a client wrote it, asks for: the digest that it names, else one of
// its repository. For any other name it is the image's first digest, and for an
// image that no registry knows its ID.
func (img *Image) Digested(name string) string {
	if named, err := parseReference(name); err == nil {
		if slices.Contains(img.Digests, named.String()) {
			return named.String()
		}
		ofRepository := func(d string) bool { return strings.HasPrefix(d, named.Name()+"@") }
		if i := slices.IndexFunc(img.Digests, ofRepository); i >= 0 {
			return img.Digests[i]
		}
	}
	if len(img.Digests) > 0 {
		return img.Digests[0]
	}
	return img.ID
}
