package engine

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/longshore/longshore/internal/pb"
	"github.com/longshore/longshore/shim/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestShimIsFoundByItsRuntimeType(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	for _, path := range []string{filepath.Join(dir, "containerd-shim-kata-qemu-v2"), filepath.Join(other, "containerd-shim-runsc-v1")} {
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", other)
	for runtimeType, want := range map[string]string{
		"io.containerd.kata-qemu.v2":                       filepath.Join(dir, "containerd-shim-kata-qemu-v2"),
		"io.containerd.runsc.v1":                           filepath.Join(other, "containerd-shim-runsc-v1"),
		filepath.Join(dir, "containerd-shim-kata-qemu-v2"): filepath.Join(dir, "containerd-shim-kata-qemu-v2"),
		"io.containerd.absent.v1":                          "",
		"/no/such/shim":                                    "",
		"kata":                                             "",
		"io.containerd.../../bin/sh.v1":                    "",
	} {
		h := Handler{RuntimeType: runtimeType}
		if got, err := h.shimPath([]string{dir}); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v, want %q", runtimeType, got, err, want)
		}
	}
}

func TestForeignContainersHaveThePodInTheirAnnotations(t *testing.T) {
	p := &Pod{ID: "p1", Config: PodConfig{PodKey: PodKey{Name: "web", Namespace: "shop", UID: "u1"},
		Annotations: map[string]string{"io.katacontainers.config.x": "1", "other": "2"}}}
	cfg := &ContainerConfig{Name: "app", Image: "sha256:1", UserImage: "app:v1"}
	h := Handler{RuntimeType: "io.containerd.runc.v2", Annotations: []string{"io.katacontainers.*"}}
	spec := &specs.Spec{}
	h.annotate(spec, p, "c1", cfg)
	want := map[string]string{
		"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "p1", "io.kubernetes.cri.sandbox-name": "web",
		"io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-uid": "u1", "io.kubernetes.cri.container-name": "app",
		"io.kubernetes.cri.image-name": "app:v1", "io.containerd.runc.v2.group": "c1", "io.katacontainers.config.x": "1",
	}
	if !maps.Equal(spec.Annotations, want) {
		t.Errorf("got %v, want %v", spec.Annotations, want)
	}
	own := &specs.Spec{}
	(&Handler{}).annotate(own, p, "c1", cfg)
	if len(own.Annotations) != 0 {
		t.Errorf("our own shim's container has %v", own.Annotations)
	}
}

// TestSandboxContainerIsOneForOthers: what makes the pods of other runtimes finds
// in the sandbox container what it does in containerd's.
func TestSandboxContainerIsOneForOthers(t *testing.T) {
	p := &Pod{ID: "p1", Sandboxed: true, Config: PodConfig{PodKey: PodKey{Name: "web", Namespace: "shop", UID: "u1"}, LogDir: "/logs",
		Namespaces: Namespaces{Network: ModePod, PID: ModePod, IPC: ModePod}}}
	spec, err := sandboxSpec(&SpecInput{ID: "p1", Pod: p.Config, PodDir: "/run/p1", CgroupPath: "/pods/p1"})
	if err != nil {
		t.Fatal(err)
	}
	h := Handler{RuntimeType: "io.containerd.runc.v2"}
	h.annotateSandbox(spec, p)
	want := map[string]string{
		"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "p1", "io.kubernetes.cri.sandbox-name": "web",
		"io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-uid": "u1",
		"io.kubernetes.cri.sandbox-log-directory": "/logs", "io.containerd.runc.v2.group": "p1",
	}
	if !maps.Equal(spec.Annotations, want) {
		t.Errorf("got %v, want %v", spec.Annotations, want)
	}
	namespaces := map[specs.LinuxNamespaceType]string{}
	for _, ns := range spec.Linux.Namespaces {
		namespaces[ns.Type] = ns.Path
	}
	if pid, ok := namespaces[specs.PIDNamespace]; !ok || pid != "" || namespaces[specs.NetworkNamespace] != "/run/p1/net" {
		t.Errorf("namespaces %v", namespaces)
	}
	if !spec.Root.Readonly || !spec.Process.NoNewPrivileges || len(spec.Process.Capabilities.Bounding) > 0 {
		t.Errorf("it may do more than wait: %+v", spec.Process)
	}
	for _, m := range spec.Mounts {
		if !slices.Contains(sandboxFiles, m.Destination) {
			t.Errorf("mount at %s, which its root does not have", m.Destination)
		}
	}
}

func TestOptionsAreNamedByTheRuntime(t *testing.T) {
	for runtimeType, want := range map[string]string{
		"io.containerd.runsc.v1": "io.containerd.runsc.v1.options", "/opt/containerd-shim-runsc-v1": "io.containerd.runsc.v1.options",
		"/opt/kata": "io.containerd.kata.options",
	} {
		if got := (&Handler{RuntimeType: runtimeType}).optionsType(); got != want {
			t.Errorf("%s: %s, want %s", runtimeType, got, want)
		}
	}
}

func TestForeignRootsSpreadMounts(t *testing.T) {
	for want, options := range map[string][]string{"": {"rprivate"}, "rslave": {"rprivate", "rslave"}, "rshared": {"rslave", "rshared", "rslave"}} {
		spec := &specs.Spec{Linux: &specs.Linux{}}
		for _, o := range options {
			spec.Mounts = append(spec.Mounts, specs.Mount{Options: []string{"rbind", o}})
		}
		(&Handler{}).spreadMounts(spec)
		if got := spec.Linux.RootfsPropagation; got != "" {
			t.Errorf("%q with our own shim: %q", options, got)
		}
		(&Handler{RuntimeType: "io.containerd.runc.v2"}).spreadMounts(spec)
		if got := spec.Linux.RootfsPropagation; got != want {
			t.Errorf("%q: %q, want %q", options, got, want)
		}
	}
}

func TestOptionsHaveTheRuntimesType(t *testing.T) {
	h := Handler{RuntimeType: "io.containerd.runc.v2", OCIRuntime: "/usr/bin/crun"}
	options := h.options("/run/x/runc")
	var runc runcOptions
	if err := pb.Unmarshal(options.Value, &runc); err != nil || options.TypeURL != "containerd.runc.v1.Options" || runc != (runcOptions{"/usr/bin/crun", "/run/x/runc"}) {
		t.Errorf("%s %+v, %v", options.TypeURL, runc, err)
	}
	h = Handler{RuntimeType: "io.containerd.kata.v2", ConfigPath: "/etc/kata.toml"}
	options = h.options("/run/x/runc")
	var generic genericOptions
	if err := pb.Unmarshal(options.Value, &generic); err != nil || options.TypeURL != "runtimeoptions.v1.Options" || generic.ConfigPath != "/etc/kata.toml" {
		t.Errorf("%s %+v, %v", options.TypeURL, generic, err)
	}
	if options := (&Handler{RuntimeType: "io.containerd.kata.v2"}).options("/run/x/runc"); options != nil {
		t.Errorf("%+v", options)
	}
}

func TestParseInfo(t *testing.T) {
	const features = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
	info := func(url, json string) []byte {
		return pb.Marshal(&runtimeInfo{Name: "x", Features: &api.Any{TypeURL: url, Value: []byte(json)}})
	}
	for name, test := range map[string]struct {
		out  []byte
		want bool
	}{
		"with rro":     {info(features, `{"mountOptions":["ro","rro"]}`), true},
		"without":      {info(features, `{"mountOptions":["ro"]}`), false},
		"another type": {info("x", `{"mountOptions":["rro"]}`), false},
		"not JSON":     {info(features, `{`), false},
		"not protobuf": {[]byte("usage: shim"), false},
		"nothing":      {nil, false},
	} {
		if got := parseInfo(test.out); got != (HandlerFeatures{RecursiveReadOnly: test.want}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzParseInfo(f *testing.F) {
	f.Add([]byte("usage: shim"))
	f.Fuzz(func(_ *testing.T, out []byte) { parseInfo(out) })
}

func TestHandlerGivesEachPodItsOwnUsers(t *testing.T) {
	e := &Engine{pods: map[string]*pod{}}
	e.handlers.byName = map[string]Handler{"": {}, "auto": {UserNamespaces: true}}
	give := func(cfg PodConfig) *UserMap {
		t.Helper()
		h, err := e.handler(cfg.Handler)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.giveUserNamespace(&h, &cfg); err != nil {
			t.Fatal(err)
		}
		id := newID()
		e.pods[id] = &pod{id: id, rec: Pod{Config: cfg}}
		return cfg.Namespaces.User
	}
	first, second := give(PodConfig{Handler: "auto"}), give(PodConfig{Handler: "auto"})
	if first == nil || second == nil || first.UIDs[0].Host == second.UIDs[0].Host || first.UIDs[0].Size != userIDs {
		t.Errorf("%+v, %+v", first, second)
	}
	for name, cfg := range map[string]PodConfig{
		"the default handler": {}, "a privileged pod": {Handler: "auto", Privileged: true},
		"the host's network": {Handler: "auto", Namespaces: Namespaces{Network: ModeHost}},
	} {
		if user := give(cfg); user != nil {
			t.Errorf("%s: %+v", name, user)
		}
	}
	asked := &UserMap{UIDs: []IDMap{{Host: 65536, Size: 65536}}}
	if user := give(PodConfig{Handler: "auto", Namespaces: Namespaces{User: asked}}); user != asked {
		t.Errorf("a pod that asked got %+v", user)
	}
}
