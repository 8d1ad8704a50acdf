package images

import (
	"errors"
	"strings"
	"testing"
)

func TestParseReference(t *testing.T) {
	const hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for ref, want := range map[string]string{
		"busybox":                         "docker.io/library/busybox:latest",
		"busybox:1.28":                    "docker.io/library/busybox:1.28",
		"user/app":                        "docker.io/user/app:latest",
		"docker.io/busybox":               "docker.io/library/busybox:latest",
		"index.docker.io/library/busybox": "docker.io/library/busybox:latest",
		"registry.k8s.io/pause:3.9":       "registry.k8s.io/pause:3.9",
		"localhost/app":                   "localhost/app:latest",
		"127.0.0.1:5000/app:1":            "127.0.0.1:5000/app:1",
		"[::1]:5000/app":                  "[::1]:5000/app:latest",
		"app@sha256:" + hex:               "docker.io/library/app@sha256:" + hex,
		"app:1@sha256:" + hex:             "docker.io/library/app@sha256:" + hex,
		"gcr.io/a/b/c/d:tag":              "gcr.io/a/b/c/d:tag",
		"":                                "",
		" busybox":                        "",
		"Busybox":                         "",
		"a/Busybox":                       "",
		"app:":                            "",
		"app@sha256:short":                "",
		"app@sha512:" + hex + hex:         "",
		"app@":                            "",
		"../../etc/passwd":                "",
		"app:tag/with":                    "",
		"http://registry.example/app":     "",
		hex:                               "",
		"app:" + strings.Repeat("t", 129): "",
		strings.Repeat("a", 256) + "/app": "",
		"host/" + strings.Repeat("a/", 600) + "a": "",
	} {
		named, err := parseReference(ref)
		switch {
		case want == "" && !errors.Is(err, ErrInvalidReference):
			t.Errorf("%.80q is %v, %v", ref, named, err)
		case want != "" && (err != nil || named.String() != want):
			t.Errorf("%q is %v, %v; want %s", ref, named, err, want)
		}
	}
}

func TestDigestedReference(t *testing.T) {
	digest := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	many := Image{ID: digest("f"), Digests: []string{
		"docker.io/library/app@" + digest("a"), "docker.io/library/app@" + digest("b"), "quay.io/x/app@" + digest("c")}}
	for _, tt := range []struct {
		img        Image
		name, want string
	}{
		{many, "quay.io/x/app:v1", "quay.io/x/app@" + digest("c")},
		{many, "app", "docker.io/library/app@" + digest("a")},
		{many, "app:1@" + digest("b"), "docker.io/library/app@" + digest("b")},
		{many, digest("f"), "docker.io/library/app@" + digest("a")},
		{many, "quay.io/x/ap", "docker.io/library/app@" + digest("a")},
		{Image{ID: digest("f")}, "localhost/app", digest("f")},
	} {
		if got := tt.img.Digested(tt.name); got != tt.want {
			t.Errorf("%.30s is %s, want %s", tt.name, got, tt.want)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, ref := range []string{"busybox", "a.b:1/c/d:e@sha256:" + strings.Repeat("0", 64), "[::1]/x", "sha256:" + strings.Repeat("a", 64)} {
		f.Add(ref)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		named, err := parseReference(ref)
		if err != nil {
			return
		}
		again, err := parseReference(named.String())
		if err != nil || again.String() != named.String() || selector(named) == "" {
			t.Fatalf("%q is %s, and that is %v, %v", ref, named, again, err)
		}
	})
}

func TestGetOfNonsense(t *testing.T) {
	s := open(t, t.TempDir())
	for ref, want := range map[string]error{
		"": ErrInvalidReference, "A B": ErrInvalidReference, "absent": ErrNotFound, strings.Repeat("a", 64): ErrNotFound,
		"sha256:" + strings.Repeat("a", 64): ErrNotFound, "abcdefabcdef": ErrNotFound, "sha256:abcdefabcdef": ErrNotFound,
	} {
		if _, err := s.Get(ref); !errors.Is(err, want) {
			t.Errorf("Get(%q) = %v, want %v", ref, err, want)
		}
	}
	if err := s.Remove("absent"); err != nil {
		t.Error(err)
	}
}
