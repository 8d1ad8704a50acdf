package main

import (
	"archive/tar"
	"fmt"
	"runtime"
	"slices"

	"github.com/longshore/longshore/images/archive"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// lookAlike is an image that critest wants, as far as critest looks.
type lookAlike struct {
	repository string // without the registry's host: all are mirrored to one
	tags       []string
	layers     [][]archive.File
	config     v1.ImageConfig
}

// Accounts of the images; critest uses nobody and www-data by name.
const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"
	group  = "root:x:0:\nwww-data:x:33:\nnobody:x:65534:\n"
)

// guests are the names of the guest program in every image, by their path.
var guests = []string{"bin/pgrep", "bin/ipcs", "usr/sbin/nginx", "usr/local/bin/httpd"}

// lookAlikes makes every image that the specs of critest name, except the one
// that is pulled by a digest: its bytes cannot be made again.
func lookAlikes(t tools) []lookAlike {
	system := append(t.busybox.files(guests), archive.File{Name: "bin/guest", Mode: 0o755, Data: t.guest})
	for _, name := range guests {
		system = append(system, archive.File{Name: name, Type: tar.TypeLink, Linkname: "bin/guest"})
	}
	system = append(system,
		archive.File{Name: "tmp/", Mode: 0o1777}, archive.File{Name: "root/", Mode: 0o700},
		archive.File{Name: "var/run/", Mode: 0o755},
		archive.File{Name: "etc/passwd", Mode: 0o644, Data: []byte(passwd)},
		archive.File{Name: "etc/group", Mode: 0o644, Data: []byte(group)})
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	shell := v1.ImageConfig{Env: env, Cmd: []string{"sh"}}
	with := func(repository string, tags []string, config v1.ImageConfig, layers ...[]archive.File) lookAlike {
		config.Env = env
		return lookAlike{repository, tags, slices.Concat([][]archive.File{system}, layers), config}
	}
	latest := []string{"latest"}
	images := []lookAlike{
		with("e2e-test-images/busybox", []string{"1.29-2"}, shell),
		with("e2e-test-images/nginx", []string{"1.14-2"}, v1.ImageConfig{Cmd: []string{"/usr/sbin/nginx"}}),
		with("e2e-test-images/httpd", []string{"2.4.39-4"}, v1.ImageConfig{Cmd: []string{"/usr/local/bin/httpd"}}),
		with(staging+"hostnet-nginx-"+runtime.GOARCH, latest, v1.ImageConfig{Cmd: []string{"/usr/sbin/nginx", "12003"}}),
		{"e2e-test-images/nonewprivs", []string{"1.3"}, [][]archive.File{{{Name: "nonewprivs", Mode: 0o4755, Data: t.guest}}},
			v1.ImageConfig{Env: env, Entrypoint: []string{"/nonewprivs"}}},
		{"pause", []string{"3.9"}, [][]archive.File{{{Name: "pause", Mode: 0o755, Data: t.guest}}},
			v1.ImageConfig{Env: env, Entrypoint: []string{"/pause"}, User: "65535:65535"}},
		with(staging+"test-image-predefined-group", latest, v1.ImageConfig{Cmd: []string{"sh"}, User: "1000"}, predefinedGroup()),
	}
	for name, user := range map[string]string{"uid": "1002", "username": "www-data", "uid-group": "1003:1004", "username-group": "www-data:1004"} {
		images = append(images, with(staging+"test-image-user-"+name, latest, v1.ImageConfig{Cmd: []string{"sh"}, User: user}))
	}
	for name, tags := range map[string][]string{"1": latest, "2": latest, "3": latest, "latest": latest, "tag": {"test", "all"}, "tags": {"1", "2", "3"}} {
		mark := []archive.File{{Name: "test-image-" + name, Mode: 0o644}}
		images = append(images, with(staging+"test-image-"+name, tags, shell, mark))
	}
	return images
}

// staging is the repository of images that are cri-tools' own.
const staging = "k8s-staging-cri-tools/"

// predefinedGroup adds a user who belongs to a group by /etc/group alone.
func predefinedGroup() []archive.File {
	return []archive.File{
		{Name: "etc/passwd", Mode: 0o644, Data: []byte(passwd + "default-user:x:1000:1000::/home/default-user:/bin/sh\n")},
		{Name: "etc/group", Mode: 0o644, Data: []byte(group + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")},
	}
}

// build gives the blobs of the image.
func (l lookAlike) build() (*archive.Layout, error) {
	layout, err := archive.Build(archive.Image{Name: l.repository, Layers: l.layers, Config: l.config})
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", l.repository, err)
	}
	return layout, nil
}
