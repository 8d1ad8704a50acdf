package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// criTools is the release of critest whose specs known-failures.txt names.
const criTools = "sigs.k8s.io/cri-tools@v1.37.0"

// tools are the files that a run needs and that the next one finds again.
type tools struct {
	critest  string
	guest    []byte // the program of package guest
	busybox  busybox
	registry string // the binary of Debian's docker-registry
}

// prepare installs and builds what is missing.
func prepare(ctx context.Context, cache string) (tools, error) {
	var t tools
	dir, err := toolsDir(cache)
	if err != nil {
		return t, err
	}
	t.critest = filepath.Join(dir, "critest")
	if err := buildCriTools(ctx, dir); err != nil {
		return t, err
	}
	guest := filepath.Join(dir, "guest")
	if err := command(ctx, "", "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", guest, "./guest"); err != nil {
		return t, err
	}
	if t.guest, err = os.ReadFile(guest); err != nil {
		return t, err
	}
	busybox := filepath.Join(dir, "busybox")
	if err := fetchBusybox(ctx, busybox); err != nil {
		return t, err
	}
	if t.busybox, err = readBusybox(busybox); err != nil {
		return t, err
	}
	t.registry, err = installed(ctx, "docker-registry", "docker-registry")
	if err != nil {
		return t, err
	}
	return t, installHelpers(ctx)
}

// toolsDir makes the directory of this release's programs.
func toolsDir(cache string) (string, error) {
	dir := filepath.Join(cache, strings.ReplaceAll(filepath.Base(criTools), "@", "-"))
	return dir, os.MkdirAll(dir, 0o755)
}

// installHelpers has what specs run on the node: those of HostIPC make a
// segment of shared memory, those of AppArmor load profiles.
func installHelpers(ctx context.Context) error {
	needs := map[string]string{"ipcmk": "util-linux"}
	// "N" or no file where the kernel has it off; the specs are skipped then.
	if on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); strings.HasPrefix(string(on), "Y") {
		needs["apparmor_parser"], needs["sudo"] = "apparmor", "sudo"
	}
	for program, pkg := range needs {
		if _, err := installed(ctx, program, pkg); err != nil {
			return err
		}
	}
	return nil
}

// buildCriTools builds critest and crictl as their own Makefile does, with the
// versions of their own go.mod, not ours.
func buildCriTools(ctx context.Context, dir string) error {
	critest, ginkgo := filepath.Join(dir, "critest"), filepath.Join(dir, "ginkgo")
	if _, err := buildCrictl(ctx, dir); err != nil || exists(critest) && exists(ginkgo) {
		return err
	}
	module, version, err := downloadCriTools(ctx)
	if err != nil {
		return err
	}
	// critest runs its specs in parallel by this program.
	if err := command(ctx, module, "go", "build", "-trimpath", "-o", ginkgo, "github.com/onsi/ginkgo/v2/ginkgo"); err != nil {
		return err
	}
	return command(ctx, module, "go", "test", "-c", "-trimpath", "-ldflags", version, "-o", critest, "./cmd/critest")
}

// buildCrictl builds crictl alone and gives its path.
func buildCrictl(ctx context.Context, dir string) (string, error) {
	crictl := filepath.Join(dir, "crictl")
	if exists(crictl) {
		return crictl, nil
	}
	module, version, err := downloadCriTools(ctx)
	if err != nil {
		return "", err
	}
	return crictl, command(ctx, module, "go", "build", "-trimpath", "-ldflags", version, "-o", crictl, "./cmd/crictl")
}

// downloadCriTools gives the directory of the module and the linker's flags
// that tell its programs their version.
func downloadCriTools(ctx context.Context) (dir, version string, err error) {
	fmt.Fprintln(os.Stderr, "building programs of", criTools)
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", criTools)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", "", fmt.Errorf("download %s: %w", criTools, err)
	}
	var module struct{ Dir, Version string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", "", fmt.Errorf("download %s: %w", criTools, err)
	}
	return module.Dir, "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=" + strings.TrimPrefix(module.Version, "v"), nil
}

// installed finds a program, after installing its package if need be.
func installed(ctx context.Context, program, pkg string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	if err := command(ctx, "", "../../hack/need.sh", program+":"+pkg); err != nil {
		return "", err
	}
	return exec.LookPath(program)
}

// command runs a program that is silent unless it fails.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "DEBIAN_FRONTEND=noninteractive")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out.Bytes())
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
