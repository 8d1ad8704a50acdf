// Package archive writes a small image as an OCI image layout in a tar
// archive, the form that Import and other tools read.
//
// The same image gives the same bytes on every machine: times are the epoch,
// owners are root, members are in a fixed order. It holds everything in memory
// and is meant for demonstration images and tests.
package archive

import (
	"archive/tar"
	"bytes"
	_ "crypto/sha256" // go-digest finds the hash by its registration
	"encoding/json"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is one member of a layer.
type File struct {
	Name string // relative to the root, with slashes
	// Mode has the permission, set-id and sticky bits of stat(2).
	Mode int64
	// Type is one of archive/tar's; zero is a regular file, or a directory if
	// Name ends in a slash.
	Type     byte
	Data     []byte
	Linkname string // target of a symbolic or a hard link
	UID, GID int
	Xattrs   map[string]string
}

// Image describes what [Write] writes.
type Image struct {
	// Name is the reference the image gets where it is imported.
	Name string
	// Layers, bottom first. Parent directories that a layer does not list are
	// added with mode 0755.
	Layers [][]File
	Config v1.ImageConfig
	// Annotations are those of the manifest.
	Annotations map[string]string
	// Architecture is a GOARCH; default the one this program was built for.
	Architecture string
}

// Write writes the image to w and returns the descriptor of its manifest.
func Write(w io.Writer, img Image) (v1.Descriptor, error) {
	layout, err := Build(img)
	if err != nil {
		return v1.Descriptor{}, err
	}
	index, err := json.Marshal(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{layout.named()},
	})
	if err != nil {
		return v1.Descriptor{}, err
	}
	version, err := json.Marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	if err != nil {
		return v1.Descriptor{}, err
	}
	files := []File{{Name: v1.ImageLayoutFile, Mode: 0o644, Data: version}, {Name: v1.ImageIndexFile, Mode: 0o644, Data: index},
		{Name: v1.ImageBlobsDir + "/", Mode: 0o755}, {Name: v1.ImageBlobsDir + "/sha256/", Mode: 0o755}}
	for _, blob := range layout.Blobs {
		files = append(files, File{Name: v1.ImageBlobsDir + "/sha256/" + digest.FromBytes(blob).Encoded(), Mode: 0o644, Data: blob})
	}
	raw, err := writeTar(files)
	if err != nil {
		return v1.Descriptor{}, err
	}
	_, err = w.Write(raw)
	return layout.Manifest, err
}

// Layout is an image as the blobs a registry serves.
type Layout struct {
	Name     string
	Manifest v1.Descriptor
	// Config is the digest of the configuration: the image's identity.
	Config digest.Digest
	// Blobs are the layers, the configuration and last the manifest.
	Blobs [][]byte
}

func (l *Layout) named() v1.Descriptor {
	d := l.Manifest
	if l.Name != "" {
		d.Annotations = map[string]string{"io.containerd.image.name": l.Name, v1.AnnotationRefName: l.Name}
	}
	return d
}

// Build makes the blobs of an image.
func Build(img Image) (*Layout, error) {
	arch := img.Architecture
	if arch == "" {
		arch = runtime.GOARCH
	}
	created := time.Unix(0, 0).UTC()
	config := v1.Image{Created: &created, Platform: v1.Platform{OS: "linux", Architecture: arch}, Config: img.Config, RootFS: v1.RootFS{Type: "layers"}}
	manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Annotations: img.Annotations}
	layout := &Layout{Name: img.Name}
	put := func(mediaType string, data []byte) v1.Descriptor {
		layout.Blobs = append(layout.Blobs, data)
		return v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	}
	for i, files := range img.Layers {
		layer, err := Layer(files)
		if err != nil {
			return nil, fmt.Errorf("write layer %d of %s: %w", i, img.Name, err)
		}
		manifest.Layers = append(manifest.Layers, put(v1.MediaTypeImageLayer, layer))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(layer))
	}
	data, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	manifest.Config = put(v1.MediaTypeImageConfig, data)
	layout.Config = manifest.Config.Digest
	if data, err = json.Marshal(manifest); err != nil {
		return nil, err
	}
	layout.Manifest = put(v1.MediaTypeImageManifest, data)
	layout.Manifest.Platform = &config.Platform
	return layout, nil
}

// Layer writes the tar stream of one layer, with the parents it needs.
func Layer(files []File) ([]byte, error) { return writeTar(withParents(files)) }

func withParents(files []File) []File {
	listed := map[string]bool{".": true}
	for _, f := range files {
		listed[path.Clean(f.Name)] = true
	}
	var all []File
	for _, f := range files {
		var missing []File
		for dir := path.Dir(path.Clean(f.Name)); !listed[dir] && dir != "/"; dir = path.Dir(dir) {
			listed[dir] = true
			missing = append(missing, File{Name: dir + "/", Mode: 0o755})
		}
		slices.Reverse(missing)
		all = append(append(all, missing...), f)
	}
	return all
}

func writeTar(files []File) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		hdr := &tar.Header{
			Typeflag: f.Type, Name: f.Name, Mode: f.Mode, Linkname: f.Linkname, Size: int64(len(f.Data)),
			Uid: f.UID, Gid: f.GID, ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
		}
		if hdr.Typeflag == 0 {
			hdr.Typeflag = tar.TypeReg
			if strings.HasSuffix(f.Name, "/") {
				hdr.Typeflag = tar.TypeDir
			}
		}
		for name, value := range f.Xattrs {
			if hdr.PAXRecords == nil {
				hdr.PAXRecords = map[string]string{}
			}
			hdr.PAXRecords["SCHILY.xattr."+name] = value
		}
		if err := w.WriteHeader(hdr); err != nil {
			return nil, fmt.Errorf("write %s: %w", f.Name, err)
		}
		if _, err := w.Write(f.Data); err != nil {
			return nil, fmt.Errorf("write %s: %w", f.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
