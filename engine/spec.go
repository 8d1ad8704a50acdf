package engine

import (
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/generate"
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
	SandboxPid int    // of the pod's sandbox container, whose pid namespace is the pod's; 0 without
	Hostname   string // of the node

	HostCapabilities []string
	HostDevices      []specs.LinuxDevice // of a privileged container
	Devices          []specs.LinuxDevice // asked for, resolved on the host
	DeviceRules      []specs.LinuxDeviceCgroup
	ImageMounts      map[string][]string // container path -> directories of an image, topmost first
	ImageIDs         map[string]string   // container path -> id of the image mounted there
	Seccomp          *specs.LinuxSeccomp // of a localhost profile
	SeccompDefault   string
	AppArmorDefault  string // of containers that name no profile; "" if there is none
	SELinux          bool
	HostCgroupNS     bool
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
	if err == nil {
		err = checkAgainstPod(&in.Config, &in.Pod)
	}
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

// checkAgainstPod refuses what a container wants that its pod was not made for.
func checkAgainstPod(cfg *ContainerConfig, pod *PodConfig) error {
	sec, ns := &cfg.Security, &cfg.Security.Namespaces
	switch {
	case sec.Privileged && !pod.Privileged:
		return fmt.Errorf("%w: a privileged container in a pod that is not", ErrInvalid)
	case ns.Network == ModeHost && pod.Namespaces.Network != ModeHost:
		return fmt.Errorf("%w: the node's network namespace in a pod with one of its own", ErrInvalid)
	case ns.IPC == ModeHost && pod.Namespaces.IPC != ModeHost:
		return fmt.Errorf("%w: the node's IPC namespace in a pod with one of its own", ErrInvalid)
	case ns.PID == ModeHost && pod.Namespaces.PID != ModeHost:
		return fmt.Errorf("%w: the node's pid namespace in a pod without it", ErrInvalid)
	case ns.HostUsers && pod.Namespaces.User != nil:
		return fmt.Errorf("%w: the node's user namespace in a pod with one of its own", ErrInvalid)
	case ns.User != nil && !reflect.DeepEqual(ns.User, pod.Namespaces.User):
		return fmt.Errorf("%w: another user namespace than the pod's", ErrInvalid)
	case cfg.WorkingDir != "" && !filepath.IsAbs(cfg.WorkingDir):
		return fmt.Errorf("%w: working directory %q is not absolute", ErrInvalid, cfg.WorkingDir)
	case cfg.ImageHandler != "" && cfg.ImageHandler != pod.Handler:
		return fmt.Errorf("%w: an image for runtime handler %q in a pod of handler %q", ErrInvalid, cfg.ImageHandler, pod.Handler)
	}
	for _, m := range cfg.Mounts {
		if m.ImageHandler != "" && m.ImageHandler != pod.Handler {
			return fmt.Errorf("%w: mount %s: an image for runtime handler %q in a pod of handler %q", ErrInvalid, m.ContainerPath, m.ImageHandler, pod.Handler)
		}
	}
	return nil
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
	if cfg.WorkingDir != "" {
		return cfg.WorkingDir
	}
	return filepath.Join("/", img.WorkingDir)
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
	if !in.HostCgroupNS {
		add(specs.CgroupNamespace, "")
	}
	pid := ns.PID
	if pid == ModePod {
		pid = pod.PID // what the pod was made with counts
	}
	switch pid {
	case ModePod:
		path := pin("pid")
		if in.SandboxPid != 0 {
			path = fmt.Sprintf("/proc/%d/ns/pid", in.SandboxPid)
		}
		add(specs.PIDNamespace, path)
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
