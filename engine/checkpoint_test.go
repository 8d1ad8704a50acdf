package engine

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/longshore/longshore/internal/cgroup"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestOuterMounts(t *testing.T) {
	const mountinfo = `100 90 0:50 / / rw - overlay overlay rw
101 100 0:51 / /proc rw - proc proc rw
102 101 0:5 /null /proc/kcore rw - devtmpfs udev rw
103 101 0:51 /sys /proc/sys ro - proc proc rw
104 100 8:1 /pods/p/hosts /etc/hosts rw - ext4 /dev/vda rw
105 100 8:1 /data /run/my\040data rw - ext4 /dev/vda rw
106 105 0:60 / /run/my\040data/below rw - tmpfs tmpfs rw
107 100 0:52 / /sys ro - sysfs sysfs rw
108 107 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw
109 100 0:53 / /dev rw - tmpfs tmpfs rw
`
	path := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(path, []byte(mountinfo), 0o600); err != nil {
		t.Fatal(err)
	}
	lines, err := readMounts(path)
	if err != nil {
		t.Fatal(err)
	}
	named := map[int]specs.Mount{104: {Destination: "/etc/hosts"}, 105: {Destination: "/var/run/my data"}, 108: {Destination: "/sys/fs/cgroup", Type: "cgroup"}}
	got := outerMounts(lines, named)
	want := []outerMount{
		{Path: "/proc/kcore", Name: "/proc/kcore", Kind: mountMask},
		{Path: "/etc/hosts", Name: "/etc/hosts", Kind: mountOfSpec},
		{Path: "/run/my data", Name: "/var/run/my data", Kind: mountOfSpec},
		{Path: "/run/my data/below", Name: "/var/run/my data/below", Kind: mountOfSpec, Sub: "/below"},
		{Path: "/sys/fs/cgroup", Name: "/sys/fs/cgroup", Kind: mountCgroup},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestExternalRefusesWhatCriuWouldMisread(t *testing.T) {
	for _, path := range []string{"/a]b", "/a:b", "/a/sub"} {
		s := surroundings{Mounts: []outerMount{{Path: path, Name: "/a", Sub: strings.TrimPrefix(path, "/a")}}}
		if _, err := s.external(); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add("100 90 0:50 / / rw shared:1 - overlay overlay rw")
	f.Fuzz(func(_ *testing.T, line string) { _, _ = parseMount(line) })
}

// needsRoot skips a test that makes device nodes and trusted attributes.
func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if strings.Contains(os.Getenv("REQUIRE"), "root") {
		t.Fatal("this test needs root, and REQUIRE says that it has it")
	}
	t.Skip("needs root: makes whiteouts")
}

// changedLayer makes the upper and the lower layer of a container that has
// changed much.
func changedLayer(t *testing.T) (upper, lower string) {
	t.Helper()
	dir := t.TempDir()
	upper, lower = filepath.Join(dir, "upper"), filepath.Join(dir, "lower")
	for _, d := range []string{"upper/new", "upper/again", "lower/again/old", "lower/gone", "lower/etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"upper/new/file": "text", "lower/again/kept": "below", "upper/again/kept": "above", "lower/gone/x": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Symlink("/etc/passwd", filepath.Join(upper, "link")),
		os.Link(filepath.Join(upper, "new/file"), filepath.Join(upper, "new/second")),
		unix.Mknod(filepath.Join(upper, "gone"), unix.S_IFCHR, 0),
		unix.Setxattr(filepath.Join(upper, "again"), "trusted.overlay.opaque", []byte("y"), 0),
		unix.Mkfifo(filepath.Join(upper, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return upper, lower
}

func TestDiffHoldsWhatChanged(t *testing.T) {
	needsRoot(t)
	upper, lower := changedLayer(t)
	dir := t.TempDir()
	to, deleted := filepath.Join(dir, "diff.tar"), filepath.Join(dir, "deleted")
	if err := writeDiff(context.Background(), upper, []string{lower}, to, deleted); err != nil {
		t.Fatal(err)
	}
	want := []string{"again/", "again/kept=above", "fifo", "link->/etc/passwd", "new/", "new/file=text", "new/second->new/file"}
	if got := members(t, to); !slices.Equal(got, want) {
		t.Errorf("archive has %q, want %q", got, want)
	}
	got, err := os.ReadFile(deleted)
	if err != nil || string(got) != `["again/old","gone"]` {
		t.Errorf("deleted: %s, %v", got, err)
	}
}

func members(t *testing.T, path string) []string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []string
	for r := tar.NewReader(f); ; {
		hdr, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		text := hdr.Name
		if hdr.Linkname != "" {
			text += "->" + hdr.Linkname
		}
		if hdr.Size > 0 {
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			text += "=" + string(data)
		}
		for key := range hdr.PAXRecords {
			if strings.Contains(key, "overlay") {
				t.Errorf("%s has %s", hdr.Name, key)
			}
		}
		all = append(all, text)
	}
}

func TestDiffEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	dir := t.TempDir()
	err := writeDiff(ctx, t.TempDir(), nil, filepath.Join(dir, "diff.tar"), filepath.Join(dir, "deleted"))
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestCaptureIsRememberedUntilTheCheckpointIs: a daemon that dies after the
// containers go on leaves files that the next one has to know of.
func TestCaptureIsRememberedUntilTheCheckpointIs(t *testing.T) {
	e := &Engine{cfg: Config{RunDir: t.TempDir()}, cgroups: &cgroup.Host{}, log: slog.New(slog.DiscardHandler)}
	written := filepath.Join(t.TempDir(), "containers")
	frozen := newContainer(Container{ID: "frozen", CgroupPath: "/frozen", State: ContainerRunning, Capture: &Capture{Dirs: []string{written}, Discard: []string{written}}})
	targets := []capture{{c: frozen, dir: written}}
	for _, dir := range []string{written, e.cfg.containerDir("frozen")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.forgetCapture(targets); err != nil || frozen.snapshot().Capture == nil {
		t.Fatalf("one that stands still is forgotten: %v", err)
	}
	if err := e.thaw(targets); err != nil {
		t.Fatal(err)
	}
	rec, err := readContainer(e.cfg.containerDir("frozen"))
	if err != nil || rec.Capture == nil || len(rec.Capture.Dirs) > 0 || !slices.Equal(rec.Capture.Discard, []string{written}) {
		t.Fatalf("once it goes on the record has %+v, %v", rec.Capture, err)
	}
	e.thawRecorded(newContainer(rec)) // by the next daemon
	if _, err := os.Stat(written); err == nil {
		t.Error("what was being written is left")
	}
	if rec, err = readContainer(e.cfg.containerDir("frozen")); err != nil || rec.Capture != nil {
		t.Errorf("in the end the record has %+v, %v", rec.Capture, err)
	}
}

func TestCanRestore(t *testing.T) {
	own := Security{Namespaces: Namespaces{PID: ModeContainer}}
	for name, c := range map[string]struct {
		handler Handler
		pod     PodConfig
		cfg     ContainerConfig
		ok      bool
	}{
		"another runtime":  {handler: Handler{RuntimeType: "io.containerd.kata.v2"}, cfg: ContainerConfig{Security: own}},
		"plain":            {cfg: ContainerConfig{Security: own}, ok: true},
		"terminal":         {cfg: ContainerConfig{Security: own, TTY: true}, ok: true},
		"user namespace":   {pod: PodConfig{Namespaces: Namespaces{User: &UserMap{}}}, cfg: ContainerConfig{Security: own}},
		"pod's pids":       {pod: PodConfig{Namespaces: Namespaces{PID: ModePod}}, cfg: ContainerConfig{Security: Security{Namespaces: Namespaces{PID: ModePod}}}, ok: true},
		"node's, by pod":   {pod: PodConfig{Namespaces: Namespaces{PID: ModeHost}}, cfg: ContainerConfig{Security: Security{Namespaces: Namespaces{PID: ModePod}}}},
		"pod's, not there": {pod: PodConfig{Namespaces: Namespaces{PID: ModeContainer}}, cfg: ContainerConfig{Security: Security{Namespaces: Namespaces{PID: ModePod}}}, ok: true},
		"node's pids":      {cfg: ContainerConfig{Security: Security{Namespaces: Namespaces{PID: ModeHost}}}},
		"another's pids":   {cfg: ContainerConfig{Security: Security{Namespaces: Namespaces{PID: ModeTarget}}}},
	} {
		if err := canRestore(&c.handler, &c.pod, &c.cfg); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
