package main

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/longshore/longshore"

// mayImport is the architecture: beside the standard library and what lies
// below itself, a part imports only what its line lists. It is a statement of
// policy: change ARCHITECTURE.md in the same commit.
var mayImport = map[string][]string{
	".": {"engine", "cri", "images", "cni", "internal", "shim/client", // wires the parts
		"google.golang.org/grpc", "google.golang.org/protobuf", "github.com/pelletier/go-toml", "golang.org/x/sys", "k8s.io/klog/v2"},
	"cri": {"engine", "images", "internal", "k8s.io/cri-api", "k8s.io/cri-streaming", "k8s.io/streaming", "google.golang.org/grpc", "google.golang.org/protobuf", "golang.org/x/net/websocket", "golang.org/x/sys"},
	"engine": {"shim/api", "shim/client", "images", "cni", "internal", "golang.org/x/sys",
		"github.com/opencontainers/runtime-spec", "github.com/opencontainers/runtime-tools", "github.com/moby/profiles/seccomp", "github.com/moby/sys/user",
		"github.com/containerd/nri/pkg/api", "github.com/containerd/nri/pkg/runtime-tools/generate", "tags.cncf.io/container-device-interface/pkg/cdi"},
	"engine/criu": {"internal", "golang.org/x/sys", "github.com/checkpoint-restore/go-criu/v7/rpc", "google.golang.org/protobuf/proto"},
	"engine/nri":  {"github.com/containerd/nri", "github.com/containerd/ttrpc", "google.golang.org/protobuf/proto", "github.com/sirupsen/logrus"},
	"images": {"internal", "golang.org/x/sys", "github.com/opencontainers/image-spec", "github.com/opencontainers/go-digest",
		"github.com/distribution/reference", "github.com/klauspost/compress"},
	"cni": {"internal", "golang.org/x/sys", "github.com/containernetworking/cni", "github.com/vishvananda/netlink",
		"github.com/vishvananda/netns", "github.com/google/nftables"},
	// One process per container: it links little, and neither grpc nor k8s.
	"shim":        {"cni", "internal", "golang.org/x/sys", "github.com/opencontainers/runtime-spec"},
	"shim/netdev": {"cni/dump", "internal", "golang.org/x/sys", "github.com/opencontainers/runtime-spec", "github.com/vishvananda/netlink", "github.com/vishvananda/netns"},
	"shim/api":    {"internal"},
	"shim/client": {"shim/api", "internal", "golang.org/x/sys", "github.com/containerd/ttrpc", "google.golang.org/protobuf", "google.golang.org/grpc/status"},
	"internal":    {"golang.org/x/sys", "github.com/opencontainers/runtime-spec"},
	"hack":        {"images/archive", "k8s.io/cri-api", "google.golang.org/grpc", "golang.org/x/sys", "github.com/opencontainers/image-spec"},
}

// part gives the longest line of the table that covers dir.
func part(dir string) string {
	for dir != "." {
		if _, ok := mayImport[dir]; ok {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return "."
}

func allowed(from, path string) bool {
	if path == from || from != "." && strings.HasPrefix(path, from+"/") {
		return true
	}
	for _, ok := range mayImport[from] {
		if path == ok || strings.HasPrefix(path, ok+"/") {
			return true
		}
	}
	return false
}

// TestPartsImportOnlyWhatTheyMay reads the sources itself: the test cache does
// not see what a subprocess reads.
func TestPartsImportOnlyWhatTheyMay(t *testing.T) {
	for dir, files := range goFiles(t) {
		from := part(dir)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range f.Imports {
				path, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				inside, ours := strings.CutPrefix(path, module+"/")
				if !ours && !strings.Contains(strings.SplitN(path, "/", 2)[0], ".") {
					continue // standard library
				}
				if !allowed(from, inside) {
					t.Errorf("%s imports %s, which part %q may not", file, path, from)
				}
			}
		}
	}
}
