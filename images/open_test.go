package images

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/longshore/longshore/images/archive"
	"github.com/longshore/longshore/images/registrytest"
)

func TestOpenSetsDamageAside(t *testing.T) {
	reg := registrytest.New(t)
	for name, damage := range map[string]func(s *Store, img Image) error{
		"torn record": func(s *Store, img Image) error {
			return os.WriteFile(filepath.Join(s.imageDir(img.ID), recordFile), []byte(`{"version":1,`), 0o600)
		},
		"empty record":     func(s *Store, img Image) error { return os.Truncate(filepath.Join(s.imageDir(img.ID), recordFile), 0) },
		"missing record":   func(s *Store, img Image) error { return os.Remove(filepath.Join(s.imageDir(img.ID), recordFile)) },
		"altered config":   func(s *Store, img Image) error { return os.Truncate(filepath.Join(s.imageDir(img.ID), configFile), 10) },
		"altered manifest": func(s *Store, img Image) error { return os.Remove(filepath.Join(s.imageDir(img.ID), manifestFile)) },
		"missing layer":    func(s *Store, img Image) error { return os.RemoveAll(s.layerDir(img.Layers[0])) },
		"missing tree": func(s *Store, img Image) error {
			return os.RemoveAll(filepath.Join(s.layerDir(img.Layers[1]), layerFS))
		},
		"torn layer record": func(s *Store, img Image) error {
			return os.Truncate(filepath.Join(s.layerDir(img.Layers[0]), layerFile), 5)
		},
		"wrong place": func(s *Store, img Image) error {
			return os.Rename(s.imageDir(img.ID), s.imageDir("sha256:"+strings.Repeat("0", 64)))
		},
		"layer name that leads out": func(s *Store, img Image) error {
			path := filepath.Join(s.imageDir(img.ID), recordFile)
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, bytes.Replace(data, []byte(img.Layers[0]), []byte("../../../etc"), 1), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			reg.Put(t, "app", "1", two("1"))
			reg.Put(t, "other", "1", archive.Image{Layers: [][]archive.File{{text("x", "y")}}})
			s := open(t, t.TempDir())
			img, other := mustPull(t, s, reg.Host()+"/app:1"), mustPull(t, s, reg.Host()+"/other:1")
			s.Close()
			if err := damage(s, img); err != nil {
				t.Fatal(err)
			}
			s = open(t, s.root)
			if list := s.List(); len(list) != 1 || list[0].ID != other.ID {
				t.Fatalf("%d images after the damage", len(list))
			}
			if entries, err := os.ReadDir(filepath.Join(s.root, quarantineDir)); err != nil || len(entries) != 1 {
				t.Errorf("quarantine has %v, %v", entries, err)
			}
			// A new pull makes it whole, whatever is still there.
			img = mustPull(t, s, reg.Host()+"/app:1")
			if _, err := s.Rootfs(img); err != nil {
				t.Error(err)
			}
			s.Close()
			if _, err := open(t, s.root).Get(img.ID); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOpenAndGCRemoveLeftovers(t *testing.T) {
	reg := registrytest.New(t)
	reg.Put(t, "app", "1", two("1"))
	s := open(t, t.TempDir())
	img := mustPull(t, s, reg.Host()+"/app:1")
	s.Close()
	before := leavings(t, s)
	stray := strings.Repeat("ab", 32)
	for _, name := range []string{"tmp/layer-1/fs/deep", "tmp/image-2", "layers/" + stray + "/fs", "layers/lost+found"} {
		if err := os.MkdirAll(filepath.Join(s.root, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(s.root, "tmp/.tmp-x"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.root, "images/notes.txt"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, s.root)
	if err := s.GC(); err != nil {
		t.Fatal(err)
	}
	s.Close()
	after := slices.DeleteFunc(leavings(t, s), func(name string) bool { return strings.HasPrefix(name, quarantineDir) })
	if !slices.Equal(after, before) {
		t.Errorf("store has\n%q, had\n%q", after, before)
	}
	if _, err := s.Get(img.ID); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(filepath.Join(s.root, quarantineDir)); err != nil || len(entries) != 2 {
		t.Errorf("quarantine has %v, %v", entries, err)
	}
}

// A layer that a dead daemon had put into place but not synced may be torn.
func TestUntrustedLayerIsReplaced(t *testing.T) {
	reg := registrytest.New(t)
	layout := reg.Put(t, "app", "1", two("1"))
	s := open(t, t.TempDir())
	torn := s.layerDir(layerName(digest.FromBytes(layout.Blobs[0])))
	if err := os.MkdirAll(torn+"/fs/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(torn+"/fs/bin/app", nil, 0o755); err != nil {
		t.Fatal(err)
	}
	dirs, err := s.Rootfs(mustPull(t, s, reg.Host()+"/app:1"))
	if err != nil {
		t.Fatal(err)
	}
	if body, err := os.ReadFile(dirs[1] + "/bin/app"); err != nil || string(body) != "program" {
		t.Errorf("file is %q, %v", body, err)
	}
}
