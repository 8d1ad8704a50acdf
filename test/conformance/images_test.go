package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"path"
	"slices"
	"testing"

	"github.com/longshore/longshore/images/archive"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// someTools has a busybox that also has what the guest has.
func someTools() tools {
	return tools{guest: []byte("guest"), busybox: busybox{
		program: []byte("busybox"), applets: []string{"sh", "busybox", "pgrep", "ls"},
		libraries: []archive.File{{Name: "lib/libc.so.6", Mode: 0o755}},
	}}
}

// A layer that lists a path twice is refused by some runtimes, and a hard link
// must follow its target.
func TestLookAlikesAreSound(t *testing.T) {
	for _, image := range lookAlikes(someTools()) {
		layout, err := image.build()
		if err != nil {
			t.Fatal(err)
		}
		for i := range image.layers {
			checkLayer(t, image.repository, layout.Blobs[i])
		}
		var manifest v1.Manifest
		last := layout.Blobs[len(layout.Blobs)-1]
		if err := json.Unmarshal(last, &manifest); err != nil || digest.FromBytes(last) != layout.Manifest.Digest {
			t.Errorf("%s: manifest is not last: %v", image.repository, err)
		}
	}
}

func checkLayer(t *testing.T, image string, layer []byte) {
	t.Helper()
	seen := map[string]bool{}
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("%s: %v", image, err)
		}
		name := path.Clean(hdr.Name)
		if seen[name] {
			t.Errorf("%s lists %s twice", image, name)
		}
		seen[name] = true
		if hdr.Typeflag == tar.TypeLink && !seen[hdr.Linkname] {
			t.Errorf("%s: %s links to %s, which comes later or never", image, name, hdr.Linkname)
		}
	}
}

// Different images must have different identities, and each name only one.
func TestLookAlikesDiffer(t *testing.T) {
	byID, names := map[digest.Digest]string{}, map[string]bool{}
	for _, image := range lookAlikes(someTools()) {
		layout, err := image.build()
		if err != nil {
			t.Fatal(err)
		}
		if other := byID[layout.Config]; other != "" {
			t.Errorf("%s is %s", image.repository, other)
		}
		byID[layout.Config] = image.repository
		if names[image.repository] || len(image.tags) == 0 {
			t.Errorf("%s is listed twice or has no tag", image.repository)
		}
		names[image.repository] = true
	}
}

func TestParseLibraries(t *testing.T) {
	list := "\tlinux-vdso.so.1 (0x00007f64ce499000)\n\tlibresolv.so.2 => /lib/x86_64-linux-gnu/libresolv.so.2 (0x00007f64ce3b9000)\n" +
		"\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f64ce1d7000)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f64ce49b000)\n\tlibgone.so => not found\n"
	want := []string{"/lib/x86_64-linux-gnu/libresolv.so.2", "/lib/x86_64-linux-gnu/libc.so.6"}
	if got := parseLibraries([]byte(list)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
