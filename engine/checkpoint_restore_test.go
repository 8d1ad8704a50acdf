package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"github.com/longshore/longshore/engine/criu"
	"github.com/longshore/longshore/shim/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// checkpointDir makes a directory with files.
func checkpointDir(t *testing.T, files map[string]string) *os.Root {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func TestDiffIsApplied(t *testing.T) {
	needsRoot(t)
	upper, lower := changedLayer(t)
	dir := t.TempDir()
	err := writeDiff(context.Background(), upper, []string{lower}, filepath.Join(dir, rootfsDiff), filepath.Join(dir, deletedFiles))
	if err != nil {
		t.Fatal(err)
	}
	from, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	again := t.TempDir()
	if err := applyDiff(context.Background(), from, again, []string{lower}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"new/file": "text", "new/second": "text", "again/kept": "above"} {
		if got, err := os.ReadFile(filepath.Join(again, name)); string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"gone", "again/old"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(again, name), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("%s is no whiteout: %v", name, err)
		}
	}
}

func TestHostileCheckpoints(t *testing.T) {
	ctx := context.Background()
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	from := checkpointDir(t, map[string]string{"checkpoint/core-1.img": "x"})
	for name, err := range map[string]error{
		"link": os.Symlink(outside, filepath.Join(from.Name(), "checkpoint/link.img")),
		"fifo": unix.Mkfifo(filepath.Join(from.Name(), "checkpoint/fifo.img"), 0o600),
		"diff": os.Symlink(outside, filepath.Join(from.Name(), rootfsDiff)),
	} {
		if err != nil {
			t.Fatal(name, err)
		}
	}
	to := filepath.Join(t.TempDir(), "images")
	if err := copyImages(ctx, from, to); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(to); len(entries) != 1 || entries[0].Name() != "core-1.img" {
		t.Errorf("copied %v", entries)
	}
	if err := applyDiff(ctx, from, t.TempDir(), nil); err == nil {
		t.Error("a diff outside of the checkpoint was applied")
	}
	for _, text := range []string{`["../../etc/passwd"]`, `["/a/b/"]`} {
		names, err := readDeleted(checkpointDir(t, map[string]string{deletedFiles: text}))
		if err != nil || len(names) != 1 || strings.HasPrefix(names[0], "/") || strings.Contains(names[0], "..") {
			t.Errorf("%s: %q, %v", text, names, err)
		}
	}
	for _, text := range []string{`["/"]`, `["a\u0000b"]`, `{}`, `[""]`} {
		if names, err := readDeleted(checkpointDir(t, map[string]string{deletedFiles: text})); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %q, %v", text, names, err)
		}
	}
}

// aRestoration is of a container with one of each kind of mount.
func aRestoration() *restoration {
	return &restoration{rec: &Container{CgroupPath: "/pods/c"}, bundle: "/run/c", spec: &specs.Spec{
		Process: &specs.Process{SelinuxLabel: "u:r:t:s0:c1,c2"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc"},
			{Destination: "/etc/hosts", Type: "bind", Source: "/pod/hosts"},
			{Destination: "/volume", Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/a:/b"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup"},
		},
		Linux: &specs.Linux{MountLabel: "u:o:f:s0:c1,c2", MaskedPaths: []string{"/proc/kcore"}, Namespaces: []specs.LinuxNamespace{
			{Type: specs.NetworkNamespace, Path: "/pod/net"}, {Type: specs.UTSNamespace, Path: "/pod/uts"}, {Type: specs.CgroupNamespace}}},
	}}
}

func TestRestoreGivesWhatIsTheNodes(t *testing.T) {
	r := aRestoration()
	from := checkpointDir(t, map[string]string{"checkpoint/descriptors.json": `["file[1a:4]", "pipe:[7]", "pipe:[8]", "/x"]`})
	if err := r.read(from); err != nil {
		t.Fatal(err)
	}
	got, options, err := r.request(criu.New("criu", t.TempDir()), "/images", &api.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/l"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"external mnt[/etc/hosts]:/pod/hosts", "external mnt[/volume]:/run/c/outer/1", "external mnt[/sys/fs/cgroup]:/run/c/outer/2",
		"external mnt[/proc/kcore]:/dev/null", "inherit fd[7]:extRootNetNS",
		"inherit fd[3]:file[1a:4]", "inherit fd[5]:pipe:[7]", "inherit fd[6]:pipe:[8]", "join uts:/pod/uts",
		"label selinux:u:r:t:s0:c1,c2 u:o:f:s0:c1,c2",
	}
	if told := told(t, options); !slices.Equal(told, want) {
		t.Errorf("criu is told %q", told)
	}
	if !got.NewCgroup || got.NetNS != "/pod/net" || got.Cgroup != "/pods/c" {
		t.Errorf("%+v", got)
	}
	mounts := []api.RestoreMount{
		{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/l"}, Target: "/run/c/root"},
		{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/a:/b", "context=u:o:f:s0:c1,c2"}, Target: "/run/c/outer/1"},
		{Type: "cgroup2", Source: "cgroup2", Target: "/run/c/outer/2"},
	}
	if !reflect.DeepEqual(got.Mounts, mounts) {
		t.Errorf("mounts %+v", got.Mounts)
	}
}

// told reads the options for criu that name what is the node's.
func told(t *testing.T, options []byte) (all []string) {
	t.Helper()
	var opts rpc.CriuOpts
	if err := (proto.UnmarshalOptions{AllowPartial: true}).Unmarshal(options, &opts); err != nil {
		t.Fatal(err)
	}
	for _, e := range opts.GetExternal() {
		all = append(all, "external "+e)
	}
	for _, i := range opts.GetInheritFd() {
		all = append(all, fmt.Sprintf("inherit fd[%d]:%s", i.GetFd(), i.GetKey()))
	}
	for _, j := range opts.GetJoinNs() {
		all = append(all, "join "+j.GetNs()+":"+j.GetNsFile())
	}
	if opts.LsmProfile != nil {
		all = append(all, "label "+opts.GetLsmProfile()+" "+opts.GetLsmMountContext())
	}
	return all
}

func TestMountsMustBeTheCheckpoints(t *testing.T) {
	all := `{"path": "/etc/hosts", "name": "/etc/hosts", "kind": "spec"}, {"path": "/volume", "name": "/volume", "kind": "spec"}`
	for name, c := range map[string]struct{ mounts, want string }{
		"one lacks":     {`{"path": "/volume", "name": "/volume", "kind": "spec"}`, "no mount at /etc/hosts"},
		"one more":      {all + `, {"path": "/old", "name": "/old", "kind": "spec"}`, "a mount at \"/old\""},
		"unknown":       {all + `, {"path": "/x", "name": "/x", "kind": "host"}`, "kind \"host\""},
		"another name":  {all + `, {"path": "/x", "name": "/x]:/etc", "kind": "mask"}`, "mount named"},
		"relative name": {all + `, {"path": "/x", "name": "x", "kind": "mask"}`, "mount named"},
	} {
		r := aRestoration()
		err := r.read(checkpointDir(t, map[string]string{mountsDump: `{"mounts": [` + c.mounts + `]}`}))
		if err == nil {
			_, _, err = r.request(criu.New("criu", t.TempDir()), "/images", &api.Mount{})
		}
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSharedPidsMustBeTheCheckpoints(t *testing.T) {
	const mounts = `"mounts": [{"path": "/etc/hosts", "name": "/etc/hosts", "kind": "spec"}, {"path": "/volume", "name": "/volume", "kind": "spec"}]`
	r := aRestoration()
	shared := checkpointDir(t, map[string]string{mountsDump: `{"sharedPids": true, ` + mounts + `}`})
	if err := r.read(shared); !errors.Is(err, ErrInvalid) {
		t.Errorf("the container has process ids of its own: %v", err)
	}
	r.spec.Linux.Namespaces = append(r.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: "/pod/pid"})
	if err := r.read(checkpointDir(t, map[string]string{mountsDump: `{` + mounts + `}`})); !errors.Is(err, ErrInvalid) {
		t.Errorf("the checkpoint has process ids of its own: %v", err)
	}
	if err := r.read(shared); err != nil {
		t.Fatal(err)
	}
	got, options, err := r.request(criu.New("criu", t.TempDir()), "/images", &api.Mount{})
	if err != nil {
		t.Fatal(err)
	}
	if told := told(t, options); got.PIDNS != "/pod/pid" || !slices.Contains(told, "inherit fd[9]:extRootPidNS") {
		t.Errorf("criu is told %q, and has %q", told, got.PIDNS)
	}
}

func FuzzRestoration(f *testing.F) {
	f.Add(`["file[1a:4]", "pipe:[7]"]`, `{"mounts": [{"path": "/etc/hosts", "name": "/etc/hosts", "kind": "spec"}]}`)
	f.Fuzz(func(t *testing.T, streams, mounts string) {
		r := aRestoration()
		if r.read(checkpointDir(t, map[string]string{"checkpoint/descriptors.json": streams, mountsDump: mounts})) != nil {
			return
		}
		_, options, err := r.request(criu.New("criu", t.TempDir()), "/images", &api.Mount{})
		if err != nil {
			return
		}
		known := []string{"/dev/null", "/pod/hosts", "/run/c/outer/"}
		for _, arg := range told(t, options) {
			_, source, ok := strings.Cut(arg, "]:")
			if !ok || !strings.HasPrefix(arg, "external ") {
				continue
			}
			if !slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(source, k) }) {
				t.Errorf("a checkpoint chose the source of %s", arg)
			}
		}
	})
}

func TestMatchNamesTheDifference(t *testing.T) {
	saved := ContainerConfig{Name: "a", Image: "i", Args: []string{"x"}, Env: []EnvVar{{Name: "K", Value: []byte("v")}}}
	for name, c := range map[string]struct {
		change func(*ContainerConfig)
		want   string
	}{
		"same":        {func(*ContainerConfig) {}, ""},
		"no list":     {func(c *ContainerConfig) { c.Command = []string{} }, ""},
		"labels":      {func(c *ContainerConfig) { c.Labels = map[string]string{"a": "b"} }, ""},
		"image":       {func(c *ContainerConfig) { c.Image = "j" }, "another image"},
		"args":        {func(c *ContainerConfig) { c.Args = nil }, "another args"},
		"environment": {func(c *ContainerConfig) { c.Env = nil }, "another environment"},
		"user":        {func(c *ContainerConfig) { u := int64(1); c.Security.RunAsUser = &u }, "another user"},
		"policy":      {func(c *ContainerConfig) { c.Security.StrictGroups = true }, "another supplemental groups policy"},
		"name":        {func(c *ContainerConfig) { c.Name = "b" }, `no container "b"`},
	} {
		dump := podDump{Containers: []dumpedMember{{Dir: "0", Config: saved}}}
		wanted := saved
		c.change(&wanted)
		got, err := dump.match("/from", PodConfig{}, []ContainerConfig{wanted})
		if c.want == "" {
			if err != nil || got[0].Restore != "/from/containers/0" {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	dump := podDump{Containers: []dumpedMember{{Dir: "../x", Config: saved}}}
	if _, err := dump.match("/from", PodConfig{}, []ContainerConfig{saved}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a directory outside: %v", err)
	}
}
