package images

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestParseManifestRefuses(t *testing.T) {
	desc := fmt.Sprintf(`{"digest":%q,"size":1}`, digest.FromString("x"))
	for name, doc := range map[string]string{
		"nothing":               ``,
		"another type":          `[]`,
		"empty":                 `{}`,
		"schema 1":              `{"schemaVersion":1}`,
		"both":                  `{"schemaVersion":2,"config":` + desc + `,"manifests":[]}`,
		"layers and manifests":  `{"schemaVersion":2,"layers":[],"manifests":[]}`,
		"mislabelled index":     `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest + `","manifests":[]}`,
		"mislabelled manifest":  `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","config":` + desc + `}`,
		"no digest":             `{"schemaVersion":2,"config":{"size":1}}`,
		"other algorithm":       `{"schemaVersion":2,"config":{"digest":"sha512:` + strings.Repeat("a", 128) + `"}}`,
		"digest that leads out": `{"schemaVersion":2,"config":{"digest":"sha256:../../../../etc/passwd"}}`,
		"negative size":         strings.Replace(`{"schemaVersion":2,"config":`+desc+`}`, ":1}", ":-1}", 1),
		"too many layers":       `{"schemaVersion":2,"config":` + desc + `,"layers":[` + strings.Repeat(desc+",", maxLayers) + desc + `]}`,
	} {
		if _, err := parseManifest([]byte(doc)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestChoose(t *testing.T) {
	p := func(platform string) v1.Descriptor {
		parts := append(strings.Split(platform, "/"), "", "")
		return v1.Descriptor{MediaType: platform, Platform: &v1.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}}
	}
	for _, c := range []struct {
		want string
		have []string
		pick []string
	}{
		{"linux/amd64", []string{"windows/amd64", "linux/arm64", "linux/amd64"}, []string{"linux/amd64"}},
		{"linux/amd64/v2", []string{"linux/amd64/v3", "linux/amd64", "linux/amd64/v2"}, []string{"linux/amd64/v2", "linux/amd64"}},
		{"linux/arm/v7", []string{"linux/arm/v5", "linux/arm/v6", "linux/arm64/v8"}, []string{"linux/arm/v6", "linux/arm/v5"}},
		{"linux/arm64", []string{"linux/arm64/v8", "linux/arm64/v9"}, []string{"linux/arm64/v8"}},
		{"linux/amd64", []string{"unknown/unknown", "linux/x86_64"}, []string{"linux/x86_64"}},
		{"linux/riscv64", []string{"linux/amd64"}, nil},
	} {
		var have []v1.Descriptor
		for _, platform := range c.have {
			have = append(have, p(platform))
		}
		var got []string
		for _, d := range choose(have, *p(c.want).Platform) {
			got = append(got, d.MediaType)
		}
		if !slices.Equal(got, c.pick) {
			t.Errorf("%s of %q: %q, want %q", c.want, c.have, got, c.pick)
		}
	}
	if got := choose([]v1.Descriptor{{}}, hostPlatform()); len(got) != 1 {
		t.Error("a manifest for no platform in particular does not fit")
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"` + digest.FromString("x").String() + `","size":3},"layers":[]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"platform":{"os":"linux"}}]}`))
	f.Add([]byte(`{"rootfs":{"type":"layers","diff_ids":["` + digest.FromString("x").String() + `"]},"config":{"Env":null}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if man, err := parseManifest(data); err == nil {
			if (man.config == nil) == (man.manifests == nil) {
				t.Fatal("neither or both")
			}
			choose(man.manifests, hostPlatform())
			_ = mediaTypeOf(data)
		}
		if config, err := parseConfig(data); err == nil {
			_ = checkLayers(nil, config.RootFS.DiffIDs)
		}
	})
}

func TestCheckpointIsNamedByItsAnnotations(t *testing.T) {
	for manifest, want := range map[string]string{
		`{"annotations": {"org.criu.checkpoint.container.name": "a"}}`:                      "a",
		`{"annotations": {"io.kubernetes.cri-o.annotations.checkpoint.name": "b"}}`:         "b",
		`{"annotations": {"org.opencontainers.image.title": "a checkpoint"}, "layers": []}`: "",
		`{}`: "",
	} {
		if got, err := checkpointName([]byte(manifest)); got != want || err != nil {
			t.Errorf("%s: %q, %v", manifest, got, err)
		}
	}
}
