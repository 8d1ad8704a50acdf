package images

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/longshore/longshore/images/archive"
	"github.com/longshore/longshore/images/registry"
	"github.com/longshore/longshore/images/registrytest"
)

var fixedTime = time.Unix(1600000000, 0)

func open(t testing.TB, root string) *Store {
	t.Helper()
	s, err := Open(root, Config{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func text(name, body string) archive.File {
	return archive.File{Name: name, Mode: 0o644, Data: []byte(body)}
}

// two is an image of two layers of which the upper one hides a file.
func two(tag string) archive.Image {
	return archive.Image{
		Config: v1.ImageConfig{Entrypoint: []string{"/bin/app"}, Env: []string{"TAG=" + tag}, User: "7:8", StopSignal: "SIGINT"},
		Layers: [][]archive.File{
			{text("bin/app", "program"), text("etc/old", "old")},
			{text("etc/.wh.old", ""), text("etc/new", tag)},
		},
	}
}

func mustPull(t testing.TB, s *Store, ref string) Image {
	t.Helper()
	img, err := s.Pull(context.Background(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// leavings lists what is in the store's directory, without the contents of
// trees.
func leavings(t testing.TB, s *Store) []string {
	t.Helper()
	var found []string
	for _, dir := range []string{imagesDir, layersDir, tempDir, quarantineDir} {
		entries, err := os.ReadDir(filepath.Join(s.root, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			found = append(found, dir+"/"+e.Name())
		}
	}
	return found
}

// wantEmpty closes the store, so that everything begun has ended.
func wantEmpty(t testing.TB, s *Store) {
	t.Helper()
	s.Close()
	if left := leavings(t, s); len(left) > 0 {
		t.Errorf("left on the disk: %q", left)
	}
}

func TestPull(t *testing.T) {
	reg := registrytest.New(t)
	layout := reg.Put(t, "team/app", "v1", two("v1"))
	s := open(t, t.TempDir())
	ref := reg.Host() + "/team/app:v1"
	var seen []Progress
	img, err := s.Pull(context.Background(), ref, PullOptions{Progress: func(p Progress) { seen = append(seen, p) }})
	if err != nil {
		t.Fatal(err)
	}
	byDigest := reg.Host() + "/team/app@" + layout.Manifest.Digest.String()
	if img.ID != layout.Config.String() || !slices.Equal(img.Tags, []string{ref}) || !slices.Equal(img.Digests, []string{byDigest}) {
		t.Errorf("image is %+v", img)
	}
	if img.Size < 4*diskBlock || len(img.Layers) != 2 || len(img.ChainIDs) != 2 || img.Config.Config.User != "7:8" || img.ManifestDigest != layout.Manifest.Digest.String() {
		t.Errorf("image is %+v", img)
	}
	complete := slices.DeleteFunc(seen, func(p Progress) bool { return !p.Complete || p.Done != p.Size })
	if len(complete) != 2 {
		t.Errorf("progress was %+v", seen)
	}
	for _, name := range []string{ref, img.ID, img.ID[7:], img.ID[7:19], img.ID[:30], byDigest, reg.Host() + "/team/app:other@" + layout.Manifest.Digest.String()} {
		if got, err := s.Get(name); err != nil || got.ID != img.ID {
			t.Errorf("Get(%q) = %s, %v", name, got.ID, err)
		}
	}
	dirs, err := s.Rootfs(img)
	if err != nil || len(dirs) != 2 {
		t.Fatal(dirs, err)
	}
	if body, err := os.ReadFile(dirs[0] + "/etc/new"); err != nil || string(body) != "v1" {
		t.Errorf("top layer: %q, %v", body, err)
	}
	if body, err := os.ReadFile(dirs[1] + "/bin/app"); err != nil || string(body) != "program" {
		t.Errorf("bottom layer: %q, %v", body, err)
	}
	if raw, err := s.ConfigJSON(img.ID); err != nil || digest.FromBytes(raw).String() != img.ID {
		t.Errorf("configuration: %s, %v", raw, err)
	}
	if raw, err := s.ManifestJSON(img.ID); err != nil || digest.FromBytes(raw) != layout.Manifest.Digest {
		t.Errorf("manifest: %s, %v", raw, err)
	}
	size, inodes, err := s.Usage()
	if err != nil || size < uint64(img.Size) || inodes < 10 {
		t.Errorf("usage %d bytes, %d inodes, %v", size, inodes, err)
	}
	// What a new daemon reads is what the old one knew.
	s.Close()
	again, err := open(t, s.root).Get(ref)
	if err != nil || !reflect.DeepEqual(again, img) {
		t.Errorf("after a restart\n%+v\nwas\n%+v, %v", again, img, err)
	}
}

func TestUnchangedImageIsNotFetchedAgain(t *testing.T) {
	reg := registrytest.New(t)
	layout := reg.Put(t, "app", "1", two("1"))
	reg.PutManifest("app", "same", layout.Manifest.MediaType, layout.Blobs[len(layout.Blobs)-1])
	s := open(t, t.TempDir())
	first := mustPull(t, s, reg.Host()+"/app:1")
	gets := reg.Requests("GET ")
	if again := mustPull(t, s, reg.Host()+"/app:1"); again.ID != first.ID || reg.Requests("GET ") != gets {
		t.Errorf("%d requests for what is there", reg.Requests("GET ")-gets)
	}
	mustPull(t, s, reg.Host()+"/app@"+layout.Manifest.Digest.String())
	other := mustPull(t, s, reg.Host()+"/app:same")
	if reg.Requests("GET /v2/app/blobs/") != 3 {
		t.Errorf("%d blobs fetched", reg.Requests("GET /v2/app/blobs/"))
	}
	if want := []string{reg.Host() + "/app:1", reg.Host() + "/app:same"}; !slices.Equal(other.Tags, want) || len(s.List()) != 1 {
		t.Errorf("tags %q in %d images", other.Tags, len(s.List()))
	}
}

func TestTagMoves(t *testing.T) {
	reg := registrytest.New(t)
	ref := reg.Host() + "/app:latest"
	reg.Put(t, "app", "latest", two("old"))
	s := open(t, t.TempDir())
	old := mustPull(t, s, ref)
	reg.Put(t, "app", "latest", two("new"))
	fresh := mustPull(t, s, reg.Host()+"/app") // "latest" is understood
	for range 2 {
		if got, err := s.Get(ref); err != nil || got.ID != fresh.ID || fresh.ID == old.ID {
			t.Errorf("tag is of %s, %v", got.ID, err)
		}
		if got, err := s.Get(old.ID); err != nil || len(got.Tags) != 0 || len(got.Digests) != 1 {
			t.Errorf("old image has %q, %v", got.Tags, err)
		}
		s.Close()
		s = open(t, s.root)
	}
}

func TestLayersAreSharedAndKept(t *testing.T) {
	reg := registrytest.New(t)
	a, b := two("a"), two("b")
	reg.Put(t, "a", "1", a)
	reg.Put(t, "b", "1", b)
	s := open(t, t.TempDir())
	imgA, imgB := mustPull(t, s, reg.Host()+"/a:1"), mustPull(t, s, reg.Host()+"/b:1")
	if imgA.Layers[0] != imgB.Layers[0] || reg.Requests("GET /v2/b/blobs/") != 2 {
		t.Error("the shared layer was fetched twice")
	}
	if err := s.Hold("container", imgA.Layers...); err != nil {
		t.Fatal(err)
	}
	for range 2 { // removal is idempotent
		if err := s.Remove(reg.Host() + "/a:1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Get(imgA.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed image: %v", err)
	}
	if _, err := s.Rootfs(imgA); err != nil {
		t.Errorf("held layers: %v", err)
	}
	// The hold is declared again by the next daemon.
	s.Close()
	s = open(t, s.root)
	if err := s.Hold("container", imgA.Layers...); err != nil {
		t.Fatal(err)
	}
	if err := s.GC(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rootfs(imgA); err != nil {
		t.Errorf("layers held again: %v", err)
	}
	s.Release("container")
	if _, err := s.Rootfs(imgA); !errors.Is(err, ErrNotFound) {
		t.Errorf("released layers: %v", err)
	}
	if _, err := s.Rootfs(imgB); err != nil {
		t.Errorf("the other image's layers: %v", err)
	}
	if err := s.Hold("late", imgA.Layers...); !errors.Is(err, ErrNotFound) {
		t.Errorf("hold of what is gone: %v", err)
	}
	if err := s.Remove(imgB.ID); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, s)
}

func TestPlatformIsChosen(t *testing.T) {
	reg := registrytest.New(t)
	var index v1.Index
	ids := map[string]string{}
	for _, arch := range []string{"amd64", "arm64", "s390x"} {
		img := two(arch)
		img.Architecture = arch
		layout := reg.Put(t, "app", "", img)
		ids[arch] = layout.Config.String()
		index.Manifests = append(index.Manifests, layout.Manifest)
	}
	index.SchemaVersion = 2
	for _, mediaType := range []string{v1.MediaTypeImageIndex, registry.MediaTypeDockerList} {
		index.MediaType = mediaType
		data, err := json.Marshal(index)
		if err != nil {
			t.Fatal(err)
		}
		top := reg.PutManifest("app", "1", mediaType, data)
		for arch, id := range ids {
			s := open(t, t.TempDir())
			img, err := s.Pull(context.Background(), reg.Host()+"/app:1", PullOptions{Platform: &v1.Platform{OS: "linux", Architecture: arch}})
			if err != nil || img.ID != id || img.Digests[0] != reg.Host()+"/app@"+top.Digest.String() {
				t.Errorf("%s: %+v, %v", arch, img.Digests, err)
			}
		}
		s := open(t, t.TempDir())
		_, err = s.Pull(context.Background(), reg.Host()+"/app:1", PullOptions{Platform: &v1.Platform{OS: "linux", Architecture: "mips"}})
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("absent platform: %v", err)
		}
	}
}

// compressed puts an image of one layer in Docker's form, compressed.
func compressed(t *testing.T, reg *registrytest.Registry, repo string, pack func([]byte) []byte, mediaType string) {
	t.Helper()
	layout, err := archive.Build(archive.Image{Layers: [][]archive.File{{text("f", strings.Repeat("data", 10000))}}})
	if err != nil {
		t.Fatal(err)
	}
	layer := reg.PutBlob(pack(layout.Blobs[0]))
	layer.MediaType = mediaType
	config := reg.PutBlob(layout.Blobs[1])
	data, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": registry.MediaTypeDockerManifest, "config": config, "layers": []any{layer}})
	if err != nil {
		t.Fatal(err)
	}
	reg.PutManifest(repo, "1", registry.MediaTypeDockerManifest, data)
}

func gz(data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(data)
	w.Close()
	return buf.Bytes()
}

func zs(data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return w.EncodeAll(data, nil)
}

func TestCompressedLayers(t *testing.T) {
	reg := registrytest.New(t)
	compressed(t, reg, "gzip", gz, "application/vnd.docker.image.rootfs.diff.tar.gzip")
	compressed(t, reg, "zstd", zs, v1.MediaTypeImageLayerZstd)
	compressed(t, reg, "mislabelled", zs, v1.MediaTypeImageLayerGzip)
	for _, repo := range []string{"gzip", "zstd", "mislabelled"} {
		s := open(t, t.TempDir())
		mustPull(t, s, reg.Host()+"/"+repo+":1")
	}
	compressed(t, reg, "foreign", gz, "application/vnd.example.disk")
	s := open(t, t.TempDir())
	if _, err := s.Pull(context.Background(), reg.Host()+"/foreign:1", PullOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("unknown layer type: %v", err)
	}
	wantEmpty(t, s)
}

func TestFailedPullLeavesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(t *testing.T, reg *registrytest.Registry, layout *archive.Layout)
		want error
	}{
		"absent tag":      {func(t *testing.T, reg *registrytest.Registry, _ *archive.Layout) { refuse(reg, "/manifests/", 404) }, ErrNotFound},
		"absent layer":    {func(t *testing.T, reg *registrytest.Registry, l *archive.Layout) { refuse(reg, digestOf(l, 1), 404) }, ErrNotFound},
		"forbidden layer": {func(t *testing.T, reg *registrytest.Registry, l *archive.Layout) { refuse(reg, digestOf(l, 1), 403) }, ErrUnauthorized},
		"html manifest": {func(t *testing.T, reg *registrytest.Registry, _ *archive.Layout) {
			reply(reg, "/manifests/", "<html>log in</html>")
		}, ErrCorrupt},
		"html layer": {func(t *testing.T, reg *registrytest.Registry, l *archive.Layout) {
			reply(reg, digestOf(l, 1), "<html>log in</html>")
		}, ErrCorrupt},
		"altered layer": {func(t *testing.T, reg *registrytest.Registry, l *archive.Layout) {
			reply(reg, digestOf(l, 1), strings.Replace(string(l.Blobs[1]), "v1", "v2", 1))
		}, ErrCorrupt},
		"truncated layer": {func(t *testing.T, reg *registrytest.Registry, l *archive.Layout) {
			reply(reg, digestOf(l, 1), string(l.Blobs[1][:600]))
		}, ErrCorrupt},
		"altered configuration": {func(t *testing.T, reg *registrytest.Registry, l *archive.Layout) {
			reply(reg, digestOf(l, 2), strings.Repeat(" ", len(l.Blobs[2])))
		}, ErrCorrupt},
		"wrong diffID": {func(t *testing.T, reg *registrytest.Registry, l *archive.Layout) {
			change(t, reg, l, func(config, _ map[string]any) {
				config["rootfs"].(map[string]any)["diff_ids"].([]any)[1] = digest.FromString("other").String()
			})
		}, ErrCorrupt},
		"too few diffIDs": {func(t *testing.T, reg *registrytest.Registry, l *archive.Layout) {
			change(t, reg, l, func(config, _ map[string]any) {
				config["rootfs"].(map[string]any)["diff_ids"] = []any{l.Blobs[0]}[:0]
			})
		}, ErrCorrupt},
		"not an image": {func(t *testing.T, reg *registrytest.Registry, l *archive.Layout) {
			change(t, reg, l, func(config, _ map[string]any) { delete(config, "rootfs") })
		}, ErrCorrupt},
		"schema 1": {func(t *testing.T, reg *registrytest.Registry, _ *archive.Layout) {
			reg.PutManifest("app", "v1", "application/json", []byte(`{"schemaVersion":1,"fsLayers":[]}`))
		}, ErrCorrupt},
		"closed registry": {func(t *testing.T, reg *registrytest.Registry, _ *archive.Layout) { reg.Server.Close() }, ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.New(t)
			layout := reg.Put(t, "app", "v1", two("v1"))
			c.harm(t, reg, layout)
			s := open(t, t.TempDir())
			_, err := s.Pull(context.Background(), reg.Host()+"/app:v1", PullOptions{})
			if !errors.Is(err, c.want) {
				t.Errorf("error is %v, want %v", err, c.want)
			}
			wantEmpty(t, s)
		})
	}
	s := open(t, t.TempDir())
	if _, err := s.Pull(context.Background(), "docker.io/UPPER/case", PullOptions{}); !errors.Is(err, ErrInvalidReference) {
		t.Error(err)
	}
}

func digestOf(l *archive.Layout, blob int) string { return digest.FromBytes(l.Blobs[blob]).String() }

func refuse(reg *registrytest.Registry, part string, status int) {
	reg.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, part) {
			w.WriteHeader(status)
			return true
		}
		return false
	}
}

func reply(reg *registrytest.Registry, part, body string) {
	reg.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, part) {
			fmt.Fprint(w, body)
			return true
		}
		return false
	}
}

// change puts the image again with another configuration.
func change(t *testing.T, reg *registrytest.Registry, l *archive.Layout, edit func(config, manifest map[string]any)) {
	t.Helper()
	var config, manifest map[string]any
	if json.Unmarshal(l.Blobs[2], &config) != nil || json.Unmarshal(l.Blobs[3], &manifest) != nil {
		t.Fatal("not JSON")
	}
	edit(config, manifest)
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	manifest["config"] = reg.PutBlob(data)
	if data, err = json.Marshal(manifest); err != nil {
		t.Fatal(err)
	}
	reg.PutManifest("app", "v1", v1.MediaTypeImageManifest, data)
}

// rawLayers puts an image whose layers are exactly these members.
func rawLayers(t *testing.T, reg *registrytest.Registry, repo string, layers ...[]tar.Header) {
	t.Helper()
	config := v1.Image{RootFS: v1.RootFS{Type: "layers"}}
	config.OS, config.Architecture = "linux", hostPlatform().Architecture
	var descs []v1.Descriptor
	for _, members := range layers {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, hdr := range members {
			if err := w.WriteHeader(&hdr); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		d := reg.PutBlob(buf.Bytes())
		d.MediaType = v1.MediaTypeImageLayer
		descs = append(descs, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
	}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	data, err = json.Marshal(map[string]any{"schemaVersion": 2, "config": reg.PutBlob(data), "layers": descs})
	if err != nil {
		t.Fatal(err)
	}
	reg.PutManifest(repo, "1", v1.MediaTypeImageManifest, data)
}

func TestUnnamedDirectoriesLookAsBelow(t *testing.T) {
	reg := registrytest.New(t)
	dir := func(name string, mode int64) tar.Header {
		return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, ModTime: fixedTime}
	}
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	rawLayers(t, reg, "app",
		[]tar.Header{dir("tmp", 0o1777), dir("tmp/a", 0o750), dir("plain", 0o755)},
		[]tar.Header{file("tmp/a/x"), file("new/y")},
		[]tar.Header{file("new/z")},
	)
	s := open(t, t.TempDir())
	img := mustPull(t, s, reg.Host()+"/app:1")
	if len(img.Layers) != 4 || !strings.HasPrefix(img.Layers[2], framePrefix) {
		t.Fatalf("layers are %q", img.Layers)
	}
	dirs, err := s.Rootfs(img)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"tmp": 0o777 | fs.ModeSticky | fs.ModeDir, "tmp/a": 0o750 | fs.ModeDir} {
		info, err := os.Stat(filepath.Join(dirs[1], name))
		if err != nil || info.Mode() != want || !info.ModTime().Equal(fixedTime) {
			t.Errorf("%s in the frame: %v, %v", name, info, err)
		}
	}
	if err := s.Remove(img.ID); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, s)
}

func TestRepeatedAndOpaqueLayers(t *testing.T) {
	reg := registrytest.New(t)
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	a, b := []tar.Header{file("a")}, []tar.Header{file("b")}
	rawLayers(t, reg, "again", a, b, a)
	rawLayers(t, reg, "opaque", a, []tar.Header{file(".wh..wh..opq"), file("c")}, b)
	rawLayers(t, reg, "empty")
	s := open(t, t.TempDir())
	again, opaque := mustPull(t, s, reg.Host()+"/again:1"), mustPull(t, s, reg.Host()+"/opaque:1")
	if len(again.Layers) != 2 || len(again.ChainIDs) != 3 || again.Layers[0] != opaque.Layers[1] {
		t.Errorf("layers are %q and %q", again.Layers, opaque.Layers)
	}
	if empty := mustPull(t, s, reg.Host()+"/empty:1"); empty.Size <= 0 || !slices.Equal(empty.Layers, []string{emptyFrame}) {
		t.Errorf("image without layers: %+v", empty)
	}
}

func TestPinned(t *testing.T) {
	reg := registrytest.New(t)
	reg.Put(t, "app", "1", two("1"))
	s, err := Open(t.TempDir(), Config{Pinned: []string{reg.Host() + "/app:1"}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if !mustPull(t, s, reg.Host()+"/app:1").Pinned {
		t.Error("image is not pinned")
	}
}
