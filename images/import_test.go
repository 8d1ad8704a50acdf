package images

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/longshore/longshore/images/archive"
)

func layoutTar(t testing.TB, img archive.Image) []byte {
	t.Helper()
	var buf bytes.Buffer
	if _, err := archive.Write(&buf, img); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// members packs named files into a tar stream, in order; a name with "->"
// is a link.
func members(t testing.TB, files ...archive.File) []byte {
	t.Helper()
	raw, err := archive.Layer(files)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func named(name string, img archive.Image) archive.Image {
	img.Name = name
	return img
}

func TestImportLayout(t *testing.T) {
	raw := layoutTar(t, named("example.org/app:1", two("1")))
	for form, data := range map[string][]byte{"plain": raw, "gzip": gz(raw), "zstd": zs(raw)} {
		s := open(t, t.TempDir())
		list, err := s.Import(context.Background(), bytes.NewReader(data), "")
		if err != nil || len(list) != 1 || !slices.Equal(list[0].Tags, []string{"example.org/app:1"}) || len(list[0].Digests) != 1 {
			t.Fatalf("%s: %+v, %v", form, list, err)
		}
		again, err := s.Import(context.Background(), bytes.NewReader(data), "")
		if err != nil || again[0].ID != list[0].ID {
			t.Errorf("%s again: %v", form, err)
		}
		if _, err := s.Rootfs(list[0]); err != nil {
			t.Error(err)
		}
		if err := s.Remove("example.org/app:1"); err != nil {
			t.Fatal(err)
		}
		wantEmpty(t, s)
	}
}

func TestImportDirectory(t *testing.T) {
	dir := t.TempDir()
	r := tar.NewReader(bytes.NewReader(layoutTar(t, two("1"))))
	for hdr, err := r.Next(); err == nil; hdr, err = r.Next() {
		path := filepath.Join(dir, hdr.Name)
		if hdr.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			data, _ := io.ReadAll(r)
			err = os.WriteFile(path, data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := open(t, t.TempDir())
	list, err := s.Import(context.Background(), f, "app:dir")
	if err != nil || len(list) != 1 || list[0].Tags[0] != "docker.io/library/app:dir" {
		t.Fatalf("%+v, %v", list, err)
	}
}

func TestImportNames(t *testing.T) {
	for _, c := range []struct {
		annotations map[string]string
		name, want  string
	}{
		{nil, "", ""},
		{nil, "app", "docker.io/library/app:latest"},
		{map[string]string{v1.AnnotationRefName: "v2"}, "example.org/app", "example.org/app:v2"},
		{map[string]string{v1.AnnotationRefName: "v2"}, "", ""},
		{map[string]string{v1.AnnotationRefName: "example.org/x:1"}, "app", "example.org/x:1"},
		{map[string]string{v1.AnnotationRefName: "v2", containerdNameAnnotation: "example.org/y:2"}, "app", "example.org/y:2"},
		{map[string]string{v1.AnnotationRefName: "not/A/name", containerdNameAnnotation: "::"}, "app:3", "docker.io/library/app:3"},
	} {
		got := nameOf(v1.Descriptor{Annotations: c.annotations}, c.name)
		if got != "" {
			n, err := parseReference(got)
			if err != nil {
				t.Fatal(err)
			}
			got = n.String()
		}
		if got != c.want {
			t.Errorf("%v, %q: %q, want %q", c.annotations, c.name, got, c.want)
		}
	}
}

func TestImportDockerArchive(t *testing.T) {
	layout, err := archive.Build(two("1"))
	if err != nil {
		t.Fatal(err)
	}
	index, err := json.Marshal([]any{map[string]any{"Config": "c.json", "RepoTags": []string{"app:1", "example.org/app:1"}, "Layers": []string{"a/layer.tar", "b/layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, data []byte) archive.File { return archive.File{Name: name, Mode: 0o644, Data: data} }
	for form, files := range map[string][]archive.File{
		"plain": {file("a/layer.tar", layout.Blobs[0]), file("b/layer.tar", layout.Blobs[1])},
		"gzip":  {file("a/layer.tar", gz(layout.Blobs[0])), file("b/layer.tar", layout.Blobs[1])},
		"links": {file("x", layout.Blobs[0]), {Name: "a/layer.tar", Type: tar.TypeSymlink, Linkname: "../x"},
			file("y", layout.Blobs[1]), {Name: "b/layer.tar", Type: tar.TypeLink, Linkname: "y"}},
	} {
		s := open(t, t.TempDir())
		raw := members(t, append(files, file("c.json", layout.Blobs[2]), file("manifest.json", index))...)
		list, err := s.Import(context.Background(), bytes.NewReader(raw), "unused")
		if err != nil || len(list) != 1 || list[0].ID != layout.Config.String() {
			t.Fatalf("%s: %+v, %v", form, list, err)
		}
		if want := []string{"docker.io/library/app:1", "example.org/app:1"}; !slices.Equal(list[0].Tags, want) || len(list[0].Digests) != 0 {
			t.Errorf("%s: tags %q, digests %q", form, list[0].Tags, list[0].Digests)
		}
	}
}

func TestImportRefuses(t *testing.T) {
	whole := layoutTar(t, named("example.org/app:1", two("1")))
	file := func(name, data string) archive.File { return archive.File{Name: name, Mode: 0o644, Data: []byte(data)} }
	absent := digest.FromString("absent").String()
	for name, c := range map[string]struct {
		raw  []byte
		want error
	}{
		"nothing":         {nil, ErrCorrupt},
		"no archive":      {bytes.Repeat([]byte("text "), 1000), ErrCorrupt},
		"other archive":   {members(t, file("README", "hi")), ErrCorrupt},
		"truncated":       {whole[:len(whole)/2], ErrCorrupt},
		"altered":         {bytes.Replace(whole, []byte("program"), []byte("PROGRAM"), 1), ErrCorrupt},
		"missing blob":    {members(t, file("index.json", `{"schemaVersion":2,"manifests":[{"digest":"`+absent+`","size":1}]}`)), ErrCorrupt},
		"no manifest":     {members(t, file("index.json", `{"schemaVersion":2,"manifests":[]}`)), ErrNotFound},
		"links in circle": {members(t, archive.File{Name: "index.json", Type: tar.TypeSymlink, Linkname: "index.json"}), ErrCorrupt},
		"name leads out":  {members(t, file("manifest.json", `[{"Config":"../../../../etc/passwd"}]`)), ErrCorrupt},
		"bad tag":         {members(t, file("manifest.json", `[{"Config":"c","RepoTags":["A B"]}]`), file("c", "{}")), ErrInvalidReference},
		"foreign machine": {layoutTar(t, archive.Image{Architecture: "s390y", Layers: two("").Layers}), ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir())
			if list, err := s.Import(context.Background(), bytes.NewReader(c.raw), ""); !errors.Is(err, c.want) {
				t.Errorf("%+v, %v; want %v", list, err, c.want)
			}
			wantEmpty(t, s)
		})
	}
}

func FuzzImport(f *testing.F) {
	f.Add(layoutTar(f, named("example.org/app:1", two("1"))))
	f.Add(members(f, archive.File{Name: "manifest.json", Data: []byte(`[{"Config":"c","RepoTags":["x"],"Layers":["l"]}]`)}, archive.File{Name: "c", Data: []byte(`{}`)}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := Open(t.TempDir(), Config{}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		list, err := s.Import(context.Background(), bytes.NewReader(raw), "fuzz")
		if err != nil && len(list) == 0 {
			wantEmpty(t, s)
		}
		s.Close()
	})
}
