package engine

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/longshore/longshore/images"
	"github.com/longshore/longshore/shim/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// prepare gathers what a container's specification depends on, and builds it.
func (e *Engine) prepare(p Pod, c *container, h *Handler) (*specs.Spec, *api.Mount, error) {
	cfg := c.snapshot().Config
	img, lower, err := e.imageOf(c)
	if err != nil {
		return nil, nil, err
	}
	in := e.specInput(&p, c.id, h)
	in.Config = cfg
	if in.Image, err = imageConfig(&img, c.snapshot()); err != nil {
		return nil, nil, err
	}
	if in.User, err = resolveUser(&cfg.Security, in.Image.User, lower); err != nil {
		return nil, nil, err
	}
	if err := checkHugePages(e.cgroups, cfg.Resources); err != nil {
		return nil, nil, err
	}
	if in.SandboxPid, err = e.sandboxPid(&p); err != nil {
		return nil, nil, err
	}
	if err := e.resolveSELinux(in); err != nil {
		return nil, nil, err
	}
	if err := e.resolveOnHost(in, c); err != nil {
		return nil, nil, err
	}
	if err := e.resolveAppArmor(in); err != nil {
		return nil, nil, err
	}
	logPath, err := e.logPath(&p.Config, &cfg)
	if err != nil {
		return nil, nil, err
	}
	spec, err := e.specFor(in, &p, h)
	if err != nil {
		return nil, nil, err
	}
	err = e.updateContainer(c, func(r *Container) {
		// Kubelet asks by id; the user's words say of which repository.
		r.ImageID, r.ImageRef = img.ID, img.Digested(cmp.Or(cfg.UserImage, r.Base, cfg.Image))
		r.MountNotes, r.User, r.CgroupPath = in.ImageIDs, in.User, in.CgroupPath
		r.StopSignal, r.LogPath = stopSignal(&cfg, &in.Image), logPath
	})
	if err != nil {
		return nil, nil, err
	}
	rootfs, err := e.overlay(c.id, lower, p.Config.Namespaces.User)
	if err == nil {
		rootfs.Options = labelled(rootfs.Options, rootLabel(spec.Linux.MountLabel, h))
	}
	return spec, rootfs, err
}

// specInput is what a container's specification takes from its pod, its handler
// and the node.
func (e *Engine) specInput(p *Pod, id string, h *Handler) *SpecInput {
	return &SpecInput{ID: id, Pod: p.Config, PodDir: e.cfg.podDir(p.ID), CgroupPath: e.containerCgroup(*p, id), Hostname: e.host.hostname,
		HostCapabilities: e.host.capabilities, SeccompDefault: cmp.Or(h.Seccomp, e.cfg.SeccompDefault), SELinux: e.host.seLinux,
		HostCgroupNS: h.HostCgroupNamespace}
}

// imageOf finds a container's image, and keeps its layers: the directories that
// its root file system is made of.
func (e *Engine) imageOf(c *container) (img images.Image, lower []string, err error) {
	rec := c.snapshot()
	if img, err = e.images.Get(cmp.Or(rec.Base, rec.Config.Image)); err != nil {
		return img, nil, err
	}
	if err := e.hold(c, img.Layers); err != nil {
		return img, nil, err
	}
	lower, err = e.images.Rootfs(img)
	return img, lower, err
}

// imageConfig is what of an image shapes a container. A checkpoint in the place of
// an image knows what its program was.
func imageConfig(img *images.Image, rec Container) (cfg ImageConfig, err error) {
	cfg = configOf(img)
	if rec.Base != "" && len(rec.Config.Command)+len(rec.Config.Args) == 0 {
		cfg.Cmd = nil
		cfg.Entrypoint, err = savedCommand(rec.Restore)
	}
	return cfg, err
}

// stopSignal is the container's, or its image's; an image's nonsense does not
// keep it from running.
func stopSignal(cfg *ContainerConfig, image *ImageConfig) string {
	name := cmp.Or(cfg.StopSignal, image.StopSignal)
	if _, err := ParseSignal(name); err != nil {
		return ""
	}
	return name
}

// specFor builds a specification, with what the pod's handler and the devices
// of CDI add to it.
func (e *Engine) specFor(in *SpecInput, p *Pod, h *Handler) (*specs.Spec, error) {
	spec, err := BuildSpec(in)
	if err != nil {
		return nil, err
	}
	h.annotate(spec, p, in.ID, &in.Config)
	h.spreadMounts(spec)
	devices, err := CDIDevices(&in.Config)
	if err == nil {
		err = InjectCDI(spec, e.cfg.CDIDirs, devices)
	}
	return spec, err
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
func (e *Engine) overlay(id string, lower []string, users *UserMap) (*api.Mount, error) {
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
	uid, gid := int(st.Uid), int(st.Gid)
	if users != nil {
		uid, gid = hostID(users.UIDs, st.Uid), hostID(users.GIDs, st.Gid)
	}
	if err := os.Chown(upper, uid, gid); err != nil {
		return nil, err
	}
	options := []string{"lowerdir=" + strings.Join(lower, ":"), "upperdir=" + upper, "workdir=" + work, "volatile"}
	return &api.Mount{Type: "overlay", Source: "overlay", Options: append(options, layerOwners(users)...)}, nil
}

// layerOwners are the options by which an overlay shows what an image's user
// owns as a pod's user's: the layers on disk belong to the ids in the image.
func layerOwners(users *UserMap) []string {
	if users == nil {
		return nil
	}
	join := func(maps []IDMap) string {
		var parts []string
		for _, m := range maps {
			parts = append(parts, fmt.Sprintf("%d:%d:%d", m.Container, m.Host, m.Size))
		}
		return strings.Join(parts, ",")
	}
	return []string{"uidmap=" + join(users.UIDs), "gidmap=" + join(users.GIDs)}
}

// hostID gives what an id in a user namespace is outside; one that it does not
// map stays as it is, which is nobody's inside.
func hostID(maps []IDMap, id uint32) int {
	for _, m := range maps {
		if id >= m.Container && id-m.Container < m.Size {
			return int(m.Host + (id - m.Container))
		}
	}
	return int(id)
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
		if target.PodID != c.podID {
			return fmt.Errorf("%w: container %s, whose pid namespace is shared, is in another pod", ErrInvalid, target.ID)
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
		if !filepath.IsAbs(m.HostPath) {
			return fmt.Errorf("%w: source %q of mount %s is not absolute", ErrInvalid, m.HostPath, m.ContainerPath)
		}
		if _, err := os.Stat(m.HostPath); err != nil {
			return fmt.Errorf("%w: source of mount %s: %w", ErrInvalid, m.ContainerPath, err)
		}
		if m.Relabel && in.SELinux && !sec.Privileged {
			if err := relabel(m.HostPath, fileLabel(label(in))); err != nil {
				return fmt.Errorf("source of mount %s: %w", m.ContainerPath, err)
			}
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
	return e.readSpec(c.id)
}
