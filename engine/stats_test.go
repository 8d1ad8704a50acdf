package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/longshore/longshore/internal/cgroup"
	"golang.org/x/sys/unix"
)

// statsEngine has one container, whose cgroup and layer are as they say.
func statsEngine(t *testing.T, state ContainerState, group, layer bool) *Engine {
	t.Helper()
	mount := t.TempDir()
	e := &Engine{cfg: Config{StateDir: t.TempDir()}, containers: map[string]*container{},
		cgroups: &cgroup.Host{Mode: cgroup.V2, Trees: []cgroup.Tree{{Mount: mount, Unified: true}}}}
	e.containers["c"] = newContainer(Container{ID: "c", State: state, CgroupPath: "/g"})
	if group {
		mkdir(t, filepath.Join(mount, "g"))
	}
	if layer {
		mkdir(t, filepath.Join(e.cfg.layerDir("c"), "upper"))
	}
	return e
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestVanishedContainersAreNotFound: a list leaves out what is not found, and
// fails for any other error.
func TestVanishedContainersAreNotFound(t *testing.T) {
	for name, e := range map[string]*Engine{
		"without a cgroup":                statsEngine(t, ContainerRunning, false, true),
		"without a layer":                 statsEngine(t, ContainerRunning, true, false),
		"that is removed, with no cgroup": statsEngine(t, ContainerRemoving, false, true),
	} {
		for what, ask := range map[string]func(string) (Usage, error){"usage": e.ContainerUsage, "details": e.ContainerDetails} {
			if _, err := ask("c"); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s of a container %s: %v", what, name, err)
			}
		}
	}
	u, err := statsEngine(t, ContainerExited, false, true).ContainerUsage("c")
	if err != nil || u.Layer == nil || u.Layer.Inodes != 1 {
		t.Errorf("of a container that has exited: %+v, %v", u.Layer, err)
	}
}

func TestDiskUsageCountsAFileOnce(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 64<<10)
	if err := os.WriteFile(filepath.Join(dir, "a"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	before, err := diskUsage(dir)
	if err != nil {
		t.Fatal(err)
	}
	mkdir(t, filepath.Join(dir, "sub"))
	for _, name := range []string{"b", "sub/c"} {
		if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	after, err := diskUsage(dir)
	if err != nil || after.Inodes != before.Inodes+1 || after.Bytes >= 2*before.Bytes {
		t.Errorf("%+v with two more names and a directory, %+v before, %v", after, before, err)
	}
}

// TestDiskUsageOutlivesDeepDirectories: a container may make what no path leads
// to, and the node's statistics do not fail for it.
func TestDiskUsageOutlivesDeepDirectories(t *testing.T) {
	dir := t.TempDir()
	at, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("d", 250)
	for range 20 {
		if err := unix.Mkdirat(at, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(at)
		if err != nil {
			t.Fatal(err)
		}
		at = next
	}
	unix.Close(at)
	if got, err := diskUsage(dir); err != nil || got.Inodes < 10 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestDiskMeterCountsAnewAfterSomeTime, and not before.
func TestDiskMeterCountsAnewAfterSomeTime(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var m diskMeter
		for _, step := range []struct {
			wait time.Duration
			want uint64
		}{{0, 1}, {diskAge / 2, 1}, {diskAge / 2, 3}, {diskAge, 4}} {
			time.Sleep(step.wait)
			got, err := m.of(dir)
			if err != nil || got.Inodes != step.want {
				t.Errorf("after %v: %+v, %v; want %d inodes", step.wait, got, err, step.want)
			}
			f, err := os.CreateTemp(dir, "")
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
	})
}

// TestPodUsageWithoutACgroup: a pod that has no process may have none.
func TestPodUsageWithoutACgroup(t *testing.T) {
	e := statsEngine(t, ContainerRunning, false, false)
	rec := Pod{ID: "p", Config: PodConfig{Namespaces: Namespaces{Network: ModeHost}, CgroupParent: "/none"}}
	e.pods = map[string]*pod{"p": {id: "p", rec: rec}}
	if u, err := e.PodUsage(context.Background(), "p"); err != nil || u.Time.IsZero() {
		t.Errorf("%+v, %v", u, err)
	}
}
