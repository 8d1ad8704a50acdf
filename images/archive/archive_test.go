package archive

import (
	"archive/tar"
	"bytes"
	"io"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func demo() Image {
	return Image{
		Name: "docker.io/library/demo:1", Architecture: "amd64",
		Config: v1.ImageConfig{Entrypoint: []string{"/bin/demo"}},
		Layers: [][]File{{
			{Name: "bin/demo", Mode: 0o755, Data: []byte("program")},
			{Name: "bin/sh", Type: tar.TypeLink, Linkname: "bin/demo", Mode: 0o755},
			{Name: "tmp/", Mode: 0o1777, Xattrs: map[string]string{"user.b": "2", "user.a": "1"}},
		}},
	}
}

func TestSameImageGivesSameBytes(t *testing.T) {
	var first, second bytes.Buffer
	for _, w := range []*bytes.Buffer{&first, &second} {
		if _, err := Write(w, demo()); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two writes differ")
	}
	// The golden digest: a change of the form changes every image's identity.
	const want = "sha256:d357a7f445b69a390a9a9eb6ed6b6852b114627f7024914f36f6e203c023030c"
	if got := digest.FromBytes(first.Bytes()); got != want {
		t.Errorf("archive is %s, want %s", got, want)
	}
}

func TestLayerHasItsParents(t *testing.T) {
	layer, err := Layer(demo().Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		hdr, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, hdr.Name)
	}
	if want := []string{"bin/", "bin/demo", "bin/sh", "tmp/"}; !slices.Equal(names, want) {
		t.Errorf("members are %q, want %q", names, want)
	}
}
