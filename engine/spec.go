package engine

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/longshore/longshore/images"
	"github.com/longshore/longshore/internal/atomicfile"
	"github.com/longshore/longshore/shim/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/generate"
	"golang.org/x/sys/unix"
)

// SpecInput is everything that a container's OCI specification depends on, so
// that [BuildSpec] can be a pure function.
type SpecInput struct {
	ID         string
	Pod        PodConfig
	PodDir     string // pins and files of the pod
	Config     ContainerConfig
	Image      ImageConfig
	User       User
	CgroupPath string
	TargetPid  int    // of the container whose pid namespace is shared, with ModeTarget
	Hostname   string // of the node

	HostCapabilities []string
	HostDevices      []specs.LinuxDevice // of a privileged container
	Devices          []specs.LinuxDevice // asked for, resolved on the host
	DeviceRules      []specs.LinuxDeviceCgroup
	ImageMounts      map[string][]string // container path -> directories of an image, topmost first
	ImageIDs         map[string]string   // container path -> id of the image mounted there
	Seccomp          *specs.LinuxSeccomp // of a localhost profile
	SeccompDefault   string
	AppArmor         bool // the kernel has it
	SELinux          bool
}

// ImageConfig is what of an image shapes a container.
type ImageConfig struct {
	Entrypoint []string
	Cmd        []string
	Env        []string
	WorkingDir string
	User       string
	StopSignal string
	Volumes    []string
}

// defaultPath is PATH where the image says nothing.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// BuildSpec makes a container's OCI specification.
func BuildSpec(in *SpecInput) (*specs.Spec, error) {
	args, err := arguments(&in.Config, &in.Image)
	if err != nil {
		return nil, err
	}
	cfg, sec := &in.Config, &in.Config.Security
	spec := &specs.Spec{
		Version:     specs.Version,
		Hostname:    "", // the pod's, by its namespace
		Root:        &specs.Root{Path: "rootfs", Readonly: sec.ReadOnlyRootfs},
		Annotations: map[string]string{},
		Linux: &specs.Linux{
			CgroupsPath:   in.CgroupPath,
			Resources:     linuxResources(cfg.Resources),
			MaskedPaths:   sec.MaskedPaths,
			ReadonlyPaths: sec.ReadonlyPaths,
		},
	}
	g := generate.Generator{Config: spec}
	g.SetProcessArgs(args)
	g.SetProcessTerminal(cfg.TTY)
	g.SetProcessCwd(workingDir(cfg, &in.Image))
	spec.Process.Env = environment(in)
	spec.Process.User = specs.User{UID: in.User.UID, GID: in.User.GID, AdditionalGids: in.User.Groups}
	spec.Process.NoNewPrivileges = sec.NoNewPrivs
	if cfg.Resources != nil {
		adj := int(cfg.Resources.OOMScoreAdj)
		spec.Process.OOMScoreAdj = &adj
	}
	for _, add := range []func(*SpecInput, *specs.Spec) error{
		addNamespaces, addCapabilities, addMounts, addDevices, addSeccomp, addLabels,
	} {
		if err := add(in, spec); err != nil {
			return nil, err
		}
	}
	if sec.Privileged {
		spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = nil, nil
	}
	return spec, nil
}

// arguments joins command and arguments as Kubernetes defines: a command
// replaces the image's entrypoint and its arguments, arguments replace only
// the latter.
func arguments(cfg *ContainerConfig, img *ImageConfig) ([]string, error) {
	command, args := cfg.Command, cfg.Args
	if len(command) == 0 {
		command = img.Entrypoint
		if len(args) == 0 {
			args = img.Cmd
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: neither the container nor its image names a command", ErrInvalid)
	}
	return all, nil
}

func workingDir(cfg *ContainerConfig, img *ImageConfig) string {
	for _, dir := range []string{cfg.WorkingDir, img.WorkingDir} {
		if dir != "" {
			return dir
		}
	}
	return "/"
}

// environment is the image's, overridden by the container's.
func environment(in *SpecInput) []string {
	hostname := in.Pod.Hostname
	if hostname == "" {
		hostname = in.Hostname
	}
	env := []string{defaultPath, "HOSTNAME=" + hostname}
	if in.Config.TTY {
		env = append(env, "TERM=xterm")
	}
	put := func(entry string) {
		name, _, _ := strings.Cut(entry, "=")
		for i, old := range env {
			if strings.HasPrefix(old, name+"=") {
				env[i] = entry
				return
			}
		}
		env = append(env, entry)
	}
	for _, entry := range in.Image.Env {
		put(entry)
	}
	for _, v := range in.Config.Env {
		put(v.Name + "=" + string(v.Value))
	}
	return env
}

func addNamespaces(in *SpecInput, spec *specs.Spec) error {
	ns, pod := in.Config.Security.Namespaces, in.Pod.Namespaces
	pin := func(name string) string { return filepath.Join(in.PodDir, name) }
	add := func(kind specs.LinuxNamespaceType, path string) {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
	}
	if pod.User != nil {
		add(specs.UserNamespace, pin("user"))
		spec.Linux.UIDMappings, spec.Linux.GIDMappings = specMap(pod.User.UIDs), specMap(pod.User.GIDs)
	}
	add(specs.MountNamespace, "")
	add(specs.CgroupNamespace, "")
	pid := ns.PID
	if pid == ModePod {
		pid = pod.PID // what the pod was made with counts
	}
	switch pid {
	case ModePod:
		add(specs.PIDNamespace, pin("pid"))
	case ModeTarget:
		add(specs.PIDNamespace, fmt.Sprintf("/proc/%d/ns/pid", in.TargetPid))
	case ModeContainer, "":
		add(specs.PIDNamespace, "")
	}
	if pod.Network != ModeHost {
		add(specs.NetworkNamespace, pin("net"))
		add(specs.UTSNamespace, pin("uts"))
	}
	if pod.IPC != ModeHost {
		add(specs.IPCNamespace, pin("ipc"))
	}
	return nil
}

func specMap(maps []IDMap) []specs.LinuxIDMapping {
	out := make([]specs.LinuxIDMapping, 0, len(maps))
	for _, m := range maps {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.Container, HostID: m.Host, Size: m.Size})
	}
	return out
}

// prepare gathers what a container's specification depends on, and builds it.
func (e *Engine) prepare(p Pod, c *container) (*specs.Spec, *api.Mount, error) {
	cfg := c.snapshot().Config
	img, err := e.images.Get(cfg.Image)
	if err != nil {
		return nil, nil, err
	}
	if err := e.hold(c, img.Layers); err != nil {
		return nil, nil, err
	}
	lower, err := e.images.Rootfs(img)
	if err != nil {
		return nil, nil, err
	}
	imageConfig := configOf(&img)
	who, err := resolveUser(&cfg.Security, imageConfig.User, lower)
	if err != nil {
		return nil, nil, err
	}
	in := &SpecInput{ID: c.id, Pod: p.Config, PodDir: e.cfg.podDir(p.ID), Config: cfg, Image: imageConfig, User: who,
		CgroupPath: e.containerCgroup(p, c.id), Hostname: e.host.hostname, HostCapabilities: e.host.capabilities,
		SeccompDefault: e.cfg.SeccompDefault, AppArmor: e.host.appArmor, SELinux: e.host.seLinux}
	if err := e.resolveOnHost(in, c); err != nil {
		return nil, nil, err
	}
	stopSignal := cfg.StopSignal
	if stopSignal == "" {
		stopSignal = imageConfig.StopSignal
	}
	if _, err := ParseSignal(stopSignal); err != nil {
		stopSignal = "" // an image's nonsense does not keep it from running
	}
	logPath, err := e.logPath(&p.Config, &cfg)
	if err != nil {
		return nil, nil, err
	}
	spec, err := BuildSpec(in)
	if err != nil {
		return nil, nil, err
	}
	err = e.updateContainer(c, func(r *Container) {
		r.MountNotes = in.ImageIDs
		r.ImageID, r.ImageRef, r.User, r.StopSignal, r.LogPath, r.CgroupPath = img.ID, img.ID, who, stopSignal, logPath, in.CgroupPath
	})
	if err != nil {
		return nil, nil, err
	}
	rootfs, err := e.overlay(c.id, lower)
	return spec, rootfs, err
}

// hold keeps layers for a container, and records that it does.
func (e *Engine) hold(c *container, layers []string) error {
	if err := e.images.Hold(c.id, layers...); err != nil {
		return err
	}
	return e.updateContainer(c, func(r *Container) { r.Layers = append(slices.Clip(r.Layers), layers...) })
}

// configOf takes from an image's configuration what shapes a container.
func configOf(img *images.Image) ImageConfig {
	c := &img.Config.Config
	out := ImageConfig{Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, WorkingDir: c.WorkingDir, User: c.User, StopSignal: c.StopSignal}
	for path := range c.Volumes {
		out.Volumes = append(out.Volumes, path)
	}
	slices.Sort(out.Volumes)
	return out
}

// overlay makes a container's writable layer and gives its root file system.
// It is volatile: after a crash of the node the layer is thrown away with its
// container, so nothing is gained by the syncs that it saves.
func (e *Engine) overlay(id string, lower []string) (*api.Mount, error) {
	upper, work := filepath.Join(e.cfg.layerDir(id), "upper"), filepath.Join(e.cfg.layerDir(id), "work")
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	// Overlayfs shows the upper layer's root; it shall look like the image's.
	var st unix.Stat_t
	if err := unix.Stat(lower[0], &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: lower[0], Err: err}
	}
	if err := os.Chmod(upper, os.FileMode(st.Mode&0o777)); err != nil {
		return nil, err
	}
	if err := os.Chown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return nil, err
	}
	return &api.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + strings.Join(lower, ":"), "upperdir=" + upper, "workdir=" + work, "volatile"}}, nil
}

// logPath gives the absolute path of a container's log, "" for none.
func (e *Engine) logPath(pod *PodConfig, cfg *ContainerConfig) (string, error) {
	if pod.LogDir == "" || cfg.LogPath == "" {
		return "", nil
	}
	path := filepath.Join(pod.LogDir, cfg.LogPath)
	if !strings.HasPrefix(path, filepath.Clean(pod.LogDir)+"/") {
		return "", fmt.Errorf("%w: log path %q leaves the pod's log directory", ErrInvalid, cfg.LogPath)
	}
	return path, os.MkdirAll(filepath.Dir(path), 0o755)
}

// resolveOnHost looks up on the machine what the specification names.
func (e *Engine) resolveOnHost(in *SpecInput, c *container) error {
	sec := &in.Config.Security
	if sec.Namespaces.PID == ModeTarget {
		target, err := e.Container(sec.Namespaces.Target)
		if err != nil {
			return fmt.Errorf("container whose pid namespace is shared: %w", err)
		}
		if target.State != ContainerRunning {
			return fmt.Errorf("container %s, whose pid namespace is shared: %w: it is %s", target.ID, ErrState, target.State)
		}
		in.TargetPid = target.Pid
	}
	for _, m := range in.Config.Mounts {
		if m.Image != "" {
			if err := e.resolveImageMount(in, m, c); err != nil {
				return err
			}
			continue
		}
		if _, err := os.Stat(m.HostPath); err != nil {
			return fmt.Errorf("%w: source of mount %s: %w", ErrInvalid, m.ContainerPath, err)
		}
	}
	if err := resolveDevices(in); err != nil {
		return err
	}
	if p := sec.Seccomp; p.Kind == ProfileLocalhost && !sec.Privileged {
		profile, err := e.localhostSeccomp(p.Name)
		if err != nil {
			return err
		}
		in.Seccomp = profile
	}
	return nil
}

// resolveImageMount finds the directories of an image that is mounted, or of
// a directory in it.
func (e *Engine) resolveImageMount(in *SpecInput, m Mount, c *container) error {
	img, err := e.images.Get(m.Image)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.ContainerPath, err)
	}
	if err := e.hold(c, img.Layers); err != nil {
		return err
	}
	layers, err := e.images.Rootfs(img)
	if err != nil {
		return err
	}
	dirs, err := below(layers, m.ImageSubPath)
	if err != nil {
		return fmt.Errorf("mount %s: image %s: %w", m.ContainerPath, m.Image, err)
	}
	if in.ImageMounts == nil {
		in.ImageMounts, in.ImageIDs = map[string][]string{}, map[string]string{}
	}
	// An empty directory at the bottom makes it an overlay however few layers
	// there are, so that whiteouts never show.
	in.ImageMounts[m.ContainerPath] = append(dirs, e.cfg.emptyDir())
	in.ImageIDs[m.ContainerPath] = img.ID
	return nil
}

// below gives what the layers of an image, topmost first, hold at a directory
// in it. A layer that hides it from those below ends the list.
func below(layers []string, sub string) ([]string, error) {
	if sub = filepath.Clean("/" + sub); sub == "/" {
		return layers, nil
	}
	var dirs []string
	for _, layer := range layers {
		dir, opaque, err := subdirectory(layer, sub)
		if err != nil {
			return nil, err
		}
		if dir != "" {
			dirs = append(dirs, dir)
		}
		if opaque {
			break
		}
	}
	if len(dirs) == 0 {
		return nil, fmt.Errorf("%w: sub-path %q is not a directory of it", ErrInvalid, sub)
	}
	return dirs, nil
}

// subdirectory finds a directory in one layer, "" if it is not there, and
// whether the layer hides what others have at that place. A symbolic link is
// nothing to be followed: it may lead into another layer.
func subdirectory(layer, sub string) (dir string, opaque bool, err error) {
	dir = layer
	for _, part := range strings.Split(strings.Trim(sub, "/"), "/") {
		dir = filepath.Join(dir, part)
		var st unix.Stat_t
		err := unix.Lstat(dir, &st)
		switch {
		case err == unix.ENOENT:
			return "", opaque, nil
		case err != nil:
			return "", false, &os.PathError{Op: "lstat", Path: dir, Err: err}
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return "", true, nil
		}
		var mark [1]byte
		if n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", mark[:]); err == nil && n == 1 && mark[0] == 'y' {
			opaque = true
		}
	}
	return dir, opaque, nil
}

// localhostSeccomp reads a profile that the node's operator has put there.
func (e *Engine) localhostSeccomp(name string) (*specs.LinuxSeccomp, error) {
	path := strings.TrimPrefix(name, "localhost/")
	if !filepath.IsAbs(path) {
		path = filepath.Join(e.cfg.SeccompProfileDir, path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: seccomp profile: %w", ErrInvalid, err)
	}
	var profile specs.LinuxSeccomp
	if err := json.Unmarshal(data, &profile); err != nil {
		return nil, fmt.Errorf("%w: seccomp profile %s: %w", ErrInvalid, path, err)
	}
	return &profile, nil
}

// Spec gives a container's OCI specification.
func (e *Engine) Spec(id string) (*specs.Spec, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	return &spec, atomicfile.ReadJSON(filepath.Join(e.cfg.containerDir(c.id), configFile), &spec)
}
