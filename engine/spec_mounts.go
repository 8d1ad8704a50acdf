package engine

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// addMounts gives a container the kernel's file systems, the pod's files, and
// the client's mounts, shallow ones first so that none hides another.
func addMounts(in *SpecInput, spec *specs.Spec) error {
	mounts := kernelMounts(in)
	for _, m := range podMounts(in) {
		if !mountedAt(in.Config.Mounts, m.Destination) {
			mounts = append(mounts, m)
		}
	}
	var wanted []specs.Mount
	for _, m := range in.Config.Mounts {
		mount, err := clientMount(in, m)
		if err != nil {
			return err
		}
		mounts = slices.DeleteFunc(mounts, func(old specs.Mount) bool { return old.Destination == mount.Destination })
		wanted = append(wanted, mount)
	}
	slices.SortStableFunc(wanted, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	spec.Mounts = append(mounts, wanted...)
	return nil
}

func depth(path string) int { return strings.Count(filepath.Clean(path), "/") }

func mountedAt(mounts []Mount, path string) bool {
	return slices.ContainsFunc(mounts, func(m Mount) bool { return filepath.Clean(m.ContainerPath) == path })
}

// kernelMounts are the file systems that programs expect of a Linux system.
func kernelMounts(in *SpecInput) []specs.Mount {
	access := "ro"
	if in.Config.Security.Privileged {
		access = "rw"
	}
	sysfs := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
	if in.Pod.Namespaces.User != nil && in.Pod.Namespaces.Network == ModeHost {
		// A sysfs shows a network namespace, and the host's is not the user namespace's own.
		sysfs = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", access}}
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sysfs,
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
}

// podMounts are what the containers of a pod share.
func podMounts(in *SpecInput) []specs.Mount {
	shm := specs.Mount{Destination: "/dev/shm", Type: "bind", Source: filepath.Join(in.PodDir, "shm"), Options: []string{"rbind", "nosuid", "nodev", "noexec", "rw"}}
	if in.Pod.Namespaces.IPC == ModeHost {
		shm.Source = "/dev/shm"
	}
	access := "rw"
	if in.Config.Security.ReadOnlyRootfs {
		access = "ro"
	}
	bind := func(to, name string) specs.Mount {
		return specs.Mount{Destination: to, Type: "bind", Source: filepath.Join(in.PodDir, name), Options: []string{"rbind", "rprivate", access}}
	}
	return []specs.Mount{shm, bind("/etc/hostname", hostnameFile), bind("/etc/hosts", hostsFile), bind("/etc/resolv.conf", resolvFile)}
}

// allowedMountOptions are those a client may add (KEP-5855).
var allowedMountOptions = []string{"noexec", "nodev", "nosuid"}

func clientMount(in *SpecInput, m Mount) (specs.Mount, error) {
	if !filepath.IsAbs(m.ContainerPath) {
		return specs.Mount{}, fmt.Errorf("%w: mount path %q is not absolute", ErrInvalid, m.ContainerPath)
	}
	out := specs.Mount{Destination: filepath.Clean(m.ContainerPath), Type: "bind", Source: m.HostPath, Options: []string{"rbind"}}
	if dirs, ok := in.ImageMounts[m.ContainerPath]; ok {
		// An image is mounted as it is; propagation and write access mean nothing.
		return imageMount(out.Destination, dirs, m.Options, in.Pod.Namespaces.User)
	}
	switch m.Propagation {
	case "":
		out.Options = append(out.Options, "rprivate")
	case "rslave", "rshared":
		out.Options = append(out.Options, m.Propagation)
	default:
		return specs.Mount{}, fmt.Errorf("%w: mount propagation %q", ErrInvalid, m.Propagation)
	}
	switch {
	case m.RecursiveReadOnly && (!m.ReadOnly || m.Propagation != ""):
		return specs.Mount{}, fmt.Errorf("%w: mount %s: recursive read-only needs a read-only, private mount", ErrInvalid, m.ContainerPath)
	case m.RecursiveReadOnly:
		out.Options = append(out.Options, "rro")
	case m.ReadOnly:
		out.Options = append(out.Options, "ro")
	default:
		out.Options = append(out.Options, "rw")
	}
	if err := checkMountOptions(m.ContainerPath, m.Options); err != nil {
		return specs.Mount{}, err
	}
	out.Options = append(out.Options, m.Options...)
	if in.Pod.OwnUsers && len(m.UIDs)+len(m.GIDs) == 0 {
		m.UIDs, m.GIDs = in.Pod.Namespaces.User.UIDs, in.Pod.Namespaces.User.GIDs
	}
	if len(m.UIDs)+len(m.GIDs) > 0 {
		out.UIDMappings, out.GIDMappings = specMap(m.UIDs), specMap(m.GIDs)
	}
	return out, nil
}

func checkMountOptions(path string, options []string) error {
	for _, o := range options {
		if !slices.Contains(allowedMountOptions, o) {
			return fmt.Errorf("%w: mount %s: option %q is not one of %q", ErrInvalid, path, o, allowedMountOptions)
		}
	}
	return nil
}

// imageMount shows the directories of an image, read-only.
func imageMount(to string, dirs, options []string, users *UserMap) (specs.Mount, error) {
	if err := checkMountOptions(to, options); err != nil {
		return specs.Mount{}, err
	}
	return specs.Mount{Destination: to, Type: "overlay", Source: "overlay",
		Options: slices.Concat([]string{"ro", "lowerdir=" + strings.Join(dirs, ":")}, layerOwners(users), options)}, nil
}
